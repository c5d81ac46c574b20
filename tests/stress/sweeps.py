"""Kill one of two workers of a study with SIGKILL, start a third, and compare the results.

    python -m tests.stress.sweeps --kills 30 --places journal sqlite postgresql+psycopg://...

A kill and what follows take about 20 seconds on two CPU cores.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
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
    parser.add_argument("--places", nargs="+", default=["journal", "sqlite"])
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
            killed = twice = 0
            for number in range(options.kills):
                journal, sqlite = f"{root}/{number}.log", f"sqlite:///{root}/{number}.db"
                named = {"journal": journal, "sqlite": sqlite}
                where = named.get(place, f"{place}#{number}")
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


if __name__ == "__main__":
    main()
