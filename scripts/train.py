"""Train the notebook's MLP: 784-128-64-10 on MNIST, SGD, five epochs in batches of 64."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import _cli as cli

from jaxmnist.runs.compile_cache import compile_cache
from jaxmnist.runs.directory import Output
from jaxmnist.runs.processes import any_process, from_first, together
from jaxmnist.runs.programs import WARNING, build, find_devices, first_shapes, load
from jaxmnist.runs.signals import Signals


@dataclasses.dataclass(frozen=True)
class Config:
    """The options. The defaults are the notebook's run: on MNIST it ends at a training loss of
    0.38 and a test accuracy of 90 %, after a second or two on two CPU cores."""

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
    """Weights to start from: a .safetensors file, with PyTorch installed a .pt file, or a run."""
    compile_cache: bool = True
    """Keep compiled programs in the user's cache directory and start faster the next time."""
    out: Path | None = None
    """Directory for the run: its config, metrics, checkpoints and at last its weights."""
    resume: bool = False
    """Go on from the newest checkpoint in --out, if there is one."""
    checkpoint_every: int = 1
    """How far checkpoints are apart."""
    checkpoint_unit: Literal["epochs", "steps"] = "epochs"
    """What --checkpoint-every counts. An epoch ends with one in any case if it counts steps."""
    keep: int = 3
    """How many checkpoints are kept, the newest."""
    plots: bool = False
    """Draw pictures of the finished run into --out: losses, confusion, mistakes, weights."""
    tensorboard: bool = False
    """Write losses and accuracies for TensorBoard too, into --out's directory tensorboard."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is loaded."""
        limits = {"epochs": 1, "batch_size": 1, "learning_rate": 0, "seed": 0}
        for name, least in {**limits, "checkpoint_every": 1, "keep": 1, "timeout": 10}.items():
            value = getattr(self, name)
            if not least <= value < math.inf:
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
        if self.out is None and (self.resume, self.checkpoint_every, self.keep) != (False, 1, 3):
            raise ValueError("--resume, --checkpoint-every and --keep need an --out")
        if self.out is None and (self.plots or self.tensorboard):
            raise ValueError("--plots and --tensorboard need an --out")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"--hidden needs widths of at least 1, not {self.hidden}")


def main(config: Config) -> None:
    """Train, alone or together with other processes, of which the first writes."""
    import jax

    # float32 everywhere: by default NVIDIA GPUs multiply in TF32 and TPUs in bfloat16, and the same
    # seed would train differently there.
    jax.config.update("jax_default_matmul_precision", "highest")
    with (
        together(config) as first,
        Output(
            config.out if first else None,
            config.resume,
            config.keep,
            config.plots,
            config.tensorboard,
        ) as output,
    ):
        train(config, output)


def train(config: Config, output: Output) -> None:
    """Load, compile, train and evaluate, report."""
    import jax
    import tqdm

    from jaxmnist import check_finite
    from jaxmnist.datasets import cache
    from jaxmnist.errors import Stopped, UsageError

    clock = Clock()
    device, mesh = find_devices(config)
    data, drawn = load(config)
    n = len(data.train.labels)
    if config.batch_size > n:
        raise UsageError(f"--batch-size {config.batch_size} is above the {n:,} training images")
    print(f"Data: {data.source}", flush=True)
    if data.note:
        print(f"Note: {data.note}", file=sys.stderr)
    steps = -(-n // config.batch_size)  # an epoch
    if config.epochs * steps >= 2**31:  # the state counts them in 32 bits
        raise UsageError(f"--epochs {config.epochs} of {steps} steps are 2**31 steps or more")
    options = {**dataclasses.asdict(config), "source": data.source, "drawn_digits": drawn}
    resumed, losses = resume(config, output, options, steps)
    pieces = plan(config, steps, resumed.step if resumed else 0)
    images = [
        (e, slice(a * config.batch_size, min(b * config.batch_size, n))) for e, a, b in pieces
    ]
    clock.lap("load")

    with compile_cache(cache.cache_dir()) if config.compile_cache else nullcontext():
        run = build(config, data, device, mesh, {part.stop - part.start for _, part in images})
    state = run.place(resumed) if resumed else run.state
    following = (run.piece(epoch, part) for epoch, part in images)
    piece: Any = next(following, None)
    clock.lap("compile")

    left = len({epoch for epoch, _, _ in pieces})
    with (
        Signals(enabled=config.out is not None) as signals,
        tqdm.tqdm(total=left, unit="epoch", leave=False, disable=None) as bar,
    ):
        for epoch, start, stop in pieces:
            state, metrics = piece(state)
            piece = next(following, None)  # shuffled while the device trains
            losses[start:stop] = jax.device_get(metrics["loss"])
            clock.lap("train")
            check_finite(losses[start:stop], first_step=epoch * steps + start)
            output.add_steps(epoch * steps + start + 1, losses[start:stop])
            if stop == steps:
                scores = jax.device_get(run.evaluate(state.params))
                clock.lap("evaluate")
                output.add(
                    {
                        "epoch": epoch + 1,
                        "step": (epoch + 1) * steps,
                        "train_loss": float(losses.mean(dtype="float64")),
                        "test_loss": float(scores["loss"]),
                        "test_accuracy": float(scores["accuracy"]),
                    }
                )
                bar.update()
                bar.write(describe(output.records[-1]))
                sys.stdout.flush()  # also where the output goes into a file
            signal = any_process(config, signals.number)
            every = config.checkpoint_every if config.checkpoint_unit == "epochs" else 1
            if signal or piece is None or stop < steps or (epoch + 1) % every == 0:
                output.save(state, {"losses": losses})
            if signal and piece is not None:
                output.settle()
                done = epoch * steps + stop
                raise Stopped(signal, f"stopped and saved after step {done:,}; --resume goes on")

    output.finish(state.params)
    if config.plots:
        output.draw(data.test)
        clock.lap("draw")
    devices = f"{device.device_kind} ({device.platform})"
    if mesh is not None:
        devices = f"{mesh.size} devices, each {devices}"
    trained = sum(part.stop - part.start for _, part in images)
    report(config, data.source, drawn, devices, trained, steps, clock)


def resume(config: Config, output: Output, options: dict[str, Any], steps: int) -> tuple[Any, Any]:
    """The state to go on from, or None, and the losses of the steps of its epoch."""
    import jax
    import numpy as np

    losses = np.zeros(steps, np.float32)
    if config.out is None:
        return None, losses
    like = first_shapes(config)
    found = output.begin(options, like)
    if found is None:
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    else:
        state, losses[:] = found.state, found.arrays["losses"]
    state, losses = from_first(config, (state, losses))
    losses = np.array(losses)  # those of another process cannot be written to
    if state.step == 0:
        return None, losses
    for record in output.records:
        print(describe(record))
    print(f"Resumed from {config.out} after step {state.step:,}", flush=True)
    return state, losses


def plan(config: Config, steps: int, done: int) -> list[tuple[int, int, int]]:
    """The pieces that are left to train: epoch, first step in it, the one behind the last."""
    size = config.checkpoint_every if config.checkpoint_unit == "steps" else steps
    return [
        (epoch, start, min(start + size, steps))
        for epoch in range(done // steps, config.epochs)
        for start in range(done % steps if epoch == done // steps else 0, steps, size)
    ]


def describe(record: dict[str, float]) -> str:
    """A line about an epoch."""
    return (
        f"Training loss: {record['train_loss']:.6f}   test loss: {record['test_loss']:.6f}"
        f"   test accuracy: {record['test_accuracy']:.2%}"
    )


def report(
    config: Config, source: str, drawn: bool, devices: str, images: int, steps: int, clock: Clock
) -> None:
    """The closing summary."""
    seconds = clock.seconds
    print(f"\nTrained on {source}")
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    print(f"  {epochs} of {steps} steps on {devices}")
    print("  " + ", ".join(f"{name} {s:.2f} s" for name, s in seconds.items()))
    if images:
        print(f"  {images / seconds['train']:,.0f} images per second in training")
    else:
        print("  nothing was left to train; --epochs above this trains on")
    if config.out:
        print(f"  config, metrics, checkpoints and weights in {config.out}")
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
