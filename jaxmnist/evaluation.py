"""How good a model is, measured on every example of a dataset."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxmnist.checks import check_batch_size, check_labels, check_logits, num_examples
from jaxmnist.losses import cross_entropy
from jaxmnist.parallel import with_auto_sharding
from jaxmnist.transforms import preprocess
from jaxmnist.types import ApplyFn, Examples, LossFn, Metrics, Params, Transform


def mean_of_each(outputs: Any, dataset: Examples) -> Any:
    """The mean over the examples of everything that was computed for each of them."""
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), outputs)


def classifier_metrics(
    apply_fn: ApplyFn, loss_fn: LossFn = cross_entropy, transform: Transform = preprocess
) -> Callable[[Params, Examples], Metrics]:
    """A function for `evaluate`; the arguments are those of `classifier_objective`.

    It gives for each image "loss", f32, and "accuracy", f32: 1 where the largest logit is the
    label's, else 0. A label outside the classes is a ValueError; in a compiled program it makes
    both NaN.
    """

    def metrics_fn(params: Params, batch: Examples) -> Metrics:
        labels = batch.labels
        logits = apply_fn(params, transform(batch.images))
        check_logits(logits, labels.shape)
        check_labels(labels, logits.shape[-1])
        correct = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
        valid = (labels >= 0) & (labels < logits.shape[-1])
        metrics = {"loss": loss_fn(logits, labels), "accuracy": correct.astype(jnp.float32)}
        return {name: jnp.where(valid, values, jnp.nan) for name, values in metrics.items()}

    return metrics_fn


def evaluate(
    fn: Callable[[Params, Examples], Any],
    params: Params,
    dataset: Examples,
    *,
    summarize: Callable[[Any, Examples], Any] = mean_of_each,
    batch_size: int = 1000,
) -> Any:
    """Metrics over the whole dataset, every example counted once. Pure.

    Args:
        fn: `fn(params, batch) -> outputs`, a pytree of arrays `[n, ...]`, a row an example:
            `classifier_metrics(model.apply)`, or one of your own.
        params: the parameters to evaluate, which need not be those that are trained: an average's,
            or a schedule-free optimizer's. What else the model needs, `fn` closes over.
        dataset: any pytree of arrays with the examples first, on one device or sharded.
        summarize: `summarize(outputs, dataset) -> metrics`, of the outputs for all examples; by
            default the mean of each.
        batch_size: how many examples go through the model at once, which bounds the memory.

    >>> def squared_error(params, batch):
    ...     return {"error": (batch["x"] * params - batch["y"]) ** 2}
    >>> data = {"x": jnp.ones(5), "y": jnp.arange(5.0)}
    >>> float(evaluate(squared_error, 2.0, data, batch_size=2)["error"])
    2.0
    """
    check_batch_size(batch_size)
    n = num_examples(dataset)
    whole = n - n % batch_size

    def in_batches(params: Params, dataset: Examples) -> Any:
        parts = []
        if whole:
            batches = jax.tree.map(
                lambda x: x[:whole].reshape(-1, batch_size, *x.shape[1:]), dataset
            )
            outputs = jax.lax.map(lambda batch: fn(params, batch), batches)
            parts.append(jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), outputs))
        if whole < n:
            parts.append(fn(params, jax.tree.map(lambda x: x[whole:], dataset)))
        outputs = jax.tree.map(lambda *x: jnp.concatenate(x), *parts) if parts[1:] else parts[0]
        return summarize(outputs, dataset)

    dataset = jax.tree.map(jnp.asarray, dataset)
    return with_auto_sharding(in_batches, PartitionSpec(), params, dataset)
