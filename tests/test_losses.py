import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxmnist import cross_entropy, nll_loss

LOGITS = np.array([[2.0, 1.0, 0.0], [-1.0, 0.5, 3.0], [0.0, 0.0, 0.0]], np.float32)
LABELS = np.array([0, 1, 2], np.int32)


def test_worked_by_hand():
    # ln(1 + e^-1 + e^-2); ln(e^-1 + e^.5 + e^3) - .5; ln 3
    by_hand = [0.40760596, 2.59567429, 1.09861229]
    losses = cross_entropy(LOGITS, LABELS, reduction="none")
    np.testing.assert_allclose(losses, by_hand, rtol=1e-6)
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS), np.mean(by_hand), rtol=1e-6)


def test_is_nll_of_log_softmax():
    log_probs = jax.nn.log_softmax(LOGITS)
    for reduction in ("mean", "none"):
        np.testing.assert_array_equal(
            nll_loss(log_probs, LABELS, reduction=reduction),
            cross_entropy(LOGITS, LABELS, reduction=reduction),
        )


def test_where_leaves_examples_out():
    where = jnp.array([True, False, True])
    expected = cross_entropy(LOGITS[::2], LABELS[::2])
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS, where=where), expected, rtol=1e-6)
    # whatever the others hold, in value and in gradient
    junk = LOGITS.copy()
    junk[1] = np.nan
    loss, grad = jax.value_and_grad(cross_entropy)(jnp.asarray(junk), LABELS, where=where)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert np.all(np.isfinite(grad[::2]))


@pytest.mark.parametrize("label", [-1, 3])
def test_label_out_of_range_is_not_trained_on_silently(label):
    labels = np.array([0, 1, label], np.int32)
    with pytest.raises(ValueError, match=rf"label {label} in row 2 is outside the classes 0\.\.2"):
        cross_entropy(LOGITS, labels)
    # a compiled program cannot raise
    assert np.isnan(jax.jit(cross_entropy)(LOGITS, labels))
    per_example = jax.jit(lambda x, y: nll_loss(x, y, reduction="none"))(LOGITS, labels)
    assert np.isnan(per_example[2])
    where = np.array([True, True, False])  # what fills a batch up may hold anything
    expected = cross_entropy(LOGITS[:2], labels[:2])
    np.testing.assert_allclose(cross_entropy(LOGITS, labels, where=where), expected, rtol=1e-6)


def test_impossible_class_costs_infinitely_but_no_nan():
    log_probs = jnp.array([[0.0, -jnp.inf]])
    assert nll_loss(log_probs, jnp.array([0])) == 0
    assert nll_loss(log_probs, jnp.array([1])) == jnp.inf


def test_huge_logits_do_not_overflow():
    logits = jnp.array([[1e4, -1e4], [3e38, 0.0]], jnp.float32)
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([1, 0])), 1e4)


@pytest.mark.parametrize("loss", [cross_entropy, nll_loss])
def test_gradients(loss):
    with jax.enable_x64(True):
        logits = jnp.asarray(LOGITS, jnp.float64)
        check_grads(lambda x: loss(x, LABELS), (logits,), order=2)
        check_grads(lambda x: loss(x, LABELS, reduction="none"), (logits,), order=1)
