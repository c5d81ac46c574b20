"""Training as a pure function: a state, a step that takes it one batch further, an epoch."""

import inspect
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray

from jaxmnist.data import Batch, Dataset
from jaxmnist.errors import NonFiniteLossError
from jaxmnist.losses import cross_entropy
from jaxmnist.transforms import preprocess
from jaxmnist.types import AnyArray, ApplyFn, LossFn, Metrics, Optimizer, Params, Transform

_IMAGE = np.zeros(784, np.float32)


class TrainState(NamedTuple):
    """All that training changes, as one pytree.

    For a model that is no Linen module it is made by hand:
    `TrainState(jnp.int32(0), params, tx.init(params))`.
    """

    step: Int32[Array, ""]  # an array: a Python int would make the first call compile twice
    params: Params
    opt_state: optax.OptState


@runtime_checkable
class TrainStep(Protocol):
    """`(state, batch) -> (state, metrics)`: one batch further."""

    def __call__(
        self, state: TrainState, batch: Batch, where: Bool[AnyArray, " n"] | None = None
    ) -> tuple[TrainState, Metrics]:
        """`where` marks the examples that count, by default all; the loss must take it too."""


TrainEpoch = Callable[[TrainState, Dataset, Int[AnyArray, " n"]], tuple[TrainState, Metrics]]


def init_state(
    key: PRNGKeyArray,
    model: nn.Module,
    tx: Optimizer,
    image: Float[AnyArray, "*shape"] = _IMAGE,
) -> TrainState:
    """The state before the first step: `model.init`'s parameters and `tx`'s own state.

    Args:
        key: where the parameters come from.
        model: any Linen module.
        tx: any optax optimizer.
        image: one image of the shape that the model takes.
    """
    params = model.init(key, image[None])
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def make_train_step(
    apply_fn: ApplyFn,
    tx: Optimizer,
    loss_fn: LossFn = cross_entropy,
    transform: Transform = preprocess,
) -> TrainStep:
    """The training step, `train_step(state, batch) -> (state, metrics)`: pure, to be jitted by you.

    One step is one gradient and one update of the optimizer. Nothing is donated: to let the old
    state's memory be reused, say so yourself: `jax.jit(train_step, donate_argnums=0)`.

    Args:
        apply_fn: `apply_fn(params, images) -> logits`, for instance `MLP().apply`.
        tx: any optax optimizer, for instance `optax.sgd(0.003)`.
        loss_fn: `loss_fn(logits, labels) -> loss`, a scalar, or `(loss, metrics)` with a dict of
            more arrays to report. Called with `where` too if the step is.
        transform: what happens to a batch's images first, inside the step.

    The metrics are a dict with "loss", the loss before the update.
    """

    takes_where = _takes_where(loss_fn)

    def train_step(
        state: TrainState, batch: Batch, where: Bool[AnyArray, " n"] | None = None
    ) -> tuple[TrainState, Metrics]:
        if where is not None and not takes_where:
            raise TypeError(
                "loss_fn takes no `where`, so it cannot leave out what fills up a short last batch:"
                " let it, choose a batch size that divides the data, or make_train_epoch(pad=False)"
            )
        images = transform(jnp.asarray(batch.images))

        def objective(params: Params) -> tuple[Float[Array, ""], Metrics]:
            scores = apply_fn(params, images)
            if where is None:
                result = loss_fn(scores, batch.labels)
            else:
                result = loss_fn(scores, batch.labels, where=where)
            loss, metrics = result if isinstance(result, tuple) else (result, {})
            if jnp.shape(loss) != ():
                raise ValueError(f"loss_fn must return a scalar, not shape {jnp.shape(loss)}")
            return loss, {"loss": loss, **metrics}

        grads, metrics = jax.grad(objective, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def _takes_where(loss_fn: LossFn) -> bool:
    kinds = {name: p.kind for name, p in inspect.signature(loss_fn).parameters.items()}
    return "where" in kinds or inspect.Parameter.VAR_KEYWORD in kinds.values()


def make_train_epoch(
    train_step: TrainStep, batch_size: int = 64, *, pad: bool = True
) -> TrainEpoch:
    """An epoch, `train_epoch(state, dataset, order) -> (state, metrics)`, as one scan of the step.

    Each batch is gathered from the dataset inside the program. Every index of the order is trained
    on, so the last batch may be short; the metrics have one row a step.

    Args:
        train_step: a step of `make_train_step`.
        batch_size: images a step.
        pad: how a short last batch is trained on. True fills it up and has the loss leave the
            filling out, so the step is traced once, but the loss must take `where`. False trains
            on it at its own size with any loss, at the price of a second trace.
    """

    def train_epoch(
        state: TrainState, dataset: Dataset, order: Int[AnyArray, " n"]
    ) -> tuple[TrainState, Metrics]:
        images, labels, order = map(jnp.asarray, (*dataset, order))

        def step(
            state: TrainState, rows: tuple[Int[Array, " batch"], Bool[Array, " batch"] | None]
        ) -> tuple[TrainState, Metrics]:
            indices, where = rows
            return train_step(state, Batch(images[indices], labels[indices]), where)

        n = order.shape[0]
        tail = n % batch_size
        if tail and pad:
            filled = jnp.pad(order, (0, batch_size - tail))
            real = jnp.arange(filled.size) < n
            return jax.lax.scan(
                step, state, (filled.reshape(-1, batch_size), real.reshape(-1, batch_size))
            )
        full = order[: n - tail].reshape(-1, batch_size)
        state, metrics = jax.lax.scan(step, state, (full, None))
        if tail:
            state, last = step(state, (order[n - tail :], None))
            metrics = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), metrics, last)
        return state, metrics

    return train_epoch


def check_finite(losses: Float[AnyArray, " steps"], first_step: int = 0) -> None:
    """Raise where training has broken down.

    Args:
        losses: the loss of each step, on the host; reading them waits for the device.
        first_step: the number of the first of them, for the message.

    Raises:
        NonFiniteLossError: naming the first step whose loss is infinite or not a number.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        raise NonFiniteLossError(
            f"the loss of step {first_step + bad[0] + 1} is {losses[bad[0]]}: "
            "training has diverged; try a lower learning rate"
        )
