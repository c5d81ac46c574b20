"""Flax NNX: a step under nnx.jit a batch, gathered on the host and normalised in the step."""

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import optax
from _job import RATE, SIZES, load, train
from flax import nnx
from jax.typing import ArrayLike

tx = optax.sgd(RATE)  # another one would be compiled again
uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # as PyTorch's
Step = Callable[[ArrayLike, ArrayLike], jax.Array]


@nnx.jit
def update(model: nnx.Sequential, opt: nnx.Optimizer, x: ArrayLike, y: ArrayLike) -> jax.Array:
    """One batch further: the model and the optimizer are updated in place."""

    def loss_fn(model: nnx.Sequential) -> jax.Array:
        logits = model(jnp.asarray(x, jnp.float32) / 127.5 - 1)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    opt.update(model, grads)
    return loss


def init() -> Step:
    """The step of a new model, which finds out once what the objects hold, as Flax advises."""
    rngs = nnx.Rngs(0)
    linears = [nnx.Linear(*s, kernel_init=uniform, rngs=rngs) for s in pairwise(SIZES)]
    model = nnx.Sequential(linears[0], nnx.relu, linears[1], nnx.relu, linears[2])
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    return nnx.cached_partial(update, model, optimizer)


train(*load(), init, lambda state, x, y, rows: (state, state(x[rows], y[rows])))
