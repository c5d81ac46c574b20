"""Train the notebook's MLP: 784-128-64-10 on MNIST, SGD, five epochs in batches of 64."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from _cli import UsageError, run
from _compile_cache import compile_cache
from _output import check_out, save

if TYPE_CHECKING:  # the functions import what they use, so that --help does not wait for JAX
    from collections.abc import Callable

    import jax
    import optax

    from jaxmnist import Dataset
    from jaxmnist.mnist import Mnist

WARNING = (
    "WARNING: this is NOT MNIST but digits drawn by a program: "
    "MNIST is neither on this machine nor can it be downloaded now."
)


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
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"--hidden needs widths of at least 1, not {self.hidden}")


def main(config: Config) -> None:
    """Load, compile, train and evaluate, report."""
    import jax
    import tqdm

    from jaxmnist import cache, check_finite

    # float32 everywhere: by default NVIDIA GPUs multiply in TF32 and TPUs in bfloat16, and the same
    # seed would train differently there.
    jax.config.update("jax_default_matmul_precision", "highest")
    clock = Clock()
    check_out(config.out)
    device = find_device(config.device)
    data, drawn = load(config)
    n = len(data.train.labels)
    if config.batch_size > n:
        raise UsageError(f"--batch-size {config.batch_size} is above the {n:,} training images")
    print(f"Data: {data.source}", flush=True)
    if data.note:
        print(f"Note: {data.note}", file=sys.stderr)
    train, test = jax.device_put((data.train, data.test), device)
    clock.lap("load")

    with compile_cache(cache.cache_dir()) if config.compile_cache else nullcontext():
        state, orders, run_epoch, run_test = build(config, train, test)
    clock.lap("compile")

    records = []
    order = orders(0)
    for epoch in tqdm.tqdm(range(config.epochs), unit="epoch", leave=False, disable=None):
        state, metrics = run_epoch(state, train, order)
        if epoch + 1 < config.epochs:
            order = orders(epoch + 1)  # shuffled while the device trains
        losses = jax.device_get(metrics["loss"])
        clock.lap("train")
        check_finite(losses, first_step=epoch * len(losses))
        scores = jax.device_get(run_test(state.params, test))
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

    if config.out:
        options = {**dataclasses.asdict(config), "source": data.source}
        save(config.out, options, records, state.params)
    report(config, data.source, drawn, device, n, len(losses), clock)


def build(config: Config, train: Dataset, test: Dataset) -> tuple[Any, ...]:
    """What a run consists of: the first state, each epoch's order, and two compiled programs."""
    import jax
    import jax.numpy as jnp

    from jaxmnist import (
        MLP,
        TrainState,
        cross_entropy,
        evaluate,
        init_state,
        make_train_epoch,
        make_train_step,
        nll_loss,
    )

    model = MLP(config.hidden, log_probs=config.loss == "nll")
    loss_fn = nll_loss if config.loss == "nll" else cross_entropy
    tx = make_optimizer(config)
    train_epoch = make_train_epoch(make_train_step(model.apply, tx, loss_fn), config.batch_size)

    def run_test(params: Any, test: Dataset) -> Any:
        return evaluate(model.apply, params, test, loss_fn)

    shapes = jax.eval_shape(lambda: init_state(jax.random.key(0), model, tx))
    order = jax.ShapeDtypeStruct(train.labels.shape, jnp.int32)
    with ThreadPoolExecutor() as pool:  # XLA compiles on one core; there are others
        # Nobody else holds the state, so the next one may take its memory.
        epoch_program = jax.jit(train_epoch, donate_argnums=0)
        compiling = (
            pool.submit(lambda: epoch_program.lower(shapes, train, order).compile()),
            pool.submit(lambda: jax.jit(run_test).lower(shapes.params, test).compile()),
        )
        params, orders = draw(config, model, shapes.params, len(train.labels))
        params = jax.device_put(params, train.labels.device)
        state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
        return (state, orders, *(program.result() for program in compiling))


def draw(config: Config, model: Any, shapes: Any, n: int) -> tuple[Any, Callable[[int], Any]]:
    """What is random in a run: the initial parameters, and the order of epoch 0, 1, 2, ...

    Both come from JAX's key for `--seed`, or from PyTorch's stream for `--torch-seed`; parameters
    of `--init` take the place of drawn ones and must have the same `shapes`.
    """
    import jax
    import numpy as np

    from jaxmnist import DataError, epoch_order, torch_compat

    if config.torch_seed is None:
        seed = np.uint32(config.seed)  # the key is made inside the programs: by itself it takes 50 ms

        def init(seed: Any) -> Any:
            return model.init(jax.random.key(seed), np.zeros((1, 784), np.float32))

        if not config.init:
            # XLA's full optimisation of what runs for 1 ms takes it 0.6 s longer, for equal bits.
            options = {"xla_backend_optimization_level": 2}
            params = jax.jit(init).lower(seed).compile(compiler_options=options)(seed)

        def order_of(seed: Any, epoch: Any) -> Any:
            return epoch_order(jax.random.key(seed), epoch, n)

        make_order = jax.jit(order_of).lower(seed, 0).compile()

        def orders(epoch: int) -> Any:
            return make_order(seed, epoch)

    else:
        generator = torch_compat.TorchGenerator(config.torch_seed)
        # Drawn even where --init replaces them: the orders come after them in the stream.
        params = torch_compat.init_params(generator, (784, *config.hidden, 10))

        def orders(epoch: int) -> Any:  # a stream: each call draws the next epoch's
            return torch_compat.loader_order(generator, n, legacy=config.torch_order == "legacy")

    if config.init:
        params = torch_compat.load_weights(config.init)
        found, expected = ([x.shape for x in jax.tree.leaves(tree)] for tree in (params, shapes))
        if found != expected:
            raise DataError(f"{config.init}: weights of other sizes than --hidden {config.hidden}")
    return params, orders


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """The optax optimizer that the options name."""
    import optax

    if config.optimizer == "sgd":
        return optax.sgd(config.learning_rate, momentum=config.momentum or None)
    return getattr(optax, config.optimizer)(config.learning_rate)


def find_device(name: str) -> jax.Device:
    """The device to train on."""
    import jax

    from jaxmnist import JaxmnistError

    if name == "cpu":  # does not wake an accelerator that is not wanted
        jax.config.update("jax_platforms", "cpu")
    try:
        return jax.devices(None if name == "auto" else name)[0]
    except RuntimeError as error:
        raise JaxmnistError(
            f"--device {name}: JAX finds no such device, only {jax.default_backend()}; "
            "the extras jaxmnist[cuda] and jaxmnist[tpu] install the support for others"
        ) from error


def load(config: Config) -> tuple[Mnist, bool]:
    """The data, and whether it is drawn digits standing in for an MNIST that cannot be had."""
    from jaxmnist import DataNotFoundError
    from jaxmnist.mnist import Mnist, find_mnist
    from jaxmnist.synthetic import load_synthetic

    if config.dataset != "synthetic":
        try:
            found = find_mnist(config.data_dir, progress=sys.stderr.isatty())
            return found._replace(source=f"MNIST from {found.source}"), False
        except DataNotFoundError as error:
            named = config.data_dir or os.environ.get("JAXMNIST_DATA_DIR")
            if config.dataset == "mnist" or named:
                raise
            print(f"{WARNING}\n{error}", file=sys.stderr)
    elif config.data_dir:
        raise UsageError("--data-dir is MNIST's; --dataset synthetic reads no files")
    train, test = load_synthetic(config.seed)
    source = f"drawn digits, seed {config.seed}: not MNIST"
    return Mnist(train, test, source), config.dataset == "auto"


def report(
    config: Config, source: str, drawn: bool, device: jax.Device, n: int, steps: int, clock: Clock
) -> None:
    """The closing summary."""
    seconds = clock.seconds
    print(f"\nTrained on {source}")
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    print(f"  {epochs} of {steps} steps on {device.device_kind} ({device.platform})")
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
    run(main, Config, __doc__)
