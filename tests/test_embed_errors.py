"""What goes wrong in a program of one's own is one error that names the cause."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from jaxmnist import (
    MLP,
    Batch,
    Dataset,
    NonFiniteLossError,
    TrainState,
    check_finite,
    cross_entropy,
    evaluate,
    init_state,
    make_train_epoch,
    make_train_step,
    nll_loss,
    train,
)

KEY = jax.random.key(0)
MODEL = MLP(hidden=(8,))
TX = optax.sgd(0.1)
STATE = init_state(KEY, MODEL, TX)


@pytest.fixture(autouse=True)
def _no_type_checks(monkeypatch):
    """As for users: the type checks of the tests would come before the library's own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def either(jit):
    return jax.jit if jit else lambda f: f


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda scores: scores[:, 0], r"has shape \(100,\)"),
        (lambda scores: scores.sum(), r"has shape \(\)"),
        (lambda scores: scores[:, None], r"has shape \(100, 1, 10\)"),
        (lambda scores: scores[1:], r"has shape \(99, 10\)"),
        (lambda scores: scores.T, r"has shape \(10, 100\)"),
        (lambda scores: (scores, {}), "is a tuple"),
    ],
    ids=["no classes", "scalar", "an axis more", "an example less", "transposed", "tuple"],
)
def test_a_models_output(toy, change, named, jit):
    named = f"model's output {named}.*one row of scores for each label"

    def apply(params, images):
        return change(MODEL.apply(params, images))

    for loss in (cross_entropy, nll_loss):
        step = either(jit)(make_train_step(apply, TX, loss))
        with pytest.raises(ValueError, match=named):
            step(STATE, Batch(*toy))
    with pytest.raises(ValueError, match=named.replace("99", "999").replace("100", "1000")):
        either(jit)(lambda params: evaluate(apply, params, toy))(STATE.params)


@pytest.mark.parametrize("wrong", [-1, 10])
def test_a_label_outside_the_classes(toy, wrong):
    """An error where the label can be seen; in a compiled program NaN, which check_finite names."""
    labels = toy.labels.copy()
    labels[70] = wrong
    bad = Dataset(toy.images, jnp.asarray(labels))
    message = f"label {wrong} in row 70 is outside the classes 0..9"
    step = make_train_step(MODEL.apply, TX)
    with pytest.raises(ValueError, match=message):
        step(STATE, Batch(*bad))
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda state: step(state, Batch(*bad)))(STATE)  # a constant of the program
    with pytest.raises(ValueError, match=message):
        evaluate(MODEL.apply, STATE.params, bad)
    with pytest.raises(ValueError, match=message):
        train(KEY, toy, MODEL, TX, epochs=1, test=bad)

    _, metrics = jax.jit(step)(STATE, Batch(*bad))
    with pytest.raises(NonFiniteLossError, match=r"loss of step 1 is nan: a label .* out of range"):
        check_finite(np.asarray(metrics["loss"])[None])
    _, metrics = jax.jit(make_train_epoch(step))(STATE, bad, np.arange(100))
    with pytest.raises(NonFiniteLossError, match=r"loss of step 2 is nan.* label .* out of range"):
        check_finite(jax.device_get(metrics["loss"]))


def test_an_order_that_leaves_the_dataset(toy):
    """JAX itself would take the nearest image and say nothing."""
    epoch = jax.jit(make_train_epoch(make_train_step(MODEL.apply, TX), 20))
    order = np.arange(100)
    order[50] = 100
    _, metrics = epoch(STATE, toy, order)
    assert np.isfinite(metrics["loss"][:2]).all()
    with pytest.raises(NonFiniteLossError, match=r"loss of step 3 is nan.* index .* out of range"):
        check_finite(jax.device_get(metrics["loss"]))


def test_a_dataset_with_fewer_labels_than_images(toy):
    epoch = make_train_epoch(make_train_step(MODEL.apply, TX))
    with pytest.raises(ValueError, match="100 images and 90 labels"):
        epoch(STATE, Dataset(toy.images, toy.labels[:90]), np.arange(100))


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one(size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, not {size}"):
        make_train_epoch(make_train_step(MODEL.apply, TX), size)


@pytest.mark.parametrize(
    "result",
    [
        lambda loss: None,
        lambda loss: (loss, loss),
        lambda loss: (loss, {}, {}),
        lambda loss: [loss, {}],
        lambda loss: {"loss": loss},
    ],
    ids=["nothing", "no dict", "three", "list", "dict"],
)
def test_what_a_loss_returns(toy, result):
    step = make_train_step(MODEL.apply, TX, lambda x, y: result(cross_entropy(x, y)))
    with pytest.raises(TypeError, match="a scalar, or a scalar and a dict of metrics"):
        jax.jit(step)(STATE, Batch(*toy))


@pytest.mark.parametrize(
    ("tx", "made_for"),
    [
        (optax.sgd(0.1, momentum=0.9), (optax.sgd(0.1, momentum=0.9), (16,))),
        (optax.adam(0.1), (optax.adam(0.1), (1,))),  # which would broadcast, in silence
        (optax.adam(0.1), (optax.adam(0.1), (8, 8))),
        (optax.adam(0.1), (optax.sgd(0.1), (8,))),
        (optax.MultiSteps(optax.sgd(0.1), 2), (optax.sgd(0.1), (8,))),
    ],
    ids=["wider", "narrower", "deeper", "of sgd", "not accumulating"],
)
def test_an_optimizer_state_of_other_parameters(toy, tx, made_for):
    other, hidden = made_for
    opt_state = init_state(KEY, MLP(hidden), other).opt_state
    step = jax.jit(make_train_step(MODEL.apply, tx))
    with pytest.raises(ValueError, match=r"opt_state belongs to another.*tx\.init\(state\.params"):
        step(TrainState(jnp.int32(0), STATE.params, opt_state), Batch(*toy))
