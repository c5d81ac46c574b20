"""Many steps: any training step, over the batches of an epoch, as one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, Bool

from jaxmnist.checks import describe
from jaxmnist.objective import asks_for
from jaxmnist.types import Examples, Remainder, State, TrainStep


def takes_where(train_step: TrainStep) -> bool:
    """Whether a step takes `where`, which tells it the rows of a padded batch that count.

    It does if its signature names it, also under jit. Under JAX's other transformations it does
    not: a vmapped step has axes for its state and its batch, and none for `where`.
    """
    layer: Any = train_step
    while layer is not None:
        if getattr(layer, "__globals__", {}).get("__name__", "").startswith("jax."):
            return False
        layer = getattr(layer, "__wrapped__", None)
    return "where" in asks_for(train_step)


def choose_remainder(train_step: TrainStep, remainder: Remainder) -> Remainder:
    """What becomes of the last batch; a ValueError where that is not known or cannot be."""
    if not callable(train_step):
        raise TypeError(f"train_step is a function, not {describe(train_step)}")
    where = takes_where(train_step)
    if remainder not in (None, "pad", "short", "drop") or (remainder == "pad" and not where):
        raise ValueError(
            "remainder is None, 'short', 'drop' or, for a step whose objective takes `where`, "
            f"'pad'; not {remainder!r}"
        )
    return remainder or ("pad" if where else "short")


def scan_steps(
    step: Callable[..., tuple[State, Any]],
    state: State,
    batches: Examples,
    where: Bool[Array, "steps batch"] | None = None,
    last: Examples | None = None,
) -> tuple[State, Any]:
    """Take a step with each of the batches `[steps, ...]`, and one with a shorter last batch.

    Returns the last state, and the metrics with the axis `[steps]` in front.
    """
    masked = jax.jit(step, inline=True)  # traced once, to be looked at and to be called

    def body(state: State, rows: Any) -> tuple[State, Any]:
        if where is None:
            return step(state, rows)
        check_masked(masked.trace(state, rows[0], where=rows[1]), rows[0])
        return masked(state, rows[0], where=rows[1])

    parts = []
    if len(jax.tree.leaves(batches)[0]):  # a scan of no steps is an error without jit
        state, metrics = jax.lax.scan(body, state, batches if where is None else (batches, where))
        parts.append(metrics)
    if last is not None:
        state, metrics = step(state, last)
        parts.append(jax.tree.map(lambda x: jnp.asarray(x)[None], metrics))
    shapes = {str(jax.tree.map(lambda x: x.shape[1:], part)) for part in parts}
    if len(shapes) != 1:
        found = f"metrics differ in shape in the shorter last batch, {shapes}" if shapes else "none"
        raise ValueError(f"each batch needs metrics of one shape: {found}; or remainder='drop'")
    return state, jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def check_masked(traced: Any, batch: Examples) -> None:
    """Raise where the next state or a metric is computed from a padded batch without `where`.

    Found by following both through the step's program, whose last inputs are the batch and `where`.
    """
    jaxpr = traced.jaxpr.jaxpr
    *inputs, where = jaxpr.invars
    data, mask = set(inputs[len(inputs) - len(jax.tree.leaves(batch)) :]), {where}
    for eqn in jaxpr.eqns:
        for reached in (data, mask):
            if reached.intersection(v for v in eqn.invars if not isinstance(v, Literal)):
                reached.update(eqn.outvars)
    outputs = [None if isinstance(v, Literal) else v for v in jaxpr.outvars]
    count = len(jax.tree.leaves(traced.out_info[0]))
    metrics = jax.tree_util.tree_leaves_with_path(traced.out_info[1])
    blind = [
        jax.tree_util.keystr(path)
        for (path, value), v in zip(metrics, outputs[count:], strict=True)
        if v in data - mask and value.shape[:1] != where.aval.shape
    ]
    if blind or not mask.intersection(outputs[:count]):
        raise ValueError(
            f"the last batch is padded, and {', '.join(blind) or 'the next state'} counts the "
            "padding: use `where`, as in jnp.mean(x, where=where), or ask for remainder='short'"
        )
