"""How good a model is, measured on every example of a dataset."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxmnist.checks import check_batch_size, check_labels, check_logits, num_examples
from jaxmnist.data import on_auto_axes
from jaxmnist.losses import cross_entropy
from jaxmnist.transforms import preprocess
from jaxmnist.types import ApplyFn, Examples, LossFn, Metrics, Params, Transform


def mean_of_each(outputs: Any, dataset: Examples) -> Any:
    """The mean over the examples of everything that was computed for each of them."""
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), outputs)


class Evaluation(NamedTuple):
    """What `evaluate` measures."""

    outputs_fn: Callable[[Params, Examples], Any]
    """`outputs_fn(params, batch) -> outputs`, a pytree of arrays `[n, ...]`, batch by batch."""
    metrics_fn: Callable[[Any, Examples], Metrics] = mean_of_each
    """`metrics_fn(outputs, dataset) -> metrics`, of all outputs; by default the mean of each."""


def make_metrics(
    apply_fn: ApplyFn, loss_fn: LossFn = cross_entropy, transform: Transform = preprocess
) -> Evaluation:
    """What `evaluate` measures of a classifier; the arguments are those of `make_objective`.

    The metrics are "loss", the mean of what `loss_fn` gives, f32; "accuracy", the share of images
    whose largest logit is their label's, f32 in [0, 1]; "confusion", i32 [classes, classes], where
    row i, column j counts the images of class i that were taken for class j. A label outside the
    classes is a ValueError; in a compiled program it makes loss and accuracy NaN.
    """

    def logits_fn(params: Params, batch: Examples) -> Any:
        logits = apply_fn(params, transform(batch.images))
        check_logits(logits, batch.labels.shape)
        return logits

    def metrics_fn(logits: Any, dataset: Examples) -> Metrics:
        labels, classes = dataset.labels, logits.shape[-1]
        check_labels(labels, classes)
        losses = loss_fn(logits, labels)
        losses = losses[0] if isinstance(losses, tuple) else losses
        predictions = jnp.argmax(logits, axis=-1).astype(labels.dtype)
        valid = jnp.all((labels >= 0) & (labels < classes))
        return {
            "loss": jnp.where(valid, jnp.mean(losses), jnp.nan),
            "accuracy": jnp.where(valid, jnp.mean(predictions == labels), jnp.nan),
            "confusion": jnp.zeros((classes, classes), jnp.int32).at[labels, predictions].add(1),
        }

    return Evaluation(logits_fn, metrics_fn)


def evaluate(
    evaluation: Evaluation, params: Params, dataset: Examples, *, batch_size: int = 1000
) -> Metrics:
    """Metrics over the whole dataset, every example counted once. Pure.

    Args:
        evaluation: of `make_metrics`, or one of your own.
        params: the parameters to evaluate, which need not be those that are trained: an average's,
            or a schedule-free optimizer's. What else the model needs, `outputs_fn` closes over.
        dataset: any pytree of arrays with the examples first, on one device or sharded.
        batch_size: how many examples go through the model at once, which bounds the memory.

    >>> def squared_error(params, batch):
    ...     return {"error": (batch["x"] * params - batch["y"]) ** 2}
    >>> data = {"x": jnp.ones(5), "y": jnp.arange(5.0)}
    >>> float(evaluate(Evaluation(squared_error), 2.0, data, batch_size=2)["error"])
    2.0
    """
    check_batch_size(batch_size)
    n = num_examples(dataset)
    whole = n - n % batch_size

    def in_batches(params: Params, dataset: Examples) -> Metrics:
        parts = []
        if whole:
            batches = jax.tree.map(
                lambda x: x[:whole].reshape(-1, batch_size, *x.shape[1:]), dataset
            )
            outputs = jax.lax.map(lambda batch: evaluation.outputs_fn(params, batch), batches)
            parts.append(jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), outputs))
        if whole < n:
            rest = jax.tree.map(lambda x: x[whole:], dataset)
            parts.append(evaluation.outputs_fn(params, rest))
        outputs = jax.tree.map(lambda *x: jnp.concatenate(x), *parts) if parts[1:] else parts[0]
        return evaluation.metrics_fn(outputs, dataset)

    dataset = jax.tree.map(jnp.asarray, dataset)
    return on_auto_axes(in_batches, PartitionSpec(), params, dataset)
