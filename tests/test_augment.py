"""Augmentation: against scipy, the identity at strength 0, distributions, transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from jaxmnist.augment import SMOOTH, _field, augment, handwriting

KEY = jax.random.key(3)
KEYS = jax.random.split(KEY, 6)  # of rotation, scaling, shearing, shifting, elasticity, stroke
AFFINE = {"rotation": 20.0, "scaling": 0.2, "shearing": 0.3, "shifting": 2.0}
STRONG = AFFINE | {"elasticity": 1.5, "stroke": 0.8}


@pytest.fixture(scope="module")
def digits():
    """Blots of any shape, higher than wide, with a dark border around them."""
    noise = np.random.default_rng(0).normal(size=(64, 28, 24))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2))
    images = np.clip(255 * smooth / smooth.max((1, 2), keepdims=True), 0, 255)
    images[:, [0, 1, -2, -1]] = images[:, :, [0, 1, -2, -1]] = 0
    return images.astype(np.uint8)


def warp(image, matrix, move=(0.0, 0.0), field=0.0):
    """scipy's bilinear interpolation, from the inverse of `matrix` on (row, column)."""
    middle = (np.array(image.shape)[:, None, None] - 1) / 2
    grid = np.stack(np.mgrid[: image.shape[0], : image.shape[1]]).astype(float)
    centred = grid - middle - np.asarray(move)[:, None, None]
    at = np.einsum("ij,jyx->iyx", np.linalg.inv(matrix), centred) + middle + field
    return ndimage.map_coordinates(np.pad(image.astype(float), 3), at + 3, order=1)


def assert_alike(images, others):
    """Up to the one grey level that rounding may make."""
    assert np.abs(np.asarray(images, int) - np.asarray(others, int)).max() <= 1


def changed(images, **strengths):
    return jax.jit(functools.partial(augment, **strengths))(KEY, images)


def uniform(key, *shape):
    return np.asarray(jax.random.uniform(key, (64, *shape), jnp.float32, -1, 1), np.float64)


@pytest.mark.slow
def test_an_affine_change_is_scipys(digits):
    angle, slant = np.deg2rad(20 * uniform(KEYS[0])), 0.3 * uniform(KEYS[2])
    factors, move = np.exp(0.2 * uniform(KEYS[1], 2)), 2 * uniform(KEYS[3], 2)
    found = changed(digits.astype(np.float32), **AFFINE)
    for i in range(64):
        # rotation @ shear @ scale on (row, column), a positive angle counter-clockwise
        cos, sin = np.cos(angle[i]), np.sin(angle[i])
        turn, shear = np.array([[cos, -sin], [sin, cos]]), np.array([[1, 0], [-slant[i], 1]])
        expected = warp(digits[i], turn @ shear @ np.diag(factors[i]), move[i])
        np.testing.assert_allclose(found[i], expected, atol=0.1)


@pytest.mark.slow
def test_an_elastic_change_is_scipys_interpolation_of_its_field(digits):
    field = np.asarray(_field(KEYS[4], digits, 1.5), np.float64)
    found = changed(digits.astype(np.float32), elasticity=1.5)
    for image, part, bent in zip(digits, field, found, strict=True):
        np.testing.assert_allclose(bent, warp(image, np.eye(2), field=part), atol=0.1)


@pytest.mark.slow
def test_stroke_widths_are_scipys_dilation_and_erosion(digits):
    amounts, cross = 0.8 * uniform(KEYS[5]), ndimage.generate_binary_structure(2, 1)
    found = changed(digits, stroke=0.8)
    assert found.dtype == np.uint8
    for image, amount, new in zip(digits.astype(np.float32), amounts, found, strict=True):
        change = ndimage.grey_dilation if amount > 0 else ndimage.grey_erosion
        target = change(image, footprint=cross, mode="constant", cval=0)
        np.testing.assert_allclose(new, image + abs(amount) * (target - image), atol=0.501)


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_strength_0_is_the_identity_to_the_bit(digits, dtype):
    images = digits.astype(dtype)
    for run in (augment, jax.jit(augment)):
        found = run(KEY, images, **dict.fromkeys(STRONG, 0.0))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, images)
    assert "random_split" in str(jax.make_jaxpr(augment)(KEY, images))
    assert "gather" not in str(jax.make_jaxpr(augment)(KEY, images))  # and costs nothing
    with pytest.raises((ValueError, TypeError), match="images"):
        augment(KEY, images[0])


@pytest.mark.slow
def test_handwriting_is_augment_at_usual_strengths(digits):
    half = dict(zip(STRONG, [5, 0.05, 0.075, 0.5, 0.4, 0.25], strict=True))
    constant = jax.jit(lambda key, images: handwriting(key, images, 0.5))(KEY, digits)
    assert_alike(constant, changed(digits, **half))
    traced = jax.jit(handwriting)(KEY, digits, 0.5)  # as in a population
    np.testing.assert_array_equal(traced, constant)
    np.testing.assert_array_equal(handwriting(KEY, digits, 0), digits)


def test_an_elastic_field_is_normal_and_smooth():
    field = np.asarray(_field(KEY, np.zeros((4000, 28, 28)), 1.5))
    at = field[:, :, [0, 13, 27], [0, 20, 5]]
    assert stats.kstest(at.ravel() / 1.5, "norm").pvalue > 1e-3
    near = np.corrcoef(field[:, 0, 14, 10], field[:, 0, 14, 15])[0, 1]
    assert abs(near - np.exp(-(5**2) / (4 * SMOOTH**2))) < 0.05
    assert abs(np.corrcoef(field[:, 0, 14, 10], field[:, 1, 14, 10])[0, 1]) < 0.06


@pytest.mark.slow
def test_a_shorter_batch_a_vmap_and_a_jit_change_nothing(digits):
    jitted = jax.jit(lambda key, images: augment(key, images, **STRONG))
    whole = jitted(KEY, digits)
    assert_alike(jitted(KEY, digits[:10]), whole[:10])
    assert_alike(augment(KEY, digits, **STRONG), whole)
    members = jax.vmap(jitted, (0, None))(KEYS[:3], digits)
    assert_alike(members, [jitted(key, digits) for key in KEYS[:3]])
