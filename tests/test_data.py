import jax
import numpy as np
import pytest

from jaxmnist import Batch, Dataset, batches, epoch_order

KEY = jax.random.key(0)


def test_order_is_a_shuffle_made_from_key_and_epoch_alone():
    orders = [np.asarray(epoch_order(KEY, epoch, 1000)) for epoch in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
        assert np.mean(order == np.arange(1000)) < 0.02
    assert not np.array_equal(orders[0], orders[1])
    np.testing.assert_array_equal(orders[2], epoch_order(KEY, 2, 1000))
    traced = jax.jit(epoch_order, static_argnums=2)(KEY, 2, 1000)
    np.testing.assert_array_equal(orders[2], traced)
    assert not np.array_equal(orders[0], epoch_order(jax.random.key(1), 0, 1000))


def test_batches_are_the_loaders(toy):
    first, last = list(batches(toy, 64, seed=0, epoch=1))
    assert isinstance(first, Batch)
    assert first.images.shape == (64, 1, 28, 28)
    assert first.images.dtype == np.float32
    assert last.images.shape == (36, 1, 28, 28)
    assert last.labels.shape == (36,)
    order = np.asarray(epoch_order(KEY, 1, 100))
    np.testing.assert_array_equal(np.concatenate([first.labels, last.labels]), toy.labels[order])
    pixels = toy.images[order[0]].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(first.images[0, 0], (pixels - np.float32(0.5)) / np.float32(0.5))


def test_batches_flattened_in_a_given_order(toy):
    order = np.arange(99, -1, -1)
    got = list(batches(toy, 50, order=order, flatten=True))
    assert [batch.images.shape for batch in got] == [(50, 784), (50, 784)]
    np.testing.assert_array_equal(np.concatenate([b.labels for b in got]), toy.labels[::-1])
    whole = next(iter(batches(toy, 100, order=order)))
    np.testing.assert_array_equal(
        np.concatenate([b.images for b in got]), whole.images.reshape(100, 784)
    )


def test_mnist_has_938_batches(toy):
    dataset = Dataset(np.zeros((60_000, 1, 1), np.uint8), np.zeros(60_000, np.int32))
    sizes = [len(batch.labels) for batch in batches(dataset)]
    assert sizes == [64] * 937 + [32]


def test_an_empty_order_has_no_batches(toy):
    assert list(batches(toy, order=np.arange(0))) == []


def test_bad_arguments(toy):
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        batches(toy, 0)
    for order in ([0, 100], [-1, 3]):
        with pytest.raises(ValueError, match=r"outside 0\.\.99"):
            batches(toy, order=np.array(order))
