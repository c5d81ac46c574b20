"""Time scripts/train.py beside programs that train the same in other libraries.

Each program is a process of its own, and they take turns: a ratio is of two programs that ran in
the same turn, so that a machine that is slow for a while slows down both.

Examples:
  scripts/benchmark.py --runs 7
  scripts/benchmark.py --growth --runs 3
"""

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import _cli as cli

# isort: split
import dataclasses
import importlib.util
import json
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import _options as o
from _output import markdown

Turn = dict[str, Any]  # a program's "whole" and "training" seconds, "loss", "accuracy"; "problem"
Result = dict[str, list[Turn]]  # by program


class Program(NamedTuple):
    """A program to time. It prints its result as a line of JSON, or as scripts/train.py does."""

    label: str
    path: Path
    needs: str = "jax"  # a package


def peer(label: str, name: str, needs: str = "jax") -> Program:
    """A program in scripts/peers/."""
    return Program(label, Path(HERE, "peers", f"{name}.py"), needs)


PROGRAMS = {
    "ours": Program("jaxmnist", Path(HERE, "train.py")),
    "first": Program("jaxmnist, first start, empty cache", Path(HERE, "train.py")),
    "numpy": peer("NumPy by hand, OpenBLAS", "numpy_openblas"),
    "linen": peer("Flax Linen, a step per batch", "flax_linen"),
    "nnx": peer("Flax NNX, a step per batch", "flax_nnx"),
    "equinox": peer("Equinox, a step per batch", "equinox_optax", "equinox"),
    "torch": peer("PyTorch, data in memory", "torch_memory", "torch"),
    "compiled": peer("PyTorch, torch.compile", "torch_compile", "torch"),
    "notebook": peer("PyTorch as in the notebook", "torch_notebook", "torch"),
}
GROWING = {"ours": peer("jaxmnist", "ours")} | {
    n: PROGRAMS[n] for n in ("compiled", "linen", "numpy")
}
# What every seed of this training ends in: the mean loss of the fifth epoch, the test accuracy.
EXPECTED = {"loss": (0.37, 0.41), "accuracy": (0.885, 0.915)}
# What a program finds of the environment: no number of threads, no flags of XLA, JAX or PyTorch.
KEPT = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


# The notebook's training but for one thing, for `--growth`.
GROWTH: list[dict[str, Any]] = [{"batch": size} for size in (16, 64, 256, 1024, 4096)]
GROWTH += [{"hidden": (width, width)} for width in (64, 256, 1024, 4096)]
GROWTH += [{"models": count} for count in (4, 16, 64)]


@dataclasses.dataclass(frozen=True)
class Options:
    """The options. All programs take about two minutes a turn on two CPU cores."""

    runs: int = cli.option(7, "How many turns are timed.", o.at_least(1))
    only: tuple[str, ...] = cli.option(
        (),
        f"Only these programs: {', '.join(PROGRAMS)}.",
        lambda name: None if name in PROGRAMS else " or ".join(PROGRAMS),
        metavar="NAME",
    )
    growth: bool = cli.option(
        False, "Show how the time of an image grows with the batch, the width and the models."
    )
    device: Literal["auto", "cpu"] = cli.option("auto", "Where to train.")
    out: Path = cli.option(
        Path("runs/benchmark"),
        "Directory for the figures and a chart.",
        o.local_path,
        metavar="DIR",
    )


def main(options: Options) -> None:
    """Measure in turns, show, write."""
    import tqdm

    from jaxmnist.plots import save_figure

    bench = Bench(options.out / "work", options.device)
    bench.prepare()
    jobs: dict[str, tuple[Program, Turn]] = {
        name: (program, {})
        for name, program in PROGRAMS.items()
        if name in (options.only or PROGRAMS)
    }
    if options.growth:
        jobs = {
            f"{point(changes)}, {name}": (
                program,
                changes | {"epochs": 1, "images": images(changes)},
            )
            for changes in GROWTH
            for name, program in GROWING.items()
        }
    jobs = {name: job for name, job in jobs.items() if importlib.util.find_spec(job[0].needs)}
    result: Result = {name: [] for name in jobs}
    file = options.out / ("growth.json" if options.growth else "programs.json")
    for turn in tqdm.trange(options.runs + 1, unit="turn", leave=False, disable=None):
        for name, (program, changes) in jobs.items():
            found = bench.run(program, changes, first=name == "first")
            if turn:  # the first one warms up
                result[name].append(found)
        file.write_text(json.dumps({"machine": machine(), "turns": result}, indent=1))
    shutil.rmtree(bench.directory)
    print(f"{machine()}\n\n{growth_table(result) if options.growth else table(result)}\n")
    print(f"Median (smallest to largest) of {options.runs} turns; ratios within a turn.")
    print("\n".join(notes(result)))
    if not options.growth:
        save_figure(chart(result), options.out / "programs.png")
    print(f"Wrote {options.out}")


class Bench:
    """Where the programs run: their directory, data and environment."""

    def __init__(self, directory: Path, device: str) -> None:
        self.directory, self.device = directory.absolute(), device
        self.environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.environment["TORCHINDUCTOR_CACHE_DIR"] = str(self.directory / "inductor")
        self.environment |= {"JAX_PLATFORMS": "cpu"} if device == "cpu" else {}

    def prepare(self) -> None:
        """Write MNIST where the peers read it, and into the caches that ours start from."""
        import numpy as np

        from jaxmnist import load_mnist
        from jaxmnist.datasets.cache import cache_dir

        shutil.rmtree(self.directory, ignore_errors=True)
        (self.directory / "data").mkdir(parents=True)
        train, test = (tuple(map(np.asarray, part)) for part in load_mnist())
        np.savez(
            self.directory / "mnist.npz",
            images=train[0].reshape(-1, 784),
            labels=train[1],
            test_images=test[0].reshape(-1, 784),
            test_labels=test[1],
        )
        for path in cache_dir().glob("mnist*"):
            shutil.copy(path, self.directory / "data")

    def run(self, program: Program, changes: Turn, *, first: bool = False) -> Turn:
        """Run a program once, in a new cache if it is to be its first start."""
        ours = program.path.name == "train.py"
        cache = self.directory / ("first" if first else "warm")
        if first:
            shutil.rmtree(cache, ignore_errors=True)
        if not cache.exists():
            shutil.copytree(self.directory / "data", cache)
        arguments = (
            ["--device", self.device] if ours else [self.directory / "mnist.npz", self.device]
        )
        arguments += [json.dumps(changes)] if changes else []
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, program.path, *map(str, arguments)],
            env=self.environment | {"JAXMNIST_CACHE_DIR": str(cache)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        whole = time.perf_counter() - start
        if done.returncode:
            return {
                "problem": (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
            }
        return {"whole": whole, **read(done.stdout), "changes": changes}


def read(stdout: str) -> Turn:
    """What a program reports of its training, in JSON or in the words of scripts/train.py."""
    last = stdout.splitlines()[-1] if stdout else ""
    if last.startswith("{"):
        return json.loads(last)
    seconds = re.search(r"train ([\d.]+) s", stdout)
    epochs = re.findall(r"Training loss: ([\d.]+).*accuracy: ([\d.]+)%", stdout)
    if not seconds or not epochs:
        return {"problem": f"it printed no result: {last}"}
    loss, percent = map(float, epochs[-1])
    return {"training": float(seconds[1]), "loss": loss, "accuracy": percent / 100}


def values(turns: Sequence[Turn], key: str, ours: Sequence[Turn] | None = None) -> list[float]:
    """What the turns gave or, with ours, its ratios within each turn."""
    if ours is None:
        return [turn[key] for turn in turns if key in turn]
    return [a[key] / b[key] for a, b in zip(turns, ours, strict=True) if key in a and key in b]


def spread(numbers: Sequence[float]) -> str:
    """Median, smallest and largest."""
    if not numbers:
        return ""
    return f"{statistics.median(numbers):.2f} ({min(numbers):.2f} to {max(numbers):.2f})"


def table(result: Result) -> str:
    """A row for each program."""
    header = ["program", "whole process, s", "to ours", "training, s", "to ours", "images/s"]
    rows, marked = [header], {note.partition(":")[0] for note in notes(result)}
    for name, turns in result.items():
        cells = [PROGRAMS[name].label + (" [!]" if f"[!] {name}" in marked else "")]
        for key in ("whole", "training"):
            cells += [
                spread(values(turns, key)),
                spread(values(turns, key, result.get("ours", turns))),
            ]
        training = values(turns, "training")
        rows.append([*cells, f"{300_000 / statistics.median(training):,.0f}" if training else ""])
    return markdown(rows)


def notes(result: Result) -> list[str]:
    """Which programs failed, or ended at a loss or an accuracy that this training does not have."""
    found = {}
    for name, turns in result.items():
        for turn in turns:
            expected = EXPECTED if not turn.get("changes") else {}
            off = [
                k for k, (low, high) in expected.items() if k in turn and not low <= turn[k] <= high
            ]
            if "problem" in turn or off:
                said = [f"its {key} is {turn[key]:.4f}" for key in off]
                found[name] = f"[!] {name}: {turn.get('problem') or ', '.join(said)}"
    return list(found.values())


def point(changes: Mapping[str, Any]) -> str:
    """What is changed, in words."""
    [(name, value)] = changes.items()
    return {"batch": "batch of {}", "models": "{} models", "hidden": "width {}"}[name].format(
        f"{value[0] if name == 'hidden' else value:,}"
    )


def images(changes: Mapping[str, Any]) -> int:
    """How many images make about a second of work: at least 8 batches, at most an epoch."""
    (a, b), size = changes.get("hidden", (128, 64)), changes.get("batch", 64)
    flops = 6 * (784 * a + a * b + b * 10) * size * changes.get("models", 1)
    work = 6e12 if shutil.which("nvidia-smi") else 6e10
    return size * min(60_000 // size, max(8, int(work / flops)))


def growth_table(result: Result) -> str:
    """A row for each point: the time of one image and one model, and the others' ratios to it."""
    rows = [["", "µs an image", *(program.label for program in list(GROWING.values())[1:])]]
    for changes in GROWTH:
        turns = {name: result.get(f"{point(changes)}, {name}", []) for name in GROWING}
        count = images(changes) * changes.get("models", 1)
        own = [seconds / count * 1e6 for seconds in values(turns["ours"], "training")]
        cells = [spread(own)]
        for name in list(GROWING)[1:]:
            ratios = values(turns[name], "training", turns["ours"]) if turns[name] else []
            losses = values(turns[name], "loss", turns["ours"]) if turns[name] else []
            cells.append(spread(ratios) + " [!]" * any(not 0.9 < loss < 1.1 for loss in losses))
        rows.append([point(changes), *cells])
    return markdown(rows)


def machine() -> str:
    """What a timing is worth nothing without: processor, cores, versions, how busy it is."""
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    names = ("numpy", "jax", "flax", "optax", "equinox", "torch")
    versions = [f"{n} {metadata.version(n)}" for n in names if importlib.util.find_spec(n)]
    cores, busy = os.cpu_count(), os.getloadavg()[0]
    return (
        f"{cpu[1] if cpu else platform.machine()}, {cores} cores; Python "
        f"{platform.python_version()}, {', '.join(versions)}; load average {busy:.2f}"
    )


def chart(result: Result) -> Any:
    """A bar for each program, the slowest first: training, then everything else of its process."""
    from matplotlib.figure import Figure

    median = {
        name: [statistics.median(values(turns, key) or [0.0]) for key in ("whole", "training")]
        for name, turns in result.items()
    }
    figure = Figure(figsize=(8, 0.9 + 0.36 * len(median)), layout="constrained")
    axes = figure.subplots()
    for name, (whole, training) in sorted(median.items(), key=lambda item: -item[1][0]):
        color = "#e8710a" if name in ("ours", "first") else "#3b82c4"
        axes.barh(PROGRAMS[name].label, training, color=color)
        bar = axes.barh(
            PROGRAMS[name].label, whole - training, left=training, color=color, alpha=0.45
        )
        axes.bar_label(bar, [f"{whole:.1f} s, training {training:.2f} s"], padding=4, fontsize=9)
    axes.margins(x=0.4)
    axes.set(xlabel="seconds, whole process; the full colour is training")
    axes.set_title("784-128-64-10 on MNIST, five epochs in batches of 64", fontsize=10, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
