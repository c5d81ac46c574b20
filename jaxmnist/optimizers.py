"""The optimizers that the scripts offer, by name. Any other of optax's works in the library too."""

import jax
import optax


def make_optimizer(
    optimizer: str,
    learning_rate: float | jax.Array,
    *,
    momentum: float | jax.Array = 0.0,
    weight_decay: float | jax.Array | None = None,
) -> optax.GradientTransformation:
    """The optax optimizer of this name.

    >>> make_optimizer("sgd", 0.003).init({"w": 1.0})
    (EmptyState(), EmptyState())

    Args:
        optimizer: "sgd", "adam" or "adamw".
        learning_rate: its step size; like the other numbers it may be traced.
        momentum: SGD's.
        weight_decay: AdamW's; None for optax's own 1e-4. PyTorch's default is 1e-2.

    Raises:
        ValueError: there is no optimizer of this name, or it has not what is set.
    """
    some = isinstance(momentum, jax.Array) or momentum != 0  # one that is traced may be any
    if some and optimizer != "sgd":
        raise ValueError(f"momentum is SGD's; {optimizer} has none")
    if weight_decay is not None and optimizer != "adamw":
        raise ValueError(f"weight_decay is AdamW's; {optimizer} has none")
    if optimizer == "sgd":
        return optax.sgd(learning_rate, momentum=momentum if some else None)
    if optimizer == "adam":
        return optax.adam(learning_rate)
    if optimizer == "adamw":
        return optax.adamw(
            learning_rate, weight_decay=1e-4 if weight_decay is None else weight_decay
        )
    raise ValueError(f'optimizer must be "sgd", "adam" or "adamw", not {optimizer!r}')
