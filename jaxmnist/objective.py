"""What a training step minimises: any function of the parameters and a batch that gives a loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxmnist.checks import check_result, check_same_model_state, named_arguments, num_examples
from jaxmnist.data import Dataset
from jaxmnist.losses import cross_entropy
from jaxmnist.transforms import preprocess
from jaxmnist.types import (
    AnyArray,
    ApplyFn,
    Examples,
    LossFn,
    Metrics,
    Objective,
    Params,
    Transform,
)

# (params, batch, key, model_state, where) -> (loss, (metrics, next model state))
ScalarObjective = Callable[..., tuple[Float[Array, ""], tuple[Metrics, Any]]]


def make_objective(
    apply_fn: ApplyFn, loss_fn: LossFn = cross_entropy, transform: Transform = preprocess
) -> Objective:
    """The notebook's objective: transform the images, apply the model, compare with the labels.

    Args:
        apply_fn: `apply_fn(params, images) -> logits`, for instance `MLP().apply`.
        loss_fn: `loss_fn(logits, labels) -> losses`, one number per example as optax's losses give,
            or `(losses, metrics)` with a dict of more arrays to report.
        transform: what happens to a batch's images first, inside the step.

    Returns:
        `objective(params, batch)`, for batches with `images` and `labels`. An objective of your own
        may name any of `key`, `model_state` and `where` as keyword arguments; `make_train_step`
        says what they are.
    """

    def objective(params: Params, batch: Dataset) -> Any:
        with jax.named_scope("transform"):
            images = transform(batch.images)
        logits = apply_fn(params, images)
        with jax.named_scope("loss"):
            return loss_fn(logits, batch.labels)

    return objective


def as_scalar(objective: Objective) -> ScalarObjective:
    """Any objective in one form, for `jax.value_and_grad(..., has_aux=True)`.

    `scalar(params, batch, key, model_state, where) -> (loss, (metrics, model_state))`: the
    objective is given what its signature names, its loss is averaged over the rows of the batch
    that count, and a model state that it does not return stays as it was.
    """

    def scalar(
        params: Params,
        batch: Examples,
        key: PRNGKeyArray | None = None,
        model_state: Any = None,
        where: Bool[AnyArray, " n"] | None = None,
    ) -> tuple[Float[Array, ""], tuple[Metrics, Any]]:
        asked = named_arguments(objective, {"key": key, "model_state": model_state, "where": where})
        if "key" in asked and key is None:
            raise ValueError("the objective asks for a key and state.key is None; give it a key")
        with jax.named_scope("objective"):
            result = objective(params, batch, **asked)
        padded = where is not None and "where" not in asked
        loss, metrics, next_state = check_result(result, num_examples(batch), padded)
        if next_state is None:
            next_state = model_state
        check_same_model_state(model_state, next_state)
        loss = jnp.mean(loss, where=where) if jnp.ndim(loss) else loss
        return loss, (metrics, next_state)

    return scalar
