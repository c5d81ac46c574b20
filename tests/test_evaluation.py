import jax
import numpy as np
import pytest

from jaxmnist import MLP, Dataset, cross_entropy, evaluate, preprocess

PARAMS = MLP().init(jax.random.key(0), np.zeros((1, 784), np.float32))


@pytest.mark.parametrize("batch_size", [1000, 100, 50, 33, 1])
def test_every_image_counts_once(toy, batch_size):
    scores = evaluate(MLP().apply, PARAMS, toy, batch_size=batch_size)
    logits = MLP().apply(PARAMS, preprocess(toy.images))
    predictions = np.argmax(logits, axis=1)
    np.testing.assert_allclose(scores["loss"], cross_entropy(logits, toy.labels), rtol=1e-6)
    np.testing.assert_allclose(scores["accuracy"], np.mean(predictions == toy.labels), rtol=1e-6)
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (toy.labels, predictions), 1)
    np.testing.assert_array_equal(scores["confusion"], expected)


def test_worked_by_hand():
    """A model whose logits are the image: four images, three taken for what they are."""
    images = np.zeros((4, 1, 3), np.uint8)
    images[[0, 1, 2, 3], 0, [0, 1, 2, 2]] = 255
    labels = np.array([0, 1, 2, 0], np.int32)
    scores = evaluate(lambda params, x: x, None, Dataset(images, labels), batch_size=3)
    assert scores["accuracy"] == 0.75
    np.testing.assert_array_equal(scores["confusion"], [[1, 0, 1], [0, 1, 0], [0, 0, 1]])
    right = np.log(np.e + 2 / np.e) - 1
    np.testing.assert_allclose(scores["loss"], right + 2 / 4, rtol=1e-6)


def test_jitted_equals_unjitted(toy):
    plain = evaluate(MLP().apply, PARAMS, toy)
    jitted = jax.jit(lambda p, d: evaluate(MLP().apply, p, d))(PARAMS, toy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), plain, jitted)
