"""Flax Linen: a jitted step a batch, gathered on the host and normalised in the step."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from _job import RATE, SIZES, load, train
from flax.training.train_state import TrainState

uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # as PyTorch's


class MLP(nn.Module):
    """784-128-64-10, or what `SIZES` says."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """The logits of each image."""
        x = images.astype(jnp.float32) / 127.5 - 1
        for width in SIZES[1:-1]:
            x = nn.relu(nn.Dense(width, kernel_init=uniform)(x))
        return nn.Dense(SIZES[-1], kernel_init=uniform)(x)


@partial(jax.jit, donate_argnums=0)
def update(state: TrainState, x: jax.Array, y: jax.Array) -> tuple[TrainState, jax.Array]:
    """One batch further."""

    def loss_fn(params: dict) -> jax.Array:
        logits = state.apply_fn(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


model, tx = MLP(), optax.sgd(RATE)


@jax.jit
def init() -> TrainState:
    """The state before the first step."""
    params = model.init(jax.random.key(0), jnp.zeros((1, 784), jnp.uint8))
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx)


train(*load(), init, lambda state, x, y, rows: update(state, x[rows], y[rows]))
