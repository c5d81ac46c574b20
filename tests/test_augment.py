"""Augmentation: against scipy, the identity at strength 0, distributions, transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage, stats

from jaxmnist import Dataset, augment, init_state, train
from jaxmnist.runs import recipe

KEY = jax.random.key(3)
ALONE = {
    "rotation": augment.rotate,
    "scaling": augment.scale,
    "shearing": augment.shear,
    "shifting": augment.shift,
    "elasticity": augment.elastic,
    "stroke": augment.stroke_width,
}
STRONG = {
    "rotation": 20.0,
    "scaling": 0.2,
    "shearing": 0.3,
    "shifting": 2.0,
    "elasticity": 1.5,
    "stroke": 0.8,
}


@pytest.fixture(scope="module")
def digits():
    """Blots of any shape, a dark border around them."""
    noise = np.random.default_rng(0).normal(size=(64, 28, 28))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2))
    images = np.clip(255 * smooth / smooth.max((1, 2), keepdims=True), 0, 255)
    images[:, [0, 1, 26, 27]] = images[:, :, [0, 1, 26, 27]] = 0
    return images.astype(np.uint8)


def warp(image, matrix, move=(0.0, 0.0), field=0.0):
    """scipy's bilinear interpolation, from the inverse of `matrix` on (row, column)."""
    middle = (np.array(image.shape) - 1) / 2
    grid = np.stack(np.mgrid[: image.shape[0], : image.shape[1]]).astype(float)
    centred = grid - middle[:, None, None] - np.asarray(move)[:, None, None]
    at = np.einsum("ij,jyx->iyx", np.linalg.inv(matrix), centred) + middle[:, None, None] + field
    return ndimage.map_coordinates(np.pad(image.astype(float), 3), at + 3, order=1)


def uniform(key, shape):
    return np.asarray(jax.random.uniform(key, shape, jnp.float32, -1, 1), np.float64)


def test_an_affine_change_is_scipys(digits):
    angle, scaling, slant, move, _, _ = jax.random.split(KEY, 6)
    angle = np.deg2rad(20 * uniform(angle, 64))
    factors = np.exp(0.2 * uniform(scaling, (64, 2)))
    slant, move = 0.3 * uniform(slant, 64), 2 * uniform(move, (64, 2))
    found = augment.augment(
        KEY, digits.astype(np.float32), rotation=20, scaling=0.2, shearing=0.3, shifting=2
    )
    for i in range(64):
        cos, sin = np.cos(angle[i]), np.sin(angle[i])
        # rotation @ shear @ scale on (row, column), a positive angle counter-clockwise
        matrix = (
            np.array([[cos, -sin], [sin, cos]]) @ [[1, 0], [-slant[i], 1]] @ np.diag(factors[i])
        )
        np.testing.assert_allclose(found[i], warp(digits[i], matrix, move[i]), atol=0.1)


def test_an_elastic_change_is_scipys_interpolation_of_its_field(digits):
    field = augment._field(jax.random.split(KEY, 6)[4], digits, 1.5)
    found = augment.elastic(KEY, digits.astype(np.float32), 1.5)
    for image, part, expected in zip(digits, np.asarray(field, np.float64), found, strict=True):
        np.testing.assert_allclose(expected, warp(image, np.eye(2), field=part), atol=0.1)


def test_stroke_widths_are_scipys_dilation_and_erosion(digits):
    amounts = 0.8 * uniform(jax.random.split(KEY, 6)[5], 64)
    cross = ndimage.generate_binary_structure(2, 1)
    for image, amount, found in zip(
        digits.astype(np.float32), amounts, augment.stroke_width(KEY, digits, 0.8), strict=True
    ):
        change = ndimage.grey_dilation if amount > 0 else ndimage.grey_erosion
        target = change(image, footprint=cross, mode="constant", cval=0)
        expected = image + abs(amount) * (target - image)
        np.testing.assert_allclose(found, expected, atol=0.51)  # rounded


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
@pytest.mark.parametrize("traced", [False, True])
def test_strength_0_is_the_identity_to_the_bit(digits, dtype, traced):
    images = digits.astype(dtype)
    zeros = dict.fromkeys(ALONE, 0.0)
    if traced:
        found = jax.jit(lambda zeros: augment.augment(KEY, images, **zeros))(zeros)
    else:
        found = augment.augment(KEY, images, **zeros)
    assert found.dtype == images.dtype
    np.testing.assert_array_equal(found, images)


@pytest.mark.parametrize("name", ALONE)
def test_each_change_alone_is_that_of_augment(digits, name):
    alone = ALONE[name](KEY, digits, STRONG[name])
    assert alone.dtype == np.uint8
    assert (np.asarray(alone) != digits).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(alone, augment.augment(KEY, digits, **{name: STRONG[name]}))


def test_the_distributions():
    """Measured on images of one bright square far from the centre, or by the field itself."""
    n = 4000
    field = np.asarray(augment._field(KEY, np.zeros((n, 28, 28)), 1.5))
    at = field[:, :, [0, 13, 27], [0, 20, 5]]
    assert stats.kstest(at.ravel() / 1.5, "norm").pvalue > 1e-3
    near = np.corrcoef(field[:, 0, 14, 10], field[:, 0, 14, 15])[0, 1]
    assert abs(near - np.exp(-(5**2) / (4 * augment.SMOOTH**2))) < 0.05
    assert abs(np.corrcoef(field[:, 0, 14, 10], field[:, 1, 14, 10])[0, 1]) < 0.06

    images = np.zeros((n, 28, 28), np.float32)
    images[:, 13:15, 20:22] = 1  # 7 pixels to the right of the centre
    moved = np.asarray(augment.shift(KEY, images, 2.0)), 2.0
    rows = (moved[0].sum(2) @ np.arange(28)) / moved[0].sum((1, 2)) - 13.5
    assert stats.kstest(rows / moved[1], "uniform", (-1, 2)).pvalue > 1e-3
    turned = np.asarray(augment.rotate(KEY, images, 30.0))
    y, x = (turned.sum(axis) @ (np.arange(28) - 13.5) for axis in (2, 1))
    assert stats.kstest(np.rad2deg(np.arctan2(-y, x)), "uniform", (-30, 60)).pvalue > 1e-3


@pytest.mark.slow
def test_a_shorter_batch_a_vmap_and_a_jit_change_nothing(digits):
    whole = augment.augment(KEY, digits, **STRONG)
    part = augment.augment(KEY, digits[:10], **STRONG)
    jitted = jax.jit(lambda key: augment.augment(key, digits, **STRONG))
    assert np.abs(np.asarray(whole[:10], int) - np.asarray(part, int)).max() <= 1  # rounding
    assert np.abs(np.asarray(whole, int) - np.asarray(jitted(KEY), int)).max() <= 1
    keys = jax.random.split(KEY, 3)
    for key, found in zip(keys, jax.vmap(jitted)(keys), strict=True):
        assert np.abs(np.asarray(jitted(key), int) - np.asarray(found, int)).max() <= 1


@pytest.mark.slow
def test_strengths_can_be_vmapped(digits):
    found = jax.vmap(lambda degrees: augment.rotate(KEY, digits, degrees))(jnp.array([0.0, 20.0]))
    np.testing.assert_array_equal(found[0], digits)
    assert (np.asarray(found[1]) != digits).any()


def test_images_of_another_size(digits):
    assert augment.augment(KEY, digits[:, :20], **STRONG).shape == (64, 20, 28)


def test_the_accurate_step_is_traced_once(monkeypatch):
    """Epochs, and a short last batch, are one program; and so are all strengths."""
    traces = []
    monkeypatch.setattr(recipe, "handwriting", lambda *args, **more: traces.append(0) or args[1])
    images = np.zeros((100, 28, 28), np.uint8)
    data, tx = Dataset(images, np.zeros(100, np.int32)), optax.sgd(0.003)

    @jax.jit
    def run(key, strength):
        model, step, _ = recipe.make_training((16,), "cross_entropy", strength, tx)
        return train(step, init_state(model, tx, key), data, key, epochs=3, batch_size=64)

    for strength in (0.5, 1.0):
        run(KEY, strength)
    assert len(traces) == 1
