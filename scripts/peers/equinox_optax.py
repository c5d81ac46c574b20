"""Equinox and optax: a jitted step a batch, batches gathered on the host, normalised in it."""

import time
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _job import BATCH, RATE, SIZES, batches, load, orders, report
from jax.typing import ArrayLike

images, labels, test_images, test_labels = load()
tx = optax.sgd(RATE)


def forward(model: eqx.nn.Sequential, images: ArrayLike) -> jax.Array:
    """The logits of each image."""
    return jax.vmap(model)(jnp.asarray(images, jnp.float32) / 127.5 - 1)


def init(key: jax.Array) -> tuple[eqx.nn.Sequential, optax.OptState]:
    """Model and optimizer state before the first step."""
    keys = jax.random.split(key, 3)
    layers = zip(pairwise(SIZES), keys, strict=True)
    linears = [eqx.nn.Linear(*sizes, key=key) for sizes, key in layers]
    relu = eqx.nn.Lambda(jax.nn.relu)
    model = eqx.nn.Sequential([linears[0], relu, linears[1], relu, linears[2]])
    return model, tx.init(eqx.filter(model, eqx.is_array))


@eqx.filter_jit(donate="all-except-first")
def train_step(
    x: ArrayLike, y: ArrayLike, model: eqx.nn.Sequential, opt_state: optax.OptState
) -> tuple[eqx.nn.Sequential, optax.OptState, jax.Array]:
    """One batch further."""

    @eqx.filter_value_and_grad
    def loss_fn(model: eqx.nn.Sequential) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(forward(model, x), y).mean()

    loss, grads = loss_fn(model)
    updates, opt_state = tx.update(grads, opt_state)
    return eqx.apply_updates(model, updates), opt_state, loss


for size in (BATCH, len(labels) % BATCH):  # compiles both sizes
    train_step(images[:size], labels[:size], *init(jax.random.key(0)))
model, opt_state = init(jax.random.key(0))

start = time.perf_counter()
for order in orders(len(images)):
    losses = []
    for rows in batches(order):
        model, opt_state, loss = train_step(images[rows], labels[rows], model, opt_state)
        losses.append(loss)
mean_loss = np.mean(jax.device_get(losses))
seconds = time.perf_counter() - start

predictions = eqx.filter_jit(forward)(model, test_images).argmax(axis=-1)
report(seconds, mean_loss, np.mean(predictions == test_labels))
