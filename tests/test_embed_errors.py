"""What goes wrong in a program of one's own is one error that names the cause."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

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
    evaluate,
    init_state,
    make_train_epoch,
    make_train_step,
    nll_loss,
    parallel,
    train,
)

KEY = jax.random.key(0)
MODEL = MLP(hidden=(8,))
TX = optax.sgd(0.1)
STATE = init_state(MODEL, TX, KEY)
METRICS = classifier_metrics(MODEL.apply)


@pytest.fixture(autouse=True)
def _no_type_checks(monkeypatch):
    """As for users: the type checks of the tests would come before the library's own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def either(jit):
    return jax.jit if jit else lambda f: f


def step_of(loss_fn=cross_entropy, tx=TX, apply=MODEL.apply):
    return make_train_step(classifier_objective(apply, loss_fn), tx)


def optaxs_mean(logits, labels):
    """A loss that knows nothing of NaN for what is out of range."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda logits: logits[:, 0], r"has shape \(100,\)"),
        (lambda logits: logits.sum(), r"has shape \(\)"),
        (lambda logits: logits[:, None], r"has shape \(100, 1, 10\)"),
        (lambda logits: logits[1:], r"has shape \(99, 10\)"),
        (lambda logits: logits.T, r"has shape \(10, 100\)"),
        (lambda logits: (logits, {}), "is a tuple"),
    ],
    ids=["no classes", "scalar", "an axis more", "an example less", "transposed", "tuple"],
)
def test_a_models_output(toy, change, named, jit):
    named = f"model's output {named}.*one row of logits for each label"

    def apply(params, images):
        return change(MODEL.apply(params, images))

    for loss in (cross_entropy, nll_loss):
        with pytest.raises(ValueError, match=named):
            either(jit)(step_of(loss, apply=apply))(STATE, toy)
    for batch_size in (1000, 100):
        score = partial(evaluate, classifier_metrics(apply), batch_size=batch_size)
        with pytest.raises(ValueError, match=named):
            either(jit)(score)(STATE.params, toy)


@pytest.mark.parametrize("wrong", [-1, 10])
def test_a_label_outside_the_classes(toy, wrong):
    """An error where the label can be seen; in a compiled program NaN, which check_finite names."""
    labels = toy.labels.copy()
    labels[70] = wrong
    bad = Dataset(toy.images, jnp.asarray(labels))
    message = f"label {wrong} in row 70 is outside the classes 0..9"
    step = step_of()
    with pytest.raises(ValueError, match=message):
        step(STATE, bad)
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda state: step(state, bad))(STATE)  # a constant of the program
    with pytest.raises(ValueError, match=message):
        evaluate(METRICS, STATE.params, bad)

    def test(state):
        return evaluate(METRICS, state.params, bad)

    with pytest.raises(ValueError, match=message):
        train(step, STATE, toy, KEY, epochs=1, test=test)

    _, metrics = jax.jit(step)(STATE, bad)
    with pytest.raises(NonFiniteLossError, match=r"loss of step 1 is nan: a label .* out of range"):
        check_finite(np.asarray(metrics["loss"])[None])
    _, metrics = jax.jit(make_train_epoch(step))(STATE, bad, np.arange(100))
    with pytest.raises(NonFiniteLossError, match=r"loss of step 2 is nan.* label .* out of range"):
        check_finite(jax.device_get(metrics["loss"]))


ORDERS = {
    "an index beyond": (np.r_[0:50, 100, 51:100], "from 0 to 100, outside 0..99"),
    "a negative index": (np.r_[0:50, -1, 51:100], "from -1 to 99, outside 0..99"),
    "all beyond": (np.full(64, 99_999), "from 99999 to 99999, outside 0..99"),
}


@pytest.mark.parametrize("loss_fn", [cross_entropy, optaxs_mean], ids=["ours", "own"])
@pytest.mark.parametrize("case", ORDERS)
def test_an_order_that_leaves_the_dataset(toy, case, loss_fn):
    """JAX itself would take the nearest image and say nothing, whatever the loss."""
    order, message = ORDERS[case]
    epoch = make_train_epoch(step_of(loss_fn), 20, remainder="drop")
    for seen in (order, jnp.asarray(order)):
        with pytest.raises(ValueError, match=f"order reaches {message}"):
            epoch(STATE, toy, seen)
        with pytest.raises(ValueError, match=f"order reaches {message}"):
            batches(toy, order=seen)
    with pytest.raises(ValueError, match=f"order reaches {message}"):
        jax.jit(lambda state: epoch(state, toy, order))(STATE)  # a constant of the program
    _, metrics = jax.jit(epoch)(STATE, toy, order)
    outside = ((order < 0) | (order > 99))[: len(order) // 20 * 20].reshape(-1, 20).any(axis=1)
    np.testing.assert_array_equal(np.isnan(metrics["loss"]), outside)
    with pytest.raises(NonFiniteLossError, match=r"is nan.* index .* out of range"):
        check_finite(jax.device_get(metrics["loss"]))


@pytest.mark.parametrize("remainder", ["pad", "short"])
def test_an_index_outside_in_the_last_batch(toy, remainder):
    """Of five batches of 22 the last, of 12, is short."""
    loss_fn = cross_entropy if remainder == "pad" else optaxs_mean
    epoch = jax.jit(make_train_epoch(step_of(loss_fn), 22, remainder=remainder))
    order = np.arange(100)
    order[99] = 100
    _, metrics = epoch(STATE, toy, order)
    np.testing.assert_array_equal(np.isnan(metrics["loss"]), [False] * 4 + [True])


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("order", "found"),
    [
        (np.arange(100).reshape(10, 10), r"int64\[10, 10\]"),
        (np.int32(5), r"int32\[\]"),
        (np.arange(100, dtype=np.float32), r"float32\[100\]"),
        (np.ones(100, bool), r"bool\[100\]"),
    ],
    ids=["two axes", "none", "floats", "a mask"],
)
def test_an_order_that_is_no_row_of_indices(toy, order, found, jit):
    message = "an order is one row of integers, not " + (
        found.replace("int64", "int32") if jit else found
    )
    with pytest.raises(ValueError, match=message):
        either(jit)(make_train_epoch(step_of()))(STATE, toy, order)
    if not jit:
        with pytest.raises(ValueError, match=message):
            batches(toy, order=order)
    if not jit and order.ndim:
        with pytest.raises(ValueError, match=message):
            parallel.shard_epoch(toy, order, 2, parallel.make_mesh(1))


def test_arrays_of_different_lengths(toy):
    message = r"number of examples; \.images has 100, \.labels has 90"
    short = Dataset(toy.images, toy.labels[:90])
    with pytest.raises(ValueError, match=message):
        make_train_epoch(step_of())(STATE, short, np.arange(90))
    with pytest.raises(ValueError, match=message):
        train(step_of(), STATE, short, KEY)
    with pytest.raises(ValueError, match=message):
        evaluate(METRICS, STATE.params, short)
    data = {"x": toy.images, "scale": np.float32(2)}
    with pytest.raises(ValueError, match=r"\['scale'\] has no, \['x'\] has 100"):
        make_train_epoch(step_of())(STATE, data, np.arange(90))
    with pytest.raises(ValueError, match="number of examples; none"):
        train(step_of(), STATE, {}, KEY)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one(toy, size):
    message = f"batch_size must be at least 1, not {size}"
    with pytest.raises(ValueError, match=message):
        make_train_epoch(step_of(), size)
    with pytest.raises(ValueError, match=message):
        train(step_of(), STATE, toy, KEY, batch_size=size)


@pytest.mark.parametrize(
    "result",
    [
        lambda loss: None,
        lambda loss: (),
        lambda loss: (loss, loss),
        lambda loss: [loss, {}],
        lambda loss: {"loss": loss},
    ],
    ids=["nothing", "empty", "no dict", "list", "dict"],
)
@pytest.mark.parametrize("jit", [False, True])
def test_what_an_objective_returns(toy, result, jit):
    step = step_of(lambda logits, labels: result(cross_entropy(logits, labels)))
    with pytest.raises(TypeError, match=r"an objective returns loss, .*loss, metrics.*model_state"):
        either(jit)(step)(STATE, toy)


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        (lambda losses: losses[:, None], r"\[100, 1\]"),
        (lambda losses: losses[None], r"\[1, 100\]"),
        (lambda losses: losses[1:], r"\[99\]"),
        (lambda losses: losses[:1], r"\[1\]"),
    ],
    ids=["column", "row", "an example less", "one"],
)
def test_a_loss_of_another_shape(toy, change, shape):
    step = step_of(lambda logits, labels: change(cross_entropy(logits, labels)))
    message = rf"a loss is a scalar or one number per example, \[100\], not {shape}"
    with pytest.raises(ValueError, match=message):
        jax.jit(step)(STATE, toy)


@pytest.mark.parametrize(
    "objective",
    [
        lambda params, batch: classifier_objective(MODEL.apply, optaxs_mean)(params, batch),
        lambda params, batch, **kwargs: classifier_objective(MODEL.apply, optaxs_mean)(
            params, batch
        ),
    ],
    ids=["no where", "kwargs"],
)
def test_a_scalar_loss_of_a_padded_batch(toy, objective):
    """Also where **kwargs might swallow the mask: nobody can tell that it is used."""
    step = make_train_step(objective, TX)
    message = "last batch is padded.*one number per example.*`where`.*remainder='short' or 'drop'"
    with pytest.raises(TypeError, match=message):
        jax.jit(make_train_epoch(step))(STATE, toy, np.arange(100))
    with pytest.raises(TypeError, match=message):
        train(step, STATE, toy, KEY)
    for remainder, steps in (("short", 2), ("drop", 1)):
        epoch = jax.jit(make_train_epoch(step, remainder=remainder))
        state, _ = epoch(STATE, toy, np.arange(100))
        assert state.step == steps
    _, metrics = jax.jit(make_train_epoch(step, 50))(STATE, toy, np.arange(100))
    assert np.isfinite(metrics["loss"]).all()


@pytest.mark.parametrize("jit", [False, True])
def test_names_of_metrics_that_are_taken(toy, jit):
    def run(step, **options):
        return either(jit)(lambda: train(step, STATE, toy, KEY, epochs=1, **options))()

    def with_metrics(**metrics):
        return step_of(lambda logits, labels: (cross_entropy(logits, labels), metrics))

    def logging(*names):
        return make_train_step(
            lambda params, batch: (classifier_objective(MODEL.apply)(params, batch), {"mine": 1.0}),
            TX,
            log=lambda state, grads, updates: dict.fromkeys(names, 2.0),
        )

    message = "a metric cannot be called 'loss', which is already the name of another"
    with pytest.raises(ValueError, match=message):
        run(with_metrics(loss=0.0))
    with pytest.raises(ValueError, match=message):
        run(logging("loss"))
    with pytest.raises(ValueError, match="cannot be called 'mine'"):
        run(logging("yours", "mine"))
    for step in (with_metrics(test_loss=0.0), logging("test_loss")):
        with pytest.raises(ValueError, match="cannot be called 'test_loss'"):
            run(step, test=lambda state: {"loss": 1.0})
    _, metrics = run(logging("yours"), test=lambda state: {"loss": 1.0})
    assert set(metrics) == {"loss", "mine", "yours", "test_loss"}


PIXELS = [np.int8, np.int16, np.int32, np.int64, np.uint16, np.uint32, np.uint64, np.bool_]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", PIXELS)
def test_integer_pixels_that_are_not_uint8(toy, dtype, jit):
    """Nobody scales them, so a model would be trained on 0..255."""
    bad = Dataset((toy.images // 2).astype(dtype), toy.labels)
    message = "images are uint8 grey levels or transformed floats, not (u?int|bool)"
    with pytest.raises(TypeError, match=message):
        either(jit)(step_of())(STATE, bad)
    with pytest.raises(TypeError, match=message):
        either(jit)(lambda data: evaluate(METRICS, STATE.params, data))(bad)
    with pytest.raises(TypeError, match=message):
        train(step_of(), STATE, bad, KEY)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
def test_float_pixels_that_nobody_has_scaled(toy, dtype):
    """Grey levels as pandas or scikit-learn give them: an error, or NaN in a compiled program."""
    bad = Dataset(toy.images.astype(dtype), toy.labels)
    with jax.enable_x64(dtype == np.float64), jax.numpy_dtype_promotion("standard"):
        for refused in (
            lambda: step_of()(STATE, bad),
            lambda: evaluate(METRICS, STATE.params, bad, batch_size=1000),
        ):
            with pytest.raises(
                ValueError, match=r"float images reach beyond 32\.0: give grey levels as uint8"
            ):
                refused()
        _, metrics = jax.jit(step_of())(STATE, bad)
        assert np.isnan(metrics["loss"])
        with pytest.raises(
            NonFiniteLossError, match="image or a weight is not finite or not scaled"
        ):
            check_finite(np.asarray(metrics["loss"]))
        scaled = Dataset(bad.images / dtype(255), toy.labels)
        _, metrics = jax.jit(step_of())(STATE, scaled)
        assert np.isfinite(metrics["loss"])


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
    opt_state = init_state(MLP(hidden), other, KEY).opt_state
    with pytest.raises(ValueError, match=r"opt_state belongs to another.*tx\.init\(state\.params"):
        jax.jit(step_of(tx=tx))(TrainState(jnp.int32(0), STATE.params, opt_state), toy)


@pytest.mark.parametrize("leaf", [np.int32(3), np.ones(2, bool), 7], ids=str)
def test_parameters_that_have_no_gradient(toy, leaf):
    """As the integers in an NNX module's state."""
    params = {**STATE.params, "count": leaf}
    state = TrainState(jnp.int32(0), params, TX.init(params))
    message = r"params\['count'\] is (int32|bool|int), which has no gradient.*in model_state"
    with pytest.raises(TypeError, match=message):
        jax.jit(step_of())(state, toy)


def test_an_objective_that_asks_for_a_key_which_is_not_there(toy):
    def objective(params, batch, *, key):
        return classifier_objective(MODEL.apply)(params, batch)

    state = STATE._replace(key=None)
    with pytest.raises(ValueError, match=r"asks for a key and state\.key is None"):
        jax.jit(make_train_step(objective, TX))(state, toy)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"mean": jnp.zeros(3)}, {"mean": jnp.zeros(3), "more": jnp.zeros(3)}),
        ({"mean": jnp.zeros(3)}, {"mean": jnp.zeros((1, 3))}),
        ({"mean": jnp.zeros(3)}, {"mean": jnp.zeros(3, jnp.float16)}),
        (None, {"mean": jnp.zeros(3)}),
    ],
    ids=["structure", "shape", "dtype", "none"],
)
def test_a_model_state_that_changes_its_form(toy, before, after):
    def objective(params, batch, *, model_state):
        return classifier_objective(MODEL.apply)(params, batch), {}, after

    epoch = make_train_epoch(make_train_step(objective, TX))
    with pytest.raises(TypeError, match=r"same pytree structure|equal types"):
        jax.jit(epoch)(STATE._replace(model_state=before), toy, np.arange(100))


def test_an_objective_that_returns_four_things(toy):
    def objective(params, batch):
        return jnp.float32(1), {}, None, None

    with pytest.raises(TypeError, match="an objective returns loss"):
        make_train_step(objective, TX)(STATE, toy)
