"""Every example counts once, whatever is measured and whatever the flags of JAX."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from jaxmnist import (
    MLP,
    Dataset,
    classifier_metrics,
    evaluate,
    preprocess,
)
from tests.helpers import assert_close, counting

MODEL = MLP()
METRICS = classifier_metrics(MODEL.apply)
PARAMS = MODEL.init(jax.random.key(0), np.zeros((1, 784), np.float32))


def by_hand(dataset):
    logits = np.asarray(MODEL.apply(PARAMS, preprocess(dataset.images)))
    predictions = np.argmax(logits, axis=1)
    exponentials = np.exp(np.float64(logits))
    probs = exponentials / exponentials.sum(axis=1, keepdims=True)
    return {
        "loss": -np.log(probs[np.arange(len(logits)), dataset.labels]).mean(),
        "accuracy": np.mean(predictions == dataset.labels),
    }


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("batch_size", [1000, 100, 50, 33, 1])
def test_every_image_counts_once(toy, batch_size, jit):
    def run(params, dataset):
        return evaluate(METRICS, params, dataset, batch_size=batch_size)

    got, expected = (jax.jit(run) if jit else run)(PARAMS, toy), by_hand(toy)
    np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-6)
    np.testing.assert_allclose(got["accuracy"], expected["accuracy"], rtol=1e-6)
    assert {name: value.dtype for name, value in got.items()} == {
        "loss": jnp.float32,
        "accuracy": jnp.float32,
    }


@pytest.mark.parametrize("batch_size", [1000, 100, 33])
def test_under_disable_jit(toy, batch_size):
    """Also on fewer examples than one batch, where a scan would have no step."""
    expected = evaluate(METRICS, PARAMS, toy, batch_size=batch_size)
    with jax.disable_jit():
        got = evaluate(METRICS, PARAMS, toy, batch_size=batch_size)
    assert_close(got, expected, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1000, 33])
def test_under_x64_and_strict_promotion(toy, batch_size, monkeypatch):
    """Float32 and float64 parameters, labels of four types: the numbers stay the same."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # uint8 is no `Int` to it
    expected = by_hand(toy)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        for dtype in (np.int32, np.int64, np.uint8, np.int16):
            data = Dataset(toy.images, toy.labels.astype(dtype))
            got = evaluate(METRICS, PARAMS, data, batch_size=batch_size)
            assert_close(got, expected, 1e-6)
        rows = np.float64(preprocess(toy.images))
        params = jax.tree.map(np.float64, PARAMS)
        got = evaluate(METRICS, params, Dataset(rows, np.int64(toy.labels)), batch_size=batch_size)
        assert got["loss"].dtype == np.float64
        assert_close(got, expected, 1e-6)


def test_worked_by_hand():
    """A model whose logits are the image: four images, three taken for what they are."""
    images = np.zeros((4, 1, 3), np.uint8)
    images[[0, 1, 2, 3], 0, [0, 1, 2, 2]] = 255
    dataset = Dataset(images, np.array([0, 1, 2, 0], np.int32))
    metrics = evaluate(classifier_metrics(lambda params, x: x), None, dataset, batch_size=3)
    assert metrics["accuracy"] == 0.75
    right = np.log(np.e + 2 / np.e) - 1
    np.testing.assert_allclose(metrics["loss"], right + 2 / 4, rtol=1e-6)


@pytest.mark.parametrize("wrong", [-1, 10])
def test_a_label_outside_the_classes_whatever_the_loss(toy, wrong):
    """optax takes -1 for the last class, and a confusion matrix would lose 10."""
    labels = toy.labels.copy()
    labels[70] = wrong
    bad = Dataset(toy.images, labels)
    evaluation = classifier_metrics(MODEL.apply, optax.softmax_cross_entropy_with_integer_labels)
    with pytest.raises(ValueError, match=f"label {wrong} in row 70 is outside the classes 0..9"):
        evaluate(evaluation, PARAMS, bad)
    metrics = jax.jit(lambda data: evaluate(evaluation, PARAMS, data))(bad)
    assert np.isnan(metrics["loss"])
    assert np.isnan(metrics["accuracy"])


def test_labels_that_are_too_few(toy):
    evaluation = classifier_metrics(MODEL.apply, optax.softmax_cross_entropy_with_integer_labels)
    with pytest.raises(ValueError, match=r"images has 100, \.labels has 1$"):
        evaluate(evaluation, PARAMS, Dataset(toy.images, toy.labels[:1]))
    two_axes = Dataset(toy.images, np.repeat(toy.labels[:, None], 2, axis=1))
    assert evaluate(lambda _, batch: batch.labels, None, two_axes, batch_size=33).shape == (2,)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one(toy, batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, not {batch_size}"):
        evaluate(METRICS, PARAMS, toy, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1000, 50, 7])
@pytest.mark.parametrize("jit", [False, True])
def test_anything_with_a_number_per_example(batch_size, jit):
    """A regression on a dict of inputs; weighted, by a metric over all of the outputs."""
    rng = np.random.default_rng(0)
    data = {
        "x": rng.normal(size=(100, 3)).astype(np.float32),
        "y": rng.normal(size=(100, 2)).astype(np.float32),
        "weight": rng.uniform(size=100).astype(np.float32),
    }
    w = rng.normal(size=(3, 2)).astype(np.float32)

    def outputs_fn(w, batch):
        error = batch["x"] @ w - batch["y"]
        return {"square": error**2, "big": jnp.abs(error[:, 0]) > 1}

    def run(fn, **summary):
        def call(w, data):
            return evaluate(fn, w, data, batch_size=batch_size, **summary)

        return (jax.jit(call) if jit else call)(w, data)

    error = data["x"].astype(np.float64) @ w - data["y"]
    plain = run(outputs_fn)
    np.testing.assert_allclose(plain["square"], (error**2).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(plain["big"], np.mean(abs(error[:, 0]) > 1), rtol=1e-6)

    def weighted(outputs, dataset):
        mean = jnp.average(outputs["square"].mean(axis=1), weights=dataset["weight"])
        return {"weighted": mean}

    got = run(outputs_fn, summarize=weighted)["weighted"]
    expected = np.average((error**2).mean(axis=1), weights=data["weight"])
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_model_is_traced_twice_at_most(toy):
    """Once for the full batches and once for the rest."""
    apply = counting(MODEL.apply)
    for batch_size, traces in ((33, 2), (50, 1), (1000, 1)):
        apply.traces = 0
        jax.jit(lambda p, d, b=batch_size: evaluate(classifier_metrics(apply), p, d, batch_size=b))(
            PARAMS, toy
        )
        assert apply.traces == traces
