"""What a training step minimises: any function of the parameters and a batch that gives a loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxmnist.checks import check_loss, named_arguments, num_examples
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

Augment = Callable[[PRNGKeyArray, Any], Any]
# (params, batch, key, model_state, where) -> (loss, (metrics, next model state))
ScalarObjective = Callable[..., tuple[Float[Array, ""], tuple[Metrics, Any]]]


def classifier_objective(
    apply_fn: ApplyFn,
    loss_fn: LossFn = cross_entropy,
    *,
    transform: Transform = preprocess,
    augment: Augment | None = None,
) -> Objective:
    """The notebook's objective: transform the images, apply the model, compare with the labels.

    Args:
        apply_fn: `apply_fn(params, images) -> logits`, for instance `MLP().apply`.
        loss_fn: `loss_fn(logits, labels) -> losses`, one number per example as optax's losses give,
            or `(losses, metrics)` with a dict of more arrays to report.
        transform: what happens to a batch's images first, inside the step.
        augment: `augment(key, images) -> images`, what happens to them before that, at random.
            Then the objective asks for a key.
    """

    def objective(params: Params, batch: Examples) -> Any:
        with jax.named_scope("transform"):
            images = transform(batch.images)
        logits = apply_fn(params, images)
        with jax.named_scope("loss"):
            return loss_fn(logits, batch.labels)

    if augment is None:
        return objective

    def augmented(params: Params, batch: Examples, *, key: PRNGKeyArray) -> Any:
        with jax.named_scope("augment"):
            images = augment(key, batch.images)
        return objective(params, batch._replace(images=images))

    return augmented


def as_scalar(objective: Objective) -> ScalarObjective:
    """Any objective in one form: what it does not name is not passed, what it leaves out is added.

    The loss is the mean over the rows of the batch that count.
    """

    def scalar(
        params: Params,
        batch: Examples,
        key: PRNGKeyArray | None = None,
        model_state: Any = None,
        where: Bool[AnyArray, " n"] | None = None,
    ) -> tuple[Float[Array, ""], tuple[Metrics, Any]]:
        offered = {"key": key, "model_state": model_state, "where": where}
        named = named_arguments(objective, offered)
        if "key" in named and key is None:
            raise ValueError("the objective asks for a key and state.key is None")
        with jax.named_scope("objective"):
            result = objective(params, batch, **named)
        parts = result if isinstance(result, tuple) and 1 <= len(result) <= 3 else (result,)
        filled: tuple[Any, ...] = (*parts, *({}, model_state)[len(parts) - 1 :])
        loss, metrics, next_state = filled
        check_loss(loss, metrics, num_examples(batch), where is not None and "where" not in named)
        loss = jnp.mean(loss, where=where) if jnp.ndim(loss) else loss
        return loss, (metrics, next_state)

    return scalar
