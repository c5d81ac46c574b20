"""Kill sweeps with SIGKILL, resume each, and compare their results, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import tqdm

from tests import command_line
from tests.helpers import SWEEP, finish

# Two programs of six models, of which two diverge.
OPTIONS = "--epochs 2 --batch-size 500 --grid learning_rate=0.03,0.1,1e38 hidden=16;8 --seeds 2"


def main(
    alone: int = 30,
    two: int = 10,
    four: int = 10,
    seed: int = 0,
    dataset: Literal["auto", "mnist", "synthetic"] = "auto",
) -> None:
    """Kill sweeps with SIGKILL at random moments, resume each, and compare their results.

    Prints a Markdown table. A kill and what follows take about ten seconds on two CPU cores.

    Args:
        alone: how many sweeps of a single process are killed.
        two: of how many sweeps in two processes one is killed.
        four: of how many sweeps in four processes one is killed.
        seed: makes the moments.
        dataset: what to train on, as in scripts/train.py.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="jaxmnist-sweeps-") as name:
        root = Path(name)
        command = [sys.executable, str(SWEEP), *OPTIONS.split(), "--dataset", dataset]
        finish([*command, "--out", root / "warm-up.csv"])  # so that the next one can be timed
        started = time.perf_counter()
        finish([*command, "--out", root / "expected.csv"])
        seconds, expected = time.perf_counter() - started, (root / "expected.csv").read_bytes()
        kinds = [1] * alone + [2] * two + [4] * four
        killed, survived = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
        for number, processes in enumerate(
            tqdm.tqdm(kinds, unit="sweep", leave=False, disable=None)
        ):
            out = root / f"sweep-{number}.csv"
            again = [*command, "--out", str(out), "--resume"]
            codes = run_and_kill_one(again, processes, rng.uniform(0, seconds * processes**0.5))
            killed[processes] += -signal.SIGKILL in codes
            survived[processes] += codes[:-1].count(0)
            run_and_kill_one(again, processes, None)
            if out.read_bytes() != expected:
                sys.exit(f"error: sweep {number} in {processes} processes ended differently")
    print(
        "| processes | sweeps | killed as one ran | others that ended well | bit-equal at the end |"
    )
    print("| --- | --- | --- | --- | --- |")
    for processes in killed:
        total = kinds.count(processes)
        print(f"| {processes} | {total} | {killed[processes]} | {survived[processes]} | {total} |")


def run_and_kill_one(command: list[str], count: int, seconds: float | None) -> list[int]:
    """Run a sweep in so many processes, and kill the last after a time; their exit codes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    job = ["--distributed", "--coordinator", address, "--processes", str(count), "--process-id"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1" if count > 1 else "2"}
    processes = [
        subprocess.Popen(
            [*command, *([*job, str(i)] if count > 1 else [])],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for i in range(count)
    ]
    if seconds is not None:
        time.sleep(seconds)
        processes[-1].kill()
    return [process.wait() for process in processes]


if __name__ == "__main__":
    command_line.run(main)
