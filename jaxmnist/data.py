"""Training data: a pytree of arrays with the examples first, and the order that an epoch sees."""

import zlib
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, PRNGKeyArray, Shaped

from jaxmnist.checks import check_batch_size, check_order, num_examples
from jaxmnist.types import AnyArray, Examples

_ORDER = zlib.crc32(b"order")
T = TypeVar("T", bound=Examples)


class Dataset(NamedTuple):
    """Images and labels: all of them, or the ones of a batch.

    It is the notebook's case. Whatever takes a dataset or a batch takes any pytree of arrays, on
    the host or a device, whose first axis is the examples. MNIST's 60,000 training images are 47 MB
    as uint8, so the whole set lies on the device once.
    """

    images: Shaped[AnyArray, "n *shape"]  # uint8, or floats that are transformed already
    labels: Int[AnyArray, " n"]


def epoch_order(key: PRNGKeyArray, epoch: int | Int32[Array, ""], n: int) -> Int32[Array, " {n}"]:
    """The shuffled order of an epoch, from the run's key and the epoch's number alone.

    So any epoch can be repeated by itself, and the shuffle is independent of what else is drawn
    from the same key.

    >>> sorted(epoch_order(jax.random.key(0), 0, 4).tolist())
    [0, 1, 2, 3]
    """
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch)
    # Sorting random numbers is what jax.random.permutation does, twice, so that equal ones do not
    # matter; among 60,000 numbers of 32 bits less than one pair is equal, and once will do.
    return jnp.argsort(jax.random.bits(epoch_key, (n,), jnp.uint32)).astype(jnp.int32)


def batches(
    dataset: T,
    batch_size: int = 64,
    *,
    seed: int = 0,
    epoch: int = 0,
    order: Int[AnyArray, " steps"] | None = None,
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
    check_batch_size(batch_size)
    n = num_examples(dataset)
    indices = np.asarray(epoch_order(jax.random.key(seed), epoch, n) if order is None else order)
    check_order(indices, n)
    host = jax.tree.map(np.asarray, dataset)
    parts = (indices[i : i + batch_size] for i in range(0, len(indices), batch_size))
    return (jax.tree.map(lambda x, rows=rows: x[rows], host) for rows in parts)
