import jax
import numpy as np
import pytest

from jaxmnist import MLP

KEY = jax.random.key(3)


def test_shapes_are_the_notebooks():
    params = MLP().init(KEY, np.zeros((1, 784), np.float32))
    shapes = jax.tree.map(np.shape, params)["params"]
    assert shapes == {
        "linear_0": {"weight": (128, 784), "bias": (128,)},
        "linear_1": {"weight": (64, 128), "bias": (64,)},
        "linear_2": {"weight": (10, 64), "bias": (10,)},
    }
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


def test_forward_equals_numpy():
    images = np.random.default_rng(0).normal(size=(5, 784)).astype(np.float32)
    params = MLP().init(KEY, images)
    x = images.astype(np.float64)
    layers = params["params"]
    for i in range(3):
        layer = layers[f"linear_{i}"]
        x = x @ np.float64(layer["weight"]).T + np.float64(layer["bias"])
        x = np.maximum(x, 0) if i < 2 else x
    np.testing.assert_allclose(MLP().apply(params, images), x, rtol=1e-4, atol=1e-6)
    log_probs = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(
        MLP(log_probs=True).apply(params, images), log_probs, rtol=1e-4, atol=1e-6
    )


def test_images_of_any_shape_are_flattened():
    images = np.random.default_rng(0).normal(size=(5, 1, 28, 28)).astype(np.float32)
    params = MLP().init(KEY, images)
    np.testing.assert_array_equal(
        MLP().apply(params, images), MLP().apply(params, images.reshape(5, 784))
    )


@pytest.mark.parametrize(
    ("layer", "inputs"), [("linear_0", 784), ("linear_1", 128), ("linear_2", 64)]
)
def test_initialisation_is_uniform_within_pytorchs_bound(layer, inputs):
    params = MLP().init(KEY, np.zeros((1, 784), np.float32))["params"][layer]
    bound = inputs**-0.5
    for name in ("weight", "bias"):
        values = np.asarray(params[name]).ravel()
        assert np.all(np.abs(values) <= bound)
        assert np.abs(values).max() > 0.8 * bound  # it reaches for the bound, on both sides
        assert values.min() < 0 < values.max()
    weight = np.asarray(params["weight"]).ravel()
    # A uniform variable's deviation is bound / sqrt(3); five standard errors of tolerance.
    np.testing.assert_allclose(weight.std(), bound / 3**0.5, rtol=5 / weight.size**0.5)
    assert abs(weight.mean()) < 5 * bound / (3 * weight.size) ** 0.5


def test_other_sizes():
    model = MLP(hidden=(), classes=3)
    params = model.init(KEY, np.zeros((1, 7), np.float32))
    assert model.apply(params, np.zeros((2, 7), np.float32)).shape == (2, 3)
