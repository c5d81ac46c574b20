"""The programs of a run, compiled for a device or a mesh, and whether they fit in its memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from jaxmnist import parallel
from jaxmnist.data import Dataset
from jaxmnist.datasets.mnist import Data
from jaxmnist.datasets.synthetic import add_synthetic
from jaxmnist.errors import JaxmnistError, NonFiniteLossError, UsageError
from jaxmnist.evaluation import evaluate
from jaxmnist.machine import check_memory
from jaxmnist.runs.randomness import Orders
from jaxmnist.training import TrainState, TrainStep, make_train_epoch
from jaxmnist.types import Examples, Metrics, Model, Optimizer


class Chunk(NamedTuple):
    """Some of an epoch's steps, and the program that takes them."""

    steps: range  # counted from 0 in the epoch
    run: Callable[[Any], tuple[Any, Metrics]]  # state -> state and metrics, a row a step


class Programs:
    """Compiles in threads from the start, since XLA compiles on one core and there are others.

    Args:
        train_step: one step; the last batch is padded, see `make_train_epoch`.
        metrics_fn: what `evaluate` measures.
        shapes: the state, with shapes and dtypes for arrays.
        train_set: what the orders index.
        test_sets: what is evaluated on, by name.
        batch_size: examples in a step, over all devices.
        sizes: the lengths of the orders, or of the parts of orders, that are trained on.
        device: where to train, if there is no mesh.
        mesh: the devices that share each batch.
    """

    def __init__(
        self,
        train_step: TrainStep,
        metrics_fn: Callable[[Any, Any], Metrics],
        shapes: Any,
        train_set: Examples,
        test_sets: Mapping[str, Examples],
        *,
        batch_size: int,
        sizes: Collection[int],
        device: jax.Device,
        mesh: Mesh | None = None,
    ) -> None:
        self._device, self._mesh, self._batch_size = device, mesh, batch_size
        self._train_set, self._test_sets = train_set, self.place(dict(test_sets))
        if mesh is None:
            self._train_set = self.place(train_set)
            train_epoch: Callable[..., Any] = make_train_epoch(train_step, batch_size)
        else:
            train_epoch = parallel.make_sharded_epoch(train_step, mesh)
        # Nobody else holds the state, so the next one may take its memory.
        epoch_program = jax.jit(train_epoch, donate_argnums=0)
        run_test = jax.jit(lambda params, test_set: evaluate(metrics_fn, params, test_set))
        sharding = jax.tree.leaves(self._test_sets)[0].sharding
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
        )

        def compile_epoch(size: int) -> Any:
            order = np.arange(size, dtype=np.int32)
            return epoch_program.lower(shapes, *self._inputs(order)).compile()

        def compile_test(test_set: Examples) -> Any:
            return run_test.lower(shapes.params, test_set).compile()

        pool = ThreadPoolExecutor()
        self._training = {size: pool.submit(compile_epoch, size) for size in sizes}
        self._testing = {
            name: pool.submit(compile_test, test_set) for name, test_set in self._test_sets.items()
        }
        pool.shutdown(wait=False)

    def place(self, tree: Any) -> Any:
        """The arrays where the programs need them."""
        if self._mesh is None:
            return jax.device_put(tree, self._device)
        return parallel.replicate(tree, self._mesh)

    def wait(self) -> None:
        """Wait until all is compiled; a JaxmnistError where a program will not fit in memory."""
        for future in (*self._testing.values(), *self._training.values()):
            analysis = future.result().memory_analysis()
            check_memory(
                getattr(analysis, "temp_size_in_bytes", 0), self._device, "a step of this size"
            )

    def epochs(self, orders: Orders, size: int, done: int) -> Iterator[tuple[int, list[Chunk]]]:
        """The number of each epoch and its chunks of `size` steps, after step `done` of the run."""
        for epoch, order in orders:
            steps = -(-len(order) // self._batch_size)
            ranges = chunks(steps, size, max(done - epoch * steps, 0))
            yield epoch, [Chunk(steps, self._bind(order, steps)) for steps in ranges]

    def _bind(self, order: Any, steps: range) -> Callable[[Any], tuple[Any, Metrics]]:
        whole = len(steps) * self._batch_size >= len(order)  # stays on the device
        first, last = steps.start * self._batch_size, steps.stop * self._batch_size
        part = order if whole else np.asarray(order)[first:last]
        program, inputs = self._training[len(part)].result(), self._inputs(part)
        return lambda state: program(state, *inputs)

    def evaluate(self, params: Any) -> dict[str, dict[str, Any]]:
        """The metrics on each test set, on the host."""
        found = {
            name: self._testing[name].result()(params, test_set)
            for name, test_set in self._test_sets.items()
        }
        return jax.device_get(found)

    def _inputs(self, order: Any) -> tuple[Any, ...]:
        if self._mesh is None:
            return self._train_set, order
        return (parallel.shard_epoch(self._train_set, order, self._batch_size, self._mesh),)


def find_device(kind: Literal["auto", "cpu", "gpu", "tpu"] = "auto") -> jax.Device:
    """The first device of this kind; "auto" is the best that JAX finds."""
    if kind == "cpu":  # does not wake an accelerator that is not wanted
        jax.config.update("jax_platforms", "cpu")
    try:
        return jax.local_devices(backend=None if kind == "auto" else kind)[0]
    except (RuntimeError, AssertionError) as error:
        for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
            if value := os.environ.get(name):
                raise JaxmnistError(
                    f"the environment variable {name} is {value}, and JAX finds no such "
                    f"device here; unset it, or name what is there, for instance {name}=cpu"
                ) from error
        raise JaxmnistError(
            f"--device {kind}: JAX finds no such device, only {jax.default_backend()}; "
            "the extras cuda12, cuda13 and tpu install support for others"
        ) from error


def split(data: Data, validation: int, synthetic_digits: int) -> tuple[Dataset, dict[str, Dataset]]:
    """What to train on, with drawn digits added, and what to test on by name.

    The last `validation` of the training images are held out to validate.
    """
    train, n = data.train, len(data.train.labels) - validation
    if n < 1:
        raise UsageError(f"--validation {validation} leaves none of {len(train.labels):,} images")
    held_out = {"validation": Dataset(train.images[n:], train.labels[n:])} if validation else {}
    train = Dataset(train.images[:n], train.labels[:n]) if validation else train
    return add_synthetic(train, synthetic_digits), {**held_out, "test": data.test}


def count_steps(n: int, batch_size: int, epochs: int) -> int:
    """The steps of an epoch; a UsageError where they cannot be counted or no batch is full."""
    if batch_size > n:
        raise UsageError(f"--batch-size {batch_size} is above the {n:,} training images")
    steps = -(-n // batch_size)
    if epochs * steps >= 2**31:  # the state counts them in 32 bits
        raise UsageError(f"--epochs {epochs} of {steps} steps are 2**31 steps or more")
    return steps


def find_mesh(device: jax.Device, count: int | Literal["all"], batch_size: int) -> Mesh | None:
    """The mesh of so many devices of this device's kind, or of all; None for a single one."""
    if count == 1:
        return None
    mesh = parallel.make_mesh(None if count == "all" else count, device.platform)
    if batch_size < mesh.size:
        raise UsageError(f"--batch-size {batch_size} is below the {mesh.size} devices")
    return mesh if mesh.size > 1 else None


def state_shapes(
    model: Model, tx: Optimizer, device: jax.Device, key: PRNGKeyArray | None = None
) -> TrainState:
    """The first state, with shapes and dtypes for arrays; a JaxmnistError where it does not fit."""

    def first_state() -> TrainState:
        params = model.init(jax.random.key(0), np.zeros((1, 784), np.float32))
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), key=key)

    shapes = jax.eval_shape(first_state)
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((shapes, shapes.params))]
    check_memory(sum(sizes), device, "training a model of this size")
    return shapes


def chunks(steps: int, size: int, start: int = 0) -> list[range]:
    """The steps of an epoch from `start` on, by `size`, of which the last chunk may be shorter.

    >>> chunks(10, 4, start=3)
    [range(3, 7), range(7, 10)]
    """
    return [range(first, min(first + size, steps)) for first in range(start, steps, size)]


def chunk_sizes(n: int, batch_size: int, size: int, done: int, epochs: range) -> set[int]:
    """The numbers of examples in the chunks of these epochs, which begin at step `done`.

    >>> sorted(chunk_sizes(n=100, batch_size=10, size=4, done=13, epochs=range(1, 3)))
    [20, 30, 40]
    """
    steps = -(-n // batch_size)
    return {
        min(chunk.stop * batch_size, n) - chunk.start * batch_size
        for epoch in epochs[:2]  # the later ones are as the second is
        for chunk in chunks(steps, size, max(done - epoch * steps, 0))
    }


def check_finite_params(params: Any, step: int) -> None:
    """Raise a NonFiniteLossError where training has left parameters that are not finite."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(params))):
        raise NonFiniteLossError(
            f"the weights after step {step} are not finite: training has diverged, try a lower "
            "learning rate"
        )


def describe_devices(device: jax.Device, mesh: Mesh | None) -> str:
    """The devices, for the closing summary of a run."""
    one = f"{device.device_kind} ({device.platform})"
    return one if mesh is None else f"{mesh.size} devices, each {one}"


def describe_model(params: Any) -> str:
    """The sizes of an MLP's layers, and how many parameters there are."""
    layers = params["params"].values()
    sizes = [next(iter(layers))["weight"].shape[1], *(len(x["weight"]) for x in layers)]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f"{'-'.join(map(str, sizes))}, {count:,} parameters"
