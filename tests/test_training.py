"""The step against float64 NumPy, and what makes it a step that goes anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from jaxmnist import (
    MLP,
    Batch,
    NonFiniteLossError,
    TrainState,
    batches,
    check_finite,
    cross_entropy,
    epoch_order,
    init_state,
    make_train_epoch,
    make_train_step,
    nll_loss,
)

KEY = jax.random.key(0)
TX = optax.sgd(0.1)


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


def assert_close(got, expected, rtol=1e-5):
    """Relative to the largest entry of each array, as rounding is."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def counting(loss_fn=cross_entropy):
    """A loss that counts how often it is traced."""

    def counted(logits, labels, **kwargs):
        counted.traces += 1
        return loss_fn(logits, labels, **kwargs)

    counted.traces = 0
    return counted


@pytest.mark.parametrize("jit", [False, True])
def test_one_step_equals_numpy_in_float64(toy, jit):
    batch = Batch(toy.images[:64], toy.labels[:64])
    state = init_state(KEY, MLP(), TX)
    step = make_train_step(MLP().apply, TX)
    loss, grads = numpy_loss_and_grads(state.params, *batch)
    new, metrics = (jax.jit(step) if jit else step)(state, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
    assert_close(new.params, expected)
    # and the gradient itself, which the learning rate would hide
    assert_close(jax.tree.map(lambda p, q: (p - q) / 0.1, state.params, new.params), grads, 1e-4)
    got = jax.grad(
        lambda p: cross_entropy(MLP().apply(p, jnp.float32(batch.images) / 127.5 - 1), batch.labels)
    )(state.params)
    assert_close(got, grads)
    assert (new.step, new.step.dtype) == (1, jnp.int32)


def test_gradients_numerically(toy):
    with jax.enable_x64(True):
        model = MLP(hidden=(8, 6))
        images = jnp.asarray(toy.images[:5].reshape(5, -1)[:, :20] / 255.0)
        params = jax.tree.map(jnp.float64, model.init(KEY, jnp.float32(images)))
        check_grads(
            lambda p: cross_entropy(model.apply(p, images), toy.labels[:5]),
            (params,),
            order=1,
            modes=["rev"],
        )


def test_jitted_equals_unjitted(toy):
    step = make_train_step(MLP().apply, TX)
    state = init_state(KEY, MLP(), TX)
    batch = Batch(toy.images[:8], toy.labels[:8])
    assert_close(jax.jit(step)(state, batch), step(state, batch), 1e-6)


def test_float_batches_equal_raw_ones(toy):
    step = jax.jit(make_train_step(MLP().apply, TX))
    state = init_state(KEY, MLP(), TX)
    order = np.arange(64)
    raw = step(state, Batch(toy.images[:64], toy.labels[:64]))
    for flatten in (False, True):
        (batch,) = batches(toy, 64, order=order, flatten=flatten)
        assert_close(step(state, batch), raw, 1e-6)


def test_the_callers_state_survives_a_step(toy):
    state = init_state(KEY, MLP(), TX)
    jax.jit(make_train_step(MLP().apply, TX))(state, Batch(toy.images[:8], toy.labels[:8]))
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_the_step_is_traced_once(toy):
    loss = counting()
    step = jax.jit(make_train_step(MLP().apply, TX, loss))
    state = init_state(KEY, MLP(), TX)
    for _ in range(3):
        state, _ = step(state, Batch(toy.images[:64], toy.labels[:64]))
    assert loss.traces == 1


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("batch_size", [64, 50, 100])
def test_an_epoch_is_its_steps(toy, batch_size, pad):
    """Also with a last batch of 36, which is trained on and which counts as one step."""
    step = make_train_step(MLP().apply, TX)
    state = single = init_state(KEY, MLP(), TX)
    order = epoch_order(KEY, 0, 100)
    state, metrics = jax.jit(make_train_epoch(step, batch_size, pad=pad))(state, toy, order)
    losses = []
    for batch in batches(toy, batch_size, order=order):
        single, one = jax.jit(step)(single, batch)
        losses.append(one["loss"])
    np.testing.assert_allclose(metrics["loss"], losses, rtol=2e-6)
    assert_close(state, single, 2e-6)


def test_a_run_traces_the_step_once(toy):
    """Five epochs with a short last batch; without padding the short batch is a second shape."""
    for pad, traces in ((True, 1), (False, 2)):
        loss = counting()
        epoch = jax.jit(make_train_epoch(make_train_step(MLP().apply, TX, loss), pad=pad))
        state = init_state(KEY, MLP(), TX)
        for number in range(5):
            state, _ = epoch(state, toy, epoch_order(KEY, number, 100))
        assert loss.traces == traces
        assert state.step == 10


def test_the_program_never_calls_back_to_the_host(toy):
    epoch = make_train_epoch(make_train_step(MLP().apply, TX))
    program = str(jax.make_jaxpr(epoch)(init_state(KEY, MLP(), TX), toy, epoch_order(KEY, 0, 100)))
    assert "dot_general" in program
    assert "callback" not in program


def test_log_softmax_with_nll_trains_the_same(toy):
    order = epoch_order(KEY, 0, 100)
    results = []
    for log_probs, loss in ((False, cross_entropy), (True, nll_loss)):
        model = MLP(log_probs=log_probs)
        epoch = make_train_epoch(make_train_step(model.apply, TX, loss))
        results.append(jax.jit(epoch)(init_state(KEY, model, TX), toy, order))
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
    epoch = jax.jit(make_train_epoch(make_train_step(MLP().apply, tx), 10))
    state = init_state(KEY, MLP(), tx)
    means = []
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes int32 and float
        for number in range(4):
            state, metrics = epoch(state, toy, epoch_order(KEY, number, 100))
            means.append(metrics["loss"].mean())
    assert means[-1] < means[0]


def test_a_bare_function_and_a_loss_with_metrics(toy):
    def linear(params, images):
        return images @ params["w"]

    def squared(scores, labels):
        error = scores - jax.nn.one_hot(labels, 10)
        return jnp.mean(error**2), {"worst": jnp.abs(error).max()}

    params = {"w": jnp.zeros((784, 10))}
    state = TrainState(jnp.int32(0), params, TX.init(params))
    epoch = make_train_epoch(make_train_step(linear, TX, squared), 64, pad=False)
    state, metrics = jax.jit(epoch)(state, toy, np.arange(100))
    np.testing.assert_allclose(metrics["loss"][0], 0.1)
    assert metrics["worst"].shape == (2,)
    assert metrics["loss"][1] != metrics["loss"][0]


def test_a_loss_that_is_no_scalar_is_named(toy):
    step = make_train_step(MLP().apply, TX, lambda x, y: cross_entropy(x, y, reduction="none"))
    with pytest.raises(ValueError, match=r"loss_fn must return a scalar, not shape \(100,\)"):
        step(init_state(KEY, MLP(), TX), Batch(*toy))


def test_a_loss_without_where_is_named(toy):
    step = make_train_step(MLP().apply, TX, lambda x, y: cross_entropy(x, y))
    epoch = make_train_epoch(step, 64)
    with pytest.raises(TypeError, match=r"where.*pad=False"):
        epoch(init_state(KEY, MLP(), TX), toy, np.arange(100))


def test_non_finite_losses_are_named_by_step():
    check_finite(np.ones(3))
    with pytest.raises(NonFiniteLossError, match="loss of step 1878 is inf"):
        check_finite(np.array([1.0, np.inf, np.nan]), first_step=1876)
