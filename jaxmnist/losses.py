"""The notebook's two criteria. `cross_entropy` on logits is `nll_loss` on their log-softmax."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmnist.types import AnyArray

Reduction = Literal["mean", "none"]


def nll_loss(
    log_probs: Float[AnyArray, "n classes"],
    labels: Int[AnyArray, " n"],
    *,
    where: Bool[AnyArray, " n"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Array, ""] | Float[Array, " n"]:
    """Negative log likelihood, in nats: `-log_probs[i, labels[i]]`. PyTorch's `NLLLoss`.

    Args:
        log_probs: log-probabilities, a row an example.
        labels: the true classes.
        where: the examples that count, as in `jnp.mean`; the others may hold anything.
        reduction: "mean" for the mean over the examples, "none" for one loss an example.

    A label outside 0..classes-1 gives NaN: a compiled program cannot raise, and must not train on.
    """
    # A comparison instead of an index: the derivative of an index is a scatter, which is slow.
    chosen = labels[:, None] == jnp.arange(log_probs.shape[-1], dtype=labels.dtype)[None, :]
    losses = -jnp.sum(jnp.where(chosen, log_probs, 0), axis=-1)
    losses = jnp.where(jnp.any(chosen, axis=-1), losses, jnp.nan)
    return jnp.mean(losses, where=where) if reduction == "mean" else losses


def cross_entropy(
    logits: Float[AnyArray, "n classes"],
    labels: Int[AnyArray, " n"],
    *,
    where: Bool[AnyArray, " n"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Array, ""] | Float[Array, " n"]:
    """Cross-entropy of `softmax(logits)` against the labels, in nats. PyTorch's `CrossEntropyLoss`.

    Takes what `nll_loss` takes, with logits in place of log-probabilities.
    """
    return nll_loss(jax.nn.log_softmax(logits), labels, where=where, reduction=reduction)
