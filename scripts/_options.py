"""Options that several scripts have: each is named, checked and explained here, once.

A script's `Options` is a frozen dataclass with one of these groups in each field, and fields of its
own; the first line of a group's docstring is its title in `--help`:

    @dataclasses.dataclass(frozen=True)
    class Options:
        model: ModelOptions
        data: DataOptions
        plot: Path | None = option(None, "File for a plot.", local_path)

`--data-dir` is then `options.data.data_dir`. Options that exclude each other are a UsageError of
their group's `__post_init__`.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from _cli import option

if TYPE_CHECKING:  # it imports JAX, and --help must not
    from jaxmnist.datasets import Data

WARNING = "WARNING: this is NOT MNIST but synthetic digits: MNIST cannot be found or downloaded."
neutral = partial(option, changes_run=False)  # a run with another value has the same numbers

# Defaults of other options by name, each recipe with what it reaches on real MNIST.
RECIPES: dict[str, dict[str, Any]] = {
    "notebook": {},  # 90 % test accuracy, 0.35 test loss, in seconds on two CPU cores
    "accurate": {  # 99.3 %, 0.02, in a few minutes
        **{"epochs": 80, "batch_size": 128, "augment": 1.0, "synthetic_digits": 10_000},
        **{"hidden": (512, 256), "optimizer": "adamw", "learning_rate": 0.002},
        **{"weight_decay": 0.05, "schedule": "cosine", "warmup": 0.05},
    },
}


def wrong(message: str) -> NoReturn:
    """Raise a UsageError."""
    from jaxmnist.errors import UsageError  # not at the top: it imports JAX, and --help must not

    raise UsageError(message)


def at_least(low: float, below: float = math.inf) -> Callable[[float], str | None]:
    """A check: the number is at least `low`, and below `below`."""
    limit = "" if below == math.inf else f" and below {below:,}"
    return lambda value: None if low <= value < below else f"at least {low}{limit}"


def local_path(path: Path) -> str | None:
    """A check: the path is of a file or directory on this machine, with a name in UTF-8."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        return "a path on this machine"
    return "a name in UTF-8" if re.search(r"[\ud800-\udfff]", str(path)) else None


def file_type(*suffixes: str) -> Callable[[Path], str | None]:
    """A check: the path is local and ends in one of these."""
    must = f"a file whose name ends in {' or '.join(suffixes)}"
    return lambda path: local_path(path) or (None if path.suffix.lower() in suffixes else must)


def weights() -> Any:
    """The first argument of the scripts that read a model."""
    text = "A run of scripts/train.py --out, or a weights file."
    return option(help=text, check=local_path, metavar="RUN", positional=True)


@dataclasses.dataclass(frozen=True)
class RecipeOptions:
    """Recipe."""

    recipe: Literal["notebook", "accurate"] = neutral(
        "notebook",
        "Other defaults; --recipe accurate --help shows them. On MNIST and two CPU cores notebook "
        "reaches 90 % test accuracy in seconds, accurate 99.3 % in a few minutes.",
    )


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """Training."""

    epochs: int = neutral(5, "Passes over the training images.", at_least(1, 2**31))
    batch_size: int = option(64, "Images in a step.", at_least(1), also="bs")
    augment: float = option(0.0, "Strength of random distortions; 1 is usual.", at_least(0))


@dataclasses.dataclass(frozen=True)
class StartOptions:
    """Start."""

    seed: int = option(0, "Seed of weights, shuffling and synthetic digits.", at_least(0, 2**32))
    init: Path | None = neutral(  # not the path but the content changes a run
        None, "Weights to start from: a run, or a weights file.", local_path, also="pretrained load"
    )
    torch_seed: int | None = option(
        None,
        "Weights and orders of a PyTorch script that calls torch.manual_seed with this number, "
        "makes the model and iterates over one shuffled DataLoader in each epoch.",
        at_least(-(2**63), 2**64),
    )
    torch_test_loader: bool = option(False, "After each epoch it iterates over a test loader too.")
    torch_order: Literal["modern", "legacy"] = option("modern", "Legacy: as before PyTorch 1.6.")

    def __post_init__(self) -> None:
        if self.torch_seed is None and (self.torch_order == "legacy" or self.torch_test_loader):
            wrong("--torch-order and --torch-test-loader need a --torch-seed")


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Model."""

    hidden: tuple[int, ...] = option(
        (128, 64), "Width of each hidden layer.", at_least(1, 2**31), also="layers width units"
    )
    loss: Literal["cross_entropy", "nll"] = option(
        "cross_entropy", "Cross-entropy of logits, or negative log likelihood of log-softmax."
    )


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """Optimizer."""

    optimizer: Literal["sgd", "adam", "adamw"] = option("sgd", "The optimizer.")
    learning_rate: float = option(0.003, "Step size.", at_least(0), also="lr rate step-size")
    momentum: float = option(0.0, "Momentum of SGD.", at_least(0, 1))
    weight_decay: float | None = option(
        None, "Of AdamW; 0.0001 if not given (PyTorch: 0.01).", at_least(0), also="wd decay l2"
    )
    schedule: Literal["constant", "cosine"] = option("constant", "Cosine: the rate falls to 0.")
    warmup: float = option(0.0, "Share of the steps in which the rate rises.", at_least(0, 1))

    def __post_init__(self) -> None:
        if self.momentum and self.optimizer != "sgd":
            wrong(f"--momentum is SGD's; --optimizer {self.optimizer} has none")
        if self.weight_decay and self.optimizer != "adamw":
            wrong(f"--weight-decay is AdamW's; --optimizer {self.optimizer} has none")


@dataclasses.dataclass(frozen=True)
class DataDirOptions:
    """Data."""

    data_dir: Path | None = neutral(
        None, "Directory with MNIST, instead of JAXMNIST_DATA_DIR.", local_path, metavar="DIR"
    )


@dataclasses.dataclass(frozen=True)
class DataOptions(DataDirOptions):
    """Data."""

    dataset: Literal["auto", "mnist", "synthetic"] = neutral(  # the data itself changes a run
        "auto", "MNIST, or synthetic digits; auto takes these only if MNIST is not available."
    )

    def __post_init__(self) -> None:
        if self.data_dir and self.dataset == "synthetic":
            wrong("--data-dir is MNIST's; --dataset synthetic reads no files")


@dataclasses.dataclass(frozen=True)
class SeededDataOptions(DataOptions):
    """Data."""

    seed: int = option(0, "Seed of synthetic digits, that of the training.", at_least(0, 2**32))


@dataclasses.dataclass(frozen=True)
class TrainingDataOptions(DataOptions):
    """Data."""

    validation: int = option(
        0, "Hold out the last N training images, and test on them too.", at_least(0), metavar="N"
    )
    synthetic_digits: int = option(
        0, "Add N synthetic digits to the training images.", at_least(0, 60_001), metavar="N"
    )


@dataclasses.dataclass(frozen=True)
class DeviceOptions:
    """Device."""

    device: Literal["auto", "cpu", "gpu", "tpu"] = neutral(
        "auto", "Kind of device; auto is the best that JAX finds.", also="gpu cpu cuda accelerator"
    )
    compile_cache: bool = neutral(True, "Compile each program anew, and keep none.")


@dataclasses.dataclass(frozen=True)
class DevicesOptions(DeviceOptions):
    """Device."""

    devices: int | Literal["all"] = neutral(
        1, "How many devices share each batch.", at_least(1), metavar="N|all"
    )


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """Several processes that share each batch."""

    distributed: bool = neutral(False, "Be one of these processes.", also="multihost ddp")
    coordinator: str | None = neutral(
        None, "Address of process 0, unless a cluster tells it.", metavar="HOST:PORT"
    )
    processes: int | None = neutral(None, "How many there are.", at_least(1))
    process_id: int | None = neutral(None, "Which one this is, from 0.", at_least(0), also="rank")
    timeout: int = neutral(30, "Seconds to wait for another process.", at_least(10, 86_401))

    def __post_init__(self) -> None:
        explicit = [self.coordinator, self.processes, self.process_id]
        if explicit != 3 * [None] and (not self.distributed or None in explicit):
            wrong("--coordinator, --processes and --process-id need --distributed and one another")


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """Output."""

    out: Path | None = neutral(
        None, "Directory for the run.", local_path, metavar="DIR", also="save dir log-dir run"
    )
    resume: bool = neutral(False, "Continue from the newest checkpoint.", also="continue")
    plots: bool = neutral(False, "Draw the finished run: losses, confusion, mistakes, weights.")
    tensorboard: bool = neutral(False, "Log for TensorBoard too.")

    def __post_init__(self) -> None:
        if self.out is None and (self.resume or self.plots or self.tensorboard):
            wrong("--resume, --plots and --tensorboard need an --out")


def load(options: DataOptions, seed: int) -> "Data":
    """Load the data; stderr says where synthetic digits stand in for MNIST, and what takes long."""
    from jaxmnist.datasets import load_data

    say = partial(print, file=sys.stderr, flush=True)
    return load_data(options.dataset, options.data_dir, seed, say=say)


def load_model(path: Path) -> tuple[dict[str, Any], bool | None]:
    """The parameters in a run or a weights file; whether it trained on synthetic digits, if known.

    stderr says where the run is not finished.
    """
    from jaxmnist.pictures import load_reader
    from jaxmnist.runs.directory import read_run

    if not path.is_dir():
        return load_reader(path).params, None
    run = read_run(path)
    if not run.finished:
        epochs = f"{len(run.records)} of {run.config['options']['epochs']} epochs"
        print(f"Note: {path}: not finished, these are the weights after {epochs}", file=sys.stderr)
    return run.params, run.config["identity"].get("data") != "MNIST"
