"""Flax NNX: a step under nnx.jit a batch, gathered on the host and normalised in the step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _job import RATE, train
from flax import nnx
from jax.typing import ArrayLike

tx = optax.sgd(RATE)  # another one would be compiled again
uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # as PyTorch's
Step = Callable[[ArrayLike, ArrayLike], jax.Array]


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
def update(model: MLP, optimizer: nnx.Optimizer, x: ArrayLike, y: ArrayLike) -> jax.Array:
    """One batch further: the model and the optimizer are updated in place."""

    def loss_fn(model: MLP) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def init() -> tuple[MLP, Step]:
    """The model and its step, which finds out once what the objects hold, as Flax advises."""
    model = MLP(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    return model, nnx.cached_partial(update, model, optimizer)


train(
    init,
    lambda state, x, y, rows: (state, state[1](x[rows], y[rows])),
    lambda state, images: nnx.jit(lambda model, x: model(x).argmax(axis=-1))(state[0], images),
    collect=lambda losses: np.asarray(jax.device_get(losses)),
)
