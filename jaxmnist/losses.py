"""The notebook's two criteria, one number per example as in optax; the caller takes the mean.

`cross_entropy` on logits is `nll_loss` on their log-softmax.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmnist.checks import check_logits
from jaxmnist.types import AnyArray


def nll_loss(
    log_probs: Float[AnyArray, "n classes"], labels: Int[AnyArray, " n"]
) -> Float[Array, " n"]:
    """Negative log likelihood, in nats: `-log_probs[i, labels[i]]`. Its mean is `NLLLoss`.

    A label outside 0..classes-1 gives NaN where it is traced, since a compiled program cannot
    raise; `check_finite` names the step. Logits of less than 32 bits are taken as float32.

    Args:
        log_probs: log-probabilities, a row per example.
        labels: the true classes.

    Raises:
        ValueError: the shapes do not fit each other, or a label that is not traced is outside.

    >>> nll_loss(jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]])), jnp.array([1, 0])).round(4)
    Array([0.2877, 0.6931], dtype=float32)
    """
    log_probs, labels = check_logits(log_probs, labels)
    # A comparison instead of an index: the derivative of an index is a scatter, which is slow.
    chosen = labels[:, None] == jnp.arange(log_probs.shape[-1], dtype=labels.dtype)[None, :]
    losses = -jnp.sum(jnp.where(chosen, log_probs, 0), axis=-1)
    return jnp.where(jnp.any(chosen, axis=-1), losses, jnp.nan)


def cross_entropy(
    logits: Float[AnyArray, "n classes"], labels: Int[AnyArray, " n"]
) -> Float[Array, " n"]:
    """Cross-entropy of `softmax(logits)` and the labels, in nats: the mean is `CrossEntropyLoss`.

    Takes and raises what `nll_loss` does, with logits in place of log-probabilities.

    >>> cross_entropy(jnp.array([[0.0, 0.0], [0.0, 2.0]]), jnp.array([1, 0])).round(4)
    Array([0.6931, 2.1269], dtype=float32)
    """
    logits, labels = check_logits(logits, labels)
    return nll_loss(jax.nn.log_softmax(logits), labels)
