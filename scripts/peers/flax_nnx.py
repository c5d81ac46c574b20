"""Flax NNX: a step under nnx.jit a batch, batches gathered on the host, normalised in it."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _job import BATCH, RATE, batches, load, orders, report
from flax import nnx
from jax.typing import ArrayLike

uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # as PyTorch's


class MLP(nnx.Module):
    """784-128-64-10."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear1 = nnx.Linear(784, 128, kernel_init=uniform, rngs=rngs)
        self.linear2 = nnx.Linear(128, 64, kernel_init=uniform, rngs=rngs)
        self.linear3 = nnx.Linear(64, 10, kernel_init=uniform, rngs=rngs)

    def __call__(self, images: ArrayLike) -> jax.Array:
        """The logits of each image."""
        x = jnp.asarray(images, jnp.float32) / 127.5 - 1
        x = nnx.relu(self.linear1(x))
        x = nnx.relu(self.linear2(x))
        return self.linear3(x)


@nnx.jit
def train_step(model: MLP, optimizer: nnx.Optimizer, x: ArrayLike, y: ArrayLike) -> jax.Array:
    """One batch further: the model and the optimizer are updated in place."""

    def loss_fn(model: MLP) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def predict(model: MLP, x: ArrayLike) -> jax.Array:
    """The most likely class of each image."""
    return model(x).argmax(axis=-1)


images, labels, test_images, test_labels = load()
tx = optax.sgd(RATE)


def init() -> tuple[MLP, nnx.Optimizer]:
    """Model and optimizer before the first step."""
    model = MLP(nnx.Rngs(0))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


model, optimizer = init()
for size in (BATCH, len(labels) % BATCH):  # compiles both sizes
    train_step(model, optimizer, images[:size], labels[:size])
model, optimizer = init()
# Finds out once what the objects hold, not at every step: Flax's own advice for small models.
step = nnx.cached_partial(train_step, model, optimizer)

start = time.perf_counter()
for order in orders(len(images)):
    losses = [step(images[rows], labels[rows]) for rows in batches(order)]
mean_loss = np.mean(jax.device_get(losses))
seconds = time.perf_counter() - start

report(seconds, mean_loss, np.mean(predict(model, test_images) == test_labels))
