"""Mistakes that JAX would ignore silently or report far from their cause, as one clear error.

Shapes, dtypes and names are checked when a function is traced. Values are checked where they are
known; in a compiled program they are not, and give NaN instead.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Float, PRNGKeyArray

from jaxmnist.errors import JaxmnistError, NonFiniteLossError
from jaxmnist.types import AnyArray, Optimizer, Params

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
    """Raise unless a number of things is an integer and large enough."""
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")


@custom_vmap
def _alone(key_data: Any) -> Any:
    return key_data


@_alone.def_vmap
def _refuse(size: int, batched: Any, key_data: Any) -> Any:
    raise JaxmnistError(
        "under vmap the generators rbg and unsafe_rbg give a member other numbers than it gets "
        "alone: unset JAX_DEFAULT_PRNG_IMPL, or use jax.random.key(seed, impl='threefry2x32')"
    )


def check_key(key: PRNGKeyArray) -> PRNGKeyArray:
    """The key, unless it is one of several under vmap and of a generator that mixes them up.

    JAX's documentation of `jax.random` says so of rbg and unsafe_rbg.
    """
    typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    wrapped = key if typed else jax.random.wrap_key_data(key)
    if "rbg" not in (impl := str(jax.random.key_impl(wrapped))):
        return key
    data = _alone(jax.random.key_data(wrapped))
    return jax.random.wrap_key_data(data, impl=impl) if typed else data


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
            known = f"0..{shape[1] - 1}"
            raise ValueError(f"label {values[row]} in row {row} is outside the classes {known}")
    if jnp.finfo(logits.dtype).bits < 32:  # a loss in bfloat16 has two digits
        logits = logits.astype(jnp.float32)
    return logits, labels if jnp.iinfo(labels.dtype).max >= shape[1] else labels.astype(jnp.int32)


def check_trained(tx: Optimizer, params: Params, opt_state: Any) -> None:
    """Raise where the parameters cannot be trained, or the optimizer's state is not theirs.

    Without this, optax fails far from the cause or broadcasts one shape to the other in silence.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            found = f"params{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}, which has no"
            raise TypeError(f"{found} gradient; what is not trained belongs in model_state")
    states = opt_state, jax.eval_shape(tx.init, params)
    got, expected = ([jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in states)
    if got != expected:
        found = "state.opt_state belongs to another optimizer or to other parameters"
        raise ValueError(f"{found}: let it be tx.init(state.params)")


def check_names(metrics: Mapping[str, Any], reserved: Collection[str]) -> None:
    """Raise where a metric has the name of another one, or one that evaluation may give."""
    for name in metrics:
        if name in reserved or name.startswith("test_"):
            raise ValueError(f"a metric cannot be called {name!r}, the name of another")


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
        if step > 1:  # the first loss is taken before anything is learnt, at any learning rate
            cause = f"training has diverged, try a lower learning rate; or {cause}"
        raise NonFiniteLossError(f"the loss of step {step} is {losses[bad[0]]}: {cause}")
