"""Metrics of a model over every example of a dataset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxmnist.checks import check_count
from jaxmnist.data import num_examples
from jaxmnist.losses import cross_entropy
from jaxmnist.objective import classifier_losses
from jaxmnist.parallel import with_auto_sharding
from jaxmnist.training import TrainState
from jaxmnist.transforms import preprocess
from jaxmnist.types import ApplyFn, Examples, LossFn, Metrics, Params, Transform

MetricsFn: TypeAlias = Callable[[Params, Examples], Any]  # (params, batch) -> a row per example


def classifier_metrics(
    apply_fn: ApplyFn, loss_fn: LossFn = cross_entropy, transform: Transform = preprocess
) -> MetricsFn:
    """A function for `evaluate`; the arguments are those of `classifier_objective`.

    It gives for each image "loss", at least f32, and "accuracy", f32: 1 where the largest logit is
    the label's, else 0. A label outside the classes is a ValueError; in a compiled program it makes
    both NaN.
    """

    def metrics_fn(params: Params, batch: Examples) -> Metrics:
        if isinstance(params, TrainState):
            raise TypeError("evaluate takes parameters here: state.params, not the state")
        losses, logits, labels = classifier_losses(apply_fn, loss_fn, transform, params, batch)
        correct = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
        valid = (labels >= 0) & (labels < logits.shape[-1])
        metrics = {"loss": losses, "accuracy": correct.astype(jnp.float32)}
        return {name: jnp.where(valid, values, jnp.nan) for name, values in metrics.items()}

    return metrics_fn


def evaluate(
    fn: MetricsFn,
    params: Params,
    dataset: Examples,
    *,
    summarize: Callable[[Any, Examples], Any] | None = None,
    batch_size: int = 1000,
) -> Any:
    """Metrics over the whole dataset, every example counted once. Pure.

    Args:
        fn: `fn(params, batch) -> outputs`, a pytree of arrays `[n, ...]`, a row for each example:
            `classifier_metrics(model.apply)`, or your own.
        params: the first argument of `fn`: parameters, a whole state or a module. They may be
            averaged parameters, or those that a schedule-free optimizer evaluates.
        dataset: any pytree of arrays with the examples first, on one device or sharded.
        summarize: `summarize(outputs, dataset) -> metrics`, of the outputs for all examples; by
            default the mean of each.
        batch_size: examples that go through the model at once; it bounds the memory.

    Raises:
        ValueError: the outputs have no row for each example, or there are none.

    >>> def squared_error(params, batch):
    ...     return {"error": (batch["x"] * params - batch["y"]) ** 2}
    >>> data = {"x": jnp.ones(5), "y": jnp.arange(5.0)}
    >>> float(evaluate(squared_error, 2.0, data, batch_size=2)["error"])
    2.0
    """
    check_count("batch_size", batch_size)
    n = num_examples(dataset)
    batch_size = min(batch_size, n)
    whole = n - n % batch_size

    def outputs_fn(params: Params, batch: Examples) -> Any:
        outputs = fn(params, batch)
        num_examples({"batch": batch, "outputs": outputs})  # a row for each example
        return outputs

    def in_batches(params: Params, dataset: Examples) -> Any:
        full = jax.tree.map(lambda x: x[:whole].reshape(-1, batch_size, *x.shape[1:]), dataset)
        outputs = jax.lax.map(lambda batch: outputs_fn(params, batch), full)
        outputs = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), outputs)
        # Outputs whose first axis is not the examples are found by a batch of another size: the
        # last one, or else two batches in one, which are traced and not run.
        if whole < n:
            last = outputs_fn(params, jax.tree.map(lambda x: x[whole:], dataset))
            outputs = jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, last)
        else:
            twice = jax.tree.map(lambda x: jnp.concatenate([x[:batch_size]] * 2), dataset)
            jax.eval_shape(lambda: outputs_fn(params, twice))
        if summarize:
            return summarize(outputs, dataset)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), outputs)

    dataset = jax.tree.map(jnp.asarray, dataset)
    return with_auto_sharding(in_batches, PartitionSpec(), params, dataset)
