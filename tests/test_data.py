import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxmnist import Dataset, batches, epoch_order
from tests.helpers import ROOT

KEY = jax.random.key(0)
# What `epoch_order(jax.random.key(0), 3, 12)` has always been.
KNOWN = [5, 8, 4, 7, 0, 9, 1, 10, 6, 2, 11, 3]


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


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"JAX_ENABLE_X64": "1"},
        {"JAX_NUMPY_DTYPE_PROMOTION": "strict"},
        {"JAX_NUMPY_RANK_PROMOTION": "raise"},
        {"JAX_DEFAULT_MATMUL_PRECISION": "highest"},
        {"JAX_DISABLE_JIT": "1"},
        {"JAX_NUM_CPU_DEVICES": "3"},
    ],
    ids=str,
)
def test_an_order_is_the_same_under_flags(flags):
    """Flags that are no part of the random stream change nothing; the numbers are pinned."""
    code = (
        "import jax, jaxmnist as jm; order = jm.epoch_order(jax.random.key(0), 3, 12);"
        "print(order.dtype, order.tolist())"
    )
    environment = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"} | flags
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.stdout == f"int32 {KNOWN}\n", done.stderr


def test_an_order_is_the_same_under_x64_in_a_transformation(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # an int64 is no `Int32` to it
    expected = [epoch_order(KEY, epoch, 100) for epoch in range(3)]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        for epochs in (jnp.arange(3), jnp.arange(3, dtype=jnp.int32)):
            got = jax.jit(jax.vmap(lambda epoch: epoch_order(KEY, epoch, 100)))(epochs)
            np.testing.assert_array_equal(got, expected)
            assert got.dtype == np.int32


def test_batches_are_the_loaders(toy):
    """Raw rows in the order of the compiled epoch: the step transforms them."""
    first, last = list(batches(toy, 64, seed=0, epoch=1))
    assert isinstance(first, Dataset)
    assert first.images.shape == (64, 28, 28)
    assert first.images.dtype == np.uint8
    assert last.images.shape == (36, 28, 28)
    assert last.labels.shape == (36,)
    order = np.asarray(epoch_order(KEY, 1, 100))
    np.testing.assert_array_equal(np.concatenate([first.labels, last.labels]), toy.labels[order])
    np.testing.assert_array_equal(np.concatenate([first.images, last.images]), toy.images[order])
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves((first, last)))


def test_batches_in_a_given_order(toy):
    order = np.arange(99, -1, -1)
    got = list(batches(toy, 50, order=order))
    assert [batch.images.shape for batch in got] == [(50, 28, 28), (50, 28, 28)]
    np.testing.assert_array_equal(np.concatenate([b.labels for b in got]), toy.labels[::-1])
    whole = next(iter(batches(toy, 100, order=order)))
    np.testing.assert_array_equal(np.concatenate([b.images for b in got]), whole.images)


def test_batches_of_any_pytree():
    """Dicts, tuples and device arrays; the structure stays."""
    data = {"x": np.arange(10.0), "pair": (jnp.arange(10), np.arange(20).reshape(10, 2))}
    (one, two) = batches(data, 7, order=np.arange(10)[::-1])
    assert jax.tree.structure(one) == jax.tree.structure(data)
    np.testing.assert_array_equal(one["x"], np.arange(9.0, 2, -1))
    np.testing.assert_array_equal(two["pair"][1], [[4, 5], [2, 3], [0, 1]])
    assert type(one["pair"][0]) is np.ndarray


def test_mnist_has_938_batches(toy):
    dataset = Dataset(np.zeros((60_000, 1, 1), np.uint8), np.zeros(60_000, np.int32))
    sizes = [len(batch.labels) for batch in batches(dataset)]
    assert sizes == [64] * 937 + [32]


def test_an_empty_order_has_no_batches(toy):
    assert list(batches(toy, order=np.arange(0))) == []


def test_bad_arguments(toy):
    """At the call, not when the first batch is asked for."""
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        batches(toy, 0)
    for order in ([0, 100], [-1, 3]):
        with pytest.raises(ValueError, match=r"outside 0\.\.99"):
            batches(toy, order=np.array(order))
    with pytest.raises(ValueError, match=r"number of examples; \.images has 100, \.labels has 90"):
        batches(Dataset(toy.images, toy.labels[:90]))
