"""A step of any objective: losses, padding, keys, state that is not trained, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from jaxmnist import (
    MLP,
    Dataset,
    TrainState,
    checkpoint,
    classifier_objective,
    cross_entropy,
    epoch_order,
    init_state,
    make_train_epoch,
    make_train_step,
    norms,
    preprocess,
    train,
)
from jaxmnist.objective import as_scalar
from tests.helpers import assert_close, counting

KEY = jax.random.key(0)
TX = optax.sgd(0.1)
LINEAR = MLP(hidden=())
RNG = np.random.default_rng(0)
REGRESSION = {
    "x": RNG.normal(size=(10, 3)).astype(np.float32),
    "y": RNG.normal(size=10).astype(np.float32),
    "weight": RNG.uniform(size=10).astype(np.float32),
}
START = jnp.asarray(RNG.normal(size=3), jnp.float32)


def start(params=START, tx=TX, **more):
    return TrainState(jnp.int32(0), params, tx.init(params), **more)


def errors(params, batch):
    return (batch["x"] @ params - batch["y"]) ** 2


def by_hand(params, rows):
    """The mean squared error of these rows, and its gradient, in float64."""
    x, y = np.float64(REGRESSION["x"][rows]), np.float64(REGRESSION["y"][rows])
    error = x @ np.float64(params) - y
    return np.mean(error**2), 2 * x.T @ error / len(error)


OBJECTIVES = {
    "per example": errors,
    "scalar": lambda params, batch: errors(params, batch).mean(),
    "where": lambda params, batch, *, where: errors(params, batch).mean(where=where),
    "metrics": lambda params, batch: (errors(params, batch), {"x": batch["x"][0]}),
    "all": lambda params, batch, *, key, model_state, where: (
        errors(params, batch),
        {"n": jnp.int32(len(batch["y"])) if where is None else where.sum()},
        model_state + 1,
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_forms_of_an_objective(name):
    """Each gives the loss, the gradient and the update that NumPy does."""
    state = start(key=KEY, model_state=jnp.int32(5))
    objective = counting(OBJECTIVES[name])
    new, metrics = jax.jit(make_train_step(objective, TX))(state, REGRESSION)
    loss, gradient = by_hand(START, np.arange(10))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert_close(new.params, START - 0.1 * gradient)
    assert new.model_state == (6 if name == "all" else 5)
    assert set(metrics) == {"loss"} | {"metrics": {"x"}, "all": {"n"}}.get(name, set())
    assert objective.traces == 1


@pytest.mark.parametrize("name", ["per example", "where", "all"])
def test_a_padded_last_batch_equals_numpy(name):
    """Ten rows in batches of four: the last two are alone, whatever fills their batch up."""
    step = make_train_step(OBJECTIVES[name], TX)
    state = start(key=KEY, model_state=jnp.int32(0))
    order = RNG.permutation(10)
    state, metrics = jax.jit(make_train_epoch(step, 4))(state, REGRESSION, order)
    params = np.float64(START)
    for i, rows in enumerate((order[:4], order[4:8], order[8:])):
        loss, gradient = by_hand(params, rows)
        np.testing.assert_allclose(metrics["loss"][i], loss, rtol=1e-5)
        params = params - 0.1 * gradient
    assert_close(state.params, params)
    if name == "all":
        assert metrics["n"].tolist() == [4, 4, 2]


@pytest.mark.parametrize("name", ["per example", "where", "all"])
def test_what_fills_a_batch_up_may_hold_anything(name):
    """It counts neither in the loss nor in the gradient."""
    where = np.arange(10) < 7
    junk = {**REGRESSION, "y": np.where(where, REGRESSION["y"], np.float32(1e6))}
    state = start(key=KEY, model_state=0)
    new, metrics = jax.jit(make_train_step(OBJECTIVES[name], TX))(state, junk, where)
    loss, gradient = by_hand(START, np.arange(7))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert_close(new.params, START - 0.1 * gradient)


def test_example_weights():
    """Weights are one more array of the dataset."""

    def weighted(params, batch):
        return batch["weight"] * errors(params, batch)

    new, metrics = jax.jit(make_train_step(weighted, TX))(start(), REGRESSION)
    x, y, weight = (np.float64(REGRESSION[name]) for name in ("x", "y", "weight"))
    error = x @ np.float64(START) - y
    np.testing.assert_allclose(metrics["loss"], np.mean(weight * error**2), rtol=1e-5)
    assert_close(new.params, START - 0.1 * 2 * x.T @ (weight * error) / 10)


def test_keyword_arguments_that_are_not_named_are_not_passed():
    """**kwargs may go to somebody who knows other names."""
    seen = {}

    def objective(params, batch, **kwargs):
        seen.update(kwargs)
        return errors(params, batch)

    make_train_step(objective, TX)(start(key=KEY, model_state=1), REGRESSION)
    assert seen == {}


def test_as_scalar_is_what_value_and_grad_takes():
    scalar = as_scalar(lambda params, batch: (errors(params, batch), {"a": jnp.int32(1)}))
    (loss, (metrics, rest)), grads = jax.value_and_grad(scalar, has_aux=True)(START, REGRESSION)
    expected, gradient = by_hand(START, np.arange(10))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert_close(grads, gradient)
    assert (metrics, rest) == ({"a": jnp.int32(1)}, None)


# Keys.


def noisy(params, batch, *, key):
    """Dropout on the inputs; the mask is told."""
    kept = jax.random.bernoulli(key, 0.5, batch["x"].shape)
    return errors(params, {**batch, "x": jnp.where(kept, batch["x"], 0)}), {"kept": kept}


def test_a_steps_key_is_the_runs_folded_with_the_step():
    step = jax.jit(make_train_step(noisy, TX))
    state, masks = start(key=KEY), []
    for number in range(4):
        state, metrics = step(state, REGRESSION)
        expected = jax.random.bernoulli(jax.random.fold_in(KEY, number), 0.5, (10, 3))
        np.testing.assert_array_equal(metrics["kept"], expected)
        masks.append(metrics["kept"].tobytes())
    assert len(set(masks)) == 4
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(KEY))


def test_masks_are_equal_after_a_resume(tmp_path):
    """From a checkpoint in the middle of an epoch, and by epochs or by single steps."""
    step = make_train_step(noisy, optax.sgd(0.1, momentum=0.9))
    state = start(tx=optax.sgd(0.1, momentum=0.9), key=KEY)
    single = jax.jit(step)
    states, masks = [state], []
    for i in range(0, 8, 2):
        state, metrics = single(state, jax.tree.map(lambda x, i=i: x[i : i + 2], REGRESSION))
        states.append(state)
        masks.append(metrics["kept"])
    path = checkpoint.save(tmp_path, states[2])
    resumed = checkpoint.load(path, jax.eval_shape(lambda: state)).state
    for i in (4, 6):
        resumed, metrics = single(resumed, jax.tree.map(lambda x, i=i: x[i : i + 2], REGRESSION))
        np.testing.assert_array_equal(metrics["kept"], masks[i // 2])
    assert_close(resumed, state, 0)
    whole, metrics = jax.jit(make_train_epoch(step, 2))(states[0], REGRESSION, np.arange(8))
    np.testing.assert_array_equal(metrics["kept"], masks)
    assert_close(whole, state, 1e-6)


def test_members_of_a_population_have_masks_of_their_own():
    """Those of the single runs."""

    def run(key):
        return train(step, start(key=key), REGRESSION, KEY, epochs=1, batch_size=5)

    step, keys = make_train_step(noisy, TX), jax.random.split(KEY, 3)
    states, metrics = jax.jit(jax.vmap(run))(keys)
    for i in range(3):
        state, one = jax.jit(run)(keys[i])
        np.testing.assert_array_equal(metrics["kept"][i], one["kept"])
        assert_close(jax.tree.map(lambda x, i=i: x[i], states), state, 1e-6)
    assert len({mask.tobytes() for mask in metrics["kept"]}) == 3


# State that is not trained: a network with batch norm and dropout.


class Net(linen.Module):
    @linen.compact
    def __call__(self, images, mask=None, train=True):
        norm = linen.BatchNorm(use_running_average=not train, momentum=0.9)
        x = norm(images, mask=mask)
        x = linen.Dropout(0.5, deterministic=not train)(x)
        return linen.Dense(10)(x)


class Init:
    """Its variables, for statistics that are not used yet."""

    @staticmethod
    def init(key, images):
        return Net().init(key, images, train=False)

    apply = None


def batch_norm(params, batch, *, key, model_state, where):
    mask = None if where is None else where[:, None]
    logits, model_state = Net().apply(
        params | model_state,
        preprocess(batch.images),
        mask,
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )
    return cross_entropy(logits, batch.labels), {}, model_state


@pytest.mark.parametrize("tx", [TX, optax.adamw(0.01, weight_decay=0.5)], ids=["sgd", "adamw"])
def test_batch_statistics_equal_numpy(toy, tx):
    """The padded last batch included; weight decay touches the parameters and no statistics."""
    state = init_state(Init, tx, KEY)
    assert set(state.params) == {"params"}
    assert set(state.model_state) == {"batch_stats"}
    order = epoch_order(KEY, 0, 100)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        epoch = jax.jit(make_train_epoch(make_train_step(batch_norm, tx), 40))
        new, _ = epoch(state, toy, order)
    mean, var = np.zeros(784), np.ones(784)
    rows = np.float64(preprocess(toy.images))[np.asarray(order)]
    for i in range(0, 100, 40):
        mean = 0.9 * mean + 0.1 * rows[i : i + 40].mean(axis=0)
        var = 0.9 * var + 0.1 * rows[i : i + 40].var(axis=0)
    stats = new.model_state["batch_stats"]["BatchNorm_0"]
    assert_close(stats["mean"], mean)
    assert_close(stats["var"], var)
    assert new.params["params"]["Dense_0"]["kernel"].shape == (784, 10)
    held = {leaf.shape for leaf in jax.tree.leaves(new.opt_state)}
    assert held <= {(), (784,), (784, 10), (10,)}
    # the gradient is the parameters' alone
    assert jax.tree.structure(new.params) == jax.tree.structure(state.params)


def test_a_run_with_a_model_state_is_evaluated_without_dropout(toy):
    """`test` is given the state, so it takes the running statistics and no mask."""

    def test(state):
        logits = Net().apply(state.params | state.model_state, rows, train=False)
        return {"loss": cross_entropy(logits, toy.labels).mean()}

    rows, state = preprocess(toy.images), init_state(Init, TX, KEY)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        step = make_train_step(batch_norm, TX)
        run = jax.jit(lambda s: train(step, s, toy, KEY, epochs=2, batch_size=50, test=test))
        last, metrics = run(state)
        np.testing.assert_allclose(metrics["test_loss"][-1], test(last)["loss"], rtol=1e-5)
    assert metrics["test_loss"][-1] < metrics["test_loss"][0]


# Gradients of one's own.


def clipped(scalar):
    """Per-example gradients, each clipped to a norm of 0.5."""

    def one(params, row, *rest):
        batch = jax.tree.map(lambda x: x[None], row)
        result, grads = jax.value_and_grad(scalar, has_aux=True)(params, batch, *rest)
        return result, optax.tree.scale(jnp.minimum(1, 0.5 / optax.tree.norm(grads)), grads)

    def each(params, batch, key, model_state, where):
        rest = (None, None, None)
        results = jax.vmap(one, (None, 0, *rest))(params, batch, key, model_state, None)
        return jax.tree.map(lambda x: x.mean(axis=0), results)

    return each


def test_per_example_clipping_equals_clipping_by_hand():
    step = make_train_step(errors, TX, value_and_grad=clipped)
    new, metrics = jax.jit(step)(start(), REGRESSION)
    total = np.zeros(3)
    sizes = []
    for row in range(10):
        _, gradient = by_hand(START, [row])
        sizes.append(np.linalg.norm(gradient))
        total += gradient * min(1, 0.5 / sizes[-1])
    assert min(sizes) < 0.5 < max(sizes)
    assert_close(new.params, START - 0.1 * total / 10)
    np.testing.assert_allclose(metrics["loss"], by_hand(START, np.arange(10))[0], rtol=1e-5)


def test_sharpness_aware_minimisation_equals_the_same_by_hand():
    """The gradient at the point 0.05 up the gradient (P. Foret et al., 2021)."""

    def sharp(scalar):
        gradient = jax.value_and_grad(scalar, has_aux=True)

        def both(params, *rest):
            result, grads = gradient(params, *rest)
            scale = 0.05 / optax.tree.norm(grads)
            up = jax.tree.map(lambda p, g: p + scale * g, params, grads)
            return result, gradient(up, *rest)[1]

        return both

    new, metrics = jax.jit(make_train_step(errors, TX, value_and_grad=sharp))(start(), REGRESSION)
    loss, gradient = by_hand(START, np.arange(10))
    up = np.float64(START) + 0.05 * gradient / np.linalg.norm(gradient)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    expected = START - 0.1 * by_hand(up, np.arange(10))[1]
    assert_close(new.params, expected)
    assert np.abs(expected - (START - 0.1 * gradient)).max() > 1e-3

    # optax's own, which is given the gradient's function
    up = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    tx = optax.contrib.sam(TX, up, 2, opaque_mode=True, reset_state=False)
    with jax.numpy_dtype_promotion("standard"):
        same, _ = jax.jit(make_train_step(errors, tx))(start(tx=tx), REGRESSION)
    assert_close(same.params, expected, 1e-4)


# What is logged.


def test_norms_are_optaxs():
    step = jax.jit(make_train_step(errors, optax.sgd(0.1, momentum=0.9), log=norms))
    state = start(tx=optax.sgd(0.1, momentum=0.9))
    for _ in range(2):
        gradient = jax.grad(lambda p: errors(p, REGRESSION).mean())(state.params)
        new, metrics = step(state, REGRESSION)
        update = new.params - state.params
        np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-5)
        np.testing.assert_allclose(metrics["param_norm"], optax.tree.norm(state.params), rtol=1e-6)
        np.testing.assert_allclose(metrics["update_norm"], optax.tree.norm(update), rtol=1e-4)
        state = new
    assert set(metrics) == {"loss", "grad_norm", "update_norm", "param_norm"}


def test_a_learning_rate_schedule_is_logged():
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 8)

    def log(state, grads, updates):
        return {"rate": rate(state.step), "ratio": jnp.linalg.norm(updates) / norm(grads)}

    norm = jnp.linalg.norm
    step = make_train_step(errors, optax.sgd(rate), log=log)
    with jax.numpy_dtype_promotion("standard"):
        epoch = jax.jit(make_train_epoch(step, 2))
        _, metrics = epoch(start(tx=optax.sgd(rate)), REGRESSION, np.arange(10))
        expected = [rate(i) for i in range(5)]
    np.testing.assert_allclose(metrics["rate"], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["ratio"], expected, rtol=1e-5, atol=1e-7)
    assert len(set(metrics["rate"].tolist())) == 5


def test_schedule_free_is_tested_at_its_own_point():
    """What is trained and what is evaluated are two points."""
    tx = optax.contrib.schedule_free(optax.sgd(0.05), 0.05, b1=0.9)

    def test(state):
        params = optax.contrib.schedule_free_eval_params(state.opt_state, state.params)
        return {"loss": errors(params, REGRESSION).mean()}

    with jax.numpy_dtype_promotion("standard"):
        state, step = start(tx=tx), make_train_step(errors, tx)
        state = jax.tree.map(jnp.copy, state)
        run = jax.jit(lambda s: train(step, s, REGRESSION, KEY, epochs=4, batch_size=5, test=test))
        last, metrics = run(state)
        params = optax.contrib.schedule_free_eval_params(last.opt_state, last.params)
    z = np.float64(last.opt_state.z)
    expected = (np.float64(last.params) - 0.1 * z) / 0.9  # y = (1 - b1) z + b1 x
    assert_close(params, expected, 1e-4)
    np.testing.assert_allclose(
        metrics["test_loss"][-1],
        np.mean((REGRESSION["x"] @ expected - REGRESSION["y"]) ** 2),
        rtol=1e-4,
    )
    assert np.abs(last.params - expected).max() > 1e-4


# Flags, and what a profile shows.


@pytest.mark.slow
def test_under_disable_jit_and_x64(toy):
    """The step, the epoch and the run give the jitted numbers, int32 steps and no wider floats."""
    few = Dataset(toy.images[:10], toy.labels[:10])
    objective = classifier_objective(LINEAR.apply)
    step = make_train_step(objective, TX, log=norms)
    state = init_state(LINEAR, TX, KEY)

    def run(remainder):
        def fn(state):
            return train(step, state, few, KEY, epochs=2, batch_size=4, remainder=remainder)

        return fn

    for remainder in ("pad", "short", "drop"):
        expected = jax.jit(run(remainder))(state)
        with jax.disable_jit():
            assert_close(run(remainder)(state), expected, 2e-6)
        with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
            wide = jax.jit(run(remainder))(state)
        assert_close(wide, expected, 2e-6)
        same = jax.tree.map(lambda a, b: a.dtype == b.dtype, wide, expected)
        assert all(jax.tree.leaves(same))
    with jax.disable_jit():  # fewer examples than one batch, of which a scan would have no step
        epoch = make_train_epoch(step, 64, remainder="short")
        got = epoch(state, few, np.arange(10))
    assert_close(got, jax.jit(epoch)(state, few, np.arange(10)), 2e-6)


def test_in_float64(toy):
    """Parameters in float64 stay so, under strict promotion."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        rows = np.float64(preprocess(toy.images))
        params = jax.tree.map(jnp.float64, init_state(LINEAR, TX, KEY).params)
        state = TrainState(jnp.int32(0), params, TX.init(params))
        data = Dataset(rows, toy.labels.astype(np.int64))
        epoch = jax.jit(
            make_train_epoch(make_train_step(classifier_objective(LINEAR.apply), TX), 64)
        )
        new, metrics = epoch(state, data, np.arange(100))
        assert {leaf.dtype for leaf in jax.tree.leaves(new.params)} == {np.dtype(np.float64)}
        assert (metrics["loss"].dtype, new.step.dtype) == (np.float64, np.int32)


def test_named_scopes(toy):
    """A profile tells the parts of a step from each other."""
    model = MLP(hidden=(8,))
    state = init_state(model, TX, KEY)
    step = jax.jit(make_train_step(classifier_objective(model.apply), TX))
    text = step.lower(state, toy).as_text(debug_info=True)
    for scope in ("gradient", "update", "objective)", "transform", "loss", "linear_0", "linear_1"):
        assert f"{scope}/" in text, scope
    assert "gradient/jvp(objective)/transform/" in text
    assert "transpose(jvp(objective))/MLP/linear_0/" in text
