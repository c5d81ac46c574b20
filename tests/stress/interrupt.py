"""Send Ctrl-C to the scripts at random moments: each must end in one line, with code 130."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import tqdm
import tyro

from tests.helpers import ROOT
from tests.stress.every_script import arguments, copy, environment, prepare, result

SCRIPTS = ("train", "sweep", "evaluate", "report", "robustness", "predict")
NOTICE = "stopping as soon as it is saved; "
LINE = re.compile(r"\S+\.py: error: (interrupted|stopped\b.*)")


class Outcome(NamedTuple):
    """What became of a script: "interrupted", "done before", or what was wrong."""

    what: str
    seconds: float
    detail: str = ""


def main(tries: int = 50, scripts: tuple[str, ...] = SCRIPTS, seed: int = 0, jobs: int = 2) -> None:
    """Send Ctrl-C, as a terminal does it to all processes, at random moments.

    Prints a Markdown table. A try takes about two seconds on two CPU cores.

    Args:
        tries: how often each script is interrupted.
        scripts: names of scripts, without .py.
        seed: makes the moments.
        jobs: how many scripts run at once.
    """
    # Or children ignore it, as those of a shell's background jobs do.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng, bad = random.Random(seed), 0
    print("| script | interrupted in one line, code 130 | done before | else |")
    print("| --- | --- | --- | --- |", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="jaxmnist-interrupt-") as name,
        ThreadPoolExecutor(jobs) as pool,
    ):
        root = Path(name)
        prepare(root)
        for script in scripts:
            attempt(script, root, root / f"{script}-first", None)  # fills the caches
            usual = attempt(script, root, root / script, None)
            if usual.what != "done before":
                sys.exit(f"error: {script} does not work by itself: {usual.detail}")
            moments = [rng.uniform(0.05, usual.seconds) for _ in range(tries)]

            def work(number: int, script: str = script, moments: list[float] = moments) -> Outcome:
                return attempt(script, root, root / f"{script}-{number}", moments[number])

            found = list(pool.map(work, range(tries)))
            counts = [sum(x.what == what for x in found) for what in ("interrupted", "done before")]
            others = [x for x in found if x.detail]
            bad += len(others)
            print(f"| {script} | {counts[0]} | {counts[1]} | {len(others)} |", flush=True)
            for x in others:
                tqdm.tqdm.write(f"{script} after {x.seconds:.2f} s: {x.detail}", file=sys.stderr)
    if bad:
        sys.exit(f"error: {bad} ended otherwise")


def attempt(script: str, prepared: Path, place: Path, moment: float | None) -> Outcome:
    """Start a script, interrupt it after so many seconds, if any, and see how it ends."""
    copy(prepared, place)
    path = ROOT / "scripts" / f"{script}.py"
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, str(path), *arguments(script, place)],
        env=os.environ | environment(prepared),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            _, stderr = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
            _, stderr = process.communicate()
    seconds = time.perf_counter() - began if moment is None else moment
    lines = [line for line in stderr.splitlines() if not line.startswith(NOTICE)]
    if process.returncode == 130 and len(lines) == 1 and LINE.match(lines[0]):
        return Outcome("interrupted", seconds)
    product = result(script, place)
    if process.returncode == 0 and not lines and (not product or product.exists()):
        return Outcome("done before", seconds)
    return Outcome("wrong", seconds, f"code {process.returncode}, {stderr[-2000:]!r}")


if __name__ == "__main__":
    tyro.cli(main)
