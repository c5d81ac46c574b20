"""Training as a pure function: a state, a step that takes it one batch further, an epoch, a run."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int32, Integer, PRNGKeyArray

from jaxmnist.checks import check_count, check_trained, describe, merge_metrics
from jaxmnist.data import as_threefry, check_order, epoch_order, num_examples
from jaxmnist.objective import Objective, ScalarObjective, as_scalar, check_objective
from jaxmnist.parallel import choose_remainder, partition_specs, scan_steps, with_auto_sharding
from jaxmnist.types import Examples, Metrics, Optimizer, Order, Params, Remainder, State, TrainStep

ValueAndGrad: TypeAlias = Callable[[ScalarObjective], Callable[..., Any]]
Log: TypeAlias = Callable[["TrainState", Any, Any], Metrics]  # (state, grads, updates)
TrainEpoch: TypeAlias = Callable[[State, Examples, Order], tuple[State, Any]]
_STEP = zlib.crc32(b"step")


class TrainState(NamedTuple):
    """All that training changes; `init_state` and `TrainState.create` make the first one."""

    step: Int32[Array, ""]  # an array: a Python int would make the first call compile twice
    params: Params  # what is trained
    opt_state: Any  # the optimizer's own: what `tx.init(params)` gives
    model_state: Any = None  # what is carried and not trained: batch statistics, a teacher
    key: PRNGKeyArray | None = None  # the run's; a step's own is fold_in(key, step)

    @classmethod
    def create(
        cls, params: Params, tx: Optimizer, *, key: Any = None, model_state: Any = None
    ) -> TrainState:
        """The state before the first step, of parameters that exist already.

        `key` may be the key that made them: the state's own is folded in from it, so no step draws
        the numbers of the initial weights again.

        >>> state = TrainState.create({"w": jnp.zeros(3)}, optax.adam(0.1), key=jax.random.key(0))
        >>> int(state.step)
        0
        """
        key = None if key is None else jax.random.fold_in(as_threefry(key), _STEP)
        # These may hold the parameters' own buffers; a buffer that occurs twice cannot be donated.
        opt_state, model_state = jax.tree.map(jnp.copy, (tx.init(params), model_state))
        return cls(jnp.zeros((), jnp.int32), params, opt_state, model_state, key)


def init_state(
    model: Any, tx: Optimizer, key: PRNGKeyArray, example: Examples | None = None
) -> TrainState:
    """The state before the first step: `model.init`'s parameters and `tx`'s own state.

    A Linen module's collections beside "params", for instance "batch_stats", become `model_state`.

    Args:
        model: a Linen module, or any object with `init(key, images) -> params`.
        tx: any optax optimizer.
        key: makes the parameters and the keys of the steps. `train.py --seed S` takes
            `jax.random.key(S)`, also for the orders of its epochs.
        example: one example of the model's input, a pytree of arrays; by default the 784 pixels of
            an image.
    """
    example = np.zeros(784, np.float32) if example is None else example
    params = model.init(as_threefry(key), jax.tree.map(lambda x: np.asarray(x)[None], example))
    model_state = None
    if isinstance(params, dict) and "params" in params and len(params) > 1:
        model_state = {name: values for name, values in params.items() if name != "params"}
        params = {"params": params["params"]}
    return TrainState.create(params, tx, key=key, model_state=model_state)


def make_train_step(
    objective: Objective,
    tx: Optimizer,
    *,
    value_and_grad: ValueAndGrad | None = None,
    log: Log | None = None,
) -> TrainStep[TrainState]:
    """The training step, `train_step(state, batch) -> (state, metrics)`: pure, to be jitted by you.

    An objective is given the keywords `key`, `model_state` and `where` that its signature names
    without a default or with the default None, and nothing that a `partial` has bound.

    `key` is the step's own random key, `model_state` is carried and not trained, and `where` says
    which rows `[n]` of a padded batch count (None: all). Only the step of an objective that takes
    `where` takes it too, `train_step(state, batch, where)`, and only its last batch is padded. The
    mean of losses `[n]` is masked here; an objective masks a scalar loss and its metrics itself.

    Nothing is donated: to reuse the old state's memory, `jax.jit(train_step, donate_argnums=0)`.

    Args:
        objective: `objective(params, batch)` gives `loss`, `(loss, metrics)` or `(loss, metrics,
            model_state)`: a scalar or one number per example, a dict of arrays to report, and the
            next model state. A batch is any pytree of arrays, or None.
        tx: any optax optimizer. Those that take the loss or the objective get them too.
        value_and_grad: replaces `jax.value_and_grad(..., has_aux=True)`; it is given a
            function of `(params, batch, key, model_state, where)` that returns `(loss, aux)`.
        log: `log(state, grads, updates) -> metrics`, with the state before the update, for instance
            `norms`. These and the objective's are returned beside "loss", the one before it.

    Raises:
        TypeError, ValueError: here, or when the step is traced, one sentence for each mistake.

    >>> def squared_error(params, batch):
    ...     return (batch["x"] * params - batch["y"]) ** 2
    >>> tx = optax.sgd(0.25)
    >>> state = TrainState.create(jnp.array(1.0), tx)
    >>> batch = {"x": jnp.array([1.0, 1.0]), "y": jnp.array([2.0, 4.0])}
    >>> state, metrics = make_train_step(squared_error, tx)(state, batch)
    >>> float(metrics["loss"]), float(state.params)
    (5.0, 2.0)
    """
    asked = check_objective(objective)
    scalar = as_scalar(objective, asked)
    if not callable(getattr(tx, "init", None)) or not callable(getattr(tx, "update", None)):
        raise TypeError(f"tx is an optax optimizer, as optax.sgd(0.1), not {describe(tx)}")
    grad_fn = value_and_grad or (lambda scalar: jax.value_and_grad(scalar, has_aux=True))
    draws = "key" in asked or value_and_grad is not None
    takes = inspect.signature(tx.update).parameters
    asks_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())

    def train_step(
        state: TrainState, batch: Examples, where: Bool[Array | np.ndarray, " n"] | None = None
    ) -> tuple[TrainState, Metrics]:
        if not isinstance(state, TrainState):
            raise TypeError(f"state is a TrainState, of init_state, not {describe(state)}")
        check_trained(tx, state.params, state.opt_state)
        key = None
        if draws and state.key is not None:
            key = jax.random.fold_in(as_threefry(state.key), state.step)
        rest = (jax.tree.map(jnp.asarray, batch), key, state.model_state, where)
        (loss, (metrics, model_state)), grads = grad_fn(scalar)(state.params, *rest)

        # optax's line searches pass extra keyword arguments to value_fn.
        def value_fn(params: Params, obj_fn: Any = None, grad_fn: Any = None) -> Any:
            return scalar(params, *rest)[0]

        # For optimizers that look at the loss: optax.lbfgs, polyak_sgd, contrib.sophia, sam.
        extra: dict[str, Any] = {"value": loss, "grad": grads, "value_fn": value_fn}
        extra |= {"obj_fn": value_fn, "grad_fn": lambda params, _: jax.grad(value_fn)(params)}
        extra = {name: x for name, x in extra.items() if asks_more or name in takes}
        updates, opt_state = tx.update(grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        logged = {} if log is None else log(state, grads, updates)
        metrics = merge_metrics({"loss": loss}, metrics, logged)
        return TrainState(state.step + 1, params, opt_state, model_state, state.key), metrics

    return train_step if "where" in asked else lambda state, batch: train_step(state, batch)


def norms(state: TrainState, grads: Any, updates: Any) -> Metrics:
    """The Euclidean norms of the gradient, the update and the parameters, for `log`."""
    trees = {"grad_norm": grads, "update_norm": updates, "param_norm": state.params}
    return {name: optax.tree.norm(tree) for name, tree in trees.items()}


def make_train_epoch(
    train_step: TrainStep[State], batch_size: int = 64, *, remainder: Remainder = None
) -> TrainEpoch[State]:
    """An epoch, `train_epoch(state, dataset, order) -> (state, metrics)`, as one scan of the step.

    Each batch is gathered from the dataset inside the program; the metrics have one row a step. An
    index outside the dataset is an error or, in a compiled program, makes its step's metrics NaN.

    Args:
        train_step: a step of `make_train_step`, or one of your own, with any state and metrics.
        batch_size: examples in a batch.
        remainder: what to do with the examples that do not fill the last batch. "pad" repeats the
            last of them and tells the step by `where` which rows count, so the step is traced once.
            "short" trains on the shorter batch, which is a second trace. "drop" leaves them out.
            By default "pad" for a step that takes `where`, and else "short".

    Raises:
        ValueError: "pad" for a step that takes no `where`.
    """
    check_count("batch_size", batch_size)
    remainder = choose_remainder(train_step, remainder)

    def train_epoch(state: State, dataset: Examples, order: Order) -> tuple[State, Any]:
        check_order(order, num_examples(dataset))
        dataset, order = jax.tree.map(jnp.asarray, (dataset, order))
        order = order if order.dtype.itemsize > 2 else order.astype(jnp.int32)
        out = (partition_specs(state), PartitionSpec())
        return with_auto_sharding(scan_epoch, out, state, dataset, order)

    def scan_epoch(state: State, dataset: Examples, order: Any) -> tuple[State, Any]:
        def step(state: State, rows: Integer[Array, " batch"], **where: Any) -> tuple[State, Any]:
            return train_step(state, jax.tree.map(lambda x: x[rows], dataset), **where)

        rows = jnp.pad(order, (0, -order.size % batch_size), mode="edge").reshape(-1, batch_size)
        state, metrics = scan_steps(step, state, rows, order.size, remainder)
        # JAX silently takes the nearest example for an index that is out of range.
        inside = jnp.all((rows >= 0) & (rows < num_examples(dataset)), axis=1)

        def mark(values: Array) -> Array:
            if not jnp.issubdtype(values.dtype, jnp.inexact):
                return values
            return jax.vmap(lambda ok, x: jnp.where(ok, x, jnp.nan))(inside[: len(values)], values)

        return state, jax.tree.map(mark, metrics)

    return train_epoch


def train(
    train_step: TrainStep[State],
    state: State,
    dataset: Examples,
    key: PRNGKeyArray,
    *,
    epochs: int = 5,
    batch_size: int = 64,
    remainder: Remainder = None,
    test: Callable[[State], Metrics] | None = None,
    first_epoch: int | Int32[Array, ""] | None = None,
) -> tuple[State, Any]:
    """A whole run as one pure function: epoch after epoch, in the orders of `epoch_order`.

    A function that makes the state and the step for a learning rate and calls this one can be
    vmapped over rates and keys. Pass the dataset as an argument: captured as a constant, it makes
    compilation slow.

    Args:
        train_step: as in `make_train_epoch`, like `batch_size` and `remainder`.
        state: the state before the first step, for instance that of `init_state`.
        dataset: any pytree of arrays with the examples first.
        key: makes the order of every epoch; `jax.random.key(S)` those of `train.py --seed S`.
        epochs: how often every example is seen.
        test: `test(state) -> metrics` after each epoch, for instance
            `lambda state: evaluate(classifier_metrics(model.apply), state.params, test_set)`.
        first_epoch: the number of the first of these epochs. By default it follows from the state's
            step, so a run that is continued sees new orders; 0 for a state without a `step`. Name
            it where the batch size or the number of examples changes.

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
    remainder = choose_remainder(train_step, remainder)
    train_epoch = make_train_epoch(train_step, batch_size, remainder=remainder)
    check_count("epochs", epochs, least=0)
    n = num_examples(dataset)
    if first_epoch is None:
        steps = n // batch_size if remainder == "drop" else -(-n // batch_size)
        first_epoch = _steps_done(state) // max(steps, 1)

    def run_epoch(state: State, epoch: Int32[Array, ""]) -> tuple[State, Any]:
        state, metrics = train_epoch(state, dataset, epoch_order(key, epoch, n))
        if test is not None:
            tests = merge_metrics(test(state))
            metrics = merge_metrics(metrics) | {f"test_{name}": x for name, x in tests.items()}
        return state, metrics

    return jax.lax.scan(run_epoch, state, first_epoch + jnp.arange(epochs, dtype=jnp.int32))


def _steps_done(state: Any) -> Int32[Array, ""]:
    """The `step` of a state, or of the first part of a custom state that has one; else 0."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    steps = [x for path, x in leaves if jax.tree_util.keystr(path[-1:], simple=True) == "step"]
    # A vmapped state has a step for each member, and all are equal.
    return jnp.ravel(jnp.asarray([*steps, 0][0]))[0].astype(jnp.int32)
