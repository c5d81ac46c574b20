"""Clear errors for mistakes that JAX would ignore or report far from their cause.

Shapes, dtypes and names are checked when a function is traced. Values are checked where they are
known; in a compiled program they are not, and give NaN instead.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmnist.errors import NonFiniteLossError
from jaxmnist.types import AnyArray, Metrics, Optimizer, Params

UNSCALED = 32.0  # the notebook's transforms give no number as large as this; grey levels are


def describe(value: Any) -> str:
    """An array's dtype and shape, a function's name, or the type of anything else.

    >>> describe(np.zeros((2, 3), np.float32)), describe(None), describe(describe)
    ('float32[2, 3]', 'NoneType', 'the function describe')
    """
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    name = getattr(value, "__name__", "")
    return f"the function {name}" if name and callable(value) else type(value).__name__


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise unless a count is an integer and at least `least`."""
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")


def check_pixels(images: Float[AnyArray, "*shape"]) -> Float[AnyArray, "*shape"]:
    """The images, unless they are integers or look like unscaled grey levels."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images are uint8 grey levels or transformed floats, not {images.dtype}")
    if isinstance(images, jax.core.Tracer):
        return jnp.where(jnp.max(jnp.abs(images), initial=0) > UNSCALED, jnp.nan, images)
    if np.max(np.abs(images), initial=0) > UNSCALED:
        raise ValueError(f"float images reach beyond {UNSCALED}: give grey levels as uint8")
    return images


def check_logits(logits: Any, labels: AnyArray) -> tuple[Any, AnyArray]:
    """The logits as float32 or wider, the labels in a type that holds every class.

    Raises:
        ValueError: there is not a row of logits for each label, or a label is known to be outside.
    """
    shape: tuple[int, ...] = getattr(logits, "shape", ())
    n = labels.shape[0]
    if len(shape) != 2 or shape[0] != n or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"the model's output is {describe(logits)} for {n} labels: "
            "one row of logits for each label is needed, floats [n, classes]"
        )
    if not isinstance(labels, jax.core.Tracer):
        values = np.asarray(labels)  # on the host: within a trace labels[row] would be a tracer
        for row in np.flatnonzero((values < 0) | (values >= shape[1]))[:1]:
            found = f"label {values[row]} in row {row}"
            raise ValueError(f"{found} is outside the classes 0..{shape[1] - 1}")
    if jnp.finfo(logits.dtype).bits < 32:  # a loss in bfloat16 has two digits
        logits = logits.astype(jnp.float32)
    return logits, labels if jnp.iinfo(labels.dtype).max >= shape[1] else labels.astype(jnp.int32)


def check_trained(tx: Optimizer, params: Params, opt_state: Any) -> None:
    """Raise if the parameters cannot be trained, or the optimizer's state does not fit them.

    Without this, optax fails far from the cause or silently broadcasts one shape to the other.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            found = f"params{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}, which has no"
            raise TypeError(f"{found} gradient; what is not trained belongs in model_state")
    states = opt_state, jax.eval_shape(tx.init, params)
    got, expected = ([jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in states)
    if got != expected:
        raise ValueError("state.opt_state is another optimizer's or model's, not tx.init(params)")


def merge_metrics(*parts: Metrics) -> Metrics:
    """All metrics in one dict; an error for other types and for names that are taken."""
    for part in parts:
        if not isinstance(part, dict):
            raise TypeError(f"metrics are a dict of arrays by name, not {describe(part)}")
    names = [name for part in parts for name in part]
    for name in names:
        if names.count(name) > 1 or name.startswith("test_"):
            raise ValueError(f"a metric cannot be called {name!r}: the name is taken")
    return {name: value for part in parts for name, value in part.items()}


def check_finite(losses: Float[AnyArray, "*shape"], first_step: int = 0) -> None:
    """Raise a NonFiniteLossError that names the first step at which training has broken down.

    Args:
        losses: the loss of each step, on the host: [steps] or, of a whole run, [epochs, steps].
            Reading them waits for the device.
        first_step: how many steps came before the first of them, for the message.

    >>> check_finite(np.array([[2.3, 1.9], [0.5, 0.4]]))
    """
    losses = np.ravel(losses)
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        step = first_step + bad[0] + 1
        cause = "a label or index is out of range, or an image or weight is not finite or scaled"
        if step > 1:  # the first loss is computed before the first update
            cause = f"training has diverged, try a lower learning rate; or {cause}"
        raise NonFiniteLossError(f"the loss of step {step} is {losses[bad[0]]}: {cause}")
