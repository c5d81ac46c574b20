import jax
import numpy as np
import pytest

from jaxmnist import MLP
from tests.helpers import logits_by_hand

KEY = jax.random.key(3)
IMAGES = np.random.default_rng(0).normal(size=(5, 784)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MLP().init)(KEY, IMAGES)


def test_forward_equals_numpy(params):
    x = logits_by_hand(params, IMAGES)
    np.testing.assert_allclose(MLP().apply(params, IMAGES), x, rtol=1e-4, atol=1e-6)
    expected = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    log_probs = MLP(log_probs=True).apply(params, IMAGES)
    np.testing.assert_allclose(log_probs, expected, rtol=1e-4, atol=1e-6)


def test_images_of_any_shape_are_flattened(params):
    logits = MLP().apply(params, IMAGES.reshape(5, 1, 28, 28))
    np.testing.assert_array_equal(logits, MLP().apply(params, IMAGES))


def test_logits_are_float32_whatever_the_layers_compute_in(params):
    models = MLP(), MLP(dtype=jax.numpy.bfloat16)
    expected, logits = (jax.jit(model.apply)(params, IMAGES) for model in models)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=0.03)
    assert np.abs(logits - expected).max() > 1e-4
    with jax.enable_x64(True):  # and what the parameters are, where no type is given
        params = jax.tree.map(np.float64, params)
        assert jax.eval_shape(MLP().apply, params, np.float64(IMAGES)).dtype == np.float64


@pytest.mark.parametrize(("layer", "shape"), [(0, (128, 784)), (1, (64, 128)), (2, (10, 64))])
def test_initialisation_is_uniform_within_pytorchs_bound(params, layer, shape):
    params = params["params"][f"linear_{layer}"]
    assert params["weight"].shape == shape
    bound = shape[1] ** -0.5
    for name in ("weight", "bias"):
        values = np.asarray(params[name]).ravel()
        assert np.all(np.abs(values) <= bound)
        assert np.abs(values).max() > 0.8 * bound  # it reaches for the bound, on both sides
        assert values.min() < 0 < values.max()
    weight = np.asarray(params["weight"]).ravel()
    assert np.isin(params["bias"], weight).mean() < 0.1  # it is no column of the weights
    # A uniform variable's deviation is bound / sqrt(3); five standard errors of tolerance.
    np.testing.assert_allclose(weight.std(), bound / 3**0.5, rtol=5 / weight.size**0.5)
    assert abs(weight.mean()) < 5 * bound / (3 * weight.size) ** 0.5
