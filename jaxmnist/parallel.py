"""Training on a mesh of devices, of one process or of many.

The step is the one that a single device runs. JAX computes with what is where it is: of a sharded
batch each device computes its rows, and the mean over the batch, the gradient's too, becomes a sum
over the devices. So the result is a single device's, up to rounding. Parameters may be sharded too.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, auto_axes, use_abstract_mesh
from jaxtyping import Array, Bool, Int

from jaxmnist.checks import check_order, num_examples
from jaxmnist.errors import JaxmnistError
from jaxmnist.types import AnyArray, Examples, Metrics, State, TrainStep

Tree = TypeVar("Tree")
# The batches of all steps, [steps, batch, ...], and which of their rows count, or None for all.
Batches = tuple[Examples, Bool[Array, "steps batch"] | None]


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
    return put(tree, jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree))


def fsdp_shardings(tree: Tree, mesh: Mesh, axis: str = "data") -> Tree:
    """A sharding per leaf: along the first of its axes that the mesh axis divides, else replicated.

    Given to `put` for a state, each device keeps its part of the parameters and of the optimizer's
    state, and XLA gathers a layer's when it is used: fully sharded data parallelism (S. Rajbhandari
    et al., ZeRO, 2020).
    """
    size = mesh.shape[axis]

    def sharding(leaf: Any) -> NamedSharding:
        shape = np.shape(leaf)
        spec = [axis if length % size == 0 and length else None for length in shape]
        first = spec.index(axis) if axis in spec else len(spec)
        return NamedSharding(mesh, PartitionSpec(*spec[: first + 1]))

    return jax.tree.map(sharding, tree)


def put(tree: Tree, shardings: Any) -> Tree:
    """The arrays with these shardings. With several processes each must hold the same values."""

    def one(value: AnyArray, sharding: NamedSharding) -> Array:
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            data = one(jax.random.key_data(value), NamedSharding(sharding.mesh, PartitionSpec()))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
        host = np.asarray(value)
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    return jax.tree.map(one, tree, shardings)


def shard_epoch(
    dataset: Examples, order: Int[AnyArray, " n"], batch_size: int, mesh: Mesh
) -> Batches:
    """The batches of an epoch, the rows of each sharded over the mesh.

    A process loads onto its devices the rows that they train on, and no others. Where the devices
    do not divide the batch, or the batch does not divide the data, the batch is padded with rows
    that do not count.

    Args:
        dataset: any pytree of NumPy arrays with the examples first, the same in every process.
        order: the indices that the epoch sees, the same in every process.
        batch_size: examples a step, over all devices.
        mesh: one of `make_mesh`.

    Returns:
        The batches, `[steps, batch, ...]`, and which of their rows count, `[steps, batch]`, or None
        if all do.

    Raises:
        ValueError: a batch has fewer examples than the mesh has devices, or an index is outside.
    """
    if batch_size < mesh.size:
        raise ValueError(
            f"a batch of {batch_size} cannot be sharded over {mesh.size} devices: "
            "let the batch be at least as large as the mesh"
        )
    order = np.asarray(order)
    check_order(order, num_examples(dataset))
    steps, width = -(-len(order) // batch_size), -(-batch_size // mesh.size) * mesh.size
    filled = np.full((steps * batch_size,), -1)
    filled[: len(order)] = order
    rows = np.pad(
        filled.reshape(steps, batch_size), ((0, 0), (0, width - batch_size)), constant_values=-1
    )
    where = rows >= 0
    sharding = NamedSharding(mesh, PartitionSpec(None, *mesh.axis_names))

    def shard(values: AnyArray) -> Array:
        values = np.asarray(values)
        shape = (*rows.shape, *values.shape[1:])

        def rows_of(part: Any) -> np.ndarray:  # of the steps and the batch, as a device needs them
            return values[rows[part[:2]]]

        return jax.make_array_from_callback(shape, sharding, rows_of)

    batches = jax.tree.map(shard, dataset)
    if where.all():
        return batches, None
    return batches, jax.make_array_from_callback(where.shape, sharding, lambda part: where[part])


def make_sharded_epoch(
    train_step: TrainStep[State], mesh: Mesh, shardings: Any = None
) -> Callable[[State, Batches], tuple[State, Metrics]]:
    """An epoch, `train_epoch(state, batches) -> (state, metrics)`, on the batches of `shard_epoch`.

    The metrics are replicated, so that every process can read them, and so is the state, unless
    `shardings`, for instance of `fsdp_shardings`, say where its leaves go.
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def run(state: State, batches: Batches) -> tuple[State, Metrics]:
        def step(state: State, rows: tuple[Examples, Any]) -> tuple[State, Metrics]:
            batch, where = rows
            return train_step(state, batch) if where is None else train_step(state, batch, where)

        return jax.lax.scan(step, state, batches)

    def train_epoch(state: State, batches: Batches) -> tuple[State, Metrics]:
        out = (partition_specs(state), PartitionSpec())
        state, metrics = with_auto_sharding(run, out, state, batches)
        if AxisType.Explicit in mesh.axis_types:
            return state, metrics
        where = replicated if shardings is None else shardings
        return (
            jax.lax.with_sharding_constraint(state, where),
            jax.lax.with_sharding_constraint(metrics, replicated),
        )

    return train_epoch


def with_auto_sharding(fn: Callable[..., Any], out_sharding: Any, *args: Any) -> Any:
    """`fn(*args)`, with the sharding left to XLA where arrays lie on a mesh with explicit axes.

    There JAX would ask for the sharding of each gather and reshape. The result has
    `out_sharding`, a PartitionSpec or a tree of them.
    """
    for mesh in (jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(args)):
        if AxisType.Explicit in mesh.axis_types:
            with use_abstract_mesh(mesh):
                return auto_axes(fn, out_sharding=out_sharding)(*args)
    return fn(*args)


def partition_specs(tree: Any) -> Any:
    """The PartitionSpec of each leaf, where it lies on a mesh with explicit axes."""
    return jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec or PartitionSpec(), tree)
