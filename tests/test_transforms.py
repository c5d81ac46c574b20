import jax
import numpy as np
import pytest

from jaxmnist import preprocess
from jaxmnist.transforms import flatten, normalize, to_tensor

BYTES = np.arange(256, dtype=np.uint8)
# torchvision: img.to(float32).div(255), then .sub_(mean).div_(std), each rounded to float32.
TENSOR = BYTES.astype(np.float32) / np.float32(255)
NORMAL = (TENSOR - np.float32(0.5)) / np.float32(0.5)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
@pytest.mark.parametrize("put", [np.asarray, jax.numpy.asarray], ids=["numpy", "jax"])
def test_all_bytes_are_torchvisions_to_the_bit(wrap, put):
    np.testing.assert_array_equal(np.asarray(wrap(to_tensor)(put(BYTES))), TENSOR)
    both = wrap(lambda x: normalize(to_tensor(x), 0.5, 0.5))(put(BYTES))
    assert both.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(both), NORMAL)


def test_bits_hold_in_a_large_vectorised_program():
    images = np.tile(BYTES, (64, 4))[:, : 28 * 28].reshape(64, 28, 28)
    rows = jax.jit(preprocess)(images)
    assert rows.shape == (64, 784)
    np.testing.assert_array_equal(np.asarray(rows), NORMAL[images].reshape(64, 784))


def test_normalize_other_values():
    np.testing.assert_allclose(normalize(np.float32([0.2, 0.6]), 0.2, 0.1), [0.0, 4.0], rtol=1e-6)


def test_flatten_keeps_the_order():
    images = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    np.testing.assert_array_equal(flatten(images), np.arange(24).reshape(2, 12))


def test_floats_are_taken_as_they_are():
    images = np.ones((2, 1, 28, 28), np.float32)
    assert preprocess(images) is images


def test_scaling_twice_is_refused():
    with pytest.raises(TypeError, match=r"uint8|UInt8"):
        to_tensor(np.ones((2, 28, 28), np.float32))
