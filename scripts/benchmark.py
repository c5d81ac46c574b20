"""Time scripts/train.py beside programs that train the same in other libraries.

Each program is a process of its own, and they take turns: a ratio is of two programs that ran in
the same turn, so that a machine that is slow for a while slows down both.

Examples:
  scripts/benchmark.py --runs 7
  scripts/benchmark.py --growth --runs 3
"""

import os
import sys

sys.path.insert(0, __file__.rpartition("/")[0])
import _cli as cli

# isort: split
import itertools
import json
import platform
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import _options as o

Turn = dict[str, float]  # the "whole" and "training" seconds of a program, and its "loss"
Turns = dict[str, list[Turn]]  # by program
Peer = Literal["numpy", "linen", "nnx", "equinox", "torch", "compiled", "notebook"]


class Program(NamedTuple):
    """A program to time. It reports its training as scripts/train.py does."""

    label: str
    path: str  # within scripts/
    needs: str = "jax"  # a package


PROGRAMS = {
    "ours": Program("jaxmnist", "train.py"),
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
# An epoch of the notebook's training with one change, for `--growth`; the images are enough for
# half a second. PyTorch trains many models as a vmap, Linen and NumPy one after the other.
WIDTHS = {64: 57_344, 256: 32_768, 1024: 8_192, 4096: 1_024}
GROWTH: dict[str, dict[str, Any]] = {
    **{f"batch of {n:,}": {"batch": n, "images": 57_344} for n in (16, 64, 256, 1024, 4096)},
    **{f"width {n:,}": {"hidden": (n, n), "images": images} for n, images in WIDTHS.items()},
    **{f"{n} models": {"models": n, "images": 65_536 // n} for n in (4, 16, 64)},
}


class Options(cli.Options):
    """The options. All programs take about two minutes a turn on two CPU cores."""

    runs: int = cli.option(7, o.at_least(1))
    """How many turns are timed."""
    only: tuple[Peer, ...] = cli.option((), metavar="NAME")
    """Time ours beside these only: numpy, linen, nnx, equinox, torch, compiled, notebook."""
    growth: bool = False
    """Show how the time of an image grows with the batch, the width and the models."""
    out: Path = cli.option(Path("runs/benchmark"), metavar="DIR")
    """Directory for times and a chart."""


def main(options: Options) -> None:
    """Measure in turns, show, write."""
    import numpy as np
    import tqdm

    from jaxmnist import load_mnist
    from jaxmnist.plots import save_figure

    programs = GROWING if options.growth else PROGRAMS
    names = {"ours", *(options.only or programs)}
    programs = {n: p for n, p in programs.items() if n in names and find_spec(p.needs)}
    points = GROWTH if options.growth else {"the notebook's training": {}}
    result = {point: {name: list[Turn]() for name in programs} for point in points}
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / ("growth.json" if options.growth else "programs.json")
    with tempfile.TemporaryDirectory() as work:
        data = Path(work, "mnist.npz")
        images, labels = load_mnist()[0]
        np.savez(data, images=images.reshape(-1, 784), labels=labels)
        for turn in tqdm.trange(options.runs + 1, unit="turn", leave=False, disable=None):
            for point, name in itertools.product(points, programs):
                found = run(programs[name], data, points[point])
                if turn:  # the first one warms up
                    result[point][name].append(found)
            file.write_text(json.dumps({"machine": machine(), "turns": result}, indent=1))
    (first, *_) = result.values()
    print(f"{machine()}\n\n{growth_table(result) if options.growth else table(first)}\n")
    print(f"Median (smallest to largest) of {options.runs} turns; ratios within a turn.")
    if not options.growth:
        save_figure(chart(first), options.out / "programs.png")
    print(f"Wrote {options.out}")


def run(program: Program, data: Path, change: Mapping[str, Any]) -> Turn:
    """Run a program once."""
    from jaxmnist import JaxmnistError

    words = [] if program.path == "train.py" else [str(data), json.dumps(change)]
    command = [sys.executable, str(cli.ROOT / "scripts" / program.path), *words]
    start = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    whole = time.perf_counter() - start
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise JaxmnistError(f"{program.path} ended with code {done.returncode}: {last}")
    loss = float(re.findall(r"Training loss: (\S+)", done.stdout)[-1])
    # Every seed of the whole training ends in such a mean loss of the fifth epoch.
    if not change and not 0.37 < loss < 0.41:
        raise JaxmnistError(f"{program.path} ended with a loss of {loss:.4f}")
    training = float(re.findall(r"train (\S+) s", done.stdout)[-1])
    return {"whole": whole, "training": training, "loss": loss}


def ratios(turns: Sequence[Turn], ours: Sequence[Turn], key: str) -> list[float]:
    """A program's time as a multiple of ours, within each turn."""
    return [a[key] / b[key] for a, b in zip(turns, ours, strict=True)]


def spread(numbers: Sequence[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(numbers):.2f} ({min(numbers):.2f} to {max(numbers):.2f})"


def table(result: Turns) -> str:
    """A row for each program."""
    rows = [["program", "whole process, s", "to ours", "training, s", "to ours"]]
    for name, turns in result.items():
        rows.append([PROGRAMS[name].label])
        for key in ("whole", "training"):
            rows[-1] += [spread([turn[key] for turn in turns])]
            rows[-1] += [spread(ratios(turns, result["ours"], key))]
    return cli.markdown(rows)


def growth_table(result: Mapping[str, Turns]) -> str:
    """A row for each point: the time of one image and one model, and the others' ratios to it."""
    rows: list[list[str]] = []
    for point, programs in result.items():
        count = GROWTH[point]["images"] * GROWTH[point].get("models", 1)
        ours, *others = programs.values()
        cells = [spread([turn["training"] / count * 1e6 for turn in ours])]
        rows.append([point, *cells, *(spread(ratios(x, ours, "training")) for x in others)])
    _, *labels = (GROWING[name].label for name in programs)
    return cli.markdown([["", "µs an image", *labels], *rows])


def machine() -> str:
    """What a timing is worth nothing without: processor, cores, versions, how busy it is."""
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    names = ("numpy", "jax", "flax", "optax", "equinox", "torch")
    versions = [f"{n} {metadata.version(n)}" for n in names if find_spec(n)]
    return (
        f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores; "
        f"Python {platform.python_version()}, {', '.join(versions)}; "
        f"load average {os.getloadavg()[0]:.2f}"
    )


def chart(result: Turns) -> Any:
    """A bar for each program, the slowest first: training, then everything else of its process."""
    from matplotlib.figure import Figure

    def median(name: str, key: str) -> float:
        return statistics.median(turn[key] for turn in result[name])

    names = sorted(result, key=lambda name: median(name, "whole"), reverse=True)
    whole, training = ([median(name, key) for name in names] for key in ("whole", "training"))
    labels = [PROGRAMS[name].label for name in names]
    axes = Figure(figsize=(8, 0.9 + 0.36 * len(labels)), layout="constrained").subplots()
    bars = axes.barh(labels, whole, color="#3b82c4", alpha=0.45, label="whole process")
    axes.barh(labels, training, color="#3b82c4", label="training")
    axes.bar_label(bars, [f"{seconds:.1f} s" for seconds in whole], padding=4)
    axes.margins(x=0.1)
    axes.set(xlabel="seconds", title="784-128-64-10 on MNIST, five epochs in batches of 64")
    axes.legend(loc="upper right")
    return axes.figure


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
