"""Every example counts once, whatever is measured and whatever the flags of JAX."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from jaxmnist import MLP, Dataset, classifier_metrics, cross_entropy, evaluate, preprocess
from tests.helpers import assert_close, counting, logits_by_hand

MODEL = MLP((8,))
METRICS = classifier_metrics(MODEL.apply)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0), np.zeros((1, 784), np.float32))
RNG = np.random.default_rng(0)


def by_hand(dataset):
    logits = logits_by_hand(PARAMS, preprocess(dataset.images))
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = np.arange(len(logits))
    accuracy = np.mean(logits.argmax(axis=1) == dataset.labels)
    return {"accuracy": accuracy, "loss": -np.log(probs[rows, dataset.labels]).mean()}


@pytest.mark.parametrize("batch_size", [1000, 50, 33])
def test_every_image_counts_once(toy, batch_size):
    """Two sizes of a batch are traced: the last, or twice the only one, which is not computed."""
    apply = counting(MODEL.apply)
    fn = classifier_metrics(apply)
    got = jax.jit(lambda p, d: evaluate(fn, p, d, batch_size=batch_size))(PARAMS, toy)
    assert apply.traces == 2
    assert_close(jax.tree.map(np.asarray, got), jax.tree.map(np.asarray, by_hand(toy)), 1e-6)
    assert {value.dtype for value in got.values()} == {np.dtype(np.float32)}


@pytest.mark.slow
def test_under_any_flags(toy, monkeypatch):
    with jax.disable_jit():
        assert_close(evaluate(METRICS, PARAMS, toy, batch_size=33), by_hand(toy), 1e-6)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # uint8 is no `Int` to it
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        for dtype in (np.int64, np.uint8):
            data = Dataset(toy.images, toy.labels.astype(dtype))
            got = evaluate(METRICS, PARAMS, data, batch_size=33)
            np.testing.assert_allclose(got["loss"], by_hand(toy)["loss"], rtol=1e-6)
        params = jax.tree.map(np.float64, PARAMS)
        data = Dataset(np.float64(preprocess(toy.images)), toy.labels)
        assert evaluate(METRICS, params, data)["loss"].dtype == np.float64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "classes"), [(np.uint8, 256), (np.uint8, 300), (np.int8, 200), (np.int16, 300)]
)
def test_narrow_labels_and_many_classes(toy, dtype, classes):
    model = MLP((8,), classes)
    params = model.init(jax.random.key(0), np.zeros((1, 784), np.float32))
    optaxs = optax.softmax_cross_entropy_with_integer_labels
    for loss_fn in (cross_entropy, optaxs):
        fn = classifier_metrics(model.apply, loss_fn)
        got = evaluate(fn, params, Dataset(toy.images, toy.labels.astype(dtype)))
        logits = model.apply(params, preprocess(toy.images))
        np.testing.assert_allclose(got["loss"], optaxs(logits, toy.labels).mean(), rtol=1e-6)
        np.testing.assert_allclose(got["accuracy"], np.mean(logits.argmax(1) == toy.labels))


def test_logits_in_bfloat16_give_a_float32_loss(toy):
    def rounded(params, images):
        return MODEL.apply(params, images).astype(jnp.bfloat16)

    got = evaluate(classifier_metrics(rounded), PARAMS, toy)["loss"]
    logits = rounded(PARAMS, preprocess(toy.images)).astype(jnp.float32)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, cross_entropy(logits, toy.labels).mean(), rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1000, 7])
def test_anything_with_a_number_per_example(batch_size):
    """A regression on a dict of inputs; weighted, by a summary of all of the outputs."""
    data = {name: RNG.normal(size=(100, k)) for name, k in (("x", 3), ("y", 2), ("weight", 1))}
    w = RNG.normal(size=(3, 2)).astype(np.float32)

    def squares(w, batch):
        return {"square": (batch["x"] @ w - batch["y"]) ** 2}

    def weighted(outputs, dataset):
        mean = jnp.mean(outputs["square"], axis=1)
        return jnp.average(mean, weights=dataset["weight"][:, 0] ** 2)

    data = jax.tree.map(np.float32, data)
    square = (np.float64(data["x"]) @ w - data["y"]) ** 2
    got = jax.jit(lambda w, data: evaluate(squares, w, data, batch_size=batch_size))(w, data)
    np.testing.assert_allclose(got["square"], square.mean(axis=0), rtol=1e-5)
    got = evaluate(squares, w, data, summarize=weighted, batch_size=batch_size)
    expected = np.average(square.mean(axis=1), weights=data["weight"][:, 0] ** 2)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


BLIND = {
    "a scalar": lambda params, batch: jnp.mean(batch.labels),
    "a row for each class": lambda params, batch: jnp.zeros(10),
    "rows twice": lambda params, batch: jnp.concatenate([batch.labels] * 2),
}


@pytest.mark.parametrize("batch_size", [1000, 10, 7])
@pytest.mark.parametrize("case", BLIND)
def test_outputs_without_a_row_for_each_example(toy, case, batch_size):
    """Also where there are as many classes as examples in a batch."""
    with pytest.raises(ValueError, match=r"images has \d+, .*\['outputs'\] has (no|\d+)"):
        evaluate(BLIND[case], PARAMS, toy, batch_size=batch_size)


def test_functions_among_the_parameters(toy):
    """As in a whole Equinox module: they are no arrays."""

    def fn(module, batch):
        params, apply = module
        return classifier_metrics(apply)(params, batch)

    assert_close(evaluate(fn, (PARAMS, MODEL.apply), toy), by_hand(toy), 1e-6)
