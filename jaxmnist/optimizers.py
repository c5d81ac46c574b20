"""The optimizers that the scripts offer, by name. The library takes any other of optax too."""

import jax
import jax.numpy as jnp
import optax


def make_optimizer(
    optimizer: str,
    learning_rate: float | jax.Array,
    *,
    momentum: float | jax.Array = 0.0,
    weight_decay: float | jax.Array | None = None,
    schedule: str = "constant",
    warmup: float | jax.Array = 0.0,
    steps: int = 1,
) -> optax.GradientTransformation:
    """The optax optimizer of this name.

    >>> make_optimizer("sgd", 0.003).init({"w": 1.0})
    (EmptyState(), EmptyState())

    Args:
        optimizer: "sgd", "adam" or "adamw".
        learning_rate: its step size; like the other numbers it may be traced.
        momentum: SGD's.
        weight_decay: AdamW's; None for optax's own 1e-4. PyTorch's default is 1e-2. The others
            have none, or 0.
        schedule, warmup, steps: how the learning rate changes, see `make_schedule`.

    Raises:
        ValueError: the optimizer is unknown, or does not take an option that is set.
    """
    if _is_set(momentum) and optimizer != "sgd":
        raise ValueError(f"momentum is for SGD only, not for {optimizer}")
    if _is_set(weight_decay) and optimizer != "adamw":
        raise ValueError(f"weight_decay is for AdamW only, not for {optimizer}")
    rate: float | jax.Array | optax.Schedule = learning_rate
    if schedule != "constant" or _is_set(warmup):
        rate = make_schedule(schedule, learning_rate, warmup=warmup, steps=steps)
    if optimizer == "sgd":
        return optax.sgd(rate, momentum=momentum if _is_set(momentum) else None)
    if optimizer == "adam":
        return optax.adam(rate)
    if optimizer == "adamw":
        return optax.adamw(rate, weight_decay=1e-4 if weight_decay is None else weight_decay)
    raise ValueError(f'optimizer must be "sgd", "adam" or "adamw", not {optimizer!r}')


def _is_set(value: float | jax.Array | None) -> bool:
    """Whether a value is neither 0 nor None; a traced one cannot be compared and counts as set."""
    return isinstance(value, jax.Array) or bool(value)


def make_schedule(
    schedule: str, learning_rate: float | jax.Array, *, warmup: float | jax.Array = 0.0, steps: int
) -> optax.Schedule:
    """The learning rate as a function of the steps done.

    During the warm-up it rises in equal parts. Then it stays, or it falls as half a cosine to 0 (I.
    Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017).

    >>> rate = make_schedule("cosine", 0.1, warmup=0.2, steps=100)
    >>> [round(float(rate(step)), 3) for step in (0, 9, 19, 60, 100)]
    [0.005, 0.05, 0.1, 0.05, 0.0]

    Args:
        schedule: "constant" or "cosine".
        learning_rate: the largest; it may be traced.
        warmup: share of the steps in which it rises, at least 0 and below 1; it may be traced.
        steps: all steps of the training.

    Raises:
        ValueError: the schedule is unknown.
    """
    if schedule not in ("constant", "cosine"):
        raise ValueError(f'schedule must be "constant" or "cosine", not {schedule!r}')
    # In float32 and as products, so that a constant and a traced warm-up round alike: XLA turns a
    # division by a constant into a product.
    rising = jnp.asarray(warmup, jnp.float32) * steps
    per_rising, per_falling = 1 / jnp.maximum(rising, 1), 1 / (steps - rising)

    def rate(count: int | jax.Array) -> jax.Array:
        done = jnp.asarray(count, jnp.float32)
        share = jnp.minimum(1.0, (done + 1) * per_rising)
        if schedule == "cosine":
            after = jnp.clip((done - rising) * per_falling, 0, 1)
            share *= 0.5 * (1 + jnp.cos(jnp.pi * after))
        return learning_rate * share

    return rate
