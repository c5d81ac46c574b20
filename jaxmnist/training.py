"""Training as a pure function: a state, a step that takes it one batch further, an epoch, a run."""

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray

from jaxmnist.checks import (
    check_batch_size,
    check_names,
    check_order,
    check_trained,
    named_arguments,
    num_examples,
)
from jaxmnist.data import epoch_order
from jaxmnist.objective import ScalarObjective, as_scalar
from jaxmnist.parallel import partition_specs, with_auto_sharding
from jaxmnist.types import (
    AnyArray,
    Examples,
    Metrics,
    Model,
    Objective,
    Optimizer,
    Params,
    Remainder,
    State,
    TrainEpoch,
    TrainStep,
)

_STEP = zlib.crc32(b"step")
_value_and_grad = partial(jax.value_and_grad, has_aux=True)


class TrainState(NamedTuple):
    """All that training changes: of `init_state`, or of `TrainState.create`."""

    step: Int32[Array, ""]  # an array: a Python int would make the first call compile twice
    params: Params  # what is trained
    opt_state: Any  # the optimizer's own: what `tx.init(params)` gives
    model_state: Any = None  # what is carried and not trained: batch statistics, a teacher
    key: PRNGKeyArray | None = None  # the run's; a step's own is fold_in(key, step)

    @classmethod
    def create(
        cls,
        params: Params,
        tx: Optimizer,
        *,
        key: PRNGKeyArray | None = None,
        model_state: Any = None,
    ) -> "TrainState":
        """The state before the first step, of parameters that are there already.

        The state's key is derived from `key`, so that it may be the one that made the parameters.
        """
        key = None if key is None else jax.random.fold_in(key, _STEP)
        return cls(jnp.zeros((), jnp.int32), params, tx.init(params), model_state, key)


def init_state(
    model: Model,
    tx: Optimizer,
    key: PRNGKeyArray,
    example: Float[AnyArray, "*shape"] | None = None,
) -> TrainState:
    """The state before the first step: `model.init`'s parameters and `tx`'s own state.

    A Linen module's collections beside "params", for instance "batch_stats", become `model_state`.
    `example` is one example of what the model takes, by default the 784 pixels of an image.
    """
    example = np.zeros(784, np.float32) if example is None else example
    try:
        params = model.init(key, example[None])
    except Exception as error:
        error.add_note(f"init_state's example= is one example for the model, here {example.shape}")
        raise
    model_state = None
    if isinstance(params, dict) and "params" in params and len(params) > 1:
        model_state = {name: values for name, values in params.items() if name != "params"}
        params = {"params": params["params"]}
    state = TrainState.create(params, tx, model_state=model_state)
    seen: set[int] = set()

    def own(leaf: Any) -> Any:  # some optimizers' state holds the parameters themselves, and a
        if id(leaf) in seen:  # buffer that is there twice cannot be donated
            return jnp.copy(leaf)
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(own, state)._replace(key=jax.random.fold_in(key, _STEP))


def make_train_step(
    objective: Objective,
    tx: Optimizer,
    *,
    value_and_grad: Callable[[ScalarObjective], Callable[..., Any]] = _value_and_grad,
    log: Callable[[TrainState, Any, Any], Metrics] | None = None,
) -> TrainStep[TrainState]:
    """The training step, `train_step(state, batch) -> (state, metrics)`: pure, to be jitted by you.

    Nothing is donated: to reuse the old state's memory, `jax.jit(train_step, donate_argnums=0)`.

    Args:
        objective: `objective(params, batch)` gives `loss`, `(loss, metrics)` or `(loss, metrics,
            model_state)`: a scalar or one number per example, a dict of arrays to report, and the
            next state of what is not trained. It may name these keyword arguments: `key`, the
            step's own; `model_state`; `where` `[n]`, which rows of a padded batch count, or None.
        tx: any optax optimizer. One that asks for them gets the loss and the objective, too.
        value_and_grad: your own in place of `jax.value_and_grad(..., has_aux=True)`; it is given a
            function of `(params, batch, key, model_state, where)` that returns `(loss, aux)`.
        log: `log(state, grads, updates) -> metrics`, with the state before the update, for instance
            `norms`. These and the objective's are returned beside "loss", the one before it.

    >>> def squared_error(params, batch):
    ...     return (batch["x"] * params - batch["y"]) ** 2
    >>> tx, params = optax.sgd(0.25), jnp.array(1.0)
    >>> state = TrainState.create(params, tx)
    >>> batch = {"x": jnp.array([1.0, 1.0]), "y": jnp.array([2.0, 4.0])}
    >>> state, metrics = make_train_step(squared_error, tx)(state, batch)
    >>> float(metrics["loss"]), float(state.params)
    (5.0, 2.0)
    """
    scalar, update = as_scalar(objective), optax.with_extra_args_support(tx).update

    def train_step(
        state: TrainState, batch: Examples, where: Bool[AnyArray, " n"] | None = None
    ) -> tuple[TrainState, Metrics]:
        check_trained(tx, state.params, state.opt_state)
        key = None if state.key is None else jax.random.fold_in(state.key, state.step)
        rest = (jax.tree.map(jnp.asarray, batch), key, state.model_state, where)
        with jax.named_scope("gradient"):
            (loss, (metrics, model_state)), grads = value_and_grad(scalar)(state.params, *rest)

        # optax's line searches hand on what else they are given to value_fn, or refuse it.
        def value_fn(params: Params, obj_fn: Any = None, grad_fn: Any = None) -> Float[Array, ""]:
            return scalar(params, *rest)[0]

        # For optimizers that look at the loss: optax.lbfgs, polyak_sgd, contrib.sophia, sam.
        extra: dict[str, Any] = {"value": loss, "grad": grads, "value_fn": value_fn}
        extra |= {"obj_fn": value_fn, "grad_fn": lambda params, _: jax.grad(value_fn)(params)}
        extra = named_arguments(update, extra, any_name=True)
        with jax.named_scope("update"):
            updates, opt_state = update(grads, state.opt_state, state.params, **extra)
            params = optax.apply_updates(state.params, updates)
        logged = {} if log is None else log(state, grads, updates)
        check_names(logged, ("loss", *metrics))
        state = TrainState(state.step + 1, params, opt_state, model_state, state.key)
        return state, {"loss": loss, **metrics, **logged}

    return train_step


def norms(state: TrainState, grads: Any, updates: Any) -> Metrics:
    """The Euclidean norms of the gradient, the update and the parameters, for `log`."""
    trees = {"grad_norm": grads, "update_norm": updates, "param_norm": state.params}
    return {name: optax.tree.norm(tree) for name, tree in trees.items()}


def make_train_epoch(
    train_step: TrainStep[State], batch_size: int = 64, *, remainder: Remainder = "pad"
) -> TrainEpoch[State]:
    """An epoch, `train_epoch(state, dataset, order) -> (state, metrics)`, as one scan of the step.

    Each batch is gathered from the dataset inside the program; the metrics have one row a step. An
    index outside the dataset is an error or, in a compiled program, makes its step's loss NaN.

    Args:
        train_step: a step of `make_train_step`, or one of your own.
        batch_size: examples in a batch.
        remainder: what becomes of the examples that do not fill the last batch. "pad" fills it with
            examples that `where` masks, so the step is traced once; what looks across the batch
            (BatchNorm, mixup) must mask them itself. "short" trains on the shorter batch, which is
            a second trace. "drop" leaves them out.
    """
    check_batch_size(batch_size)

    def train_epoch(
        state: State, dataset: Examples, order: Int[AnyArray, " n"]
    ) -> tuple[State, Metrics]:
        n = num_examples(dataset)
        check_order(order, n)
        dataset, order = jax.tree.map(jnp.asarray, (dataset, order))
        out = (partition_specs(state), PartitionSpec())
        state, metrics = with_auto_sharding(scan_batches, out, state, dataset, order)
        # For an index outside JAX takes the nearest example and says nothing.
        outside = jnp.pad((order < 0) | (order >= n), (0, -order.size % batch_size))
        wrong = outside.reshape(-1, batch_size).any(axis=1)[: len(metrics["loss"])]
        return state, {**metrics, "loss": jnp.where(wrong, jnp.nan, metrics["loss"])}

    def scan_batches(
        state: State, dataset: Examples, order: Int[Array, " n"]
    ) -> tuple[State, Metrics]:
        def step(state: State, rows: tuple[Any, ...]) -> tuple[State, Metrics]:
            indices, *where = rows
            return train_step(state, jax.tree.map(lambda x: x[indices], dataset), *where)

        size, tail = order.size, order.size % batch_size
        if tail and remainder == "pad":
            padded = jnp.pad(order, (0, batch_size - tail)).reshape(-1, batch_size)
            where = (jnp.arange(padded.size) < size).reshape(padded.shape)
            return jax.lax.scan(step, state, (padded, where))
        parts = []
        if size > tail:  # a scan of no steps is an error without jit
            full = order[: size - tail].reshape(-1, batch_size)
            state, metrics = jax.lax.scan(step, state, (full,))
            parts.append(metrics)
        if tail and remainder == "short":
            state, metrics = step(state, (order[size - tail :],))
            parts.append(jax.tree.map(lambda x: x[None], metrics))
        if not parts:
            raise ValueError(f"{size} examples fill no batch of {batch_size}")
        return state, jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    return train_epoch


def train(
    train_step: TrainStep[State],
    state: State,
    dataset: Examples,
    key: PRNGKeyArray,
    *,
    epochs: int = 5,
    batch_size: int = 64,
    remainder: Remainder = "pad",
    test: Callable[[State], Metrics] | None = None,
    first_epoch: int | Int32[Array, ""] = 0,
) -> tuple[State, Metrics]:
    """A whole run as one pure function: epoch after epoch, in the orders of `epoch_order`.

    A function that makes the state and the step for a learning rate and calls this one can be
    vmapped over rates and keys. Pass it the dataset, which as a constant is slow to compile.

    Args:
        key: makes the order of every epoch; `jax.random.key(S)` those of `train.py --seed S`.
        state: what the first step is given, for instance of `init_state`.
        dataset, train_step, batch_size, remainder: as in `make_train_epoch`.
        epochs: how often every example is seen.
        test: `test(state) -> metrics` after each epoch, for instance
            `lambda state: evaluate(classifier_metrics(model.apply), state.params, test_set)`.
        first_epoch: the number of the first of these epochs, from 0.

    Returns the last state, the steps' metrics, with the axes [epochs, steps, ...], and those of
    `test`, under "test_" and their name, with the axes [epochs, ...].

    >>> from jaxmnist import MLP, Dataset, classifier_objective
    >>> data = Dataset(np.zeros((100, 28, 28), np.uint8), np.zeros(100, np.int32))
    >>> model, tx, key = MLP(), optax.sgd(0.1), jax.random.key(0)
    >>> train_step = make_train_step(classifier_objective(model.apply), tx)
    >>> state, metrics = train(train_step, init_state(model, tx, key), data, key, epochs=3)
    >>> metrics["loss"].shape
    (3, 2)
    """
    train_epoch = make_train_epoch(train_step, batch_size, remainder=remainder)

    def run_epoch(state: State, epoch: Int32[Array, ""]) -> tuple[State, Metrics]:
        order = epoch_order(key, epoch, num_examples(dataset))
        state, metrics = train_epoch(state, dataset, order)
        tested = {} if test is None else test(state)
        return state, metrics | {f"test_{name}": value for name, value in tested.items()}

    return jax.lax.scan(run_epoch, state, first_epoch + jnp.arange(epochs, dtype=jnp.int32))
