"""Training on a mesh of devices, of one process or of many.

The step is the one that a single device runs. Each device computes its rows of a sharded batch, and
a mean over the batch, also in the gradient, becomes a sum over the devices. So the result is a
single device's, up to rounding. Parameters may be sharded too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxmnist.checks import check_count, describe
from jaxmnist.data import check_order, num_examples
from jaxmnist.errors import JaxmnistError, UsageError
from jaxmnist.objective import asks_for
from jaxmnist.types import AnyArray, Examples, Order, Remainder, State, TrainStep

Tree = TypeVar("Tree")
Axis = str | tuple[str, ...]  # of a mesh, or several


@partial(jax.tree_util.register_dataclass, data_fields=("arrays",), meta_fields=("count",))
@dataclass(frozen=True)
class Batches:
    """The batches of an epoch, sharded; made by `shard_epoch`."""

    arrays: Examples  # [steps, batch, ...], the last batch padded with its last row
    count: int  # examples in the epoch


def make_mesh(count: int | None = None, platform: str | None = None) -> Mesh:
    """The mesh ("data",) of the first `count` devices, by default of all of every process.

    Raises:
        JaxmnistError: there are fewer.
    """
    devices = jax.devices(platform)
    count = len(devices) if count is None else count
    if count > len(devices):
        found = f"{len(devices)} ({devices[0].platform}; JAX_NUM_CPU_DEVICES=N makes N of a CPU)"
        raise JaxmnistError(f"{count} devices are asked for, but JAX finds {found}")
    return jax.make_mesh((count,), ("data",), (AxisType.Auto,), devices=devices[:count])


def put(tree: Tree, shardings: Any) -> Tree:
    """The arrays with these shardings. With several processes each must hold the same values."""

    def one(value: Any, sharding: NamedSharding) -> Array:
        dtype = jax.typeof(value).dtype
        if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
            data = one(jax.random.key_data(value), NamedSharding(sharding.mesh, PartitionSpec()))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
        host = np.asarray(value, dtype)
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    return jax.tree.map(one, tree, shardings)


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


def shard_epoch(
    dataset: Examples, order: Order, batch_size: int, mesh: Mesh, axis: Axis = "data"
) -> Batches:
    """The batches of an epoch, the rows of each sharded over an axis of the mesh, or over several.

    A process loads onto its devices the rows that they train on.

    Args:
        dataset: any pytree of NumPy arrays with the examples first, the same in every process.
        order: the indices that the epoch sees, the same in every process.
        batch_size: examples a step, over all devices.
        mesh: one of `make_mesh`, or one with more axes, over which batches are replicated.
        axis: the mesh's axis, or axes, over which they are sharded.

    Raises:
        UsageError: the devices along the axis do not divide the batch.
        ValueError: an index is outside.
    """
    check_count("batch_size", batch_size)
    size = math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis))
    if batch_size % size:
        below, above = batch_size // size * size, -(-batch_size // size) * size
        next_ones = f"{below} or {above}" if below else f"{above}"
        raise UsageError(f"{size} devices cannot share a batch of {batch_size}: take {next_ones}")
    order = np.asarray(order)
    check_order(order, num_examples(dataset))
    rows = np.pad(order, (0, -len(order) % batch_size), mode="edge").reshape(-1, batch_size)
    sharding = NamedSharding(mesh, PartitionSpec(None, axis))

    def shard(values: AnyArray) -> Array:
        host = np.asarray(values)

        def rows_of(part: Any) -> np.ndarray:  # of the steps and the batch, as a device needs them
            return host[rows[part[:2]]]

        return jax.make_array_from_callback((*rows.shape, *host.shape[1:]), sharding, rows_of)

    return Batches(jax.tree.map(shard, dataset), len(order))


def make_sharded_epoch(
    train_step: TrainStep[State], mesh: Mesh, shardings: Any = None
) -> Callable[[State, Batches], tuple[State, Any]]:
    """An epoch, `train_epoch(state, batches) -> (state, metrics)`, on the batches of `shard_epoch`.

    A step that takes `where` gets a padded last batch, every other the shorter one. The metrics
    are replicated, so that every process can read them, and so is the state, unless `shardings`,
    for instance of `fsdp_shardings`, say where its leaves go.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    remainder = choose_remainder(train_step, None)

    def run(state: State, batches: Batches) -> tuple[State, Any]:
        return scan_steps(train_step, state, batches.arrays, batches.count, remainder)

    def train_epoch(state: State, batches: Batches) -> tuple[State, Any]:
        out = (partition_specs(state), PartitionSpec())
        results = with_auto_sharding(run, out, state, batches)
        if AxisType.Explicit in mesh.axis_types:  # the sharding is a part of their types
            return results
        return jax.lax.with_sharding_constraint(results, (shardings or replicated, replicated))

    return train_epoch


def choose_remainder(train_step: Any, remainder: Remainder) -> Remainder:
    """How the last batch is treated; an error for a value that is unknown or impossible.

    A step takes `where` if its signature names it, also under jit. Under JAX's other
    transformations it does not: a vmapped step has axes for its state and batch, and none for it.
    """
    if not callable(train_step):
        raise TypeError(f"train_step is a function, not {describe(train_step)}")
    scopes = [getattr(layer, "__globals__", {}) for layer in _layers(train_step)]
    mapped = any(scope.get("__name__", "").startswith("jax.") for scope in scopes)
    where = not mapped and "where" in asks_for(train_step)
    if remainder not in (None, "short", "drop", "pad" if where else None):
        choices = "None, 'short', 'drop' or, for a step whose objective takes `where`, 'pad'"
        raise ValueError(f"remainder is {choices}; not {remainder!r}")
    return remainder or ("pad" if where else "short")


def _layers(fn: Any) -> Iterator[Any]:
    """A function and the functions that it wraps, outermost first."""
    while fn is not None:
        yield fn
        fn = fn.func if isinstance(fn, partial) else getattr(fn, "__wrapped__", None)


def scan_steps(
    step: TrainStep[State], state: State, batches: Examples, count: int, remainder: Remainder
) -> tuple[State, Any]:
    """Take a step with each of the batches `[steps, batch, ...]`, of which `count` rows count.

    Returns the last state, and the metrics with the axis `[steps]` in front.
    """
    shape = jax.tree.leaves(batches)[0].shape[:2]
    tail = count % shape[1]
    if tail and remainder == "pad":
        where = (jnp.arange(math.prod(shape)) < count).reshape(shape)
        return jax.lax.scan(lambda state, x: step(state, x[0], where=x[1]), state, (batches, where))
    parts, full = [], jax.tree.map(lambda x: x[: count // shape[1]], batches)
    if count >= shape[1]:  # a scan of no steps is an error without jit
        state, metrics = jax.lax.scan(step, state, full)
        parts.append(metrics)
    if tail and remainder == "short":
        state, metrics = step(state, jax.tree.map(lambda x: x[-1, :tail], batches))
        parts.append(jax.tree.map(lambda x: jnp.asarray(x)[None], metrics))
    if not parts:
        raise ValueError(f"no step: a batch of {shape[1]} is more than all {count} examples")
    shapes = [str(jax.tree.map(lambda x: x.shape[1:], part)) for part in parts]
    if shapes[0] != shapes[-1]:
        found = f"{shapes[0]} and {shapes[1]} of the last"
        raise ValueError(f"the metrics of the batches need one shape, not {found}")
    return state, jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def with_auto_sharding(fn: Callable[..., Any], out_sharding: Any, *args: Any) -> Any:
    """`fn(*args)`, with the sharding left to XLA if arrays lie on a mesh with explicit axes.

    JAX would otherwise require the sharding of each gather and reshape. The result has
    `out_sharding`, a PartitionSpec or a tree of them.
    """
    arrays = [leaf for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array)]
    for mesh in (jax.typeof(array).sharding.mesh for array in arrays):
        if AxisType.Explicit in mesh.axis_types:
            with jax.sharding.use_abstract_mesh(mesh):
                return jax.sharding.auto_axes(fn, out_sharding=out_sharding)(*args)
    return fn(*args)


def partition_specs(tree: Any) -> Any:
    """The PartitionSpec of each leaf, where it lies on a mesh with explicit axes."""
    return jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec or PartitionSpec(), tree)
