"""Training as a pure function: a state, a step that takes it one batch further, an epoch."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray

from jaxmnist.data import Batch, Dataset, epoch_order
from jaxmnist.errors import NonFiniteLossError
from jaxmnist.evaluation import evaluate
from jaxmnist.losses import cross_entropy, loss_and_metrics
from jaxmnist.transforms import preprocess
from jaxmnist.types import (
    AnyArray,
    ApplyFn,
    LossFn,
    Metrics,
    Model,
    Optimizer,
    Params,
    Transform,
)

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
    model: Model,
    tx: Optimizer,
    image: Float[AnyArray, "*shape"] = _IMAGE,
) -> TrainState:
    """The state before the first step: `model.init`'s parameters and `tx`'s own state.

    Args:
        key: where the parameters come from.
        model: any Linen module, or another pair of `init` and `apply`.
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

    update = optax.with_extra_args_support(tx).update

    def train_step(
        state: TrainState, batch: Batch, where: Bool[AnyArray, " n"] | None = None
    ) -> tuple[TrainState, Metrics]:
        _check_opt_state(tx, state)
        images = transform(jnp.asarray(batch.images))

        def objective(params: Params) -> tuple[Float[Array, ""], Metrics]:
            return loss_and_metrics(loss_fn, apply_fn(params, images), batch.labels, where)

        (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        # For optimizers that look at the loss, as optax.lbfgs does; the others are not given it.
        more = {"value": loss, "grad": grads, "value_fn": lambda params: objective(params)[0]}
        updates, opt_state = update(grads, state.opt_state, state.params, **more)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), {"loss": loss, **metrics}

    return train_step


def _check_opt_state(tx: Optimizer, state: TrainState) -> None:
    # Without this, optax fails far from the cause or broadcasts one shape to the other in silence.
    states = state.opt_state, jax.eval_shape(tx.init, state.params)
    got, expected = ([jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in states)
    if got != expected:
        raise ValueError(
            "state.opt_state belongs to another optimizer or to other parameters: "
            "let it be tx.init(state.params)"
        )


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

    An index outside the dataset gives a loss of NaN, as a label outside the classes does.

    Raises:
        ValueError: the batch size is below 1; or, when called, there is not one label an image.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")

    def train_epoch(
        state: TrainState, dataset: Dataset, order: Int[AnyArray, " n"]
    ) -> tuple[TrainState, Metrics]:
        images, labels, order = map(jnp.asarray, (*dataset, order))
        if len(images) != len(labels):  # JAX would take the last label for those that are missing
            raise ValueError(f"the dataset has {len(images)} images and {len(labels)} labels")

        def step(
            state: TrainState, rows: tuple[Int[Array, " batch"], Bool[Array, " batch"] | None]
        ) -> tuple[TrainState, Metrics]:
            indices, where = rows
            # Where an index is outside, JAX would take the nearest image: -1 makes its loss NaN.
            chosen = labels.at[indices].get(mode="fill", fill_value=-1)
            return train_step(state, Batch(images[indices], chosen), where)

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


def train(
    key: PRNGKeyArray,
    dataset: Dataset,
    model: Model,
    tx: Optimizer,
    *,
    epochs: int = 5,
    batch_size: int = 64,
    loss_fn: LossFn = cross_entropy,
    transform: Transform = preprocess,
    pad: bool = True,
    test: Dataset | None = None,
) -> tuple[TrainState, Metrics]:
    """A whole run as one pure function of the key: the initial state, then epoch after epoch.

    Hyperparameters come in through `tx`, so they may be traced: this trains a grid at once,
    `jax.jit(jax.vmap(lambda key, lr: train(key, dataset, MLP(), optax.sgd(lr))))(keys, rates)`.
    The same key gives the run that `init_state`, `epoch_order` and `make_train_epoch` give one
    after the other, and the one of `scripts/train.py --seed` for `jax.random.key(seed)`.

    Args:
        key: makes the initial parameters and the order of every epoch.
        dataset: what to train on. Pass it into your jitted function as an argument: as a constant
            it makes compiling slower.
        model: any Linen module, or another pair of `init` and `apply`.
        tx: any optax optimizer.
        epochs: how often every image is seen.
        batch_size, loss_fn, transform, pad: as in `make_train_epoch` and `make_train_step`.
        test: what to evaluate on after each epoch.

    Returns:
        The last state, and the metrics: those of the steps with the axes [epochs, steps], and with
        `test` the "test_loss" and "test_accuracy" of each epoch, f32 [epochs].
    """
    image = jax.eval_shape(transform, dataset.images[:1])
    state = init_state(key, model, tx, jnp.zeros(image.shape[1:], image.dtype))
    train_step = make_train_step(model.apply, tx, loss_fn, transform)
    train_epoch = make_train_epoch(train_step, batch_size, pad=pad)

    def run_epoch(state: TrainState, epoch: Int32[Array, ""]) -> tuple[TrainState, Metrics]:
        order = epoch_order(key, epoch, len(dataset.labels))
        state, metrics = train_epoch(state, dataset, order)
        if test is not None:
            scores = evaluate(model.apply, state.params, test, loss_fn, transform)
            metrics |= {"test_loss": scores["loss"], "test_accuracy": scores["accuracy"]}
        return state, metrics

    return jax.lax.scan(run_epoch, state, jnp.arange(epochs, dtype=jnp.int32))


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
        step = first_step + bad[0] + 1
        cause = "a label or an index is out of range, or an image or a weight is not finite"
        if step > 1:  # the first loss is taken before anything is learnt, at any learning rate
            cause = f"training has diverged, try a lower learning rate; or {cause}"
        raise NonFiniteLossError(f"the loss of step {step} is {losses[bad[0]]}: {cause}")
