"""The notebook's two criteria. `cross_entropy` on logits is `nll_loss` on their log-softmax."""

import inspect
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxmnist.types import AnyArray, LossFn, Metrics

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

    A label outside 0..classes-1 gives NaN where it is traced: a compiled program cannot raise, and
    must not train on.

    Raises:
        ValueError: the shapes do not fit each other, or a label that is not traced is outside.
    """
    check_shapes(log_probs, labels.shape)
    _check_labels(labels, where, log_probs.shape[-1])
    # A comparison instead of an index: the derivative of an index is a scatter, which is slow.
    chosen = labels[:, None] == jnp.arange(log_probs.shape[-1], dtype=labels.dtype)[None, :]
    losses = -jnp.sum(jnp.where(chosen, log_probs, 0), axis=-1)
    losses = jnp.where(jnp.any(chosen, axis=-1), losses, jnp.nan)
    return jnp.mean(losses, where=where) if reduction == "mean" else losses


def _check_labels(
    labels: Int[AnyArray, " n"], where: Bool[AnyArray, " n"] | None, classes: int
) -> None:
    if isinstance(labels, jax.core.Tracer) or isinstance(where, jax.core.Tracer):
        return
    values = np.asarray(labels)  # on the host: within a trace labels[row] would be a tracer
    outside = (values < 0) | (values >= classes)
    rows = np.flatnonzero(outside if where is None else outside & np.asarray(where))
    if rows.size:
        raise ValueError(
            f"label {values[rows[0]]} in row {rows[0]} is outside the classes 0..{classes - 1}"
        )


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
    check_shapes(logits, labels.shape)
    return nll_loss(jax.nn.log_softmax(logits), labels, where=where, reduction=reduction)


def check_shapes(scores: Any, labels: tuple) -> None:
    """Raise unless a model's output has a row of scores for each of the labels of this shape."""
    shape = getattr(scores, "shape", ())
    if len(shape) != 2 or labels != shape[:1]:
        got = f"has shape {shape}" if hasattr(scores, "shape") else f"is a {type(scores).__name__}"
        raise ValueError(
            f"the model's output {got} and the labels have shape {labels}: "
            "one row of scores for each label is needed, [n, classes] and [n]"
        )


def loss_and_metrics(
    loss_fn: LossFn,
    scores: Any,
    labels: Int[AnyArray, " n"],
    where: Bool[AnyArray, " n"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """What any loss function gives, as a scalar and a dict.

    Raises:
        TypeError: it takes no `where` though there is one, or gives something else.
        ValueError: its loss is no scalar.
    """
    if where is None:
        result = loss_fn(scores, labels)
    elif _takes_where(loss_fn):
        result = loss_fn(scores, labels, where=where)
    else:
        raise TypeError(
            "loss_fn takes no `where`, so it cannot leave out what fills up a short last batch:"
            " let it, choose a batch size that divides the data, or make_train_epoch(pad=False)"
        )
    loss, metrics = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    if loss is None or isinstance(loss, tuple | list | dict) or not isinstance(metrics, dict):
        raise TypeError("loss_fn must return a scalar, or a scalar and a dict of metrics")
    if jnp.shape(loss) != ():
        raise ValueError(f"loss_fn must return a scalar, not shape {jnp.shape(loss)}")
    return loss, metrics


def _takes_where(loss_fn: LossFn) -> bool:
    kinds = {name: p.kind for name, p in inspect.signature(loss_fn).parameters.items()}
    return "where" in kinds or inspect.Parameter.VAR_KEYWORD in kinds.values()
