"""Kill one of two workers of a study with SIGKILL, start a third, and compare the results.

    python -m tests.stress.sweeps --kills 30 --places journal sqlite postgresql

A place that this machine lacks is left out, with the reason. A kill and what follows take about 20
seconds on two CPU cores.
"""

import argparse
import contextlib
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxmnist.runs.study import open_study
from tests.helpers import SWEEP, finish

# Two programs of nine settings, of which three diverge.
GRID = ["learning_rate=0.01,0.02,0.05,0.1,0.2,0.5,1,2,1e38", "momentum=0,0.5"]
COMMAND = [sys.executable, str(SWEEP), "--grid", *GRID, "--seeds", "2", "--epochs", "2"]
COMMAND += ["--dataset", "synthetic", "--hidden", "8", "--batch-size", "1000"]


def main() -> None:
    """Print a row of a Markdown table for each place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--places", nargs="+", default=["journal", "sqlite", "postgresql"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    print("| study | kills | killed while it ran | claimed twice | equal to an undisturbed one |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="jaxmnist-") as name:
        root = Path(name)
        finish([*COMMAND, "--study", root / "warm-up.log"])  # fills the caches
        began = time.perf_counter()
        finish([*COMMAND, "--study", root / "expected.log"])
        seconds, expected = time.perf_counter() - began, results(f"{root}/expected.log")
        for place in options.places:
            with contextlib.ExitStack() as stack:
                url = stack.enter_context(postgresql()) if place == "postgresql" else ""
                if url is None:
                    print("postgresql is left out: initdb, pg_ctl or a user for it is missing")
                    continue
                killed = twice = 0
                for number in range(options.kills):
                    where = {
                        "journal": f"{root}/{number}.log",
                        "sqlite": f"sqlite:///{root}/{number}.db",
                        "postgresql": f"{url}#{number}",
                    }[place]
                    killed += kill_one(where, rng.uniform(0, 1.3 * seconds))
                    finish([*COMMAND, "--study", where])
                    twice += len(open_study(where).trials) - len(expected)
                    if results(where) != expected:
                        sys.exit(f"error: {where} ended differently")
                print(f"| {place} | {options.kills} | {killed} | {twice} | {options.kills} |")


def kill_one(where: str, seconds: float) -> bool:
    """Start two workers, kill one after a time, and wait for the other; was it still running?"""
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([*COMMAND, "--study", where], **quiet) for _ in range(2)]
    time.sleep(seconds)
    workers[0].kill()
    _, error = workers[1].communicate()
    if workers[1].returncode or error:
        sys.exit(f"error: the other worker of {where} ended with {error}")
    return workers[0].wait() == -signal.SIGKILL


def results(where: str) -> dict[str, tuple[str, float | None, str]]:
    """How the trial of each setting has ended; one that runs, or has results twice, is an error."""
    trials = open_study(where).trials
    assert all(trial.state.is_finished() for trial in trials), where
    whole = [trial for trial in trials if "seed 1" in trial.user_attrs]
    assert max(Counter(str(sorted(t.params.items())) for t in whole).values()) == 1, where
    attributes = [{k: v for k, v in t.user_attrs.items() if k[:4] == "seed"} for t in whole]
    return {
        str(sorted(t.params.items())): (t.state.name, t.value, json.dumps(a, sort_keys=True))
        for t, a in zip(whole, attributes, strict=True)
    }


@contextlib.contextmanager
def postgresql() -> Iterator[str | None]:
    """The URL of a server of one's own on this machine; None where there is no PostgreSQL."""
    user: int | None = None
    with contextlib.suppress(KeyError):  # it refuses to be run by root
        user = pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else os.geteuid()
    if user is None or not (shutil.which("initdb") and shutil.which("pg_ctl")):
        yield None
        return
    with socket.socket() as free, tempfile.TemporaryDirectory(prefix="jaxmnist-") as data:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        os.chown(data, user, -1)
        given: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "cwd": data}
        given |= {"user": user} if os.geteuid() == 0 else {}
        subprocess.run(["initdb", "-D", data, "-A", "trust", "-U", "sweep"], **given)
        free.close()
        address = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data}"
        control = ["pg_ctl", "-D", data, "-w", "-l", f"{data}/log"]
        subprocess.run([*control, "-o", address, "start"], **given)
        try:
            yield f"postgresql+psycopg://sweep@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "fast", "stop"], **given)


if __name__ == "__main__":
    main()
