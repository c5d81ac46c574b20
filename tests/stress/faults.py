"""Let everything fail that a run writes, and the places around it: one line or the work.

`python -m tests.stress.faults [EVERY]`: each fault is done to a run of its own, which must end with
a line that names the file, or go on. Then the cause is removed, and the same command must end as an
undisturbed run, bit for bit. EVERY 2 leaves out every second fault. Prints a Markdown table.
"""

import resource
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from errno import EACCES, EIO, EMFILE, ENOSPC, EROFS, errorcode
from functools import partial
from pathlib import Path
from typing import Any

from tests.stress.crash import ENVIRONMENT, command, finish

CODES = (ENOSPC, EACCES, EROFS, EIO, EMFILE)
SIZES = (0, 1000, 10_000, 100_000, 439_000)  # of a log, of weights, of a checkpoint
SHELLS = {
    "stdout closed": "{} >&-",
    "stderr closed": "{} 2>&-",
    "stdin closed": "{} <&-",
    "all closed": "{} <&- >&- 2>&-",
    "stdout full": "{} > /dev/full",
    "stderr full": "{} 2> /dev/full",
    "reader gone": "{} | true; exit 1",
}
PLACES = {
    "no HOME": {"HOME": "/nonexistent", "JAXMNIST_CACHE_DIR": ""},
    "a cache that cannot be made": {"JAXMNIST_CACHE_DIR": "/dev/null/cache"},
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252:strict"},
    "POSIX": {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "no TMPDIR": {"TMPDIR": "/nonexistent"},
}


def limit(size: int) -> None:
    """No file of this process can grow above so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def faults(root: Path, calls: int) -> Iterator[tuple[str, Path, Any, dict[str, Any]]]:
    """The name of each fault, a directory, the command and what else it is started with."""

    def place(name: str) -> Path:
        return root / name.replace("/", " ")

    for n in range(1, calls + 1):
        code = CODES[n % len(CODES)]
        name = f"{errorcode[code]} in call {n}"
        yield name, place(name), command(place(name), code, n), {}
    for n in range(8, calls, 6):
        name = f"directory removed before call {n}"
        yield name, place(name), command(place(name), "remove", n), {}
    for size in SIZES:
        name = f"no file above {size} bytes"
        yield name, place(name), command(place(name)), {"preexec_fn": partial(limit, size)}
    for name, line in SHELLS.items():
        yield name, place(name), line.format(shlex.join(command(place(name)))), {"shell": True}
    for name, variables in PLACES.items():
        out = place(f"{name} Zoë ✓" if name != "POSIX" else name)
        yield name, out, command(out), {"env": ENVIRONMENT | variables}


def judge(out: Path, done: subprocess.CompletedProcess) -> str:
    """How a run has ended: "done", "one line", or what is wrong with it."""
    *notes, last = done.stderr.splitlines() or [""]
    if done.returncode == 0 and all(line.startswith("Warning: ") for line in filter(None, notes)):
        return "done" if not last or last.startswith("Warning: ") else f"WRONG: {last}"
    one_line = last.startswith("injection.py: error: ") or last.startswith("train.py: error: ")
    if done.returncode == 1 and (not done.stderr or (one_line and str(out) in last)):
        return "one line"
    return f"WRONG: code {done.returncode}, {done.stderr[-300:]!r}"


def main(every: int = 1) -> None:
    """Do all faults, and print what became of them."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="jaxmnist-faults-") as name:
        root = Path(name)
        *expected, calls = finish(root / "expected")
        print("| fault | the run | then |\n| --- | --- | --- |")
        for what, out, words, more in list(faults(root, calls))[::every]:
            options = {"env": ENVIRONMENT, "capture_output": True, "text": True} | more
            said = judge(out, subprocess.run(words, **options))
            same = list(finish(out)[:2]) == expected
            failed += said.startswith("WRONG") or not same
            print(f"| {what} | {said} | {'bit-equal' if same else 'DIFFERS'} |", flush=True)
    sys.exit(f"{failed} failed" if failed else 0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
