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
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import _options as o
from _output import markdown

Turn = dict[str, Any]  # a program's "whole" and "training" seconds, or its "problem"
Result = dict[str, list[Turn]]  # by program


class Program(NamedTuple):
    """A program to time. It prints its result as a line of JSON, or as scripts/train.py does."""

    label: str
    path: str  # within scripts/
    needs: str = "jax"  # a package


PROGRAMS = {
    "ours": Program("jaxmnist", "train.py"),
    "first": Program("jaxmnist, first start, empty cache", "train.py"),
    "numpy": Program("NumPy by hand, OpenBLAS", "peers/numpy_openblas.py"),
    "linen": Program("Flax Linen, a step per batch", "peers/flax_linen.py"),
    "nnx": Program("Flax NNX, a step per batch", "peers/flax_nnx.py"),
    "equinox": Program("Equinox, a step per batch", "peers/equinox_optax.py", "equinox"),
    "torch": Program("PyTorch, data in memory", "peers/torch_memory.py", "torch"),
    "compiled": Program("PyTorch, torch.compile", "peers/torch_compile.py", "torch"),
    "notebook": Program("PyTorch as in the notebook", "peers/torch_notebook.py", "torch"),
}
GROWING = {"ours": Program("jaxmnist", "peers/ours.py")}
GROWING |= {name: PROGRAMS[name] for name in ("compiled", "linen", "numpy")}
# The notebook's training with one change, for `--growth`.
GROWTH: dict[str, dict[str, Any]] = {
    **{f"batch of {size:,}": {"batch": size} for size in (16, 64, 256, 1024, 4096)},
    **{f"width {width:,}": {"hidden": (width, width)} for width in (64, 256, 1024, 4096)},
    **{f"{count} models": {"models": count} for count in (4, 16, 64)},
}
# What a program finds of the environment: no number of threads, no flags of XLA or PyTorch.
KEPT = ("PATH", "HOME", "USER", "LANG", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS")


def a_program(name: str) -> str | None:
    """A check: there is a program of this name."""
    return None if name in PROGRAMS else " or ".join(PROGRAMS)


@dataclasses.dataclass(frozen=True)
class Options:
    """The options. All programs take about two minutes a turn on two CPU cores."""

    runs: int = cli.option(7, "How many turns are timed.", o.at_least(1))
    only: tuple[str, ...] = cli.option(
        (), f"Only these programs: {', '.join(PROGRAMS)}.", a_program, metavar="NAME"
    )
    growth: bool = cli.option(
        False, "Show how the time of an image grows with the batch, the width and the models."
    )
    out: Path = cli.option(
        Path("runs/benchmark"), "Directory for times and a chart.", o.local_path, metavar="DIR"
    )


def main(options: Options) -> None:
    """Measure in turns, show, write."""
    import tqdm

    from jaxmnist.plots import save_figure

    jobs = {name: (PROGRAMS[name], Turn()) for name in options.only or PROGRAMS}
    if options.growth:
        jobs = {
            f"{point}, {name}": (program, changes | {"epochs": 1, "images": images(changes)})
            for point, changes in GROWTH.items()
            for name, program in GROWING.items()
        }
    jobs = {name: job for name, job in jobs.items() if importlib.util.find_spec(job[0].needs)}
    result: Result = {name: [] for name in jobs}
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / ("growth.json" if options.growth else "programs.json")
    with tempfile.TemporaryDirectory() as work:
        prepare(Path(work))
        for turn in tqdm.trange(options.runs + 1, unit="turn", leave=False, disable=None):
            for name, (program, changes) in jobs.items():
                found = run(Path(work), program, changes, first=name == "first")
                if turn:  # the first one warms up
                    result[name].append(found)
            file.write_text(json.dumps({"machine": machine(), "turns": result}, indent=1))
    print(f"{machine()}\n\n{growth_table(result) if options.growth else table(result)}\n")
    print(f"Median (smallest to largest) of {options.runs} turns; ratios within a turn.")
    for name, turns in result.items():
        for problem in {turn["problem"] for turn in turns if "problem" in turn}:
            print(f"{name}: {problem}")
    if not options.growth and any(values(turns, "whole") for turns in result.values()):
        save_figure(chart(result), options.out / "programs.png")
    print(f"Wrote {options.out}")


def prepare(work: Path) -> None:
    """Write MNIST where the peers read it, and into the cache that ours starts from."""
    import numpy as np

    from jaxmnist import load_mnist
    from jaxmnist.datasets.cache import cache_dir

    arrays = dict[str, Any]()
    for prefix, part in zip(("", "test_"), load_mnist(), strict=True):
        arrays[f"{prefix}images"] = np.asarray(part.images).reshape(-1, 784)
        arrays[f"{prefix}labels"] = np.asarray(part.labels)
    np.savez(work / "mnist.npz", **arrays)
    (work / "data").mkdir()
    for path in cache_dir().glob("mnist*"):
        shutil.copy(path, work / "data")


def run(work: Path, program: Program, changes: Turn, *, first: bool) -> Turn:
    """Run a program once, in a new cache if it is to be its first start."""
    cache = work / ("first" if first else "warm")
    if first:
        shutil.rmtree(cache, ignore_errors=True)
    if not cache.exists():
        shutil.copytree(work / "data", cache)
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment |= {"JAXMNIST_CACHE_DIR": str(cache), "TORCHINDUCTOR_CACHE_DIR": f"{work}/inductor"}
    words = [] if program.path == "train.py" else [f"{work}/mnist.npz", json.dumps(changes)]
    command = [sys.executable, os.path.join(HERE, program.path), *words]
    start = time.perf_counter()
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    whole = time.perf_counter() - start
    if done.returncode:
        return {"problem": f"code {done.returncode}: {done.stderr.strip().rpartition(chr(10))[2]}"}
    found = read(done.stdout)
    # Every seed of the whole training ends in such a mean loss of the fifth epoch.
    if not changes and not 0.37 < found["loss"] < 0.41:
        return {"problem": f"its loss is {found['loss']:.4f}"}
    return {"whole": whole, **found}


def read(stdout: str) -> Turn:
    """What a program reports of its training, in JSON or in the words of scripts/train.py."""
    last = stdout.splitlines()[-1]
    if last.startswith("{"):
        return json.loads(last)
    seconds = re.findall(r"train ([\d.]+) s", stdout)[-1]
    loss = re.findall(r"Training loss: ([\d.]+)", stdout)[-1]
    return {"training": float(seconds), "loss": float(loss)}


def values(turns: Sequence[Turn], key: str, ours: Sequence[Turn] | None = None) -> list[float]:
    """What the turns gave or, with ours, its ratios within each turn."""
    if ours is None:
        return [turn[key] for turn in turns if key in turn]
    return [a[key] / b[key] for a, b in zip(turns, ours, strict=False) if key in a and key in b]


def spread(numbers: Sequence[float]) -> str:
    """Median, smallest and largest."""
    if not numbers:
        return ""
    return f"{statistics.median(numbers):.2f} ({min(numbers):.2f} to {max(numbers):.2f})"


def table(result: Result) -> str:
    """A row for each program."""
    rows = [["program", "whole process, s", "to ours", "training, s", "to ours"]]
    for name, turns in result.items():
        cells = [PROGRAMS[name].label]
        for key in ("whole", "training"):
            ratios = values(turns, key, result.get("ours", turns))
            cells += [spread(values(turns, key)), spread(ratios)]
        rows.append(cells)
    return markdown(rows)


def images(changes: Mapping[str, Any]) -> int:
    """How many images make about a second of work: at least 8 batches, at most an epoch."""
    (a, b), size = changes.get("hidden", (128, 64)), changes.get("batch", 64)
    flops = 6 * (784 * a + a * b + b * 10) * size * changes.get("models", 1)
    work = 6e12 if shutil.which("nvidia-smi") else 6e10
    return size * min(60_000 // size, max(8, int(work / flops)))


def growth_table(result: Result) -> str:
    """A row for each point: the time of one image and one model, and the others' ratios to it."""
    ours, *others = GROWING
    rows = [["", "µs an image", *(GROWING[name].label for name in others)]]
    for point, changes in GROWTH.items():
        count, turns = images(changes) * changes.get("models", 1), result[f"{point}, {ours}"]
        cells = [spread([seconds / count * 1e6 for seconds in values(turns, "training")])]
        cells += [
            spread(values(result.get(f"{point}, {n}", []), "training", turns)) for n in others
        ]
        rows.append([point, *cells])
    return markdown(rows)


def machine() -> str:
    """What a timing is worth nothing without: processor, cores, versions, how busy it is."""
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    names = ("numpy", "jax", "flax", "optax", "equinox", "torch")
    versions = [f"{n} {metadata.version(n)}" for n in names if importlib.util.find_spec(n)]
    python = f"Python {platform.python_version()}"
    processor = f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores"
    load = f"load average {os.getloadavg()[0]:.2f}"
    return "; ".join([processor, ", ".join([python, *versions]), load])


def chart(result: Result) -> Any:
    """A bar for each program, the slowest first: training, then everything else of its process."""
    from matplotlib.figure import Figure

    medians = {
        PROGRAMS[name].label: [
            statistics.median(values(turns, key)) for key in ("whole", "training")
        ]
        for name, turns in result.items()
        if values(turns, "whole")
    }
    labels = sorted(medians, key=medians.__getitem__, reverse=True)
    whole, training = zip(*(medians[label] for label in labels), strict=True)
    figure = Figure(figsize=(8, 0.9 + 0.36 * len(labels)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(labels, whole, color="#3b82c4", alpha=0.45, label="whole process")
    axes.barh(labels, training, color="#3b82c4", label="training")
    axes.bar_label(bars, [f"{seconds:.1f} s" for seconds in whole], padding=4)
    axes.margins(x=0.1)
    axes.set(xlabel="seconds", title="784-128-64-10 on MNIST, five epochs in batches of 64")
    axes.legend(loc="upper right")
    return figure


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
