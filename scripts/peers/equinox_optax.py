"""Equinox and optax: a jitted step a batch, gathered on the host and normalised in the step."""

from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from _job import RATE, SIZES, load, train
from jax.typing import ArrayLike

tx = optax.sgd(RATE)
State = tuple[eqx.nn.Sequential, optax.OptState]


def init() -> State:
    """Model and optimizer state before the first step."""
    layers = zip(pairwise(SIZES), jax.random.split(jax.random.key(0), 3), strict=True)
    linears = [eqx.nn.Linear(*sizes, key=key) for sizes, key in layers]
    relu = eqx.nn.Lambda(jax.nn.relu)
    model = eqx.nn.Sequential([linears[0], relu, linears[1], relu, linears[2]])
    return model, tx.init(eqx.filter(model, eqx.is_array))


@eqx.filter_jit(donate="all-except-first")
def update(batch: tuple[ArrayLike, ArrayLike], state: State) -> tuple[State, jax.Array]:
    """One batch further."""
    (x, y), (model, opt_state) = batch, state

    @eqx.filter_value_and_grad
    def loss_fn(model: eqx.nn.Sequential) -> jax.Array:
        logits = jax.vmap(model)(jnp.asarray(x, jnp.float32) / 127.5 - 1)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, grads = loss_fn(model)
    updates, opt_state = tx.update(grads, opt_state)
    return (eqx.apply_updates(model, updates), opt_state), loss


train(*load(), init, lambda state, x, y, rows: update((x[rows], y[rows]), state))
