"""The step against float64 NumPy, the epoch against its steps, and the run against its epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from jax.test_util import check_grads

from jaxmnist import (
    MLP,
    Dataset,
    NonFiniteLossError,
    TrainState,
    batches,
    check_finite,
    classifier_metrics,
    classifier_objective,
    cross_entropy,
    epoch_order,
    evaluate,
    init_state,
    make_train_epoch,
    make_train_step,
    nll_loss,
    preprocess,
    train,
)
from tests.helpers import assert_close, counting

KEY = jax.random.key(0)
TX = optax.sgd(0.1)
MODEL = MLP()
OBJECTIVE = classifier_objective(MODEL.apply)
STATE = init_state(MODEL, TX, KEY)
LINEAR = MLP(hidden=())  # quicker to compile, where depth does not matter
LINEAR_STATE = init_state(LINEAR, TX, KEY)


def linear_objective():
    """The notebook's for a linear model, counted."""
    return counting(classifier_objective(LINEAR.apply))


def numpy_loss_and_grads(params, images, labels):
    """The MLP's mean cross-entropy and its gradient by hand, in float64."""
    layers = [params["params"][f"linear_{i}"] for i in range(len(params["params"]))]
    weights = [np.float64(layer["weight"]).T for layer in layers]
    biases = [np.float64(layer["bias"]) for layer in layers]
    inputs, x = [], (images.reshape(len(images), -1) / 255.0 - 0.5) / 0.5
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        inputs.append(x)
        x = x @ w + b
        if i < len(layers) - 1:
            x = np.maximum(x, 0)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(p[rows, labels]).mean()
    delta = p
    delta[rows, labels] -= 1
    delta /= len(labels)
    grads = {}
    for i in reversed(range(len(layers))):
        grads[f"linear_{i}"] = {"weight": delta.T @ inputs[i], "bias": delta.sum(axis=0)}
        delta = (delta @ weights[i].T) * (inputs[i] > 0)
    return loss, {"params": grads}


@pytest.mark.parametrize("jit", [False, True])
def test_one_step_equals_numpy_in_float64(toy, jit):
    batch = Dataset(toy.images[:64], toy.labels[:64])
    step = make_train_step(OBJECTIVE, TX)
    loss, grads = numpy_loss_and_grads(STATE.params, *batch)
    new, metrics = (jax.jit(step) if jit else step)(STATE, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, STATE.params, grads)
    assert_close(new.params, expected)
    # and the gradient itself, which the learning rate would hide
    assert_close(jax.tree.map(lambda p, q: (p - q) / 0.1, STATE.params, new.params), grads, 1e-4)
    got = jax.grad(lambda p: OBJECTIVE(p, batch).mean())(STATE.params)
    assert_close(got, grads)
    assert (new.step, new.step.dtype) == (1, jnp.int32)


def test_a_padded_step_equals_numpy_in_float64(toy):
    """The last 36 of 100 images in a batch of 64, whose other rows hold anything."""
    rows = np.r_[64:100, 0:28]
    images, labels = toy.images[rows], toy.labels[rows]
    loss, grads = numpy_loss_and_grads(STATE.params, images[:36], labels[:36])
    step = jax.jit(make_train_step(OBJECTIVE, TX))
    new, metrics = step(STATE, Dataset(images, labels), np.arange(64) < 36)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert_close(new.params, jax.tree.map(lambda p, g: p - 0.1 * g, STATE.params, grads))
    epoch = jax.jit(make_train_epoch(make_train_step(OBJECTIVE, TX), 64))
    first, _ = step(STATE, Dataset(toy.images[:64], toy.labels[:64]))
    loss, grads = numpy_loss_and_grads(first.params, images[:36], labels[:36])
    last, metrics = epoch(STATE, toy, np.arange(100))
    np.testing.assert_allclose(metrics["loss"][1], loss, rtol=1e-5)
    assert_close(last.params, jax.tree.map(lambda p, g: p - 0.1 * g, first.params, grads))


def test_gradients_numerically(toy):
    with jax.enable_x64(True):
        model = MLP(hidden=(8, 6))
        images = jnp.asarray(toy.images[:5].reshape(5, -1)[:, :20] / 255.0)
        params = jax.tree.map(jnp.float64, model.init(KEY, jnp.float32(images)))
        check_grads(
            lambda p: cross_entropy(model.apply(p, images), toy.labels[:5]).mean(),
            (params,),
            order=1,
            modes=["rev"],
        )


def test_jitted_equals_unjitted(toy):
    step = make_train_step(OBJECTIVE, TX)
    batch = Dataset(toy.images[:8], toy.labels[:8])
    assert_close(jax.jit(step)(STATE, batch), step(STATE, batch), 1e-6)


def test_float_batches_equal_raw_ones(toy):
    step = jax.jit(make_train_step(OBJECTIVE, TX))
    raw = step(STATE, Dataset(toy.images[:64], toy.labels[:64]))
    rows = preprocess(toy.images[:64])
    for images in (rows, rows.reshape(64, 28, 28), rows.reshape(64, 1, 28, 28)):
        assert_close(step(STATE, Dataset(images, toy.labels[:64])), raw, 1e-6)


def test_the_callers_state_survives_a_step(toy):
    jax.jit(make_train_step(OBJECTIVE, TX))(STATE, Dataset(toy.images[:8], toy.labels[:8]))
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(STATE))


def test_the_step_is_traced_once(toy):
    """From the first call on, for host and device batches, with a key in the state."""
    objective = counting(OBJECTIVE)
    step = jax.jit(make_train_step(objective, TX))
    state = STATE
    for put in (np.asarray, jnp.asarray, jax.device_put):
        batch = Dataset(put(toy.images[:64]), put(toy.labels[:64]))
        state, _ = step(state, batch)
    assert objective.traces == 1


@pytest.mark.parametrize("remainder", ["pad", "short"])
@pytest.mark.parametrize("batch_size", [64, 50, 100, 200])
def test_an_epoch_is_its_steps(toy, batch_size, remainder):
    """Also with a last batch of 36, or a single one of 100, which is trained on as one step."""
    step = make_train_step(OBJECTIVE, TX)
    single, order = STATE, epoch_order(KEY, 0, 100)
    epoch = jax.jit(make_train_epoch(step, batch_size, remainder=remainder))
    state, metrics = epoch(STATE, toy, order)
    losses = []
    for batch in batches(toy, batch_size, order=order):
        single, one = jax.jit(step)(single, batch)
        losses.append(one["loss"])
    np.testing.assert_allclose(metrics["loss"], losses, rtol=2e-6)
    assert_close(state, single, 2e-6)


@pytest.mark.parametrize("batch_size", [64, 50])
def test_a_remainder_that_is_dropped(toy, batch_size):
    step, order = make_train_step(OBJECTIVE, TX), epoch_order(KEY, 0, 100)
    epoch = make_train_epoch(step, batch_size, remainder="drop")
    state, metrics = jax.jit(epoch)(STATE, toy, order)
    full = 100 // batch_size * batch_size
    expected = jax.jit(make_train_epoch(step, batch_size))(STATE, toy, order[:full])
    assert_close((state, metrics), expected, 2e-6)
    assert state.step == len(metrics["loss"]) == 100 // batch_size
    with pytest.raises(ValueError, match="30 examples fill no batch of 64"):
        make_train_epoch(step, 64, remainder="drop")(STATE, toy, order[:30])


def test_a_run_traces_the_step_once(toy):
    """Five epochs with a short last batch, which is a second shape unless it is padded."""
    for remainder, traces in (("pad", 1), ("drop", 1), ("short", 2)):
        objective = counting(OBJECTIVE)
        step = make_train_step(objective, TX)
        epoch, state = jax.jit(make_train_epoch(step, remainder=remainder)), STATE
        for number in range(5):
            state, _ = epoch(state, toy, epoch_order(KEY, number, 100))
        assert objective.traces == traces
        assert state.step == (5 if remainder == "drop" else 10)


def test_the_program_never_calls_back_to_the_host(toy):
    epoch = make_train_epoch(make_train_step(OBJECTIVE, TX))
    program = str(jax.make_jaxpr(epoch)(STATE, toy, epoch_order(KEY, 0, 100)))
    assert "dot_general" in program
    assert "callback" not in program


def test_log_softmax_with_nll_trains_the_same(toy):
    order = epoch_order(KEY, 0, 100)
    results = []
    for log_probs, loss in ((False, cross_entropy), (True, nll_loss)):
        step = make_train_step(classifier_objective(MLP(log_probs=log_probs).apply, loss), TX)
        results.append(jax.jit(make_train_epoch(step))(STATE, toy, order))
    assert_close(results[0], results[1], 1e-6)


@pytest.mark.parametrize(
    "tx",
    [
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        optax.adam(1e-3),
        optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-3, 40))
        ),
        optax.MultiSteps(optax.sgd(0.1), 2),
    ],
    ids=["nesterov", "adam", "schedule", "accumulate"],
)
def test_any_optimizer(toy, tx):
    epoch = jax.jit(make_train_epoch(make_train_step(OBJECTIVE, tx), 10))
    state = init_state(MODEL, tx, KEY)
    means = []
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes int32 and float
        for number in range(4):
            state, metrics = epoch(state, toy, epoch_order(KEY, number, 100))
            means.append(metrics["loss"].mean())
    assert means[-1] < means[0]


def test_a_bare_function_and_a_loss_with_metrics(toy):
    def linear(params, images):
        return images @ params["w"]

    def squared(logits, labels):
        error = logits - jax.nn.one_hot(labels, 10)
        return jnp.mean(error**2), {"worst": jnp.abs(error).max()}

    params = {"w": jnp.zeros((784, 10))}
    state = TrainState(jnp.int32(0), params, TX.init(params))
    step = make_train_step(classifier_objective(linear, squared), TX)
    state, metrics = jax.jit(make_train_epoch(step, 64, remainder="short"))(
        state, toy, np.arange(100)
    )
    np.testing.assert_allclose(metrics["loss"][0], 0.1)
    assert metrics["worst"].shape == (2,)
    assert metrics["loss"][1] != metrics["loss"][0]


def test_a_run_is_its_epochs(toy):
    tx = optax.sgd(0.1, momentum=0.9)
    test = Dataset(toy.images[:30], toy.labels[:30])
    step = make_train_step(classifier_objective(LINEAR.apply), tx)
    start = init_state(LINEAR, tx, KEY)

    def run(key, state, dataset, test):
        return train(
            *(step, state, dataset, key),
            epochs=2,
            test=lambda state: evaluate(classifier_metrics(LINEAR.apply), state.params, test),
        )

    state, metrics = jax.jit(run)(KEY, start, toy, test)
    expected, epoch = start, jax.jit(make_train_epoch(step))
    score = jax.jit(lambda params: evaluate(classifier_metrics(LINEAR.apply), params, test))
    for number in range(2):
        expected, one = epoch(expected, toy, epoch_order(KEY, number, 100))
        scores = score(expected.params)
        np.testing.assert_allclose(metrics["loss"][number], one["loss"], rtol=2e-6)
        np.testing.assert_allclose(metrics["test_loss"][number], scores["loss"], rtol=2e-6)
        assert metrics["test_accuracy"][number] == scores["accuracy"]
    assert_close(state, expected, 2e-6)
    assert metrics["loss"].shape == (2, 2)


@pytest.mark.parametrize("remainder", ["pad", "short", "drop"])
def test_a_run_takes_batch_sizes_and_remainders(toy, remainder):
    step = make_train_step(classifier_objective(LINEAR.apply), TX)

    def run(state):
        return train(step, state, toy, KEY, epochs=1, batch_size=40, remainder=remainder)

    state, metrics = jax.jit(run)(LINEAR_STATE)
    epoch = jax.jit(make_train_epoch(step, 40, remainder=remainder))
    expected, one = epoch(LINEAR_STATE, toy, epoch_order(KEY, 0, 100))
    np.testing.assert_allclose(metrics["loss"][0], one["loss"], rtol=2e-6)
    assert_close(state, expected, 2e-6)


def test_a_step_of_ones_own_gets_whole_runs(toy):
    """Nothing of `TrainState` is asked of a state, nor anything of its metrics but a loss."""

    def step(state, batch, where=None):
        count, total = state
        rows = jnp.ones(batch.shape) if where is None else where.astype(jnp.float32)
        return (count + 1, total + jnp.sum(rows * batch)), {"loss": jnp.sum(rows)}

    data = np.arange(100, dtype=np.float32)
    start = jnp.int32(0), jnp.float32(0)
    state, metrics = jax.jit(lambda: train(step, start, data, KEY, epochs=3))()
    assert (int(state[0]), float(state[1])) == (6, 3 * data.sum())
    np.testing.assert_array_equal(metrics["loss"], [[64, 36]] * 3)


def test_init_state_separates_what_is_trained(toy):
    """Of a module with batch norm the statistics become the model state."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, images):
            x = linen.BatchNorm(use_running_average=True)(images)
            return linen.Dense(10)(x)

    variables = Net().init(KEY, np.zeros((1, 784), np.float32))
    state = init_state(Net(), TX, KEY)
    assert_close(state.params, {"params": variables["params"]}, 0)
    assert_close(state.model_state, {"batch_stats": variables["batch_stats"]}, 0)
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(TX.init(state.params))
    assert state.key.shape == ()
    assert not np.array_equal(jax.random.key_data(state.key), jax.random.key_data(KEY))


def test_init_state_takes_an_example_and_names_it():
    class Conv(linen.Module):
        @linen.compact
        def __call__(self, images):
            return linen.Dense(10)(linen.Conv(2, (3, 3))(images).reshape(len(images), -1))

    state = init_state(Conv(), TX, KEY, np.zeros((28, 28, 1), np.float32))
    assert state.params["params"]["Dense_0"]["kernel"].shape == (28 * 28 * 2, 10)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - Flax chooses the words
        init_state(Conv(), TX, KEY)
    (note,) = [note for note in error.value.__notes__ if "init_state" in note]
    assert note == "init_state's example= is one example for the model, here (784,)"


def test_non_finite_losses_are_named_by_step():
    check_finite(np.ones(3))
    check_finite(np.ones((2, 3)))
    check_finite(np.ones((0,)))
    with pytest.raises(NonFiniteLossError, match="loss of step 1878 is inf"):
        check_finite(np.array([1.0, np.inf, np.nan]), first_step=1876)
    with pytest.raises(NonFiniteLossError, match="loss of step 5 is nan: training has diverged"):
        check_finite(np.array([[1.0, 2.0, 3.0], [4.0, np.nan, 5.0]]))  # as `train` returns them
    with pytest.raises(NonFiniteLossError, match="loss of step 1 is nan: a label or an index"):
        check_finite(jnp.float32(np.nan)[None, None])
