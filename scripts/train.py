"""Train the notebook's MLP: 784-128-64-10 on MNIST, SGD, five epochs in batches of 64."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import _cli as cli
from _cli import UsageError
from _compile_cache import compile_cache
from _distributed import together
from _output import check_out, save
from _setup import WARNING, build, find_devices, load


@dataclasses.dataclass(frozen=True)
class Config:
    """The options. The defaults are the notebook's run: on MNIST it ends at a training loss of
    0.39 and a test accuracy of 90 %, after a second or two on two CPU cores."""

    epochs: int = 5
    """How often every training image is seen."""
    batch_size: int = 64
    """Images a step."""
    learning_rate: float = 0.003
    """Step size of the optimizer."""
    momentum: float = 0.0
    """Momentum of SGD."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """The optimizer, one of optax's."""
    hidden: tuple[int, ...] = (128, 64)
    """Width of each hidden layer."""
    loss: Literal["cross_entropy", "nll"] = "cross_entropy"
    """Cross-entropy on logits, or negative log likelihood on a log-softmax head."""
    seed: int = 0
    """Makes the initial weights, the shuffling and, if drawn, the digits."""
    dataset: Literal["auto", "mnist", "synthetic"] = "auto"
    """MNIST, or drawn digits; auto is MNIST or, where that cannot be had, drawn digits."""
    data_dir: Path | None = None
    """Directory with MNIST's four IDX files; JAXMNIST_DATA_DIR does the same."""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Where to train; auto is the best that JAX finds."""
    devices: int | Literal["all"] = 1
    """How many devices share each batch out among them."""
    distributed: bool = False
    """This is one of several processes that train together, on all their devices."""
    coordinator: str | None = None
    """With --distributed: host:port of process 0. Slurm, Open MPI and TPU pods tell it."""
    processes: int | None = None
    """With --distributed: how many there are, where the cluster does not tell it."""
    process_id: int | None = None
    """With --distributed: which one this is, from 0, where the cluster does not tell it."""
    timeout: int = 30
    """With --distributed: seconds after which a process that keeps silent is given up."""
    torch_seed: int | None = None
    """Draw initial weights and shuffling as PyTorch does after torch.manual_seed of this."""
    torch_order: Literal["modern", "legacy"] = "modern"
    """With --torch-seed: shuffle as PyTorch's DataLoader since 1.6, or as before (legacy)."""
    init: Path | None = None
    """Weights to start from: a .safetensors file, or with PyTorch installed a .pt file."""
    compile_cache: bool = True
    """Keep compiled programs in the user's cache directory and start faster the next time."""
    out: Path | None = None
    """New directory for the config, the metrics of each epoch and the weights."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is loaded."""
        for name, least in (("epochs", 1), ("batch_size", 1), ("learning_rate", 0), ("seed", 0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must be at least {least}, not {value}")
        if self.seed >= 2**32:
            raise ValueError(f"--seed must be below 2**32, not {self.seed}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"--momentum must be in [0, 1), not {self.momentum}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"--momentum is SGD's; --optimizer {self.optimizer} has none to set")
        if self.torch_seed is None and self.torch_order == "legacy":
            raise ValueError("--torch-order is PyTorch's; it needs a --torch-seed")
        if self.torch_seed is not None and not -(2**63) <= self.torch_seed < 2**64:
            raise ValueError(f"--torch-seed must be in [-2**63, 2**64), not {self.torch_seed}")
        if self.devices != "all" and self.devices < 1:
            raise ValueError(f"--devices must be at least 1 or all, not {self.devices}")
        explicit = (self.coordinator, self.processes, self.process_id)
        if explicit != (None, None, None):
            if not self.distributed:
                raise ValueError("--coordinator, --processes, --process-id need --distributed")
            if None in explicit:
                raise ValueError("--coordinator, --processes, --process-id go together")
        if self.distributed and self.devices == 1:
            object.__setattr__(self, "devices", "all")
        if self.timeout < 10:
            raise ValueError(f"--timeout must be at least 10 seconds, not {self.timeout}")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"--hidden needs widths of at least 1, not {self.hidden}")


def main(config: Config) -> None:
    """Train, alone or together with other processes."""
    with together(config) as first:
        train(config, first)


def train(config: Config, first: bool) -> None:
    """Load, compile, train and evaluate, report; write files if this is the first process."""
    import jax
    import tqdm

    from jaxmnist import cache, check_finite

    # float32 everywhere: by default NVIDIA GPUs multiply in TF32 and TPUs in bfloat16, and the same
    # seed would train differently there.
    jax.config.update("jax_default_matmul_precision", "highest")
    clock = Clock()
    if first:
        check_out(config.out)
    device, mesh = find_devices(config)
    data, drawn = load(config)
    n = len(data.train.labels)
    if config.batch_size > n:
        raise UsageError(f"--batch-size {config.batch_size} is above the {n:,} training images")
    print(f"Data: {data.source}", flush=True)
    if data.note:
        print(f"Note: {data.note}", file=sys.stderr)
    clock.lap("load")

    with compile_cache(cache.cache_dir()) if config.compile_cache else nullcontext():
        run = build(config, data, device, mesh, {n})
    clock.lap("compile")

    state, records = run.state, []
    train_epoch = run.piece(0, slice(0, n))
    for epoch in tqdm.tqdm(range(config.epochs), unit="epoch", leave=False, disable=None):
        state, metrics = train_epoch(state)
        if epoch + 1 < config.epochs:
            train_epoch = run.piece(epoch + 1, slice(0, n))  # shuffled while the device trains
        losses = jax.device_get(metrics["loss"])
        clock.lap("train")
        check_finite(losses, first_step=epoch * len(losses))
        scores = jax.device_get(run.evaluate(state.params))
        clock.lap("evaluate")
        record = {
            "epoch": epoch + 1,
            "train_loss": float(losses.mean(dtype="float64")),
            "test_loss": float(scores["loss"]),
            "test_accuracy": float(scores["accuracy"]),
        }
        records.append(record)
        tqdm.tqdm.write(
            f"Training loss: {record['train_loss']:.6f}   test loss: {record['test_loss']:.6f}"
            f"   test accuracy: {record['test_accuracy']:.2%}"
        )
        sys.stdout.flush()  # also where the output goes into a file

    if config.out and first:
        options = {**dataclasses.asdict(config), "source": data.source}
        save(config.out, options, records, state.params)
    devices = f"{device.device_kind} ({device.platform})"
    if mesh is not None:
        devices = f"{mesh.size} devices, each {devices}"
    report(config, data.source, drawn, devices, n, len(losses), clock)


def report(
    config: Config, source: str, drawn: bool, devices: str, n: int, steps: int, clock: Clock
) -> None:
    """The closing summary."""
    seconds = clock.seconds
    print(f"\nTrained on {source}")
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    print(f"  {epochs} of {steps} steps on {devices}")
    print("  " + ", ".join(f"{name} {s:.2f} s" for name, s in seconds.items()))
    print(f"  {config.epochs * n / seconds['train']:,.0f} images per second in training")
    if config.out:
        print(f"  config, metrics and weights in {config.out}")
    if drawn:
        print(WARNING)


class Clock:
    """Seconds spent, by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


if __name__ == "__main__":
    cli.run(main, Config, __doc__)
