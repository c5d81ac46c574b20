"""Options that several scripts have: each is named, checked and explained here, once.

A script's `Options` is a frozen dataclass with one of these groups in each field; the field's name
is the group's title in `--help`. The names on the command line have no prefix:

    @dataclasses.dataclass(frozen=True)
    class Options:
        model: ModelOptions = ModelOptions()
        data: DataOptions = DataOptions()
        plot: FilePath = None
        '''File for a plot.'''

`--data-dir` is then `options.data.data_dir`. A script that needs one option more in a group
inherits from the group. Each group checks itself; a wrong value is a UsageError, exit code 2.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import tyro

if TYPE_CHECKING:  # it imports JAX, and --help must not
    from jaxmnist.datasets import Data

# What `--help` shows for an option that may be left out: no "{None}|PATH", no "(default: None)".
FilePath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]
Weights = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WEIGHTS")]

WARNING = (
    "WARNING: this is NOT MNIST but synthetic digits: "
    "MNIST is neither on this machine nor can it be downloaded now."
)


def wrong(message: str) -> NoReturn:
    """Raise a UsageError."""
    from jaxmnist.errors import UsageError  # not at the top: it imports JAX, and --help must not

    raise UsageError(message)


def at_least(low: float, **options: float) -> None:
    """Each option is a finite number of at least `low`."""
    for name, value in options.items():
        if not low <= value < math.inf:
            wrong(f"--{name.replace('_', '-')} must be at least {low}, not {value}")


def check_seed(**options: int) -> None:
    """Each option is the seed of a JAX key: 32 bits."""
    for name, value in options.items():
        if not 0 <= value < 2**32:
            wrong(f"--{name.replace('_', '-')} must be at least 0 and below 2**32, not {value}")


def check_path(**options: Path | None) -> None:
    """Each option, if given, is the name of a file or directory on this machine."""
    for name, path in options.items():
        option = f"--{name.replace('_', '-')}"
        if path is None:
            continue
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
            wrong(f"{option} {path}: a URL; name a path on this machine")
        try:
            str(path).encode()
        except UnicodeEncodeError:
            wrong(f"{option} {path}: the name is not UTF-8; use another")


@dataclasses.dataclass(frozen=True)
class DataDirOptions:
    """Where the images come from, for a script that decides itself which they are."""

    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Directory with MNIST's four IDX files; JAXMNIST_DATA_DIR does the same."""

    def __post_init__(self) -> None:
        check_path(data_dir=self.data_dir)


@dataclasses.dataclass(frozen=True)
class DataOptions(DataDirOptions):
    """Where the images come from."""

    dataset: Literal["auto", "mnist", "synthetic"] = "auto"
    """MNIST, or synthetic digits; auto takes these only if MNIST is not available."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_dir and self.dataset == "synthetic":
            wrong("--data-dir is MNIST's; --dataset synthetic reads no files")


@dataclasses.dataclass(frozen=True)
class SeededDataOptions(DataOptions):
    """Where the images come from, for a script that tests a model."""

    seed: int = 0
    """Seed of what is random; for synthetic digits it must be the seed of the training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(seed=self.seed)


def load(options: DataOptions, seed: int) -> Data:
    """Load the data; stderr says where synthetic digits stand in for MNIST, and what takes long."""
    from jaxmnist.datasets import load_data

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    return load_data(options.dataset, options.data_dir, seed, say=say)


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How long to train, and on how many images."""

    epochs: int = 5
    """Passes over the training images."""
    batch_size: int = 64
    """Images in a step."""
    validation: int = 0
    """Hold out the last N training images, and evaluate on them too."""
    augment: float = 0.0
    """Strength of random changes of the training images: rotation, slant, elastic change...; 0 for
    none, 1 is usual."""
    synthetic_digits: int = 0
    """Number of synthetic digits that are added to the training images."""

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        at_least(0, validation=self.validation)
        at_least(0, augment=self.augment, synthetic_digits=self.synthetic_digits)
        if self.synthetic_digits > 60_000:
            wrong(f"--synthetic-digits must be at most 60000, not {self.synthetic_digits}")
        if self.epochs >= 2**31:
            wrong(f"--epochs must be below 2**31, not {self.epochs}")


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The network."""

    hidden: tuple[int, ...] = (128, 64)
    """Width of each hidden layer."""
    loss: Literal["cross_entropy", "nll"] = "cross_entropy"
    """Cross-entropy on logits, or negative log likelihood on a log-softmax output."""

    def __post_init__(self) -> None:
        if any(not 1 <= width < 2**31 for width in self.hidden):
            widths = " ".join(map(str, self.hidden))
            wrong(f"--hidden needs widths of at least 1 and below 2**31, not {widths}")


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer, one of optax's."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """SGD, Adam, or AdamW."""
    momentum: float = 0.0
    """Momentum of SGD."""
    weight_decay: OptionalFloat = None
    """Weight decay of AdamW. Default: optax's 0.0001; PyTorch's is 0.01."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Constant learning rate, or cosine decay to 0 at the last step."""
    warmup: float = 0.0
    """Share of all steps in which the learning rate first rises; at least 0 and below 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            wrong(f"--momentum must be in [0, 1), not {self.momentum}")
        if self.momentum and self.optimizer != "sgd":
            wrong(f"--momentum is SGD's; --optimizer {self.optimizer} has none")
        if not 0 <= self.warmup < 1:
            wrong(f"--warmup must be in [0, 1), not {self.warmup}")
        if self.weight_decay is not None:
            at_least(0, weight_decay=self.weight_decay)
            if self.weight_decay and self.optimizer != "adamw":
                wrong(
                    f"--weight-decay is AdamW's; --optimizer {self.optimizer} has none, so let it "
                    "be 0"
                )


@dataclasses.dataclass(frozen=True)
class DeviceOptions:
    """Where it is computed."""

    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Kind of device; auto is the best that JAX finds."""
    compile_cache: bool = True
    """Keep compiled programs in the user's cache directory, so that the next start is faster."""
