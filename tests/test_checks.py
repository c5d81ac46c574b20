"""A mistake in a program of one's own is one sentence that names the cause, at trace time."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from jaxmnist.checks import check_finite
from jaxmnist.data import Dataset, batches
from jaxmnist.errors import NonFiniteLossError
from jaxmnist.evaluation import classifier_metrics, evaluate
from jaxmnist.model import MLP
from jaxmnist.objective import classifier_objective
from jaxmnist.training import TrainState, init_state, make_train_epoch, make_train_step, train
from tests.helpers import assert_close

KEY = jax.random.key(0)
MODEL = MLP(hidden=(8,))
TX = optax.sgd(0.1)
STATE = jax.jit(lambda key: init_state(MODEL, TX, key))(KEY)
LOSSES = classifier_objective(MODEL.apply)
METRICS = classifier_metrics(MODEL.apply)
RNG = np.random.default_rng(0)
DATA = Dataset(RNG.integers(0, 256, (100, 28, 28), np.uint8), RNG.integers(0, 10, 100, np.int32))
STATS = {"batch_stats": {"mean": jnp.zeros(3)}}


@pytest.fixture(autouse=True)
def _no_type_checks(monkeypatch):
    """As for users: the type checks of the tests would come before the library's own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def returning(result):
    """An objective that makes something of its losses."""
    return lambda params, batch: result(LOSSES(params, batch))


RESULTS = {
    "numpy": lambda x: np.float32(1),
    "integers": lambda x: jnp.arange(100),
    "empty": lambda x: (),
    "four": lambda x: (x, {}, None, 1),
    "column": lambda x: x[:, None],
    "an example less": lambda x: x[1:],
    "metrics array": lambda x: (x, jnp.ones(3)),
    "metric string": lambda x: (x, {"a": "b"}),
    "state": lambda x: (x, {}, STATS),
}


@pytest.mark.parametrize("case", RESULTS)
def test_what_an_objective_returns(case):
    step = make_train_step(returning(RESULTS[case]), TX)
    with pytest.raises(TypeError, match=r"an objective returns loss, .*model_state; here [\[({\w]"):
        jax.jit(step)(STATE, DATA)


def test_a_model_state_is_not_taken_for_metrics():
    """Flax's habit, `return loss, updates`: the statistics would never move."""
    state = STATE._replace(model_state={"mean": jnp.zeros(3)})
    step = make_train_step(lambda p, b: (LOSSES(p, b), {"mean": jnp.ones(3)}), TX)
    with pytest.raises(TypeError, match=r"here \('float32\[100\]', {'mean': 'float32\[3\]'}\)"):
        jax.jit(step)(state, DATA)


OBJECTIVES = {
    "one argument": lambda p: 0.0,
    "another keyword": lambda p, b, *, rng: 0.0,
    "decorated": lambda *args: 0.0,
    "result": jnp.ones(100),
    "apply": MODEL.apply,
}


@pytest.mark.parametrize("case", OBJECTIVES)
def test_what_is_no_objective(case):
    with pytest.raises(TypeError, match=r"an objective is a function.*functools\.wraps"):
        make_train_step(OBJECTIVES[case], TX)


def step_of(data=DATA, state=STATE, objective=LOSSES, tx=TX):
    return lambda: jax.jit(make_train_step(objective, tx))(state, data)


def labelled(images=DATA.images, labels=DATA.labels):
    return step_of(Dataset(images, labels))


ADAM = optax.adam(0.1)
NO_FLOATS = TrainState(jnp.int32(0), {**STATE.params, "n": jnp.int32(3)}, STATE.opt_state)
MISTAKES = {
    "optimizer float": (
        lambda: make_train_step(LOSSES, 0.1),
        "tx is an optax optimizer.*not float",
    ),
    "params as state": (lambda: step_of(state=STATE.params)(), "state is a TrainState.*not dict"),
    "integer params": (step_of(state=NO_FLOATS), r"params\['n'\] is int32, which has no gradient"),
    "other optimizer": (step_of(tx=ADAM), "opt_state is another optimizer's"),
    "narrower": (
        step_of(state=STATE._replace(opt_state=ADAM.init(jnp.ones(1))), tx=ADAM),
        r"another optimizer's or model's, not tx\.init\(params\)",
    ),
    "no key": (
        step_of(state=STATE._replace(key=None), objective=lambda p, b, *, key: LOSSES(p, b)),
        r"asks for a key and state\.key is None",
    ),
    "name loss": (
        step_of(objective=returning(lambda x: (x, {"loss": x}))),
        "cannot be called 'loss'",
    ),
    "name test": (step_of(objective=returning(lambda x: (x, {"test_a": x}))), "called 'test_a'"),
    "integer images": (labelled(DATA.images.astype(np.int32)), "images are uint8 grey levels"),
    "float labels": (labelled(labels=np.float32(DATA.labels)), r"labels='float32\[100\]'"),
    "99 labels": (labelled(labels=DATA.labels[1:]), "output is float32.100, 10. for 99 labels"),
    "one example": (step_of(Dataset(DATA.images[0], DATA.labels[0])), r"labels='int32\[\]'"),
    "a module": (
        step_of(objective=classifier_objective(MODEL)),
        "a classifier needs apply_fn.*; here MLP and Dataset",
    ),
    "a mean": (
        step_of(objective=classifier_objective(MODEL.apply, lambda x, y: x.mean())),
        r"loss_fn gives float32\[\] and not one number for each label",
    ),
    "apply to evaluate": (
        lambda: evaluate(MODEL.apply, STATE.params, DATA),
        "takes images of 784 numbers, not Dataset",
    ),
    "state to evaluate": (lambda: evaluate(METRICS, STATE, DATA), r"state\.params, not the state"),
    "data first": (
        lambda: train(DATA, KEY, STATE, LOSSES),
        "train_step is a function, not Dataset",
    ),
    "batch size": (lambda: train(LOSSES, STATE, DATA, KEY, batch_size=1.5), "at least 1, not 1.5"),
    "of a test": (lambda: evaluate(METRICS, STATE.params, DATA, batch_size=0), "at least 1, not 0"),
    "epochs": (
        lambda: train(make_train_step(LOSSES, TX), STATE, DATA, KEY, epochs=-1),
        "epochs must",
    ),
    "lengths": (lambda: batches(Dataset(DATA.images, DATA.labels[:90])), r"\.labels has 90"),
    "a scalar": (lambda: batches({"x": np.ones(3), "s": np.float32(2)}), r"\['s'\] has none"),
    "nothing": (lambda: batches({}), "need examples, as many in each; here is no array"),
    "no examples": (lambda: batches({"x": np.ones((0, 3))}), r"many in each; here \['x'\] has 0"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case):
    call, message = MISTAKES[case]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize("order", [np.arange(100).reshape(10, 10), np.ones(100), np.arange(0)])
def test_an_order_that_is_no_row_of_indices(order):
    epoch = make_train_epoch(make_train_step(LOSSES, TX))
    for call in (epoch, jax.jit(epoch)):
        with pytest.raises(ValueError, match=r"an order is one row of integers, not (int|float)"):
            call(STATE, DATA, order)


@pytest.mark.parametrize("remainder", ["pad", "drop"])
def test_an_index_outside_the_dataset(remainder):
    """JAX takes the nearest example and says nothing: an error, or NaN in a compiled program."""
    epoch = make_train_epoch(make_train_step(LOSSES, TX), 22, remainder=remainder)
    jitted = jax.jit(epoch)
    for wrong, step in ((100, 1), (-1, 2), (300, 4)):
        order = np.arange(100)
        order[22 * step] = wrong
        low, high = order.min(), order.max()
        for call in (epoch, lambda *args: jax.jit(lambda: epoch(*args))()):
            with pytest.raises(ValueError, match=f"from {low} to {high}, outside 0..99"):
                call(STATE, DATA, order)
        _, metrics = jitted(STATE, DATA, order)
        expected = np.arange(len(metrics["loss"])) == step
        np.testing.assert_array_equal(np.isnan(metrics["loss"])[: step + 1], expected[: step + 1])


def test_a_label_outside_the_classes():
    """An error where the label can be seen; in a compiled program NaN, whatever the loss."""
    optaxs = optax.softmax_cross_entropy_with_integer_labels
    scores, step = classifier_metrics(MODEL.apply, optaxs), make_train_step(LOSSES, TX)
    score = jax.jit(lambda data: evaluate(scores, STATE.params, data))
    for wrong in (-1, 10):
        labels = DATA.labels.copy()
        labels[70] = wrong
        bad, message = Dataset(DATA.images, labels), f"label {wrong} in row 70 is outside .* 0..9"
        for call in (lambda bad=bad: step(STATE, bad), lambda bad=bad: scores(STATE.params, bad)):
            with pytest.raises(ValueError, match=message):
                call()
        metrics = score(bad)
        assert np.isnan([metrics["loss"], metrics["accuracy"]]).all()


def test_float_pixels_that_nobody_has_scaled():
    step = make_train_step(LOSSES, TX)
    for dtype in (np.float32, jnp.bfloat16):
        bad = Dataset(DATA.images.astype(dtype), DATA.labels)
        with pytest.raises(
            ValueError, match=r"images reach beyond 32\.0: give grey levels as uint8"
        ):
            step(STATE, bad)
    with jax.numpy_dtype_promotion("standard"):
        step = jax.jit(step)
        assert np.isnan(step(STATE, bad)[1]["loss"])
        scaled = bad._replace(images=bad.images / jnp.bfloat16(255))
        assert np.isfinite(step(STATE, scaled)[1]["loss"])


@pytest.mark.slow
def test_members_are_what_they_are_alone_with_another_generator():
    """Their weights, orders and the keys of their steps; JAX's rbg by itself would mix them up."""
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 3)

    def noise(params, batch, *, key):
        return LOSSES(params, batch) + jax.random.normal(key)

    def run(key):
        return train(make_train_step(noise, TX), init_state(MODEL, TX, key), DATA, key, epochs=1)

    many = jax.jit(jax.vmap(run))(keys)
    assert_close(jax.tree.map(lambda x: x[1], many), jax.jit(run)(keys[1]), 1e-6)
    assert len(np.unique(many[1]["loss"][:, 0, 0])) == 3


def test_non_finite_losses_are_named_by_step():
    check_finite(np.ones((2, 3)))
    check_finite(np.ones((0,)))
    with pytest.raises(NonFiniteLossError, match="loss of step 1878 is inf"):
        check_finite(np.array([1.0, np.inf, np.nan]), first_step=1876)
    with pytest.raises(NonFiniteLossError, match="loss of step 5 is nan: training has diverged"):
        check_finite(np.array([[1.0, 2.0, 3.0], [4.0, np.nan, 5.0]]))  # as `train` returns them
    with pytest.raises(NonFiniteLossError, match="loss of step 1 is nan: a label or index"):
        check_finite(jnp.float32(np.nan)[None, None])
