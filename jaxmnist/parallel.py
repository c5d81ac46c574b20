"""Data parallelism: each batch shared out over a mesh of devices, of one process or of many.

The step is the one that a single device runs. JAX computes with what is where it is: of a batch
that is shared out, each device computes its rows, and the mean over the batch, the gradient's too,
becomes a sum over the devices. So the result is a single device's, up to rounding.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from jaxmnist.data import Batch, Dataset
from jaxmnist.errors import JaxmnistError
from jaxmnist.training import TrainState, TrainStep
from jaxmnist.types import AnyArray, Metrics

Tree = TypeVar("Tree")
Batches = tuple[Batch, Bool[Array, "steps batch"] | None]  # of all steps, and which examples count


def make_mesh(count: int | None = None, platform: str | None = None) -> Mesh:
    """The mesh ("data",) of the first `count` devices, by default of all of every process.

    Raises:
        JaxmnistError: there are fewer, or not all of several processes are asked for.
    """
    devices = jax.devices(platform)
    count = len(devices) if count is None else count
    if count > len(devices):
        hint = "; JAX_NUM_CPU_DEVICES=N makes a CPU count as N" if jax.process_count() == 1 else ""
        raise JaxmnistError(
            f"{count} devices are asked for, but JAX finds {len(devices)} "
            f"({devices[0].platform}){hint if devices[0].platform == 'cpu' else ''}"
        )
    if jax.process_count() > 1 and count < len(devices):
        raise JaxmnistError(f"{jax.process_count()} processes share all {len(devices)} devices")
    return jax.make_mesh((count,), ("data",), (AxisType.Auto,), devices=devices[:count])


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """The same arrays on every device. With several processes each must hold the same values."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def put(value: AnyArray) -> Array:
        host = np.asarray(value)
        return _from_host(host.shape, sharding, lambda part: host[part])

    return jax.tree.map(put, tree)


def share_epoch(
    dataset: Dataset, order: Int[AnyArray, " n"], batch_size: int, mesh: Mesh
) -> Batches:
    """The batches of an epoch, the rows of each shared out over the mesh.

    A process loads onto its devices the rows that they train on, and no others. Where the devices
    do not divide the batch, or the batch does not divide the data, what is missing is filled up
    with rows that do not count.

    Args:
        dataset: NumPy arrays, the same in every process.
        order: the indices that the epoch sees, the same in every process.
        batch_size: images a step, on all devices together.
        mesh: one of `make_mesh`.

    Returns:
        The batches, `[steps, batch, ...]`, and which of their rows count, `[steps, batch]`, or None
        if all do.

    Raises:
        ValueError: a batch has fewer images than the mesh has devices, or an index is outside.
    """
    if batch_size < mesh.size:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared out over {mesh.size} devices: "
            "let the batch be at least as large as the mesh"
        )
    order = np.asarray(order)
    if order.size and not 0 <= order.min() <= order.max() < len(dataset.labels):
        raise ValueError(f"order reaches outside the dataset's 0..{len(dataset.labels) - 1}")
    steps, width = -(-len(order) // batch_size), -(-batch_size // mesh.size) * mesh.size
    filled = np.full((steps * batch_size,), -1)
    filled[: len(order)] = order
    rows = np.pad(
        filled.reshape(steps, batch_size), ((0, 0), (0, width - batch_size)), constant_values=-1
    )
    where = rows >= 0
    sharding = NamedSharding(mesh, PartitionSpec(None, "data"))

    def shared(values: np.ndarray) -> Array:
        # JAX asks for the part of the steps and of the rows that a device needs.
        shape = (*rows.shape, *values.shape[1:])
        return _from_host(shape, sharding, lambda part: values[rows[part[:2]]])

    batches = Batch(shared(np.asarray(dataset.images)), shared(np.asarray(dataset.labels)))
    if where.all():
        return batches, None
    return batches, _from_host(where.shape, sharding, lambda part: where[part])


def make_shared_epoch(
    train_step: TrainStep, mesh: Mesh
) -> Callable[[TrainState, Batches], tuple[TrainState, Metrics]]:
    """An epoch, `train_epoch(state, batches) -> (state, metrics)`, on the batches of `share_epoch`.

    The state is replicated, and so are the new state and the metrics, which every process can read.
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def train_epoch(state: TrainState, batches: Batches) -> tuple[TrainState, Metrics]:
        result = jax.lax.scan(lambda state, rows: train_step(state, *rows), state, batches)
        return jax.lax.with_sharding_constraint(result, replicated)

    return train_epoch


def _from_host(
    shape: tuple[int, ...], sharding: NamedSharding, part: Callable[[Any], np.ndarray]
) -> Array:
    """A global array. `part` is called for the indices of what this process's devices hold."""
    return jax.make_array_from_callback(shape, sharding, part)
