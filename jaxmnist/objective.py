"""What a training step minimises: any function of the parameters and a batch that gives a loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmnist.checks import call, check_labelled, check_logits, describe
from jaxmnist.data import first_axes
from jaxmnist.losses import cross_entropy
from jaxmnist.transforms import preprocess
from jaxmnist.types import AnyArray, ApplyFn, Examples, LossFn, Metrics, Params, Transform

Augment: TypeAlias = Callable[[Any, Any], Any]  # (key, images) -> images
Objective: TypeAlias = Callable[..., Any]  # (params, batch), with those of KEYWORDS that it names
# (params, batch, key, model_state, where) -> (loss, (metrics, next model state))
ScalarObjective: TypeAlias = Callable[..., tuple[Array, tuple[Metrics, Any]]]
KEYWORDS = ("key", "model_state", "where")
_NAMED = ("POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY")


def classifier_objective(
    apply_fn: ApplyFn,
    loss_fn: LossFn = cross_entropy,
    *,
    transform: Transform = preprocess,
    augment: Augment | None = None,
) -> Objective:
    """The notebook's objective: transform the images, apply the model, compare with the labels.

    It takes `where`, so its last batch may be padded: the step takes the mean of its losses over
    the rows that count.

    Args:
        apply_fn: `apply_fn(params, images) -> logits`, for instance `MLP().apply`.
        loss_fn: `loss_fn(logits, labels) -> losses`, one number per example as optax's losses give.
        transform: what happens to a batch's images first, inside the step.
        augment: `augment(key, images) -> images`, what happens to them before that, at random.
            Then the objective asks for a key.
    """
    losses_fn = partial(classifier_losses, apply_fn, loss_fn, transform)

    def objective(params: Params, batch: Examples, *, where: Any = None) -> Any:
        return losses_fn(params, batch)[0]

    def augmented(params: Params, batch: Examples, *, key: Any, where: Any = None) -> Any:
        check_labelled(batch)
        with jax.named_scope("augment"):
            images = augment(key, batch.images) if augment else batch.images
        return losses_fn(params, batch._replace(images=images))[0]

    return augmented if augment else objective


def classifier_losses(
    apply_fn: ApplyFn, loss_fn: LossFn, transform: Transform, params: Params, batch: Examples
) -> tuple[Float[Array, " n"], Float[Array, "n classes"], AnyArray]:
    """The loss of each image of a batch, beside the checked logits and labels."""
    check_labelled(batch)
    if not accepts(apply_fn):
        found = f"apply_fn is called as apply_fn(params, images), not {describe(apply_fn)}"
        raise TypeError(f"{found}: of a model give model.apply")
    with jax.named_scope("transform"):
        images = transform(batch.images)
    logits, labels = check_logits(apply_fn(params, images), batch.labels)
    with jax.named_scope("loss"):
        losses = loss_fn(logits, labels)
    if jnp.shape(losses) != labels.shape:
        found = f"loss_fn gives {describe(losses)} for {len(labels)} labels"
        raise ValueError(f"{found}, and not a number for each")
    return losses, logits, labels


def accepts(fn: Any, *keywords: str) -> bool:
    """Whether something can be called with two arguments and these keywords."""
    try:
        inspect.signature(fn).bind(None, None, **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True


def asks_for(fn: Any) -> dict[str, bool]:
    """Those of KEYWORDS that a function is to be given, and whether it cannot do without.

    They are those that its signature names without a default or with None; what a partial has
    bound is left alone.
    """
    free, layer = set(KEYWORDS), fn
    while layer is not None:
        free -= set(layer.keywords) if isinstance(layer, partial) else set()
        layer = layer.func if isinstance(layer, partial) else getattr(layer, "__wrapped__", None)
    return {
        p.name: p.default is p.empty
        for p in inspect.signature(fn).parameters.values()
        if p.name in free and p.kind.name in _NAMED and (p.default is None or p.default is p.empty)
    }


def check_objective(objective: Any) -> dict[str, bool]:
    """What an objective asks for; a TypeError where it cannot be called as one."""
    takes = inspect.signature(objective) if callable(objective) else inspect.Signature()
    asked = asks_for(objective) if callable(objective) else {}
    hidden = [p for p in takes.parameters.values() if p.kind.name.startswith("VAR_")]
    if not callable(objective) or hidden or not accepts(objective, *asked):
        raise TypeError(
            "an objective is a function, called as objective(params, batch, *, key, model_state, "
            f"where) with those keywords that it names; {describe(objective)} takes {takes}; "
            "a decorator needs functools.wraps, a model classifier_objective(model.apply)"
        )
    return asked


def as_scalar(objective: Objective) -> ScalarObjective:
    """Adapts an objective to one signature. The loss is the mean over the rows that count."""
    asked = check_objective(objective)

    def scalar(
        params: Params, batch: Examples, key: Any = None, model_state: Any = None, where: Any = None
    ) -> tuple[Float[Array, ""], tuple[Metrics, Any]]:
        if asked.get("key") and key is None:
            raise ValueError("the objective asks for a key and state.key is None")
        offered = dict(zip(KEYWORDS, (key, model_state, where), strict=True))
        with jax.named_scope("objective"):
            asked_for = {name: offered[name] for name in asked}
            result = call("the objective", objective, params, batch, **asked_for)
        loss, metrics, next_state = check_result(result, batch, model_state)
        return jnp.mean(loss, where=where) if loss.ndim else loss, (metrics, next_state)

    return scalar


def check_result(result: Any, batch: Examples, model_state: Any) -> tuple[Array, Metrics, Any]:
    """An objective's loss, metrics and next model state; a TypeError where it returns others."""
    parts: list[Any] = list(result) if isinstance(result, tuple) else [result]
    loss, metrics, next_state = [*parts, *[None, {}, model_state][len(parts) :]][:3]
    carries: Any = jax.tree.structure(model_state)
    numbers = jax.Array | np.ndarray | np.generic | float | int
    sizes, problem = set(first_axes(batch).values()), ""
    if len(parts) > 3:
        problem = f"{len(parts)} values"
    elif not isinstance(loss, jax.Array) or not jnp.issubdtype(loss.dtype, jnp.floating):
        problem = f"a loss that is {describe(loss)}, and not floats made by JAX of the parameters"
    elif loss.ndim > 1 or (loss.ndim and len(sizes) == 1 and loss.shape not in sizes):
        problem = f"a loss {describe(loss)} for a batch of {sizes}: a scalar or [n] is needed"
    elif not isinstance(metrics, dict):
        problem = f"metrics that are {describe(metrics)}, not a dict"
    elif len(parts) == 2 and metrics and jax.tree.structure(metrics) == carries:
        problem = "metrics that look like the model_state"
    elif bad := [name for name, value in metrics.items() if not isinstance(value, numbers)]:
        problem = f"a metric {bad[0]!r} that is {describe(metrics[bad[0]])}, not an array"
    elif jax.tree.structure(next_state) != carries:
        problem = f"a model_state of another structure than state.model_state, {carries}"
    if problem:
        returns = "an objective returns loss, (loss, metrics) or (loss, metrics, model_state)"
        raise TypeError(f"{returns}; not {problem}")
    return loss, metrics, next_state
