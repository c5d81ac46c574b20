"""Mistakes that JAX would ignore silently or report far from their cause, as one clear error.

Shapes, dtypes and names are checked when a function is traced. Values are checked where they are
known; in a compiled program they are not, and give NaN instead.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxmnist.errors import NonFiniteLossError
from jaxmnist.types import AnyArray, Examples, Optimizer, Params

UNSCALED = 32.0  # the notebook's transforms give no number as large as this; grey levels are


def named_arguments(
    fn: Callable[..., Any], offered: Mapping[str, Any], any_name: bool = False
) -> dict[str, Any]:
    """The offered keyword arguments that a signature names; **kwargs count with `any_name` only."""
    parameters = inspect.signature(fn).parameters
    if any_name and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(offered)
    return {name: value for name, value in offered.items() if name in parameters}


def num_examples(examples: Examples) -> int:
    """The size of the first axis, which all arrays of a dataset or a batch share."""
    leaves = jax.tree_util.tree_flatten_with_path(examples)[0]
    sizes = {jax.tree_util.keystr(path): jnp.shape(leaf)[:1] for path, leaf in leaves}
    if len(set(sizes.values())) != 1 or () in sizes.values():
        found = ", ".join(f"{name} has {size[0] if size else 'no'}" for name, size in sizes.items())
        raise ValueError(f"a dataset's arrays need the same number of examples; {found or 'none'}")
    return next(iter(sizes.values()))[0]


def check_order(order: AnyArray, n: int) -> None:
    """Raise unless an order is one row of indices and, where they are known, inside the dataset."""
    if order.ndim != 1 or not jnp.issubdtype(order.dtype, jnp.integer):
        raise ValueError(f"an order is one row of integers, not {order.dtype}{list(order.shape)}")
    if not isinstance(order, jax.core.Tracer) and order.size:
        low, high = int(order.min()), int(order.max())
        if low < 0 or high >= n:
            raise ValueError(f"order reaches from {low} to {high}, outside 0..{n - 1}")


def check_batch_size(batch_size: int) -> None:
    """Raise unless a batch has at least one example."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")


def check_pixels(images: Float[AnyArray, "*shape"]) -> Float[AnyArray, "*shape"]:
    """The images, unless they are integers or look like unscaled grey levels."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images are uint8 grey levels or transformed floats, not {images.dtype}")
    if isinstance(images, jax.core.Tracer):
        return jnp.where(jnp.max(jnp.abs(images), initial=0) > UNSCALED, jnp.nan, images)
    if np.max(np.abs(images), initial=0) > UNSCALED:
        raise ValueError(f"float images reach beyond {UNSCALED}: give grey levels as uint8")
    return images


def check_logits(logits: Any, labels: tuple[int, ...]) -> None:
    """Raise unless a model's output has a row of logits for each of the labels of this shape."""
    shape = getattr(logits, "shape", ())
    if len(shape) != 2 or labels != shape[:1]:
        got = f"has shape {shape}" if hasattr(logits, "shape") else f"is a {type(logits).__name__}"
        raise ValueError(
            f"the model's output {got} and the labels have shape {labels}: "
            "one row of logits for each label is needed, [n, classes] and [n]"
        )


def check_labels(labels: Int[AnyArray, " n"], classes: int) -> None:
    """Raise where a label is known to be outside the classes."""
    if isinstance(labels, jax.core.Tracer):
        return
    values = np.asarray(labels)  # on the host: within a trace labels[row] would be a tracer
    rows = np.flatnonzero((values < 0) | (values >= classes))
    if rows.size:
        raise ValueError(
            f"label {values[rows[0]]} in row {rows[0]} is outside the classes 0..{classes - 1}"
        )


def check_trained(tx: Optimizer, params: Params, opt_state: Any) -> None:
    """Raise where the parameters cannot be trained, or the optimizer's state is not theirs.

    Without this, optax fails far from the cause or broadcasts one shape to the other in silence.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}, which has no "
                "gradient; what is not trained belongs in model_state"
            )
    states = opt_state, jax.eval_shape(tx.init, params)
    got, expected = ([jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in states)
    if got != expected:
        raise ValueError(
            "state.opt_state belongs to another optimizer or to other parameters: "
            "let it be tx.init(state.params)"
        )


def check_loss(loss: Any, metrics: Any, n: int, padded: bool) -> None:
    """Raise where an objective returns what cannot be trained on: `padded`, what it cannot mask."""
    if isinstance(loss, tuple | list | dict) or loss is None or not isinstance(metrics, dict):
        raise TypeError(
            "an objective returns loss, (loss, metrics) or (loss, metrics, model_state)"
        )
    shape = jnp.shape(loss)
    if shape not in ((), (n,)):
        raise ValueError(f"a loss is a scalar or one number per example, [{n}], not {list(shape)}")
    if padded and not shape:
        raise TypeError(
            "the last batch is padded, and a scalar loss that takes no `where` counts the padding: "
            "return one number per example, take `where`, or ask for remainder='short' or 'drop'"
        )
    check_names(metrics, ("loss",))


def check_names(
    metrics: Mapping[str, Any], reserved: Collection[str], prefix: str = "test_"
) -> None:
    """Raise where a metric has the name of another one, or one that evaluation may give."""
    for name in metrics:
        if name in reserved or name.startswith(prefix):
            raise ValueError(
                f"a metric cannot be called {name!r}, which is already the name of another"
            )


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
        cause = "a label or an index is out of range, or an image or a weight is not finite or not"
        cause += " scaled"
        if step > 1:  # the first loss is taken before anything is learnt, at any learning rate
            cause = f"training has diverged, try a lower learning rate; or {cause}"
        raise NonFiniteLossError(f"the loss of step {step} is {losses[bad[0]]}: {cause}")
