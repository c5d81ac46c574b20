import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmnist import batches, epoch_order

KEY = jax.random.key(0)
# What `epoch_order(jax.random.key(0), 3, 12)` has always been.
KNOWN = [5, 8, 4, 7, 0, 9, 1, 10, 6, 2, 11, 3]


def test_an_order_is_pinned_under_any_flags():
    assert epoch_order(KEY, 3, 12).tolist() == KNOWN
    assert epoch_order(jax.random.key(1), 0, 6).tolist() == [3, 1, 5, 2, 0, 4]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        epochs = jnp.arange(4, dtype=jnp.int32)
        got = jax.jit(jax.vmap(lambda epoch: epoch_order(KEY, epoch, 12)))(epochs)
    assert (got[3].tolist(), got.dtype) == (KNOWN, np.int32)


def test_batches_are_the_loaders(toy):
    """Raw rows in the order of the compiled epoch: the step transforms them."""
    first, last = list(batches(toy, 64, seed=0, epoch=1))
    assert (first.images.shape, first.images.dtype) == ((64, 28, 28), np.uint8)
    assert (last.images.shape, last.labels.shape) == ((36, 28, 28), (36,))
    order = np.asarray(epoch_order(KEY, 1, 100))
    np.testing.assert_array_equal(np.concatenate([first.labels, last.labels]), toy.labels[order])
    np.testing.assert_array_equal(np.concatenate([first.images, last.images]), toy.images[order])
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves((first, last)))


def test_batches_of_any_pytree_in_a_given_order():
    """Dicts, tuples and device arrays; the structure stays."""
    data = {"x": np.arange(10.0), "pair": (jnp.arange(10), np.arange(20).reshape(10, 2))}
    (one, two) = batches(data, 7, order=np.arange(10)[::-1])
    assert jax.tree.structure(one) == jax.tree.structure(data)
    np.testing.assert_array_equal(one["x"], np.arange(9.0, 2, -1))
    np.testing.assert_array_equal(two["pair"][1], [[4, 5], [2, 3], [0, 1]])
    assert type(one["pair"][0]) is np.ndarray


def test_bad_arguments_are_told_at_the_call(toy):
    """And not when the first batch is asked for."""
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, not 0"):
        batches(toy, 0)
    for order in ([0, 100], [-1, 3]):
        with pytest.raises(ValueError, match=r"outside 0\.\.99"):
            batches(toy, order=np.array(order))
