"""Random changes of images that keep the digit, for use in a compiled training step.

In an objective that asks for a key::

    def objective(params, batch, *, key):
        images = augment(key, batch.images, rotation=10, elasticity=0.5)
        return cross_entropy(model.apply(params, preprocess(images)), batch.labels)

The elastic deformation is the one of P. Simard, D. Steinkraus, J. Platt, "Best practices for
convolutional neural networks applied to visual document analysis" (ICDAR 2003).
"""

import functools
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray, UInt8

from jaxmnist.types import AnyArray

Strength = float | Float[AnyArray, ""]
Images = TypeVar("Images", UInt8[AnyArray, "n h w"], Float[AnyArray, "n h w"])

# Strengths about as large as the differences between people's handwriting.
HANDWRITING = dict(rotation=10, scaling=0.1, shearing=0.15, shifting=1, elasticity=0.8, stroke=0.5)
SMOOTH = 5.0  # pixels, the standard deviation of the Gaussian that smooths an elastic field


def augment(
    key: PRNGKeyArray,
    images: Images,
    *,
    rotation: Strength = 0.0,
    scaling: Strength = 0.0,
    shearing: Strength = 0.0,
    shifting: Strength = 0.0,
    elasticity: Strength = 0.0,
    stroke: Strength = 0.0,
) -> Images:
    """Random changes of each image. Pure.

    Image i depends on `key`, i and `images[i]` alone, so a batch that is cut short, sharded or
    vmapped is changed in the same way. Stroke widths are changed first. Then an image is scaled,
    sheared, rotated, shifted and at last bent, with one bilinear interpolation for all; pixels from
    outside of the image are 0. Integers are rounded to the nearest.

    Every strength may be traced. At 0 the images come back unchanged, bit by bit; the Python number
    0, the default, also costs nothing.

    >>> images = np.zeros((2, 28, 28), np.uint8)
    >>> augment(jax.random.key(0), images, rotation=10, shifting=1).shape
    (2, 28, 28)

    Args:
        key: the same key makes the same changes.
        images: grey images of any size, 0 for background; their dtype is kept.
        rotation: degrees; an image is turned about its centre by an angle uniform in +-`rotation`.
        scaling: rows and columns are enlarged about the centre by a factor each, whose logarithms
            are independent and uniform in +-`scaling`.
        shearing: a row d pixels above the centre moves right by s * d pixels, with s uniform in
            +-`shearing`.
        shifting: pixels; an image moves down and to the right by distances uniform in +-`shifting`.
        elasticity: pixels; along each axis the displacement of every pixel is normal with this
            standard deviation, and smooth: of two pixels a distance d apart the displacements
            correlate as about exp(-d**2 / (4 * SMOOTH**2)).
        stroke: pixels, at most 1, by which bright strokes become thicker or thinner at each edge.
            With u uniform in +-`stroke`, the image is blended with its grey dilation, of weight u,
            or, where u is negative, with its erosion, of weight -u, each over a pixel and its four
            neighbours. The border's pixels are repeated beyond it.

    Raises:
        ValueError: the images are not `[n, h, w]`.
    """
    if images.ndim != 3:
        raise ValueError(f"images must be [n, h, w], not {images.shape}")
    keys = jax.random.split(key, 6)
    pixels = jnp.asarray(images)
    if not _is_zero(stroke):
        pixels = _thicken(_uniform(keys[5], pixels, stroke), pixels)
    if not all(map(_is_zero, (rotation, scaling, shearing, shifting, elasticity))):
        inverse = _inverse(
            jnp.deg2rad(_uniform(keys[0], images, rotation)),
            _uniform(keys[1], images, scaling, 2),
            _uniform(keys[2], images, shearing),
        )
        y, x = _sources(inverse, _uniform(keys[3], images, shifting, 2), images.shape[1:])
        if not _is_zero(elasticity):
            field = _field(keys[4], images, elasticity)
            y, x = y + field[:, 0], x + field[:, 1]
        pixels = _sample(pixels, y, x)
    if jnp.issubdtype(images.dtype, jnp.integer):
        pixels = jnp.round(pixels)
    return pixels.astype(images.dtype)


def handwriting(key: PRNGKeyArray, images: Images, strength: Strength = 1.0) -> Images:
    """`augment` with the strengths `HANDWRITING`, times `strength`.

    >>> handwriting(jax.random.key(0), np.zeros((2, 28, 28), np.uint8)).dtype
    dtype('uint8')
    """
    if not _is_zero(strength):
        # Keeps XLA from folding the constants, so that a traced strength gives the same bits.
        strength = jax.lax.optimization_barrier(jnp.asarray(strength, jnp.float32))
    strengths = {name: usual * strength for name, usual in HANDWRITING.items()}
    return augment(key, images, **strengths)


def _is_zero(strength: Strength) -> bool:
    return isinstance(strength, int | float) and strength == 0


def _uniform(key: PRNGKeyArray, images: Images, strength: Strength, *shape: int) -> Array:
    """Uniform in +-`strength`: a number, or an array of `shape`, for each image."""
    draws = jax.random.uniform(key, (len(images), *shape), jnp.float32, -1, 1)
    return draws * jnp.asarray(strength, jnp.float32)


def _inverse(
    angle: Float[Array, " n"], log_factors: Float[Array, "n 2"], slant: Float[Array, " n"]
) -> Float[Array, "n 2 2"]:
    """The inverse of rotation @ shear @ scale on (row, column): where a pixel comes from."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rows = jnp.stack([cos, sin], 1), jnp.stack([slant * cos - sin, slant * sin + cos], 1)
    return jnp.stack(rows, 1) * jnp.exp(-log_factors)[..., None]


def _field(key: PRNGKeyArray, images: Images, pixels: Strength) -> Float[Array, "n 2 h w"]:
    """Normal displacements at the nodes of a grid, spread by a Gaussian, of variance pixels**2."""
    spread = np.kron(*(_spread(side) for side in images.shape[1:]))
    nodes = jax.random.normal(key, (len(images), 2, spread.shape[1]), jnp.float32)
    field = (nodes * jnp.asarray(pixels, jnp.float32)) @ spread.T
    return field.reshape(len(images), 2, *images.shape[1:])


def _spread(side: int) -> np.ndarray:
    """The weight of each node for a pixel, [side, nodes]; the squares of a row sum to 1."""
    nodes = np.linspace(-SMOOTH, side - 1 + SMOOTH, math.ceil((side - 1) / SMOOTH) + 2)
    weights = np.exp(-((np.arange(side)[:, None] - nodes) ** 2) / (2 * SMOOTH**2))
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


def _sources(
    inverse: Float[Array, "n 2 2"], move: Float[Array, "n 2"], size: tuple[int, ...]
) -> tuple[Float[Array, "n h w"], Float[Array, "n h w"]]:
    """The row and the column from which each pixel of the new image is taken."""
    middle = [(side - 1) / 2 for side in size]
    rows, columns = (
        jnp.arange(side, dtype=jnp.float32) - half for side, half in zip(size, middle, strict=True)
    )
    y = rows[None, :, None] - move[:, :1, None]
    x = columns[None, None] - move[:, 1:, None]
    a, b, c, d = (inverse[:, i, j, None, None] for i in (0, 1) for j in (0, 1))
    return a * y + b * x + middle[0], c * y + d * x + middle[1]


def _sample(
    pixels: Num[Array, "n h w"], y: Float[Array, "n h w"], x: Float[Array, "n h w"]
) -> Float[Array, "n h w"]:
    """The pixels at rows y and columns x, by bilinear interpolation; 0 outside of the image."""
    n, height, width = pixels.shape
    padded = jnp.pad(pixels, ((0, 0), (1, 2), (1, 2))).reshape(n, -1)
    # Without the barrier XLA computes them once for each of the four corners on a CPU.
    y, x = jax.lax.optimization_barrier((y, x))
    y, x = jnp.clip(y, -1, height) + 1, jnp.clip(x, -1, width) + 1
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = y - top, x - left
    first = (top * (width + 3) + left).astype(jnp.int32).reshape(n, -1)

    def corner(step: int) -> Array:
        found = jnp.take_along_axis(padded, first + step, axis=1, mode="promise_in_bounds")
        return found.reshape(pixels.shape).astype(jnp.float32)

    upper = corner(0) * (1 - right) + corner(1) * right
    lower = corner(width + 3) * (1 - right) + corner(width + 4) * right
    return upper * (1 - down) + lower * down


def _thicken(amount: Float[Array, " n"], pixels: Num[Array, "n h w"]) -> Float[Array, "n h w"]:
    """A blend with the largest or the smallest of each pixel and its four neighbours."""
    padded = jnp.pad(pixels, ((0, 0), (1, 1), (1, 1)))
    across, along = padded[:, 1:-1], padded[:, :, 1:-1]
    neighbours = across[:, :, :-2], across[:, :, 2:], along[:, :-2], along[:, 2:]
    largest = functools.reduce(jnp.maximum, neighbours, pixels)
    smallest = functools.reduce(jnp.minimum, neighbours, pixels)
    amount = amount[:, None, None]
    target = jnp.where(amount > 0, largest, smallest).astype(jnp.float32)
    before = pixels.astype(jnp.float32)
    return before + jnp.abs(amount) * (target - before)
