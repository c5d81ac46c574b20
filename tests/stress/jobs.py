"""End one process of a job in every way: each process must end with its own code and one line."""

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
import tyro

from tests.helpers import TRAIN

TIMEOUT = 10  # seconds after which a process that is stopped is given up, the least there is
NOTICE = "stopping as soon as it is saved; "
WAYS: dict[str, signal.Signals | None] = {
    "killed (SIGKILL)": signal.SIGKILL,
    "stopped (SIGSTOP)": signal.SIGSTOP,
    "terminated (SIGTERM)": signal.SIGTERM,
    "interrupted (SIGINT)": signal.SIGINT,
    "started with other options": None,
}
Results = list[tuple[int, list[str]]]  # the exit code and the lines on stderr of each process


def main(
    tries: int = 8, seed: int = 0, dataset: Literal["auto", "mnist", "synthetic"] = "auto"
) -> None:
    """End one of two processes at random moments, with and without --out.

    Prints a Markdown table. A try takes about ten seconds on two CPU cores.

    Args:
        tries: how often one is ended in each way.
        seed: makes the moments, and which process it is.
        dataset: what to train on, as in scripts/train.py.
    """
    # Or children ignore it, as those of a shell's background jobs do.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng, bad = random.Random(seed), 0
    with tempfile.TemporaryDirectory(prefix="jaxmnist-jobs-") as name:
        began = time.perf_counter()
        results = attempt(Path(name, "usual"), dataset, None, 0, None)
        whole = time.perf_counter() - began
        if results != [(0, []), (0, [])]:
            sys.exit(f"error: the job does not work by itself: {results}")
        print("| one of two processes is | tries | as it should | done before |")
        print("| --- | --- | --- | --- |", flush=True)
        for way, number in WAYS.items():
            found: list[str] = []
            for n in tqdm.trange(tries, unit="job", leave=False, disable=None):
                out = Path(name, f"{way}-{n}") if n % 2 else None
                victim, moment = rng.randrange(2), rng.uniform(0.1, whole)
                results = attempt(out, dataset, number, victim, moment)
                found.append(judge(number, victim, results))
                if found[-1] == "wrong":
                    tqdm.tqdm.write(f"{victim} {way}, {moment:.2f} s: {results}", file=sys.stderr)
            right, early = found.count("right"), found.count("done before")
            bad += tries - right - early
            print(f"| {way} | {tries} | {right} | {early} |", flush=True)
    if bad:
        sys.exit(f"error: {bad} ended otherwise")


def attempt(
    out: Path | None, dataset: str, number: int | None, victim: int, moment: float | None
) -> Results:
    """Run a job; after so many seconds its victim gets the signal, or it has another seed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, str(TRAIN), "--dataset", dataset, "--batch-size", "3000"]
    command += ["--epochs", "20", "--distributed", "--coordinator", address, "--processes", "2"]
    command += ["--timeout", str(TIMEOUT), *(["--out", str(out)] if out else [])]
    processes = [
        subprocess.Popen(
            [*command, "--process-id", str(n), "--seed", str(int(other and n == victim))],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for other in [moment is not None and number is None]
        for n in (0, 1)
    ]
    if moment is not None and number is not None:
        time.sleep(moment)
        processes[victim].send_signal(number)
    if number == signal.SIGSTOP:
        processes[1 - victim].wait()
        processes[victim].send_signal(signal.SIGCONT)
    texts = [process.communicate()[1] for process in processes]
    lines = [[line for line in text.splitlines() if NOTICE not in line] for text in texts]
    return [(process.returncode, own) for process, own in zip(processes, lines, strict=True)]


def judge(number: int | None, victim: int, results: Results) -> str:
    """Whether the job ended "right", was "done before", or something is "wrong"."""
    codes = [code for code, _ in results]
    if results == [(0, []), (0, [])]:
        return "done before" if number else "wrong"
    for code, lines in results:
        if len(lines) != (code > 0) or not all(": error: " in line for line in lines):
            return "wrong"
    own, other = codes[victim], codes[1 - victim]
    if number is None:
        return "right" if codes == [2, 2] else "wrong"
    if number == signal.SIGKILL:
        return "right" if own == -number and other == 1 else "wrong"
    if number == signal.SIGSTOP:
        return "right" if codes == [1, 1] else "wrong"
    # Saved and stopped together; or it was not yet a job, and the other one waits in vain.
    alone = own in (128 + number, -number) and other == 1
    return "right" if codes == [128 + number] * 2 or alone else "wrong"


if __name__ == "__main__":
    tyro.cli(main)
