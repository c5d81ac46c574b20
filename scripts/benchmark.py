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
# What every seed of this training ends in: the mean loss of the fifth epoch, the test accuracy.
EXPECTED = {"loss": (0.37, 0.41), "accuracy": (0.885, 0.915)}
# What a program finds of the environment: no number of threads, no flags of XLA, JAX or PyTorch.
KEPT = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


# The notebook's training but for one thing, for `--growth`.
GROWTH: dict[str, dict[str, Any]] = {
    **{f"batch of {size:,}": {"batch": size} for size in (16, 64, 256, 1024, 4096)},
    **{f"width {width:,}": {"hidden": (width, width)} for width in (64, 256, 1024, 4096)},
    **{f"{count} models": {"models": count} for count in (4, 16, 64)},
}


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
    device: Literal["auto", "cpu"] = cli.option("auto", "Where to train.")
    out: Path = cli.option(
        Path("runs/benchmark"), "Directory for figures and a chart.", o.local_path, metavar="DIR"
    )


def main(options: Options) -> None:
    """Measure in turns, show, write."""
    import tqdm

    from jaxmnist.plots import save_figure

    programs = {name: PROGRAMS[name] for name in PROGRAMS if name in (options.only or PROGRAMS)}
    jobs: dict[str, tuple[Program, Turn]] = {name: (p, {}) for name, p in programs.items()}
    if options.growth:
        jobs = {
            f"{point}, {name}": (program, changes | {"epochs": 1, "images": images(changes)})
            for point, changes in GROWTH.items()
            for name, program in GROWING.items()
        }
    jobs = {name: job for name, job in jobs.items() if importlib.util.find_spec(job[0].needs)}
    result: Result = {name: [] for name in jobs}
    file = options.out / ("growth.json" if options.growth else "programs.json")
    work = options.out.absolute() / "work"
    prepare(work)
    for turn in tqdm.trange(options.runs + 1, unit="turn", leave=False, disable=None):
        for name, job in jobs.items():
            found = run(work, options.device, *job, first=name == "first")
            if turn:  # the first one warms up
                result[name].append(found)
        file.write_text(json.dumps({"machine": machine(), "turns": result}, indent=1))
    shutil.rmtree(work)
    print(f"{machine()}\n\n{growth_table(result) if options.growth else table(result)}\n")
    print(f"Median (smallest to largest) of {options.runs} turns; ratios within a turn.")
    print("\n".join(notes(result)))
    if not options.growth:
        save_figure(chart(result), options.out / "programs.png")
    print(f"Wrote {options.out}")


def prepare(work: Path) -> None:
    """Write MNIST where the peers read it, and into the caches that ours start from."""
    import numpy as np

    from jaxmnist import load_mnist
    from jaxmnist.datasets.cache import cache_dir

    shutil.rmtree(work, ignore_errors=True)
    (work / "data").mkdir(parents=True)
    arrays: dict[str, Any] = {}
    for prefix, part in zip(("", "test_"), load_mnist(), strict=True):
        arrays[f"{prefix}images"] = np.asarray(part.images).reshape(-1, 784)
        arrays[f"{prefix}labels"] = np.asarray(part.labels)
    np.savez(work / "mnist.npz", **arrays)
    for path in cache_dir().glob("mnist*"):
        shutil.copy(path, work / "data")


def run(work: Path, device: str, program: Program, changes: Turn, *, first: bool) -> Turn:
    """Run a program once, in a new cache if it is to be its first start."""
    cache = work / ("first" if first else "warm")
    if first:
        shutil.rmtree(cache, ignore_errors=True)
    if not cache.exists():
        shutil.copytree(work / "data", cache)
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment |= {"JAXMNIST_CACHE_DIR": str(cache), "TORCHINDUCTOR_CACHE_DIR": f"{work}/inductor"}
    environment |= {"JAX_PLATFORMS": "cpu"} if device == "cpu" else {}
    words = ["--device", device] if program.path == "train.py" else [f"{work}/mnist.npz", device]
    words += [json.dumps(changes)] if changes else []
    command = [sys.executable, f"{HERE}/{program.path}", *words]
    start = time.perf_counter()
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    whole = time.perf_counter() - start
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return {"problem": said[-1] if said else f"code {done.returncode}"}
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
    rows = [["program", "whole process, s", "to ours", "training, s", "to ours", "images/s"]]
    marked = {note.partition(":")[0] for note in notes(result)}
    for name, turns in result.items():
        cells = [PROGRAMS[name].label + (" [!]" if f"[!] {name}" in marked else "")]
        for key in ("whole", "training"):
            ratios = values(turns, key, result.get("ours", turns))
            cells += [spread(values(turns, key)), spread(ratios)]
        training = values(turns, "training")
        rows.append([*cells, f"{300_000 / statistics.median(training):,.0f}" if training else ""])
    return markdown(rows)


def notes(result: Result) -> list[str]:
    """Which programs failed, or ended at a loss or an accuracy that this training does not have."""
    found = {}
    for name, turn in ((name, turn) for name, turns in result.items() for turn in turns):
        expected = EXPECTED if not turn.get("changes") else {}
        off = [k for k, (a, b) in expected.items() if k in turn and not a <= turn[k] <= b]
        if "problem" in turn or off:
            said = ", ".join(f"its {key} is {turn[key]:.4f}" for key in off)
            found[name] = f"[!] {name}: {turn.get('problem') or said}"
    return list(found.values())


def images(changes: Mapping[str, Any]) -> int:
    """How many images make about a second of work: at least 8 batches, at most an epoch."""
    (a, b), size = changes.get("hidden", (128, 64)), changes.get("batch", 64)
    flops = 6 * (784 * a + a * b + b * 10) * size * changes.get("models", 1)
    work = 6e12 if shutil.which("nvidia-smi") else 6e10
    return size * min(60_000 // size, max(8, int(work / flops)))


def growth_table(result: Result) -> str:
    """A row for each point: the time of one image and one model, and the others' ratios to it."""
    others = list(GROWING)[1:]
    rows = [["", "µs an image", *(GROWING[name].label for name in others)]]
    for point, changes in GROWTH.items():
        count = images(changes) * changes.get("models", 1)
        ours = result.get(f"{point}, ours", [])
        cells = [spread([seconds / count * 1e6 for seconds in values(ours, "training")])]
        for name in others:
            turns = result.get(f"{point}, {name}", [{} for _ in ours])
            wrong = any(not 0.9 < loss < 1.1 for loss in values(turns, "loss", ours))
            cells.append(spread(values(turns, "training", ours)) + " [!]" * wrong)
        rows.append([point, *cells])
    return markdown(rows)


def machine() -> str:
    """What a timing is worth nothing without: processor, cores, versions, how busy it is."""
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    parts = [f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores"]
    names = ("numpy", "jax", "flax", "optax", "equinox", "torch")
    versions = [f"{n} {metadata.version(n)}" for n in names if importlib.util.find_spec(n)]
    parts += [", ".join([f"Python {platform.python_version()}", *versions])]
    return "; ".join([*parts, f"load average {os.getloadavg()[0]:.2f}"])


def chart(result: Result) -> Any:
    """A bar for each program, the slowest first: training, then everything else of its process."""
    from matplotlib.figure import Figure

    rows = []
    for name, turns in result.items():
        medians = [statistics.median(values(turns, key) or [0.0]) for key in ("whole", "training")]
        rows.append((*medians, PROGRAMS[name].label))
    whole, training, labels = zip(*sorted(rows, reverse=True), strict=True)
    colors = ["#e8710a" if "jaxmnist" in label else "#3b82c4" for label in labels]
    figure = Figure(figsize=(8, 0.9 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(labels, whole, color=colors, alpha=0.45)
    axes.barh(labels, training, color=colors)
    texts = [f"{a:.1f} s, training {b:.2f} s" for a, b in zip(whole, training, strict=True)]
    axes.bar_label(bars, texts, padding=4, fontsize=9)
    axes.margins(x=0.4)
    axes.set(xlabel="seconds, whole process; the full colour is training")
    axes.set_title("784-128-64-10 on MNIST, five epochs in batches of 64", fontsize=10, loc="left")
    return figure


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
