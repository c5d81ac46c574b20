"""Start every script under unusual streams, interpreters, homes and paths.

Each must do its work or end in one line.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import tqdm
import tyro

from tests.helpers import ROOT
from tests.stress.every_script import SCRIPTS, arguments, copy, environment, prepare, result

# What root starts with setpriv(1), since root may look into every home: without those rights, or as
# a user whom the system does not know, who may only read everything, this Python's files too.
NO_RIGHTS = "setpriv --bounding-set=-dac_override,-dac_read_search"
STRANGER = 54_321
NO_USER = (
    f"setpriv --reuid={STRANGER} --regid={STRANGER} --clear-groups"
    " --inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
)
# What a script may print on stderr though it works; a line about lost output goes with code 1 too.
REMARK = re.compile(r"Warning: |WARNING: |Note: |Downloading |Making |\S+\.py: error: ")
LINE = re.compile(r"\S+\.py: error: |Warning: the output is lost: ")


class Condition(NamedTuple):
    """How a script is started: shell redirections, interpreter, variables, directories."""

    redirect: str = ""
    python: str = "{path}"
    variables: dict[str, str] = {}  # noqa: RUF012  (never changed)
    home: str = ""  # how the home is: "absent", "read-only" or "closed"
    directory: str = "files"  # the name of the directory with the files
    elsewhere: bool = False  # whether it is started from there


CONDITIONS = {
    "as usual": Condition(),
    "stdout closed": Condition(">&-"),
    "stderr closed": Condition("2>&-"),
    "both closed": Condition(">&- 2>&-"),
    "stdout full": Condition("> /dev/full"),
    "stderr full": Condition("2> /dev/full"),
    "ASCII": Condition(variables={"PYTHONIOENCODING": "ascii"}),
    "POSIX locale": Condition(
        variables={"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ),
    "python -P": Condition(python="-P {path}"),
    "python -I": Condition(python="-I {path}"),
    "python -m": Condition(python="-m scripts.{name}"),
    "no HOME": Condition(home="absent"),
    "read-only HOME": Condition(home="read-only"),
    "closed HOME": Condition(home="closed"),
    "another directory": Condition(elsewhere=True),
    "space in a path": Condition(directory="a b"),
    "newline in a path": Condition(directory="a\nb"),
    "emoji in a path": Condition(directory="a😀b"),
    "percent in a path": Condition(directory="a%sb%20{x}"),
}


def main(
    scripts: tuple[str, ...] = tuple(SCRIPTS),
    conditions: tuple[str, ...] = tuple(CONDITIONS),
    jobs: int = 2,
) -> None:
    """Start every script under every condition; each must do its work or end in one line.

    Prints a Markdown table. For the conditions about HOME root gives up its rights. A start takes
    about three seconds on two CPU cores.

    Args:
        scripts: names of scripts, without .py.
        conditions: names of conditions, as the table has them.
        jobs: how many scripts run at once.
    """
    cases = [(condition, script) for condition in conditions for script in scripts]
    with (
        tempfile.TemporaryDirectory(prefix="jaxmnist-matrix-") as name,
        ThreadPoolExecutor(jobs) as pool,
    ):
        root = Path(name)
        root.chmod(0o755)
        prepare(root)

        def work(number: int) -> str:
            outcome = attempt(*cases[number], root, root / f"case-{number}")
            tqdm.tqdm.write(f"{': '.join(cases[number])}: {outcome}", file=sys.stderr)
            return outcome

        found = dict(zip(cases, pool.map(work, range(len(cases))), strict=True))
    print(f"| condition | {' | '.join(scripts)} |")
    print("| --- |" + " --- |" * len(scripts))
    for condition in conditions:
        cells = [found[condition, script].partition(":")[0] for script in scripts]
        print(f"| {condition} | {' | '.join(cells)} |")
    print()
    for (condition, script), outcome in found.items():
        if ":" in outcome:
            print(f"- {script}, {condition}: {outcome}")
    if bad := [case for case, outcome in found.items() if outcome.startswith("FAILED")]:
        sys.exit(f"error: {len(bad)} of {len(cases)} neither did their work nor ended in one line")


def attempt(condition: str, script: str, prepared: Path, case: Path) -> str:
    """Start a script so: "done", "one line: ..." or "FAILED: ..."."""
    how = CONDITIONS[condition]
    case.mkdir()
    case.chmod(0o755)
    place = case / how.directory
    copy(prepared, place)
    variables = dict(os.environ) | environment(prepared) | how.variables
    python = how.python.format(
        path=shlex.quote(str(ROOT / "scripts" / f"{script}.py")), name=script
    )
    command = f"{sys.executable} {python} {shlex.join(arguments(script, place))} {how.redirect}"
    if how.home:
        command = f"{home(how.home, case, place, variables)} {command}"
    done = subprocess.run(
        ["sh", "-c", f"exec {command}"],
        cwd=place if how.elsewhere else ROOT,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    product = result(script, place)
    there = product.exists() if product else done.stdout or how.redirect[:1] == ">"
    return judge(done.returncode, done.stderr, bool(there), "2>" in how.redirect)


def home(kind: str, case: Path, place: Path, variables: dict[str, str]) -> str:
    """Make such a home, and let caches depend on it alone; what the command begins with."""
    for name in ("JAXMNIST_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        variables.pop(name, None)
    if kind != "absent":
        directory = case / "home"
        directory.mkdir()
        directory.chmod(0o555 if kind == "read-only" else 0o000)
        variables["HOME"] = str(directory)
    if os.getuid():
        return ""
    if kind == "absent":
        for path in (place, *place.rglob("*")):
            os.chown(path, STRANGER, STRANGER)
    return NO_USER if kind == "absent" else NO_RIGHTS


def judge(code: int, stderr: str, result_is_there: bool, unseen: bool) -> str:
    """What became of a script, by its exit code and what it left; `unseen` is a lost stderr."""
    lines = stderr.splitlines()
    if code == 0 and result_is_there and all(map(REMARK.match, lines)):
        return "done"
    if code in (1, 2) and (unseen or (len(lines) == 1 and LINE.match(lines[0]))):
        return "one line: " + (lines[0] if lines else "(not to be seen)")
    return f"FAILED: code {code}, {'a' if result_is_there else 'no'} result; {stderr[-2000:]!r}"


if __name__ == "__main__":
    tyro.cli(main)
