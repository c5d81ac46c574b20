"""Training data: a pytree of arrays with the examples first, and the order that an epoch sees."""

import zlib
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, PRNGKeyArray, Shaped

from jaxmnist.checks import check_count, describe
from jaxmnist.types import AnyArray, Examples, Order

_ORDER = zlib.crc32(b"order")
T = TypeVar("T", bound=Examples)


class Dataset(NamedTuple):
    """Images and labels: all of them, or the ones of a batch.

    This is the notebook's case. A function that takes a dataset or a batch takes any pytree of
    arrays, on the host or a device, whose first axis is the examples. MNIST's 60,000 training
    images are 47 MB as uint8, so the whole set lies on the device once.
    """

    images: Shaped[AnyArray, "n *shape"]  # uint8, or floats that are transformed already
    labels: Int[AnyArray, " n"]


def num_examples(examples: Examples) -> int:
    """The size of the first axis, which all arrays of a dataset, a batch or a population share."""
    leaves = jax.tree_util.tree_leaves_with_path(examples)
    sizes = {jax.tree_util.keystr(path): jnp.shape(leaf)[:1] for path, leaf in leaves}
    if len(set(sizes.values())) != 1 or () in sizes.values() or (0,) in sizes.values():
        told = {name or "the array": size[0] if size else "none" for name, size in sizes.items()}
        found = ", ".join(f"{name} has {size}" for name, size in told.items())
        raise ValueError(f"arrays need examples, as many in each; here {found or 'is no array'}")
    return jnp.shape(leaves[0][1])[0]


def check_order(order: AnyArray, n: int) -> None:
    """Raise unless an order is one row of indices and, if they are known, inside the dataset."""
    if jnp.ndim(order) != 1 or not jnp.issubdtype(order.dtype, jnp.integer) or not order.size:
        raise ValueError(f"an order is one row of integers, not {describe(order)}")
    if not isinstance(order, jax.core.Tracer):
        low, high = int(order.min()), int(order.max())
        if low < 0 or high >= n:
            raise ValueError(f"order reaches from {low} to {high}, outside 0..{n - 1}")


def as_threefry(key: PRNGKeyArray) -> PRNGKeyArray:
    """Convert an rbg or unsafe_rbg key to JAX's default generator; others stay as they are.

    Under vmap these two give a member other numbers than alone, as `jax.random` documents.
    """
    if "rbg" not in str(jax.random.key_impl(key)):
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key)[..., :2], impl="threefry2x32")


def epoch_order(key: PRNGKeyArray, epoch: int | Int32[Array, ""], n: int) -> Int32[Array, " {n}"]:
    """The shuffled order of an epoch, from the run's key and the epoch's number alone.

    So any epoch can be repeated by itself, and other numbers drawn from the same key are
    independent of the shuffle.

    >>> sorted(epoch_order(jax.random.key(0), 0, 4).tolist())
    [0, 1, 2, 3]
    """
    epoch_key = jax.random.fold_in(jax.random.fold_in(as_threefry(key), _ORDER), epoch)
    # Like jax.random.permutation, but sorts once: of 60,000 32-bit numbers 0.4 pairs are equal on
    # average.
    return jnp.argsort(jax.random.bits(epoch_key, (n,), jnp.uint32)).astype(jnp.int32)


def batches(
    dataset: T, batch_size: int = 64, *, seed: int = 0, epoch: int = 0, order: Order | None = None
) -> Iterator[T]:
    """One epoch as a plain iterator of host batches, for a loop of your own.

    The last batch is shorter when the size does not divide the number of examples. Images are as
    in the dataset: the step transforms them.

    Args:
        dataset: what to take the examples from.
        batch_size: examples a batch.
        seed: with `epoch`, makes the order that the compiled epoch of the same seed sees.
        epoch: the epoch's number, from 0.
        order: the indices to visit instead, for instance `np.arange(n)` for no shuffle.

    Raises:
        ValueError: the batch size is below 1, an index is outside the dataset, or the dataset's
            arrays have different numbers of examples.

    >>> [batch.tolist() for batch in batches(np.arange(5), 2, order=np.arange(5))]
    [[0, 1], [2, 3], [4]]
    """
    check_count("batch_size", batch_size)
    n = num_examples(dataset)
    indices = np.asarray(epoch_order(jax.random.key(seed), epoch, n) if order is None else order)
    check_order(indices, n)
    host = jax.tree.map(np.asarray, dataset)
    parts = (indices[i : i + batch_size] for i in range(0, len(indices), batch_size))
    return (jax.tree.map(lambda x, rows=rows: x[rows], host) for rows in parts)
