"""The step against float64 NumPy, the epoch against its steps, and the run against its epochs."""

import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from jaxmnist.data import Dataset, batches, epoch_order
from jaxmnist.evaluation import classifier_metrics, evaluate
from jaxmnist.model import MLP
from jaxmnist.objective import classifier_objective
from jaxmnist.training import TrainState, init_state, make_train_epoch, make_train_step, train
from tests.helpers import assert_close, counting

KEY = jax.random.key(0)
TX = optax.sgd(0.1)
MODEL = MLP((8,))
OBJECTIVE = classifier_objective(MODEL.apply)
STATE = jax.jit(lambda key: init_state(MODEL, TX, key))(KEY)
STEP = make_train_step(OBJECTIVE, TX)


def numpy_loss_and_grads(params, images, labels):
    """The MLP's mean cross-entropy and its gradient by hand, in float64."""
    layers = [params["params"][f"linear_{i}"] for i in range(len(params["params"]))]
    weights = [np.float64(layer["weight"]).T for layer in layers]
    inputs, x = [], (images.reshape(len(images), -1) / 255.0 - 0.5) / 0.5
    for i, w in enumerate(weights):
        inputs.append(x)
        x = x @ w + np.float64(layers[i]["bias"])
        x = np.maximum(x, 0) if i < len(layers) - 1 else x
    e = np.exp(x - x.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    rows, grads = np.arange(len(labels)), {}
    loss, delta = -np.log(p[rows, labels]).mean(), p
    delta[rows, labels] -= 1
    delta /= len(labels)
    for i in reversed(range(len(layers))):
        grads[f"linear_{i}"] = {"weight": delta.T @ inputs[i], "bias": delta.sum(axis=0)}
        delta = (delta @ weights[i].T) * (inputs[i] > 0)
    return loss, {"params": grads}


def descended(params, grads):
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


def test_one_step_equals_numpy_in_float64(toy):
    loss, grads = numpy_loss_and_grads(STATE.params, *toy)
    new, metrics = jax.jit(STEP)(STATE, toy)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert_close(new.params, descended(STATE.params, grads))
    # and the gradient itself, which the learning rate would hide
    assert_close(jax.jit(jax.grad(lambda p: OBJECTIVE(p, toy).mean()))(STATE.params), grads)
    assert (new.step, new.step.dtype) == (1, jnp.int32)


LAST_BATCHES = [(64, None, 1), (64, "short", 2), (64, "drop", 1), (50, "pad", 1), (200, "pad", 1)]


@pytest.mark.parametrize(("batch_size", "remainder", "traces"), LAST_BATCHES)
def test_an_epoch_is_its_steps(toy, batch_size, remainder, traces):
    """And is traced once, but for a shorter last batch: in five epochs, from the first call on."""
    order, objective = epoch_order(KEY, 0, 100), counting(OBJECTIVE)
    epoch = make_train_epoch(make_train_step(objective, TX), batch_size, remainder=remainder)
    jitted = jax.jit(epoch)
    state, metrics = jitted(STATE, toy, order)
    for put in (np.asarray, jnp.asarray, jax.device_put):
        jitted(state, jax.tree.map(put, toy), epoch_order(KEY, 1, 100))
    assert objective.traces == traces
    single, losses = STATE, []
    for batch in batches(toy, batch_size, order=order):
        if len(batch.labels) == batch_size or remainder != "drop":
            single, one = jax.jit(STEP)(single, batch)
            losses.append(one["loss"])
    np.testing.assert_allclose(metrics["loss"], losses, rtol=5e-6)
    assert_close(state, single, 5e-6)


def test_batches_larger_than_the_data_leave_nothing_to_train_on(toy):
    epoch = make_train_epoch(STEP, 200, remainder="drop")
    with pytest.raises(ValueError, match="a batch of 200 is more than all 100"):
        epoch(STATE, toy, np.arange(100))


@pytest.mark.skipif("JAXMNIST_TESTS" in os.environ, reason="the check of types refuses it first")
@pytest.mark.parametrize("wrong", ["pad", "last"])
def test_remainders_that_cannot_be(wrong):
    """A typo, or padding for an objective that cannot mask it."""
    step = make_train_step(lambda params, batch: OBJECTIVE(params, batch), TX)
    with pytest.raises(ValueError, match=f"whose objective takes `where`, 'pad'; not '{wrong}'"):
        make_train_epoch(step, remainder=wrong)
    with pytest.raises(ValueError, match="'last'"):
        make_train_epoch(STEP, remainder="last")


@pytest.mark.slow
def test_the_rule_holds_for_a_step_under_jit_and_vmap(toy):
    """A vmapped step has no axis for `where`, so it gets the short batch."""
    keys = jax.random.split(KEY, 3)
    members = jax.vmap(lambda key: init_state(MODEL, TX, key))(keys)
    single, expected = train(STEP, init_state(MODEL, TX, keys[1]), toy, KEY, epochs=2)
    both = jax.vmap(STEP, (0, None))
    for step in (both, jax.jit(both)):
        states, metrics = train(step, members, toy, KEY, epochs=2)
        np.testing.assert_allclose(metrics["loss"][..., 1], expected["loss"], rtol=1e-5)
        assert_close(jax.tree.map(lambda x: x[1], states), single)
        with pytest.raises(ValueError, match="'pad'"):
            train(step, members, toy, KEY, remainder="pad")
    state, metrics = train(jax.jit(STEP), STATE, toy, KEY, epochs=1, remainder="pad")
    assert_close((state, metrics), train(STEP, STATE, toy, KEY, epochs=1), 1e-6)


def test_an_order_of_any_integers(toy):
    epoch, order = jax.jit(make_train_epoch(STEP)), np.arange(100)
    for dtype in (np.uint8, np.uint32):
        assert_close(epoch(STATE, toy, order.astype(dtype)), epoch(STATE, toy, order), 0)


def test_a_run_is_its_epochs(toy):
    """One program, traced once, which never calls back to the host."""
    test, objective = Dataset(toy.images[:30], toy.labels[:30]), counting(OBJECTIVE)
    score = classifier_metrics(MODEL.apply)
    tested = jax.jit(lambda params: evaluate(score, params, test))

    def run(key, state, dataset, test):
        step = make_train_step(objective, TX)
        return train(
            step, state, dataset, key, epochs=2, test=lambda s: evaluate(score, s.params, test)
        )

    assert "callback" not in str(jax.make_jaxpr(run)(KEY, STATE, toy, test))
    objective.traces = 0
    state, metrics = jax.jit(run)(KEY, STATE, toy, test)
    assert objective.traces <= 1  # none if the trace above is found again
    expected, epoch = STATE, jax.jit(make_train_epoch(STEP))
    for number in range(2):
        expected, one = epoch(expected, toy, epoch_order(KEY, number, 100))
        np.testing.assert_allclose(metrics["loss"][number], one["loss"], rtol=2e-6)
        for name, value in tested(expected.params).items():
            np.testing.assert_allclose(metrics[f"test_{name}"][number], value, rtol=2e-6)
    assert_close(state, expected, 2e-6)


def test_a_step_of_ones_own_gets_whole_runs():
    """Nothing of `TrainState` is asked of a state, nor of its metrics that one is a loss."""

    def step(state, rows, where):
        kept = jnp.ones(rows.shape, bool) if where is None else where
        return state + jnp.sum(rows, where=kept), {"rows": rows, "n": jnp.sum(kept)}

    data = np.arange(100)
    state, metrics = jax.jit(lambda: train(step, jnp.int32(0), data, KEY, epochs=2))()
    assert state == 2 * data.sum()
    np.testing.assert_array_equal(metrics["n"], [[64, 36]] * 2)
    orders = metrics["rows"].reshape(2, -1)[:, :100]
    np.testing.assert_array_equal(orders, [epoch_order(KEY, epoch, 100) for epoch in range(2)])
    _, later = train(step, jnp.int32(0), data, KEY, epochs=1, first_epoch=1)
    np.testing.assert_array_equal(later["rows"][0], metrics["rows"][1])


def test_the_epoch_follows_from_the_states_step():
    """So going on is one run; also of a state within one of your own, and without the remainder."""
    state = TrainState(jnp.int32(4), None, None)
    for start, size, epoch in ((state, 50, 2), ((0, state), 100, 4), (state, 40, 2)):
        options = {"epochs": 1, "batch_size": size, "remainder": "drop"}
        _, rows = train(lambda *given: given, start, np.arange(100), KEY, **options)
        np.testing.assert_array_equal(rows.ravel(), epoch_order(KEY, epoch, 100)[: rows.size])


@pytest.mark.slow
def test_the_librarys_run_is_the_scripts(script, few_digits, tmp_path):
    """`train` with the same key: to the bit, with augmented images."""
    import json

    from jaxmnist.runs.setup import make_training

    options = ["--dataset", "synthetic", "--epochs", 2, "--seed", 3, "--augment", 1]
    options += ["--out", tmp_path / "run"]
    assert script("train.py", *options)[0] == 0
    lines = (tmp_path / "run" / "steps.jsonl").read_text().splitlines()
    tx, key = optax.sgd(0.003), jax.random.key(3)
    model, step, _ = make_training((128, 64), "cross_entropy", 1.0, tx)
    with jax.default_matmul_precision("highest"):
        _, metrics = jax.jit(
            lambda data: train(step, init_state(model, tx, key), data, key, epochs=2)
        )(few_digits[0])
    np.testing.assert_array_equal(
        np.float32([json.loads(line)["loss"] for line in lines]), metrics["loss"].ravel()
    )


def test_init_state_separates_what_is_trained():
    """Of a module with batch norm the statistics become the model state."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, images):
            x = linen.BatchNorm(use_running_average=True)(images)
            return linen.Dense(10)(x)

    both = lambda key: (Net().init(key, np.zeros((1, 784))), init_state(Net(), TX, key))  # noqa: E731
    variables, state = jax.jit(both)(KEY)
    assert_close(state.params, {"params": variables["params"]}, 0)
    assert_close(state.model_state, {"batch_stats": variables["batch_stats"]}, 0)
    params, stats = state.params, state.model_state
    assert_close(TrainState.create(params, TX, key=KEY, model_state=stats), state, 0)
    assert TrainState.create(params, TX).key is None
    assert not np.array_equal(jax.random.key_data(state.key), jax.random.key_data(KEY))


def test_nothing_is_donated_unless_the_caller_says_so():
    """Schedule-free holds the parameters a second time, and a buffer can be donated once."""
    tx, batch = optax.contrib.schedule_free_sgd(0.1), jnp.ones(3)
    state = TrainState.create(jnp.float32(1), tx)
    step = make_train_step(lambda params, batch: (params - 2 * batch) ** 2, tx)
    make_train_epoch(step, 2)(state, batch, jnp.arange(3))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((state, batch)))
    jax.jit(step, donate_argnums=0)(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not batch.is_deleted()


def test_init_state_takes_an_example_of_any_tree():
    """And any object with `init`: here one whose parameters are the inputs."""
    model = SimpleNamespace(init=lambda key, inputs: inputs)
    example = {"image": np.zeros((28, 28), np.float32), "meta": np.zeros(2, np.float32)}
    params = init_state(model, TX, KEY, example).params
    assert jax.tree.map(np.shape, params) == {"image": (1, 28, 28), "meta": (1, 2)}
