"""Training data: uint8 images, int32 labels, and the order in which an epoch sees them."""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, PRNGKeyArray, Shaped, UInt8

from jaxmnist.transforms import normalize, to_tensor
from jaxmnist.types import AnyArray

_ORDER = zlib.crc32(b"order")


class Dataset(NamedTuple):
    """Images and labels, all of them: NumPy arrays on the host or JAX arrays on a device.

    MNIST's 60,000 training images are 47 MB as uint8, so the whole set lies on the device once.
    """

    images: UInt8[AnyArray, "n height width"]
    labels: Int32[AnyArray, " n"]


class Batch(NamedTuple):
    """The examples of one step: raw uint8 images, or float images that are transformed already."""

    images: Shaped[AnyArray, "n *shape"]
    labels: Int[AnyArray, " n"]


def epoch_order(key: PRNGKeyArray, epoch: int | Int32[Array, ""], n: int) -> Int32[Array, " {n}"]:
    """The shuffled order of an epoch, made from the run's key and the epoch's number alone.

    So any epoch can be made again by itself, and the shuffle is independent of what else is drawn
    from the same key.
    """
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch)
    # Sorting random numbers is what jax.random.permutation does, twice, so that equal ones do not
    # matter; among 60,000 numbers of 32 bits less than one pair is equal, and once will do.
    return jnp.argsort(jax.random.bits(epoch_key, (n,))).astype(jnp.int32)


def batches(
    dataset: Dataset,
    batch_size: int = 64,
    *,
    seed: int = 0,
    epoch: int = 0,
    order: Int[AnyArray, " steps"] | None = None,
    flatten: bool = False,
) -> Iterator[Batch]:
    """One epoch as a plain iterator of host batches, for a loop of your own.

    It gives what the notebook's loader gives: float32 images `[64, 1, 28, 28]` in [-1, 1] (with
    `flatten`, `[64, 784]`), shuffled, and a shorter last batch when the size does not divide the
    number of images.

    Args:
        dataset: what to draw from.
        batch_size: images a batch.
        seed: with `epoch`, makes the order that the compiled epoch of the same seed sees.
        epoch: the epoch's number, from 0.
        order: the indices to visit instead, for instance `np.arange(n)` for no shuffle.
        flatten: one row an image.

    Raises:
        ValueError: the batch size is below 1, or an index is outside the dataset.
    """
    n = len(dataset.labels)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    indices = np.asarray(epoch_order(jax.random.key(seed), epoch, n) if order is None else order)
    if indices.size and not (indices.min() >= 0 and indices.max() < n):
        raise ValueError(
            f"order reaches from {indices.min()} to {indices.max()}, outside 0..{n - 1}"
        )
    images, labels = np.asarray(dataset.images), np.asarray(dataset.labels)
    shape = (-1,) if flatten else (1, *images.shape[1:])
    return (
        Batch(normalize(to_tensor(images[rows])).reshape(len(rows), *shape), labels[rows])
        for rows in (indices[i : i + batch_size] for i in range(0, len(indices), batch_size))
    )
