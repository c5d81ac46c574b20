"""Drawn digits: handwriting-like images made from strokes, for when MNIST itself cannot be had.

Each digit has a few skeletons, paths of a pen. A random writer bends, slants and stretches one; the
pen lays a Gaussian dot of ink at every short step of it, and the paper saturates: grey is about
1 - exp(-ink). As in MNIST, a digit fills a 20x20 box, and its centre of mass is the centre of the
28x28 image. Gaussian dots are separable, so an image is a product of two small matrices; and every
operation is continuous, so another machine's rounding moves no pixel by more than one grey level.

They are about as hard as MNIST: the notebook's recipe ends with a training loss of 0.37 and a test
accuracy of 90 % (three seeds; on MNIST 0.38 and 90 %).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray, UInt8

from jaxmnist.data import Dataset
from jaxmnist.datasets import cache

# One skeleton a line: the digit, how often it is chosen relative to the digit's others, and the
# strokes as `x y` points in a 20x20 box, y downwards. A Catmull-Rom curve runs through the points,
# a point given twice is a corner, and `/` lifts the pen.
_SKELETONS = """
0 4 | 12 1, 7 1, 4 6, 4 14, 8 19, 13 18, 16 12, 15 5, 11 0, 8 1
0 2 | 14 3, 10 0, 5 4, 3 11, 6 18, 11 20, 16 15, 17 8, 14 2, 9 1
0 1 | 11 1, 7 2, 4 7, 4 14, 8 19, 13 18, 16 12, 16 6, 14 2, 12 1
0 1 | 13 5, 9 3, 6 7, 4 13, 7 19, 12 19, 16 13, 15 4, 11 0, 8 2, 9 5, 14 3
1 8 | 10 0, 10 7, 10 14, 10 20
1 2 | 6 5, 8 3, 11 0, 11 0, 11 10, 11 20
1 1 | 6 5, 8 3, 11 0, 11 0, 11 10, 11 20 / 5 20, 11 20, 17 20
1 1 | 10 0, 10 7, 10 14, 10 20 / 6 20, 10 20, 15 20
2 3 | 3 5, 6 1, 11 0, 15 3, 14 8, 9 14, 3 20, 3 20, 10 19, 17 20
2 4 | 3 4, 7 0, 13 1, 15 5, 12 10, 7 16, 3 19, 1 17, 3 14, 8 16, 13 19, 18 18
2 2 | 4 3, 8 0, 13 2, 14 7, 10 14, 5 20, 5 20, 9 18, 13 20, 18 18
3 3 | 4 2, 9 0, 14 2, 14 6, 8 9, 8 9, 14 11, 16 15, 12 19, 7 20, 3 17
3 1 | 4 1, 15 0, 15 0, 9 8, 9 8, 14 10, 16 15, 12 20, 6 20, 3 17
3 2 | 4 3, 9 0, 14 3, 12 7, 9 10, 7 9, 9 8, 14 11, 15 16, 11 20, 4 18
4 6 | 5 0, 3 6, 3 10, 6 12, 11 11, 16 9 / 15 1, 14 10, 13 20
4 3 | 5 1, 4 7, 6 10, 11 9, 15 1, 15 1, 13 10, 12 20
4 1 | 13 20, 13 10, 13 0, 13 0, 7 7, 2 13, 2 13, 10 13, 18 13
4 2 | 12 1, 7 6, 3 12, 3 12, 10 12, 17 11 / 13 0, 13 10, 12 20
5 4 | 6 1, 5 4, 4 8, 4 8, 10 7, 15 10, 15 15, 10 20, 4 18 / 6 1, 11 1, 17 0
5 3 | 16 0, 11 1, 6 1, 6 1, 5 4, 5 8, 5 8, 11 8, 15 12, 13 18, 8 20, 3 18
5 2 | 17 1, 10 1, 6 4, 7 8, 12 11, 14 15, 10 19, 4 19
6 3 | 13 0, 7 5, 4 12, 5 18, 10 20, 15 17, 14 12, 9 11, 5 15
6 2 | 9 0, 6 6, 4 13, 6 19, 12 20, 15 16, 12 12, 8 13, 5 17
6 1 | 15 1, 10 2, 5 8, 4 15, 8 20, 13 19, 15 14, 11 10, 6 13
7 4 | 4 2, 10 2, 16 1, 16 1, 12 9, 9 20
7 2 | 4 2, 10 2, 16 1, 16 1, 12 9, 9 20 / 7 11, 11 10, 16 10
7 2 | 4 5, 5 2, 5 2, 10 2, 16 1, 16 1, 12 9, 9 20
7 2 | 3 4, 7 2, 12 1, 16 1, 15 5, 12 12, 10 20
8 4 | 14 3, 10 0, 6 3, 7 7, 13 12, 14 17, 10 20, 6 17, 7 12, 13 7, 14 3
8 2 | 10 9, 6 7, 6 2, 10 0, 14 3, 13 7, 10 9, 6 12, 5 16, 9 20, 14 18, 15 13, 10 9
8 2 | 15 3, 10 0, 5 4, 9 9, 14 14, 11 20, 5 17, 8 11, 14 5, 16 1
9 5 | 14 4, 10 1, 6 4, 7 9, 10 10, 14 6, 14 3, 14 3, 14 11, 13 20
9 2 | 14 4, 10 1, 6 4, 7 9, 11 10, 14 4, 14 4, 15 12, 12 18, 6 20
9 2 | 13 2, 9 1, 6 5, 7 9, 11 9, 14 5, 14 1, 14 1, 14 11, 14 20
9 2 | 14 5, 11 0, 7 2, 5 7, 9 10, 13 7, 15 2, 14 9, 12 20
"""

_POINTS = 65  # of a path: about a pixel apart at most, too close to be seen as dots
_CHUNK = 500  # images drawn at a time, which bounds the memory to a few tens of MB
_CACHED = {
    "images": ((70_000, 28, 28), np.dtype(np.uint8)),
    "labels": ((70_000,), np.dtype(np.int32)),
}


class _Skeletons(NamedTuple):
    """The table above, ready to draw: S skeletons of P points, which are P - 1 steps of the pen."""

    paths: np.ndarray  # float32 [S, P, 2], x and y from -1 to 1
    pen_down: np.ndarray  # float32 [S, P - 1], 0 where the step moves a lifted pen
    chances: np.ndarray  # float32 [10, S], each digit's cumulative distribution of skeletons


def _curve(controls: np.ndarray, steps: int = 24) -> np.ndarray:
    """Uniform Catmull-Rom curve [(K - 1) * steps + 1, 2] through `controls` [K, 2]."""
    ends = 2 * controls[[0, -1]] - controls[[1, -2]]
    p = np.vstack([ends[:1], controls, ends[1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    spans = [
        b + t / 2 * ((c - a) + t * ((2 * a - 5 * b + 4 * c - d) + t * (3 * (b - c) + d - a)))
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.vstack([*spans, controls[-1:]])


@functools.cache  # and not at import, which everybody pays for
def _skeletons() -> _Skeletons:
    """Every skeleton, sampled at points evenly spaced along its strokes."""
    paths, downs, digits, weights = [], [], [], []
    for line in _SKELETONS.strip().splitlines():
        head, body = line.split("|")
        digit, weight = head.split()
        curves = [
            _curve(np.array([point.split() for point in stroke.split(",")], float))
            for stroke in body.split("/")
        ]
        steps = [np.linalg.norm(np.diff(curve, axis=0), axis=1) for curve in curves]
        lengths = np.array([step.sum() for step in steps])
        counts = np.maximum(np.round(_POINTS * lengths / lengths.sum()), 2).astype(int)
        counts[0] += _POINTS - counts.sum()
        path, down = [], []
        for curve, step, count in zip(curves, steps, counts, strict=True):
            along = np.concatenate([[0], np.cumsum(step)])
            even = np.linspace(0, along[-1], count)
            path.append(np.stack([np.interp(even, along, axis) for axis in curve.T], axis=1))
            down += [1.0] * (count - 1) + [0.0]
        paths.append(np.vstack(path) / 10 - 1)
        downs.append(down[:-1])
        digits.append(int(digit))
        weights.append(float(weight))
    chances = np.cumsum(np.equal.outer(np.arange(10), digits) * np.array(weights), axis=1)
    return _Skeletons(
        np.array(paths, np.float32),
        np.array(downs, np.float32),
        (chances / chances[:, -1:]).astype(np.float32),
    )


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
    waves = _waves(6, _POINTS) / np.arange(1, 7, dtype=np.float32)
    path = path + 0.13 * _matmul(field, bend.reshape(7, 2))
    path = path + 0.046 * jnp.sqrt(length) * _matmul(waves, wobble.reshape(6, 2))
    x, y = path.T
    x = x * jnp.exp(0.1 + 0.14 * stretch) - (0.16 + 0.24 * slant) * y
    return jnp.stack([x - 0.09 * turn * y, y + 0.09 * turn * x], axis=1)


def _draw_digit(key: PRNGKeyArray, label: Int[Array, ""]) -> UInt8[Array, "28 28"]:
    """One image: choose a skeleton, write it, fit and centre it, lay the ink."""
    style_key, hand_key, place_key = jax.random.split(key, 3)
    chance = jax.random.uniform(style_key, dtype=jnp.float32)
    style = jnp.sum(chance >= jnp.asarray(_skeletons().chances)[label])
    hand = jax.random.truncated_normal(hand_key, -2, 2, (34,), jnp.float32)
    path = _write(jnp.asarray(_skeletons().paths)[style], hand[:29])

    # A line of ink a * exp(-d^2 / 2s^2) is half white, ink = ln 2, at d = s * sqrt(2 ln(a / ln 2)):
    # `radius` is half of its width in pixels, `sigma` the softness of its edge.
    radius = 1.15 * jnp.exp(0.28 * hand[29])
    sigma = 0.52 * jnp.exp(0.08 * hand[30])
    darkest = math.log(2) * jnp.exp((radius / sigma) ** 2 / 2)

    size = jnp.max(path.max(axis=0) - path.min(axis=0))
    path = path * ((20 - 2 * radius) / size)
    step = jnp.diff(path, axis=0)
    dots = path[1:] - step / 2
    pressure = jnp.exp(0.2 * _matmul(_waves(3, _POINTS - 1), hand[31:]))
    length = jnp.sqrt(jnp.sum(step**2, axis=1)) * jnp.asarray(_skeletons().pen_down)[style]

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
    key: PRNGKeyArray, labels: Int[Array | np.ndarray, " n"]
) -> UInt8[Array, "n 28 28"]:
    """Draw one handwriting-like digit for each label, white (255) on black (0).

    Image i depends on `key`, i and `labels[i]` alone, so fewer labels give the same first images.
    A pure function: jit it, or vmap it over keys.

    Args:
        key: makes the writers.
        labels: the digits to draw, 0 to 9; others, which a compiled function cannot refuse, are
            drawn as the nearest of them.
    """

    def draw(index_and_label: tuple[Array, Array]) -> Array:
        index, label = index_and_label
        return _draw_digit(jax.random.fold_in(key, index), label)

    digits = jnp.clip(jnp.asarray(labels), 0, 9)
    indices = jnp.arange(len(digits), dtype=jnp.uint32)
    return jax.lax.map(draw, (indices, digits), batch_size=_CHUNK)


@jax.jit
def _draw_all(key: PRNGKeyArray) -> tuple[UInt8[Array, "70000 28 28"], Int32[Array, "70000"]]:
    """Train images, then test images, and the labels: each digit 1,000 times in every 10,000."""
    draw_key, label_key = jax.random.split(key)
    digits = jnp.arange(10_000, dtype=jnp.int32) % 10
    shuffle = jax.vmap(jax.random.permutation, (0, None))
    labels = shuffle(jax.random.split(label_key, 7), digits).reshape(-1)
    return draw_digits(draw_key, labels), labels


def load_synthetic(seed: int = 0) -> tuple[Dataset, Dataset]:
    """The drawn digits of `seed`: 60,000 images to train with and 10,000 others to test with.

    Each digit is there equally often, in random order. Drawing them takes a few seconds, so they
    are kept in the cache, and drawn again where it does not hold exactly what it should.
    """
    name = f"synthetic-v1-{seed}"
    arrays = cache.load(name)
    if arrays is None or {k: (a.shape, a.dtype) for k, a in arrays.items()} != _CACHED:
        images, labels = _draw_all(jax.random.key(seed, impl="threefry2x32"))
        arrays = {"images": np.array(images), "labels": np.array(labels)}
        cache.store(name, arrays)
    images, labels = arrays["images"], arrays["labels"]
    return Dataset(images[:60_000], labels[:60_000]), Dataset(images[60_000:], labels[60_000:])
