"""Kill training runs with SIGKILL, resume each, and compare the ends, bit for bit.

`python -m tests.stress.crash [RANDOM]`: runs are killed at so many random moments, by default 200,
and before each call that a run makes to the file system of its directory. Prints a Markdown table.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.helpers import ROOT, ending, epoch_lines

OPTIONS = "--dataset synthetic --batch-size 100 --epochs 3 --momentum 0.9 --resume --out"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}


def command(out: Path, what: object = "kill", n: int = 0) -> list[str]:
    """What runs until the n-th call that it makes to the file system of `out`; 0: to its end."""
    words = [what, n, *OPTIONS.split(), out]
    return [sys.executable, "-m", "tests.stress.injection", *map(str, words)]


def finish(out: Path) -> tuple[object, list[str], int]:
    """Run it, or go on, to the end: what it ends in, its epochs' lines, the number of its calls."""
    done = subprocess.run(command(out), env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode or done.stderr:
        sys.exit(f"error: {out}: {done.stderr}")
    return ending(out), epoch_lines(done.stdout), int(out.with_name("calls").read_text())


def kill_after(out: Path, seconds: float) -> int:
    """Start it and kill it after a time; its exit code, -9 if it was still running."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command(out), env=ENVIRONMENT, stdout=quiet, stderr=quiet) as process:
        time.sleep(seconds)
        process.kill()
        return process.wait()


def main(kills: int = 200) -> None:
    """Kill and resume, and print what became of it."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="jaxmnist-crash-") as name:
        root = Path(name)
        finish(root / "warm-up")  # fills the cache of programs, so that the next one is timed
        began = time.perf_counter()
        *expected, calls = finish(root / "expected")
        seconds = time.perf_counter() - began
        print("| killed with SIGKILL | runs | still running then | bit-equal at the end |")
        print("| --- | --- | --- | --- |")
        for kind, count in (("at a random moment", kills), ("before a call", calls)):
            running = 0
            for k in range(count):
                out = root / f"{kind} {k}"
                if kind == "before a call":
                    code = subprocess.call(command(out, "kill", k + 1), env=ENVIRONMENT)
                else:
                    code = kill_after(out, rng.uniform(0, seconds))
                running += code == -signal.SIGKILL
                if list(finish(out)[:2]) != expected:
                    sys.exit(f"error: run {k}, killed {kind}, ended differently")
            print(f"| {kind} | {count} | {running} | {count} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
