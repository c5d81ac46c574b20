"""Options that several scripts have: each is named, checked and explained here, once.

A script's `Options` has one of these groups in each field, and fields of its own; the first line of
a group's docstring is its title in `--help`:

    class Options(cli.Options):
        model: ModelOptions
        data: DataOptions
        plot: Path | None = None
        \"\"\"File for a plot.\"\"\"

`--data-dir` is then `options.data.data_dir`. Options that exclude each other are a ValueError of
their group's `__post_init__`.
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from _cli import Options, option

if TYPE_CHECKING:  # it imports JAX, and --help must not
    from jaxmnist.datasets import Data

WARNING = "WARNING: this is NOT MNIST but synthetic digits: MNIST cannot be found or downloaded."
neutral = partial(option, changes_run=False)  # a run with another value has the same numbers

# Defaults of other options by name, each recipe with what it reaches on real MNIST.
# Accurate: 99.3 % test accuracy, 0.02 test loss, in a few minutes on two CPU cores.
ACCURATE: dict[str, Any] = {"epochs": 80, "batch_size": 128, "hidden": (512, 256)}
ACCURATE |= {"augment": 1.0, "synthetic_digits": 10_000, "optimizer": "adamw", "schedule": "cosine"}
ACCURATE |= {"learning_rate": 0.002, "weight_decay": 0.05, "warmup": 0.05}
# Notebook: 90 %, 0.35, in seconds.
RECIPES: dict[str, dict[str, Any]] = {"notebook": {}, "accurate": ACCURATE}


def at_least(low: float, below: float = math.inf) -> Callable[[float], str | None]:
    """A check: the number is at least `low`, and below `below`."""
    limit = "" if below == math.inf else f" and below {below:,}"
    return lambda value: None if low <= value < below else f"at least {low}{limit}"


def file_type(*suffixes: str) -> Callable[[Path], str | None]:
    """A check: the path ends in one of these."""
    must = f"a file whose name ends in {' or '.join(suffixes)}"
    return lambda path: None if path.suffix.lower() in suffixes else must


class RecipeOptions(Options):
    """Recipe."""

    recipe: Literal["notebook", "accurate"] = neutral("notebook")
    """Other defaults; --recipe accurate --help shows them. On MNIST and two CPU cores notebook
    reaches 90 % test accuracy in seconds, accurate 99.3 % in a few minutes."""


class TrainingOptions(Options):
    """Training."""

    epochs: int = neutral(5, at_least(1, 2**31))
    """Passes over the training images."""
    batch_size: int = option(64, at_least(1), also="bs")
    """Images in a step."""
    augment: float = option(0.0, at_least(0))
    """Strength of random distortions; 1 is usual."""


class StartOptions(Options):
    """Start."""

    seed: int = option(0, at_least(0, 2**32))
    """Seed of weights, shuffling and synthetic digits."""
    init: Path | None = neutral(None, also="pretrained load")  # its content changes a run
    """Weights to start from: a run, or a weights file."""
    torch_seed: int | None = option(None, at_least(-(2**63), 2**64))
    """Weights and orders of a PyTorch script that calls torch.manual_seed with this number, makes
    the model and iterates over one shuffled DataLoader in each epoch."""
    torch_test_loader: bool = False
    """After each epoch it iterates over a test loader too."""
    torch_order: Literal["modern", "legacy"] = "modern"
    """Legacy: as before PyTorch 1.6."""

    def __post_init__(self) -> None:
        if self.torch_seed is None and (self.torch_order == "legacy" or self.torch_test_loader):
            raise ValueError("--torch-order and --torch-test-loader need a --torch-seed")


class ModelOptions(Options):
    """Model."""

    hidden: tuple[int, ...] = option((128, 64), at_least(1, 2**31), also="layers width units")
    """Width of each hidden layer."""
    loss: Literal["cross_entropy", "nll"] = "cross_entropy"
    """Cross-entropy of logits, or negative log likelihood of log-softmax."""


class OptimizerOptions(Options):
    """Optimizer."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """The optimizer."""
    learning_rate: float = option(0.003, at_least(0), also="lr rate step-size")
    """Step size."""
    momentum: float = option(0.0, at_least(0, 1))
    """Momentum of SGD."""
    weight_decay: float | None = option(None, at_least(0), also="wd decay l2")
    """Of AdamW; 0.0001 if not given (PyTorch: 0.01)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Cosine: the rate falls to 0."""
    warmup: float = option(0.0, at_least(0, 1))
    """Share of the steps in which the rate rises."""

    def __post_init__(self) -> None:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"--momentum is SGD's; --optimizer {self.optimizer} has none")
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(f"--weight-decay is AdamW's; --optimizer {self.optimizer} has none")


class DataOptions(Options):
    """Data."""

    data_dir: Path | None = neutral(None, metavar="DIR")
    """Directory with MNIST, instead of JAXMNIST_DATA_DIR."""
    dataset: Literal["auto", "mnist", "synthetic"] = neutral("auto")  # the data changes a run
    """MNIST, or synthetic digits; auto takes these only if MNIST is not available."""

    def __post_init__(self) -> None:
        if self.data_dir and self.dataset == "synthetic":
            raise ValueError("--data-dir is MNIST's; --dataset synthetic reads no files")


class SplitOptions(Options):
    """Training images."""

    validation: int = option(0, at_least(0), metavar="N")
    """Hold out the last N training images, and test on them too."""
    synthetic_digits: int = option(0, at_least(0, 60_001), metavar="N")
    """Add N synthetic digits to the training images."""


class DeviceOptions(Options):
    """Device."""

    device: Literal["auto", "cpu", "gpu", "tpu"] = neutral("auto", also="gpu cpu cuda accelerator")
    """Kind of device; auto is the best that JAX finds."""


class ParallelOptions(Options):
    """Sharing each batch."""

    devices: int | Literal["all"] = neutral(1, at_least(1), metavar="N|all")
    """How many devices of this process."""
    distributed: bool = neutral(False, also="multihost ddp")
    """Be one of several processes, with all devices of each."""
    coordinator: str | None = neutral(None, metavar="HOST:PORT")
    """Address of process 0, unless a cluster tells it."""
    processes: int | None = neutral(None, at_least(1))
    """How many processes there are."""
    process_id: int | None = neutral(None, at_least(0), also="rank")
    """Which one this is, from 0."""
    timeout: int = neutral(30, at_least(10, 86_401))
    """Seconds to wait for another process."""

    def __post_init__(self) -> None:
        explicit = [self.coordinator, self.processes, self.process_id]
        if explicit != 3 * [None] and (not self.distributed or None in explicit):
            names = "--coordinator, --processes and --process-id"
            raise ValueError(f"{names} need --distributed and one another")


class OutputOptions(Options):
    """Output."""

    out: Path | None = neutral(None, metavar="DIR", also="save dir log-dir run")
    """Directory for the run."""
    resume: bool = neutral(False, also="continue")
    """Continue from the newest checkpoint."""
    plots: bool = neutral(False)
    """Draw the finished run: losses, confusion, mistakes, weights."""
    tensorboard: bool = neutral(False)
    """Log for TensorBoard too."""

    def __post_init__(self) -> None:
        if self.out is None and (self.resume or self.plots or self.tensorboard):
            raise ValueError("--resume, --plots and --tensorboard need an --out")


def load(options: DataOptions, seed: int, *, mnist_only: bool = False) -> "Data":
    """Load the data; stderr says where synthetic digits stand in for MNIST, and what takes long.

    With `mnist_only`, for a model that was trained on MNIST, nothing stands in for it.
    """
    from jaxmnist.datasets import load_data

    say = partial(print, file=sys.stderr, flush=True)
    dataset = "mnist" if mnist_only and options.dataset == "auto" else options.dataset
    return load_data(dataset, options.data_dir, seed, say=say)


def load_model(path: Path) -> tuple[dict[str, Any], bool | None]:
    """The parameters in a run or a weights file; whether it trained on synthetic digits, if known.

    stderr says where the run is not finished. The process uses no accelerator from now on.
    """
    from jaxmnist.pictures import load_reader
    from jaxmnist.runs.directory import read_run
    from jaxmnist.runs.programs import find_device

    find_device("cpu")  # less work than waking an accelerator
    if not path.is_dir():
        return load_reader(path).params, None
    run = read_run(path)
    if not run.finished:
        epochs = f"{len(run.records)} of {run.config['options']['epochs']} epochs"
        print(f"Note: {path}: not finished, these are the weights after {epochs}", file=sys.stderr)
    return run.params, run.config["identity"].get("data") != "MNIST"
