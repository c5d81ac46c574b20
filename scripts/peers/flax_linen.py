"""Flax Linen: a jitted step a batch, batches gathered on the host, normalised in it.

Many models are a vmap of the step.
"""

import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _job import MODELS, RATE, SIZES, batches, load, orders, report
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


def train_step(state: TrainState, x: jax.Array, y: jax.Array) -> tuple[TrainState, jax.Array]:
    """One batch further."""

    def loss_fn(params: dict) -> jax.Array:
        logits = state.apply_fn(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


@jax.jit
def predict(state: TrainState, x: jax.Array) -> jax.Array:
    """The most likely class of each image."""
    return state.apply_fn(state.params, x).argmax(axis=-1)


images, labels, test_images, test_labels = load()
model, tx = MLP(), optax.sgd(RATE)


@jax.jit
def init(key: jax.Array) -> TrainState:
    """The state before the first step."""
    params = model.init(key, jnp.zeros((1, 784), jnp.uint8))
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx)


step: Any = jax.jit(train_step if MODELS == 1 else jax.vmap(train_step), donate_argnums=0)


def start_state() -> TrainState:
    """The state of the model, or of all models."""
    return init(jax.random.key(0)) if MODELS == 1 else jax.vmap(init)(keys)


keys = jax.random.split(jax.random.key(0), MODELS)
epochs = [
    np.stack(seeds) if MODELS > 1 else seeds[0]
    for seeds in zip(*(orders(len(images), seed) for seed in range(MODELS)), strict=True)
]
for rows in list(batches(epochs[0]))[-2:]:  # compiles both sizes
    step(start_state(), images[rows], labels[rows])
state = start_state()

start = time.perf_counter()
for order in epochs:
    losses = []
    for rows in batches(order):
        state, loss = step(state, images[rows], labels[rows])
        losses.append(loss)
mean_loss = np.mean(jax.device_get(losses))
seconds = time.perf_counter() - start

if MODELS > 1:
    state = jax.tree.map(lambda leaf: leaf[0], state)
report(seconds, mean_loss, np.mean(predict(state, test_images) == test_labels))
