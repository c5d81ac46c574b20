"""Kill training runs with SIGKILL, resume each, and compare what they end in, bit for bit.

A table tells how many ended as the run that nobody disturbed. Some are killed at random moments,
some inside the writing of a checkpoint: before, in the middle of and after each of its parts.
"""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Literal

import _cli as cli

TRAIN = Path(__file__).with_name("train.py")
OPTIONS = "--epochs 3 --momentum 0.9 --checkpoint-unit steps --checkpoint-every 200 --resume"
# Runs scripts/train.py in a process that kills itself at the n-th call of a function that writing
# a checkpoint calls: before it, after it or, where that writes bytes, in the middle.
SUICIDE = """
import io, os, pathlib, runpy, sys
name, when, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.argv = sys.argv[4:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
def die(): os.kill(os.getpid(), 9)
def lethal(call):
    def wrapped(*args, **kwargs):
        global count
        mine = any("checkpoint" in str(x) for x in args) or name == "fsync"
        count -= mine
        if mine and count == 0 and when == "before": die()
        result = call(*args, **kwargs)
        if mine and count == 0 and when == "after": die()
        return result
    return wrapped
class Half:
    def __init__(self, file): self.file = file
    def __getattr__(self, name): return getattr(self.file, name)
    def __enter__(self): return self
    def __exit__(self, *error): return self.file.__exit__(*error)
    def write(self, content):
        global count
        count -= 1
        if count: return self.file.write(content)
        self.file.write(content[:len(content) // 2]); self.file.flush(); die()
if name == "write":
    opened = pathlib.Path.open
    def open_half(path, *args, **kwargs):
        file = opened(path, *args, **kwargs)
        return Half(file) if path.name.startswith("checkpoint") and "x" in str(args) else file
    pathlib.Path.open = open_half
else:
    setattr(os, name, lethal(getattr(os, name)))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
MOMENTS = [
    *(("write", "middle"), ("fsync", "before"), ("fsync", "after")),
    *(("replace", "before"), ("replace", "after"), ("unlink", "before"), ("unlink", "after")),
]


@dataclasses.dataclass(frozen=True)
class Config:
    """The options. A kill and what follows take about six seconds on two CPU cores."""

    random: int = 200
    """How many runs are killed at random moments."""
    writing: int = 50
    """How many are killed inside the writing of a checkpoint."""
    seed: int = 0
    """Makes the moments."""
    dataset: Literal["auto", "mnist", "synthetic"] = "auto"
    """What to train on, as in scripts/train.py."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.random < 0 or self.writing < 0:
            raise ValueError("--random and --writing must be at least 0")


def main(config: Config) -> None:
    """Run, kill, resume, compare."""
    import tqdm

    from jaxmnist import JaxmnistError

    rng = random.Random(config.seed)
    with tempfile.TemporaryDirectory(prefix="jaxmnist-crash-") as name:
        root = Path(name)
        options = [*OPTIONS.split(), "--dataset", config.dataset]
        finish([sys.executable, str(TRAIN), *options, "--out", str(root / "warm-up")])
        started = time.perf_counter()
        whole = finish([sys.executable, str(TRAIN), *options, "--out", str(root / "expected")])
        seconds, expected = time.perf_counter() - started, ending(root / "expected")
        killed: Counter[str] = Counter()
        kinds = ["at a random moment"] * config.random + ["writing a checkpoint"] * config.writing
        for number, kind in enumerate(tqdm.tqdm(kinds, unit="run", leave=False, disable=None)):
            out = root / str(number)
            command = [sys.executable, str(TRAIN), *options, "--out", str(out)]
            if kind == "writing a checkpoint":
                moment = MOMENTS[number % len(MOMENTS)]
                count = str(rng.randint(1, 10))
                first = [sys.executable, "-c", SUICIDE, *moment, count, *command[1:]]
                code = subprocess.run(first, capture_output=True).returncode
            else:
                code = kill_after(command, rng.uniform(0, seconds))
            killed[kind] += code == -9
            printed = finish(command)
            if ending(out) != expected or losses(printed) != losses(whole):
                raise JaxmnistError(f"run {number}, killed {kind}, ended otherwise")
    print("| killed with SIGKILL | runs | still running then | bit-equal at the end |")
    print("| --- | --- | --- | --- |")
    for kind in dict.fromkeys(kinds):
        total = kinds.count(kind)
        print(f"| {kind} | {total} | {killed[kind]} | {total} |")


def kill_after(command: list[str], seconds: float) -> int:
    """Start a program and kill it; its exit code, -9 if it was still running."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(seconds)
        process.kill()
        return process.wait()


def finish(command: list[str]) -> str:
    """Run a program to its end; what it printed."""
    from jaxmnist import JaxmnistError

    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise JaxmnistError(f"a run failed: {done.stderr.strip()}")
    return done.stdout


def ending(out: Path) -> tuple[bytes, str, dict[str, bytes]]:
    """What a run ends in: weights, metrics, and the whole state in the last checkpoint."""
    from safetensors.numpy import load_file

    state = load_file(max(out.glob("checkpoint-*.safetensors")))
    return (
        (out / "weights.safetensors").read_bytes(),
        (out / "metrics.jsonl").read_text() + (out / "steps.jsonl").read_text(),
        {name: array.tobytes() for name, array in state.items()},
    )


def losses(printed: str) -> list[str]:
    """The lines about epochs."""
    return [line for line in printed.splitlines() if line.startswith("Training loss: ")]


if __name__ == "__main__":
    cli.run(main, Config, __doc__)
