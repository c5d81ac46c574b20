"""Train many models at once: every learning rate with every seed, on all devices or CPU cores."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import math
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from _cli import run
from _tables import markdown

from jaxmnist.runs.compile_cache import compile_cache
from jaxmnist.runs.programs import WARNING, find_devices, load, make_optimizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import jax
    import numpy as np

    from jaxmnist import Dataset
    from jaxmnist.datasets.mnist import Mnist
    from jaxmnist.sweep import Sweep


@dataclasses.dataclass(frozen=True)
class Config:
    """The options. The model of seed S and rate R is the one that scripts/train.py --seed S
    --learning-rate R trains; on drawn digits, which here are those of seed 0, only for seed 0."""

    lr: tuple[float, ...]
    """Learning rates."""
    seeds: int = 16
    """How many seeds to train with at each learning rate: 0, 1, 2, ..."""
    epochs: int = 5
    """How often every training image is seen."""
    batch_size: int = 64
    """Images a step."""
    momentum: float = 0.0
    """Momentum of SGD."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """The optimizer, one of optax's."""
    hidden: tuple[int, ...] = (128, 64)
    """Width of each hidden layer."""
    dataset: Literal["auto", "mnist", "synthetic"] = "auto"
    """MNIST, or drawn digits; auto is MNIST or, where that cannot be had, drawn digits."""
    data_dir: Path | None = None
    """Directory with MNIST's four IDX files; JAXMNIST_DATA_DIR does the same."""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Where to train; auto is the best that JAX finds."""
    compile_cache: bool = True
    """Keep compiled programs in the user's cache directory and start faster the next time."""
    out: Path | None = None
    """New .csv file for the losses and accuracies, a row for each model and epoch."""
    plot: Path | None = None
    """New .png, .svg or .pdf file for a plot of them."""

    # What else is asked for by what is shared with scripts/train.py.
    seed, devices, distributed = 0, 1, False

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is loaded."""
        for name in ("seeds", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must be at least 1, not {getattr(self, name)}")
        if not self.lr:
            raise ValueError("--lr needs at least one learning rate")
        for rate in self.lr:
            if not (math.isfinite(rate) and rate >= 0):
                raise ValueError(f"--lr must be at least 0, not {rate}")
        if len(set(self.lr)) < len(self.lr):
            raise ValueError("--lr names a learning rate twice")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"--momentum must be in [0, 1), not {self.momentum}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"--momentum is SGD's; --optimizer {self.optimizer} has none to set")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"--hidden needs widths of at least 1, not {self.hidden}")
        for name, suffixes in (("out", (".csv",)), ("plot", (".png", ".svg", ".pdf"))):
            path = getattr(self, name)
            if path and path.suffix not in suffixes:
                raise ValueError(f"--{name} {path}: the name must end in {' or '.join(suffixes)}")


def main(config: Config) -> None:
    """Load, compile, train, and show what came of it."""
    import jax
    import tqdm

    from jaxmnist.datasets import cache
    from jaxmnist.errors import UsageError
    from jaxmnist.files import atomic_write
    from jaxmnist.sweep import run_sweep, sweep_figure

    jax.config.update("jax_default_matmul_precision", "highest")  # as in scripts/train.py
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # too late for it, in a process that has used JAX
            jax.config.update("jax_num_cpu_devices", cores())
    check_files(config)
    times = [time.perf_counter()]
    device, _ = find_devices(config)
    devices = jax.local_devices(backend=device.platform)
    data, drawn = load(config)
    n = len(data.train.labels)
    if config.batch_size > n:
        raise UsageError(f"--batch-size {config.batch_size} is above the {n:,} training images")
    print(f"Data: {data.source}", flush=True)
    if data.note:
        print(f"Note: {data.note}", file=sys.stderr)
    times.append(time.perf_counter())

    with compile_cache(cache.cache_dir()) if config.compile_cache else contextlib.nullcontext():
        sweep = build(config, data, devices)
    times.append(time.perf_counter())

    models = len(config.lr) * config.seeds
    with tqdm.tqdm(total=models, unit="model", leave=False, disable=None) as bar:
        scores, diverged = score(config, run_sweep(sweep, bar.update))
    times.append(time.perf_counter())

    print(table(config, scores, diverged))
    if config.out:
        write_csv(config.out, config, scores, diverged)
    if config.plot:
        labels = [f"learning rate {rate}" for rate in config.lr]
        figure = sweep_figure(scores, diverged, labels)
        with atomic_write(config.plot) as file:
            figure.savefig(file, format=config.plot.suffix[1:], dpi=150)
    report(config, data.source, drawn, sweep, n, times)


def cores() -> int:
    """How many CPU cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def check_files(config: Config) -> None:
    """Refuse files that are there or cannot be made, and a plot without matplotlib."""
    from jaxmnist.errors import UsageError

    if config.plot:
        import matplotlib.figure  # noqa: F401
    for name, path in (("out", config.out), ("plot", config.plot)):
        if path is None:
            continue
        directory = path.absolute().parent
        if path.exists():
            raise UsageError(f"--{name} {path}: is there already; name a new file")
        if not (directory.is_dir() and os.access(directory, os.W_OK)):
            raise UsageError(f"--{name} {path}: {directory} is no directory that can be written to")


def build(config: Config, data: Mnist, devices: list[jax.Device]) -> Sweep:
    """The compiled sweep."""
    from jaxmnist import MLP, train
    from jaxmnist.sweep import compile_sweep, grid

    model, batch_size, epochs = MLP(config.hidden), config.batch_size, config.epochs

    def run(key: Any, rate: Any, data: tuple[Dataset, Dataset]) -> Any:
        tx = make_optimizer(SimpleNamespace(**vars(config), learning_rate=rate))
        dataset, test = data
        _, metrics = train(key, dataset, model, tx, epochs=epochs, batch_size=batch_size, test=test)
        return metrics

    members = grid(config.lr, range(config.seeds))
    return compile_sweep(run, members, (data.train, data.test), devices=devices)


def score(config: Config, metrics: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Losses and accuracies `[rates, seeds, epochs]`; which models have diverged `[rates, seeds]`.

    One has if any loss is not finite.
    """
    import numpy as np

    scores = {"train_loss": metrics["loss"].mean(axis=-1, dtype="float64")}
    scores |= {name: np.float64(metrics[name]) for name in ("test_loss", "test_accuracy")}
    shape = (len(config.lr), config.seeds, config.epochs)
    scores = {name: values.reshape(shape) for name, values in scores.items()}
    finite = np.isfinite(scores["train_loss"]) & np.isfinite(scores["test_loss"])
    return scores, ~finite.all(axis=-1)


def table(config: Config, scores: Mapping[str, np.ndarray], diverged: np.ndarray) -> str:
    """Mean ± standard deviation after the last epoch, a row a learning rate, as Markdown."""
    from jaxmnist.sweep import over_seeds

    rows = [["learning rate", "training loss", "test loss", "test accuracy", "diverged"]]
    rows += [[str(rate)] for rate in config.lr]
    for name, form in (("train_loss", ".4f"), ("test_loss", ".4f"), ("test_accuracy", ".2%")):
        means, deviations = over_seeds(scores[name], diverged)
        for row, mean, deviation in zip(rows[1:], means[:, -1], deviations[:, -1], strict=True):
            spread = "" if math.isnan(deviation) else f" ± {deviation:{form}}"
            row.append("" if math.isnan(mean) else f"{mean:{form}}{spread}")
    for row, count in zip(rows[1:], diverged.sum(axis=1), strict=True):
        row.append(f"{count} of {config.seeds}")
    return markdown(rows)


def write_csv(
    path: Path, config: Config, scores: Mapping[str, np.ndarray], diverged: np.ndarray
) -> None:
    """A row for each model and epoch; `diverged` is 1 in all rows of a model that did."""
    from jaxmnist.files import atomic_write

    with atomic_write(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["learning_rate", "seed", "epoch", *scores, "diverged"])
        for i, j, k in itertools.product(
            range(len(config.lr)), range(config.seeds), range(config.epochs)
        ):
            values = [float(scores[name][i, j, k]) for name in scores]
            writer.writerow([config.lr[i], j, k + 1, *values, int(diverged[i, j])])


def report(
    config: Config, source: str, drawn: bool, sweep: Sweep, n: int, times: Sequence[float]
) -> None:
    """The closing summary."""
    models, device = len(config.lr) * config.seeds, sweep.mesh.devices.flat[0]
    devices = f"{sweep.mesh.size} x {device.device_kind} ({device.platform})"
    loading, compiling, training = (after - before for before, after in itertools.pairwise(times))
    print(f"\nTrained on {source}")
    print(
        f"  models: {models}, epochs: {config.epochs}, steps an epoch: {-(-n // config.batch_size)}"
    )
    print(f"  {sweep.at_once} at once on {devices}, {sweep.memory / 1e9:.2f} GB on each")
    print(f"  load {loading:.2f} s, compile {compiling:.2f} s, train and evaluate {training:.2f} s")
    print(f"  {training / models:.2f} s a model")
    for path in filter(None, (config.out, config.plot)):
        print(f"  wrote {path}")
    if drawn:
        print(WARNING)


if __name__ == "__main__":
    run(main, Config, __doc__)
