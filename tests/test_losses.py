import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from jaxmnist import cross_entropy, nll_loss

LOGITS = np.array([[2.0, 1.0, 0.0], [-1.0, 0.5, 3.0], [0.0, 0.0, 0.0]], np.float32)
LABELS = np.array([0, 1, 2], np.int32)


def test_equals_optax():
    optaxs = jax.jit(optax.softmax_cross_entropy_with_integer_labels)
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS), optaxs(LOGITS, LABELS), rtol=1e-6)


@pytest.mark.parametrize("label", [-1, 3])
def test_label_out_of_range_is_not_trained_on_silently(label):
    labels = np.array([0, 1, label], np.int32)
    with pytest.raises(ValueError, match=rf"label {label} in row 2 is outside the classes 0\.\.2"):
        cross_entropy(LOGITS, labels)
    # a compiled program cannot raise
    losses = jax.jit(cross_entropy)(LOGITS, labels)
    np.testing.assert_array_equal(np.isnan(losses), [False, False, True])
    np.testing.assert_array_equal(losses[:2], jax.jit(cross_entropy)(LOGITS, LABELS)[:2])


def test_impossible_class_costs_infinitely_but_no_nan():
    log_probs = jnp.array([[0.0, -jnp.inf]])
    assert nll_loss(log_probs, jnp.array([0])).tolist() == [0]
    assert nll_loss(log_probs, jnp.array([1])).tolist() == [np.inf]


def test_huge_logits_do_not_overflow():
    logits = jnp.array([[1e4, -1e4], [3e38, 0.0]], jnp.float32)
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([1, 0])), [2e4, 0])


@pytest.mark.parametrize("loss", [cross_entropy, nll_loss])
def test_gradients(loss):
    with jax.enable_x64(True):
        logits = jnp.asarray(LOGITS, jnp.float64)
        check_grads(jax.jit(lambda x: loss(x, LABELS)), (logits,), order=2, modes=["rev"])
