"""Synthetic digits: images like handwriting, made from strokes, for when MNIST is not available.

Each digit has a few skeletons, paths of a pen. A random writer bends, slants and stretches one; the
pen lays a Gaussian dot of ink at every short step of it, and the paper saturates: grey is about
1 - exp(-ink). As in MNIST, a digit fills a 20x20 box, and its centre of mass is the centre of the
28x28 image. Gaussian dots are separable, so an image is a product of two small matrices; and every
operation is continuous, so another machine's rounding moves no pixel by more than one grey level
(576 of 55 million from JAX 0.10.1 to 0.12.0.1).

They are about as hard as MNIST: the notebook's recipe ends with a training loss of 0.37 and a test
accuracy of 90 % (three seeds; on MNIST 0.38 and 90 %).
"""

import contextlib
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray, UInt8

from jaxmnist.data import Dataset
from jaxmnist.datasets import cache
from jaxmnist.datasets.skeletons import POINTS, skeletons

_ADDED_SEED = 2**32 - 1
_CHUNK = 500  # images drawn at a time, which bounds the memory to a few tens of MB
_VERSION = 3  # of the digits or of how they are cached: another one is another cache entry


def _matmul(a: Array | np.ndarray, b: Array) -> Array:
    """Product in full float32: TF32, the default on a GPU, would show in the pixels."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _waves(count: int, points: int) -> np.ndarray:
    """Smooth functions of the way along a path, as columns: cosines of 1 to `count` half turns."""
    way = np.linspace(0, np.pi, points, dtype=np.float32)
    return np.stack([np.cos(k * way) for k in range(1, count + 1)], axis=1)


def _write(path: Float[Array, "p 2"], hand: Float[Array, " 29"]) -> Float[Array, "p 2"]:
    """A skeleton as a writer's `hand` (about normal numbers) bends, wobbles and slants it."""
    bend, wobble, (stretch, slant, turn) = jnp.split(hand, (14, 26))
    # Waves over the box move neighbours together: proportions change, closed loops stay closed.
    x, y = (path.T + 1) * (np.pi / 2)
    modes = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1))
    field = jnp.stack([jnp.cos(i * x) * jnp.cos(j * y) / (i + j) for i, j in modes], axis=1)
    # Waves along the path move the pen: ends overshoot, loops open, bars drift, long paths more.
    length = jnp.sum(jnp.linalg.norm(jnp.diff(path, axis=0), axis=1))
    waves = _waves(6, POINTS) / np.arange(1, 7, dtype=np.float32)
    path = path + 0.13 * _matmul(field, bend.reshape(7, 2))
    path = path + 0.046 * jnp.sqrt(length) * _matmul(waves, wobble.reshape(6, 2))
    x, y = path.T
    x = x * jnp.exp(0.1 + 0.14 * stretch) - (0.16 + 0.24 * slant) * y
    return jnp.stack([x - 0.09 * turn * y, y + 0.09 * turn * x], axis=1)


def _draw_digit(
    key: PRNGKeyArray, label: Int[Array, ""], chances: Float[np.ndarray, "10 s"]
) -> UInt8[Array, "28 28"]:
    """One image: choose a skeleton, write it, fit and centre it, lay the ink."""
    style_key, hand_key, place_key = jax.random.split(key, 3)
    chance = jax.random.uniform(style_key, dtype=jnp.float32)
    style = jnp.sum(chance >= jnp.asarray(chances)[label])
    hand = jax.random.truncated_normal(hand_key, -2, 2, (34,), jnp.float32)
    path = _write(jnp.asarray(skeletons().paths)[style], hand[:29])

    # A line of ink a * exp(-d^2 / 2s^2) is half white, ink = ln 2, at d = s * sqrt(2 ln(a / ln 2)):
    # `radius` is half of its width in pixels, `sigma` the softness of its edge.
    radius = 1.15 * jnp.exp(0.28 * hand[29])
    sigma = 0.52 * jnp.exp(0.08 * hand[30])
    darkest = math.log(2) * jnp.exp((radius / sigma) ** 2 / 2)

    size = jnp.max(path.max(axis=0) - path.min(axis=0))
    path = path * ((20 - 2 * radius) / size)
    step = jnp.diff(path, axis=0)
    dots = path[1:] - step / 2
    pressure = jnp.exp(0.2 * _matmul(_waves(3, POINTS - 1), hand[31:]))
    length = jnp.sqrt(jnp.sum(step**2, axis=1)) * jnp.asarray(skeletons().pen_down)[style]

    # MNIST was centred by whole pixels, so its centres of mass are up to half a pixel off 14.
    centre = jax.random.uniform(place_key, (2,), jnp.float32, 13.5, 14.5)
    shift = centre - _matmul(length, dots) / length.sum()
    margin = 0.8 + radius
    shift = jnp.clip(shift, margin - path.min(axis=0), 27 - margin - path.max(axis=0))
    pixels = np.arange(28, dtype=np.float32)
    distance = (dots + shift[None])[:, :, None] - pixels[None, None]
    dab = jnp.exp(-(distance**2) / (2 * sigma**2))
    weight = length * pressure * darkest / (sigma * math.sqrt(2 * math.pi))
    ink = _matmul((dab[:, 1] * weight[:, None]).T, dab[:, 0])
    grey = jnp.clip(1.13 - 1.18 * jnp.exp(-ink), 0, 1)
    return jnp.round(255 * grey).astype(jnp.uint8)


def draw_digits(
    key: PRNGKeyArray, labels: Int[Array | np.ndarray, " n"], *, added: bool = False
) -> UInt8[Array, "n 28 28"]:
    """Draw one handwriting-like digit for each label, white (255) on black (0).

    Image i depends on `key`, i and `labels[i]` alone, so fewer labels give the same first images.
    A pure function: jit it, or vmap it over keys.

    Args:
        key: makes the writers.
        labels: the digits to draw, 0 to 9; others are clipped, since a compiled function cannot
            refuse them.
        added: draw in the styles of `add_synthetic`, with more flags, feet and tails.
    """
    chances = skeletons().added_chances if added else skeletons().chances

    def draw(index_and_label: tuple[Array, Array]) -> Array:
        index, label = index_and_label
        return _draw_digit(jax.random.fold_in(key, index), label, chances)

    digits = jnp.clip(jnp.asarray(labels), 0, 9)
    indices = jnp.arange(len(digits), dtype=jnp.uint32)
    return jax.lax.map(draw, (indices, digits), batch_size=_CHUNK)


@functools.partial(jax.jit, static_argnames="added")
def _draw(
    key: PRNGKeyArray, *, added: bool
) -> tuple[UInt8[Array, "70000 28 28"], Int32[Array, "70000"]]:
    """Train images, then test images, and the labels: each digit 1,000 times in every 10,000."""
    draw_key, label_key = jax.random.split(key)
    digits = jnp.arange(10_000, dtype=jnp.int32) % 10
    shuffle = jax.vmap(jax.random.permutation, (0, None))
    labels = shuffle(jax.random.split(label_key, 7), digits).reshape(-1)
    return draw_digits(draw_key, labels, added=added), labels


def load_synthetic(
    seed: int = 0, *, say: Callable[[str], object] = lambda line: None
) -> tuple[Dataset, Dataset]:
    """Load the synthetic digits of `seed`: 60,000 to train with and 10,000 others to test with.

    Each digit occurs equally often, in random order. Making them takes a few seconds, so they are
    kept in the cache, and made again if its entry is damaged or of another version. They depend
    only on the seed and the version of JAX: versions round a few pixels differently.

    >>> from jaxmnist.datasets import load_synthetic
    >>> train, test = load_synthetic(seed=0)
    >>> train.images.shape, train.images.dtype, test.labels[:5].tolist()
    ((60000, 28, 28), dtype('uint8'), [4, 5, 1, 8, 6])

    Args:
        seed: 0 to 2**32 - 1.
        say: called with a line before they are made.

    Returns:
        (train, test): images uint8 [n, 28, 28], white (255) on black (0), and labels int32 [n].

    Raises:
        OverflowError: the seed is out of range.
    """
    name = f"synthetic-v{_VERSION}-{seed}"
    made_from = f"synthetic digits {_VERSION}, seed {seed}, JAX {jax.__version__}"
    arrays = cache.load(name, ("images", "labels"), made_from)
    if arrays is None:
        say("Making 70,000 synthetic digits: takes about 10 s, once")
        arrays = _draw_all(seed)
        cache.store(name, arrays, made_from)
    images, labels = arrays["images"], arrays["labels"]
    return Dataset(images[:60_000], labels[:60_000]), Dataset(images[60_000:], labels[60_000:])


def _draw_all(seed: int) -> dict[str, np.ndarray]:
    """Draw the 70,000 images of `seed` on the CPU, whatever JAX's flags are."""
    flags = (jax.threefry_partitionable(True), jax.enable_x64(False), jax.disable_jit(False))
    with contextlib.ExitStack() as stack:
        for flag in flags:
            stack.enter_context(flag)
        with contextlib.suppress(RuntimeError):  # JAX_PLATFORMS may leave out the CPU
            stack.enter_context(jax.default_device(jax.local_devices(backend="cpu")[0]))
        # Not jax.random.key, which adds JAX_RANDOM_SEED_OFFSET to the seed.
        key = jax.random.wrap_key_data(jnp.array([0, seed], jnp.uint32), impl="threefry2x32")
        images, labels = _draw(key, added=seed == _ADDED_SEED)
        return {"images": np.array(images), "labels": np.array(labels)}


def add_synthetic(train: Dataset, count: int) -> Dataset:
    """The training images, followed by `count` synthetic digits of a seed reserved for this.

    They show forms that are rare in MNIST, such as a 1 with a flag or a foot.
    """
    if count == 0:
        return train
    added = load_synthetic(_ADDED_SEED)[0]
    return jax.tree.map(lambda x, more: np.concatenate([x, more[:count]]), train, added)
