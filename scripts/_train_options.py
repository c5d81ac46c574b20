"""The options of scripts/train.py."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import _options as o
import tyro


@dataclasses.dataclass(frozen=True)
class RunOptions(o.TrainingOptions):
    """How long to train, and what to start from."""

    recipe: Literal["notebook", "accurate"] = "notebook"
    """Defaults of the other options, which --recipe accurate --help shows; an option that is given
    replaces its default. On MNIST and two CPU cores, notebook: test accuracy 90 %, test loss 0.35,
    in seconds; accurate: 99.3 %, 0.02, in a few minutes."""
    seed: int = 0
    """Seed of the initial weights, the shuffling and any drawn digits."""
    torch_seed: o.OptionalInt = None
    """Initial weights and shuffling of a PyTorch script that calls torch.manual_seed with this,
    makes the model and then iterates over one shuffled DataLoader in each epoch."""
    torch_test_loader: o.Flag = False
    """With --torch-seed: after each epoch the script iterates over a test loader too."""
    torch_order: Literal["modern", "legacy"] = "modern"
    """With --torch-seed: shuffle as PyTorch's DataLoader since 1.6, or as before (legacy)."""
    init: o.FilePath = None
    """Weights to start from: a .safetensors file, with PyTorch installed a .pt file, or a run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        o.check_seed(seed=self.seed)
        o.check_path(init=self.init)
        if self.torch_seed is None and (self.torch_order == "legacy" or self.torch_test_loader):
            o.wrong("--torch-order and --torch-test-loader are PyTorch's; they need a --torch-seed")
        if self.torch_seed is not None and not -(2**63) <= self.torch_seed < 2**64:
            o.wrong(f"--torch-seed must be in [-2**63, 2**64), not {self.torch_seed}")


@dataclasses.dataclass(frozen=True)
class RateOptions(o.OptimizerOptions):
    """The optimizer, one of optax's."""

    learning_rate: float = 0.003
    """Step size of the optimizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        o.at_least(0, learning_rate=self.learning_rate)


@dataclasses.dataclass(frozen=True)
class DevicesOptions(o.DeviceOptions):
    """Where it is computed."""

    devices: Annotated[int | Literal["all"], tyro.conf.arg(metavar="N|all")] = 1
    """How many devices share each batch."""

    def __post_init__(self) -> None:
        if self.devices != "all":
            o.at_least(1, devices=self.devices)


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """Several processes, one job."""

    distributed: o.Flag = False
    """This is one of several processes, on all of whose devices each batch is shared."""
    coordinator: Annotated[
        str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")
    ] = None
    """Address of process 0; not needed under Slurm, Open MPI and on TPU pods."""
    processes: o.OptionalInt = None
    """How many processes there are; needed with --coordinator."""
    process_id: o.OptionalInt = None
    """The number of this process, from 0; needed with --coordinator."""
    timeout: int = 30
    """Seconds to wait for a process that does not answer."""

    def __post_init__(self) -> None:
        if not 10 <= self.timeout <= 86_400:
            o.wrong(f"--timeout must be at least 10 and at most 86400 seconds, not {self.timeout}")
        explicit = (self.coordinator, self.processes, self.process_id)
        if explicit == (None, None, None):
            return
        if not self.distributed:
            o.wrong("--coordinator, --processes and --process-id need --distributed")
        if self.coordinator is None or self.processes is None or self.process_id is None:
            o.wrong("--coordinator, --processes and --process-id need one another")
        from jaxmnist.runs.coordinator import check_address

        check_address(self.coordinator, self.processes, self.process_id)


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """What is kept of a run."""

    out: o.FilePath = None
    """Directory for the run: config, metrics, checkpoints and, at the end, weights."""
    resume: o.Flag = False
    """Continue from the newest checkpoint in --out, if there is one."""
    checkpoint_every: int = 1
    """Epochs or steps between two checkpoints."""
    checkpoint_unit: Literal["epochs", "steps"] = "epochs"
    """What --checkpoint-every counts; if it is steps, each epoch ends with a checkpoint too."""
    keep: int = 3
    """How many checkpoints are kept, the newest."""
    plots: o.Flag = False
    """Draw pictures of the finished run into --out: losses, confusion, mistakes, weights."""
    tensorboard: o.Flag = False
    """Write losses and accuracies for TensorBoard too, into --out's directory tensorboard."""

    def __post_init__(self) -> None:
        o.at_least(1, checkpoint_every=self.checkpoint_every, keep=self.keep)
        o.check_path(out=self.out)
        if self.out is None and (self.resume, self.checkpoint_every, self.keep) != (False, 1, 3):
            o.wrong("--resume, --checkpoint-every and --keep need an --out")
        if self.out is None and (self.plots or self.tensorboard):
            o.wrong("--plots and --tensorboard need an --out")

    def chunk(self, steps: int) -> int:
        """How many of an epoch's steps are taken between two checkpoints."""
        return self.checkpoint_every if self.checkpoint_unit == "steps" else steps


@dataclasses.dataclass(frozen=True)
class Options:
    """All of them. The defaults are the notebook's run."""

    training: RunOptions = RunOptions()
    model: o.ModelOptions = o.ModelOptions()
    optimizer: RateOptions = RateOptions()
    data: o.DataOptions = o.DataOptions()
    where: DevicesOptions = DevicesOptions()
    processes: ProcessOptions = ProcessOptions()
    output: OutputOptions = OutputOptions()

    @property
    def devices(self) -> int | Literal["all"]:
        """How many devices share each batch: with other processes, all."""
        return "all" if self.processes.distributed else self.where.devices


RECIPES = {
    "notebook": Options(),
    "accurate": Options(
        training=RunOptions(
            recipe="accurate", epochs=80, batch_size=128, augment=1.0, synthetic_digits=10_000
        ),
        model=o.ModelOptions(hidden=(512, 256)),
        optimizer=RateOptions(
            optimizer="adamw",
            learning_rate=0.002,
            weight_decay=0.05,
            schedule="cosine",
            warmup=0.05,
        ),
    ),
}
