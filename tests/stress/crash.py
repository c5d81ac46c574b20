"""Kill training runs with SIGKILL, resume each, and compare the ends, bit for bit.

Some runs are killed at random moments, some while they write a checkpoint: in the middle of it, and
between any two of its system calls.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import tqdm

from tests import command_line
from tests.helpers import TRAIN, ending, epoch_lines, finish
from tests.stress.injection import Fault, child_environment, injected, run_train

OPTIONS = (
    "--epochs 3 --momentum 0.9 --checkpoint-unit steps --checkpoint-every 200 --resume --keep 1"
)
CHILD = "from tests.stress.crash import run_until_killed; run_until_killed()"
# A call that writing a checkpoint makes, before which the process dies (or half-way in a `write`),
# and the file: fsync is of the file and of its directory, unlink of the checkpoints too old.
CALLS = [
    ("write", "*/checkpoint-*"),
    ("os.fsync", "*/checkpoint-*"),
    ("os.replace", "*/checkpoint-*"),
    ("os.fsync", "*[!p]"),
    ("os.unlink", "*/checkpoint-*"),
]


def main(
    random_kills: int = 200,
    writing_kills: int = 50,
    seed: int = 0,
    dataset: Literal["auto", "mnist", "synthetic"] = "auto",
) -> None:
    """Kill training runs with SIGKILL, resume each, and compare the ends, bit for bit.

    Prints a Markdown table. A kill and what follows take about six seconds on two CPU cores.

    Args:
        random_kills: how many runs are killed at random moments.
        writing_kills: how many are killed while they write a checkpoint.
        seed: makes the moments.
        dataset: what to train on, as in scripts/train.py.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="jaxmnist-crash-") as name:
        root = Path(name)

        def options(out: str) -> list[str]:
            return [*OPTIONS.split(), "--dataset", dataset, "--out", str(root / out)]

        train = [sys.executable, str(TRAIN)]
        finish([*train, *options("warm-up")])  # fills the caches, so that the next one is timed
        started = time.perf_counter()
        printed = finish([*train, *options("expected")])
        seconds = time.perf_counter() - started
        expected = ending(root / "expected"), epoch_lines(printed)

        kinds = ["at a random moment"] * random_kills + ["writing a checkpoint"] * writing_kills
        killed = dict.fromkeys(kinds, 0)
        for number, kind in enumerate(tqdm.tqdm(kinds, unit="run", leave=False, disable=None)):
            out = f"run-{number}"
            if kind == "writing a checkpoint":
                code = kill_in_call(number % len(CALLS), rng.randint(0, 9), options(out))
            else:
                code = kill_after([*train, *options(out)], rng.uniform(0, seconds))
            killed[kind] += code == -signal.SIGKILL
            printed = finish([*train, *options(out)])
            if (ending(root / out), epoch_lines(printed)) != expected:
                sys.exit(f"error: run {number}, killed {kind}, ended differently")
    print("| killed with SIGKILL | runs | still running then | bit-equal at the end |")
    print("| --- | --- | --- | --- |")
    for kind, running in killed.items():
        total = kinds.count(kind)
        print(f"| {kind} | {total} | {running} | {total} |")


def kill_after(command: list[str], seconds: float) -> int:
    """Start a program and kill it after a time; its exit code, -9 if it was still running."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        time.sleep(seconds)
        process.kill()
        return process.wait()


def kill_in_call(call: int, skip: int, options: list[str]) -> int:
    """Let a run die in a call of `CALLS` after so many that went well, or fewer: where the disk is
    slow, fewer checkpoints are written. Its exit code."""
    while True:
        child = [sys.executable, "-c", CHILD, str(call), str(skip), *options]
        done = subprocess.run(child, env=child_environment(), capture_output=True)
        if done.returncode == -signal.SIGKILL or skip == 0:
            return done.returncode
        skip //= 2
        shutil.rmtree(options[-1])


def run_until_killed() -> None:
    """In the child: run scripts/train.py and die in a call of `CALLS`, at its n-th time."""
    call, skip, *options = sys.argv[1:]
    name, path = CALLS[int(call)]
    with injected(Fault(name, path, lambda _: os.kill(os.getpid(), signal.SIGKILL), int(skip))):
        run_train(options)


if __name__ == "__main__":
    command_line.run(main)
