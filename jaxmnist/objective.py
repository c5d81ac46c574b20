"""Objectives, the functions of parameters and a batch that a training step minimises."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmnist.checks import check_logits, describe
from jaxmnist.losses import cross_entropy
from jaxmnist.transforms import preprocess
from jaxmnist.types import ApplyFn, Examples, LossFn, Metrics, Params, Transform

Objective: TypeAlias = Callable[..., Any]  # (params, batch), and the keywords that it asks for
KEYWORDS = {"key", "model_state", "where"}
# (params, batch, key, model_state, where) -> (loss, (metrics, next model state))
ScalarObjective: TypeAlias = Callable[..., tuple[Array, tuple[Metrics, Any]]]


def classifier_objective(
    apply_fn: ApplyFn,
    loss_fn: LossFn = cross_entropy,
    *,
    transform: Transform = preprocess,
    augment: Callable[[Any, Any], Any] | None = None,
) -> Objective:
    """The notebook's objective: transform the images, apply the model, compare with the labels.

    It takes `where`, so its last batch is padded, and the step takes the mean over the rows that
    count. Model, loss and augmentation must treat each example by itself: one that looks across
    the batch, as class weights of the batch do, needs `remainder="short"`.

    Args:
        apply_fn: `apply_fn(params, images) -> logits`, for instance `MLP().apply`.
        loss_fn: `loss_fn(logits, labels) -> losses`, one number per example as optax's losses give.
        transform: is applied to a batch's images first, inside the step.
        augment: `augment(key, images) -> images`, random changes before the transform. The
            objective then asks for a key.
    """

    def objective(params: Params, batch: Examples, *, where: Any = None) -> Any:
        return classifier_losses(apply_fn, loss_fn, transform, params, batch)[0]

    if augment is None:
        return objective

    def augmented(params: Params, batch: Examples, *, key: Any, where: Any = None) -> Any:
        batch = batch._replace(images=augment(key, batch.images))
        return objective(params, batch)

    return augmented


def classifier_losses(
    apply_fn: ApplyFn, loss_fn: LossFn, transform: Transform, params: Params, batch: Examples
) -> tuple[Any, Any, Any]:
    """The losses `[n]` of a batch's images, and the checked logits `[n, classes]` and labels."""
    labels: Any = getattr(batch, "labels", np.zeros(()))
    integers = labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer)
    if not (integers and hasattr(batch, "images") and accepts(apply_fn)):
        raise TypeError(
            "a classifier needs apply_fn(params, images), as model.apply, and a batch as a Dataset,"
            " of .images and .labels [n], integers; "
            f"here {describe(apply_fn)} and {jax.tree.map(describe, batch)}"
        )
    logits, labels = check_logits(apply_fn(params, transform(batch.images)), labels)
    losses = loss_fn(logits, labels)
    if jnp.shape(losses) != labels.shape:
        raise ValueError(f"loss_fn gives {describe(losses)} and not one number for each label")
    return losses, logits, labels


def accepts(fn: Any, *keywords: str) -> bool:
    """Whether `fn` can be called with two arguments and these keywords."""
    try:
        signature(fn).bind(None, None, **dict.fromkeys(keywords))
    except (TypeError, ValueError):  # a ValueError where a function of C's has none
        return False
    return True


def asks_for(fn: Any) -> dict[str, bool]:
    """Which of `key`, `model_state`, `where` a function takes, and whether each is required.

    These are the keywords that its signature names without a default or with the default None; a
    keyword that a partial has bound is left alone.
    """
    fn = undecorated(fn)
    free = KEYWORDS.difference(fn.keywords if isinstance(fn, partial) else ())
    return {
        p.name: p.default is p.empty
        for p in signature(fn).parameters.values()
        if p.name in free and (p.default is None or p.default is p.empty)
    }


def signature(fn: Any) -> inspect.Signature:
    """The signature of a function, below jit and decorators that only pass arguments on."""
    return inspect.signature(undecorated(fn), follow_wrapped=False)


def undecorated(fn: Any) -> Any:
    """The function below jit and below decorators that take any keyword and name none of ours."""
    if isinstance(fn, partial):
        return partial(undecorated(fn.func), *fn.args, **fn.keywords)
    if inspect.ismethod(fn):
        return partial(undecorated(fn.__func__), fn.__self__)
    if inspect.isfunction(fn):
        takes = inspect.signature(fn, follow_wrapped=False).parameters
        if KEYWORDS & {*takes} or all(p.kind is not p.VAR_KEYWORD for p in takes.values()):
            return fn
    elif inspect.ismethod(call := getattr(fn, "__call__", None)):  # noqa: B004
        return undecorated(getattr(fn, "__wrapped__", call))
    return undecorated(fn.__wrapped__) if hasattr(fn, "__wrapped__") else fn


def check_objective(objective: Any) -> dict[str, bool]:
    """The keywords that an objective asks for; a TypeError if it cannot be called as one."""
    takes, asked = inspect.Signature(), {}
    with contextlib.suppress(TypeError, ValueError):
        takes, asked = signature(objective), asks_for(objective)
    hidden = any(p.kind.name.startswith("VAR_") for p in takes.parameters.values())
    if hidden or not accepts(objective, *asked):
        raise TypeError(
            "an objective is a function, called as objective(params, batch, *, key, model_state, "
            f"where) with those keywords that it names; {describe(objective)} takes {takes}; "
            "a decorator needs functools.wraps, a model classifier_objective(model.apply)"
        )
    return asked


def as_scalar(objective: Objective, asked: dict[str, bool]) -> ScalarObjective:
    """Adapts an objective to one signature. The loss is the mean over the rows that count."""

    def scalar(
        params: Params, batch: Examples, key: Any = None, model_state: Any = None, where: Any = None
    ) -> tuple[Float[Array, ""], tuple[Metrics, Any]]:
        if asked.get("key") and key is None:
            raise ValueError("the objective asks for a key and state.key is None")
        offered = {"key": key, "model_state": model_state, "where": where}
        result = objective(params, batch, **{name: offered[name] for name in asked})
        loss, metrics, next_state = check_result(result, batch, model_state)
        return jnp.mean(loss, where=where) if loss.ndim else loss, (metrics, next_state)

    return scalar


def check_result(result: Any, batch: Examples, model_state: Any) -> tuple[Array, Metrics, Any]:
    """An objective's loss, metrics and next model state; a TypeError if it returned others."""
    parts = result if isinstance(result, tuple) else (result, {})
    loss, metrics, next_state = (*parts, model_state, None, None)[:3]
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf)}
    floats = isinstance(loss, jax.Array) and jnp.issubdtype(loss.dtype, jnp.floating)
    fits = floats and loss.ndim < 2 and (not loss.ndim or len(sizes) != 1 or loss.shape in sizes)
    numbers = jax.Array | np.ndarray | np.generic | float | int
    arrays = isinstance(metrics, dict) and all(isinstance(x, numbers) for x in metrics.values())
    kept = str(jax.tree.structure(next_state)) == str(jax.tree.structure(model_state))
    # Flax's habit is `return loss, updates`: the statistics would never move.
    swapped = len(parts) == 2 and isinstance(model_state, dict) and {*model_state} & {*metrics}
    if not (1 < len(parts) < 4 and fits and arrays and kept) or swapped:
        raise TypeError(
            "an objective returns loss, (loss, metrics) or (loss, metrics, model_state): floats "
            "that JAX has computed, a scalar or one for each example; a dict of arrays; what is "
            f"built as state.model_state; here {jax.tree.map(describe, result)}"
        )
    return loss, metrics, next_state
