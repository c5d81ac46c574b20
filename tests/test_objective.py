"""What an objective is given and gives: keywords, padding, keys, state that is not trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmnist.losses import cross_entropy
from jaxmnist.objective import classifier_objective
from jaxmnist.training import TrainState, make_train_epoch, make_train_step, train
from jaxmnist.transforms import preprocess
from tests.helpers import assert_close

KEY = jax.random.key(0)
TX = optax.sgd(0.1)
RNG = np.random.default_rng(0)
REGRESSION = {
    "x": RNG.normal(size=(10, 3)).astype(np.float32),
    "y": RNG.normal(size=10).astype(np.float32),
}
START = jnp.asarray(RNG.normal(size=3), jnp.float32)


def start(params=START, tx=TX, **more):
    return TrainState.create(params, tx, **more)


def errors(params, batch):
    return (batch["x"] @ params - batch["y"]) ** 2


def by_hand(params, rows):
    """The mean squared error of these rows, and its gradient, in float64."""
    x, y = np.float64(REGRESSION["x"][rows]), np.float64(REGRESSION["y"][rows])
    error = x @ np.float64(params) - y
    return np.mean(error**2), 2 * x.T @ error / len(error)


# The keywords.


def asking(params, batch, *, key=None, model_state=None, where=None):
    """Tells what it is given, as a loss of 1, 2 and 4 added up."""
    told = 1 * (key is not None) + 2 * (model_state is not None) + 4 * (where is not None)
    return jnp.sum(params) * 0 + told


class Asking:
    def __call__(self, params, batch, *, key, model_state, where):
        return asking(params, batch, key=key, model_state=model_state, where=where)

    def method(self, params, batch, key, where=None):
        return asking(params, batch, key=key, where=where)


def passing_on(objective):
    """A decorator that names nothing."""

    @functools.wraps(objective)
    def passed(*args, **kwargs):
        return objective(*args, **kwargs)

    return passed


@functools.wraps(lambda params, batch: None)
def keyed(params, batch, *, key=None):
    """A decorator asks for a key of its own, the objective within for none."""
    return asking(params, batch, key=key)


ASKING = {
    "decorated": (passing_on(asking), 7),
    "decorated object": (passing_on(Asking()), 7),
    "decorated method": (passing_on(Asking().method), 5),
    "decorator's own": (keyed, 1),
    "jit of a decorator's": (jax.jit(passing_on(keyed)), 1),
    "function": (asking, 7),
    "jit": (jax.jit(asking), 7),
    "object": (Asking(), 7),
    "method": (Asking().method, 5),
    "none": (lambda p, b: asking(p, b), 0),
    "star": (lambda p, b, key=None: asking(p, b, key=key), 1),
    "own default": (lambda p, b, key=KEY: asking(p, b, key=None if key is KEY else key), 0),
    "partial of partial": (
        functools.partial(functools.partial(asking, where=None), model_state=None),
        1,
    ),
    "jit of partial": (jax.jit(functools.partial(asking, model_state=None)), 5),
}


@pytest.mark.parametrize("case", ASKING)
def test_an_objective_is_given_what_its_signature_names(case):
    """And only the step of one that is given `where` takes it."""
    objective, told = ASKING[case]
    state, where = start(key=KEY, model_state=jnp.ones(3)), np.ones(10, bool)
    step = make_train_step(objective, TX)
    if told & 4:
        assert step(state, REGRESSION, where)[1]["loss"] == told
    else:
        with pytest.raises(TypeError, match="positional argument"):
            step(state, REGRESSION, where)
    assert step(state, REGRESSION)[1]["loss"] == told & 3


# The forms of a result, and the last batch.

OBJECTIVES = {
    "per example": errors,
    "scalar": lambda params, batch: errors(params, batch).mean(),
    "where": lambda params, batch, *, where: errors(params, batch).mean(where=where),
    "masked by the step": lambda params, batch, *, where: errors(params, batch),
    "metrics": lambda params, batch: (errors(params, batch), {"x": batch["x"][0, 0]}),
    "all": lambda params, batch, *, key, model_state, where: (
        errors(params, batch),
        {"n": jnp.int32(len(batch["y"])) if where is None else where.sum()},
        model_state + 1,
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_forms_of_an_objective(name):
    """Each gives the losses, gradients and updates of NumPy, the last two rows included."""
    order = RNG.permutation(10)
    state = start(key=KEY, model_state=jnp.int32(5))
    step = make_train_step(OBJECTIVES[name], TX)
    state, metrics = jax.jit(make_train_epoch(step, 4))(state, REGRESSION, order)
    params = np.float64(START)
    for i, rows in enumerate((order[:4], order[4:8], order[8:])):
        loss, gradient = by_hand(params, rows)
        np.testing.assert_allclose(metrics["loss"][i], loss, rtol=1e-5)
        params = params - 0.1 * gradient
    assert_close(state.params, params)
    assert state.model_state == (8 if name == "all" else 5)
    assert set(metrics) == {"loss"} | {"metrics": {"x"}, "all": {"n"}}.get(name, set())
    if name == "all":
        assert metrics["n"].tolist() == [4, 4, 2]


def test_an_example_that_the_order_leaves_out_has_no_effect():
    """Even if it is not finite: padding is of the batch's own rows."""
    data = {name: values.copy() for name, values in REGRESSION.items()}
    step = make_train_step(OBJECTIVES["masked by the step"], TX)
    epoch = jax.jit(make_train_epoch(step, 4))
    expected = epoch(start(), data, np.arange(1, 8))
    data["x"][[0, 8, 9]] = np.inf
    assert_close(epoch(start(), data, np.arange(1, 8)), expected, 0)
    assert np.isfinite(expected[0].params).all()


def test_metrics_that_do_not_fit_together():
    step = make_train_step(lambda p, b: (errors(p, b), {"each": errors(p, b)}), TX)
    with pytest.raises(ValueError, match="metrics of the batches need one shape"):
        make_train_epoch(step, 4)(start(), REGRESSION, np.arange(10))


BATCHES = {
    "none": (lambda p, b, *, key: p[0] + jax.random.uniform(key), None),
    "a key": (lambda p, b: p[0] + jax.random.uniform(b), jax.random.key(1)),
    "a graph": (
        lambda p, b: jnp.mean(b["nodes"] @ p) + jnp.mean(b["edges"]),
        {"nodes": np.ones((3, 3)), "edges": np.ones((7, 2))},
    ),
    "losses beside others": (
        lambda p, b: errors(p, b["labelled"]) + jnp.mean(b["more"] @ p),
        {"labelled": REGRESSION, "more": np.ones((70, 3))},
    ),
}


@pytest.mark.parametrize("case", BATCHES)
def test_a_step_takes_any_batch(case):
    objective, batch = BATCHES[case]
    step = jax.jit(make_train_step(objective, TX))
    key = jax.random.fold_in(start(key=KEY).key, 0)
    more = {"key": key} if case == "none" else {}
    expected = jnp.mean(objective(START, batch, **more))
    np.testing.assert_allclose(step(start(key=KEY), batch)[1]["loss"], expected, rtol=1e-6)


def test_classifier_objective_changes_the_images_first(toy):
    """`augment`, with the step's key, then `transform`, then the model; labels stay in place."""

    def augment(key, images):
        return images // 2 + jax.random.bits(key, images.shape, np.uint8) // 4

    def apply(params, images):
        return images @ params

    params = jnp.asarray(RNG.normal(size=(784, 10)), jnp.float32)
    objective = classifier_objective(
        apply,
        lambda x, y: 2 * cross_entropy(x, y),
        transform=lambda x: preprocess(x + 1),
        augment=augment,
    )
    state = start(params, key=KEY)
    _, metrics = jax.jit(make_train_step(objective, TX))(state, toy)

    @jax.jit
    def expected(key):
        images = augment(key, toy.images) + 1
        return 2 * cross_entropy(preprocess(images) @ params, toy.labels).mean()

    np.testing.assert_allclose(
        metrics["loss"], expected(jax.random.fold_in(state.key, 0)), rtol=1e-6
    )


# Keys.


def test_no_key_is_used_twice():
    """Every step's is another, none is among those that the run's key may have been split into."""

    def told(params, batch, *, key):
        return errors(params, batch), {"key": jax.random.key_data(key)}

    state, step = start(key=KEY), make_train_step(told, TX)
    _, metrics = train(step, state, REGRESSION, KEY, epochs=3, batch_size=5)
    used = {tuple(key) for key in metrics["key"].reshape(-1, 2).tolist()}
    split = {tuple(key) for key in jax.random.key_data(jax.random.split(KEY, 100)).tolist()}
    assert len(used) == 6
    assert not used & split
    keys = [jax.random.key_data(jax.random.fold_in(state.key, i)).tolist() for i in range(6)]
    assert metrics["key"].reshape(-1, 2).tolist() == keys
