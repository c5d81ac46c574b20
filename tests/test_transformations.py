"""Training goes wherever a pure function goes: any transformation, optimizer, model and loss."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmnist.data import Dataset
from jaxmnist.model import MLP
from jaxmnist.objective import classifier_objective
from jaxmnist.training import TrainState, make_train_step, train
from tests.helpers import assert_close, counting, stateful

KEY = jax.random.key(0)
LINEAR = MLP(hidden=())  # quicker to compile, where depth does not matter
WEIGHTS = jax.jit(LINEAR.init)(KEY, np.zeros((1, 784), np.float32))
RATE = jnp.float32(0.1)


def jit_step(tx):
    return jax.jit(make_train_step(classifier_objective(LINEAR.apply), tx))


def total(tree):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree))


def double(tree):
    return jax.tree.map(lambda x: jnp.stack([x, 2 * x]), tree)


def first(tree):
    return jax.tree.map(lambda x: x[0], tree)


def run_of(data, objective):
    """`run(params, rate) -> (params, losses)`: two epochs of two steps."""

    def run(params, rate):
        tx = optax.sgd(rate)
        state = TrainState.create(params, tx, key=KEY, model_state=jnp.zeros(784))
        state, metrics = train(make_train_step(objective, tx), state, data, KEY, epochs=2)
        return state.params, metrics["loss"]

    return run


def if_finite(result, derivative):
    """The result, or NaN; so that XLA has to compute the derivative too."""
    return jax.tree.map(lambda x: x + 0 * total(derivative), result)


def with_gradient(f):
    def objective(*args):
        result = f(*args)
        return total(result[1]), result

    def both(*args):
        (_, result), grads = jax.value_and_grad(objective, (0, 1), has_aux=True)(*args)
        return if_finite(result, grads)

    return both


THROUGH = {
    "jvp": lambda f: jax.jit(lambda *args: if_finite(*jax.jvp(f, args, args))),
    "scan": lambda f: jax.jit(lambda *args: first(jax.lax.map(lambda a: f(*a), double(args)))),
    "vmap of grad of checkpoint": lambda f: jax.jit(
        lambda *args: first(jax.vmap(with_gradient(jax.checkpoint(f)))(*double(args)))
    ),
    "export": lambda f: lambda *args: jax.export.export(jax.jit(f))(*args).call(*args),
}


@pytest.mark.slow
@pytest.mark.parametrize("through", THROUGH)
def test_composes(toy, through):
    """The result is the one without the transformation, and the step is traced once."""
    objective = counting(stateful(LINEAR.apply))
    result = THROUGH[through](run_of(toy, objective))(WEIGHTS, RATE)
    assert objective.traces == 1
    assert_close(result, jax.jit(run_of(toy, objective))(WEIGHTS, RATE), 2e-6)


def test_micro_batches_accumulate_to_one_step(toy):
    """Four batches of 16 are one step on 64 images; also where the optimizer looks at the loss."""
    inner = optax.sgd(0.1, momentum=0.9)
    state = TrainState.create(WEIGHTS, inner)
    expected, _ = jit_step(inner)(state, Dataset(toy.images[:64], toy.labels[:64]))
    tx = optax.MultiSteps(optax.chain(inner, optax.contrib.reduce_on_plateau(patience=9)), 4)
    state, step = TrainState.create(WEIGHTS, tx), jit_step(tx)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 and float
        for i in range(0, 64, 16):
            assert_close(state.params, WEIGHTS, 0)  # nothing moves before the last of them
            state, metrics = step(state, Dataset(toy.images[i : i + 16], toy.labels[i : i + 16]))
    assert_close(state.params, expected.params, 1e-6)
    best = state.opt_state.inner_opt_state[1].best_value
    np.testing.assert_allclose(best, metrics["loss"], rtol=1e-6)


def test_a_line_search_asks_for_the_objective():
    """At a rate of 30, which is far too large, each loss is below the last."""
    tx, losses = optax.chain(optax.sgd(30.0), optax.scale_by_backtracking_linesearch(20)), []
    step = jax.jit(make_train_step(lambda w, rows: (rows @ w - 1) ** 2, tx))
    state = TrainState.create(jnp.zeros(3), tx)
    rows = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    for _ in range(4):
        state, metrics = step(state, rows)
        losses.append(metrics["loss"])
    assert np.all(np.diff(losses) < 0)


@pytest.mark.slow
def test_under_disable_jit_and_x64(toy):
    """The run gives the jitted numbers, int32 steps and no wider floats."""
    few, tx = Dataset(toy.images[:10], toy.labels[:10]), optax.sgd(0.1)
    step = make_train_step(classifier_objective(LINEAR.apply), tx)
    state = TrainState.create(WEIGHTS, tx)
    for remainder in ("pad", "short", "drop"):

        def run(state, remainder=remainder):
            return train(step, state, few, KEY, epochs=2, batch_size=4, remainder=remainder)

        expected = jax.jit(run)(state)
        with jax.disable_jit():
            assert_close(run(state), expected, 2e-6)
        with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
            wide = jax.jit(run)(state)
        assert_close(wide, expected, 2e-6)
        assert jax.tree.map(lambda x: x.dtype, wide) == jax.tree.map(lambda x: x.dtype, expected)
