"""PyTorch's random stream, checked against values that PyTorch 2.13 gave."""

import zlib

import numpy as np
import pytest

from jaxmnist.torch_compat import TorchGenerator, init_params, loader_order, pass_in_order
from jaxmnist.weights import to_state_dict

NOTEBOOK_SEED = 165286645


def crc(*arrays):
    return zlib.crc32(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))


# seed, then CRC-32 of: the six arrays of the notebook's model in PyTorch's layout; the orders of
# the next two epochs of a modern DataLoader; then the next torch.empty((), dtype=int64).random_().
@pytest.mark.parametrize(
    ("seed", "weights", "first", "second", "after"),
    [
        (0, 3595164876, 1427465398, 3277571762, 8530672899829034726),
        (NOTEBOOK_SEED, 648292988, 3340831379, 3967406566, 8888591638001060081),
        (2**31 + 5, 1008606556, 1123519783, 472012109, 5470114104597705929),
        (2**40 + 17, 1044036108, 3070105730, 3312396571, 8526840077383313173),
        (-1, 2489632413, 3587816179, 3194537514, 4579306424614265264),
    ],
)
def test_weights_and_orders_of_a_seed(seed, weights, first, second, after):
    generator = TorchGenerator(seed)
    assert crc(*to_state_dict(init_params(generator)).values()) == weights
    assert crc(loader_order(generator, 60_000)) == first
    assert crc(loader_order(generator, 60_000)) == second
    assert generator.u64() & (2**63 - 1) == after


def test_first_values_of_seed_0():
    np.testing.assert_allclose(
        TorchGenerator(0).uniform((4,)), [0.4963, 0.7682, 0.0885, 0.1320], atol=5e-5
    )
    generator = TorchGenerator(0)
    assert generator.randperm(10).tolist() == [4, 1, 7, 5, 3, 9, 0, 8, 6, 2]
    ends = generator.randn((2, 2)).ravel(), generator.randn((17,))[[0, 1, 15, 16]]
    expected = [0.6472, 0.2490, -0.3354, 0.4564], [-1.6959, -0.4927, 1.2032, 0.0845]
    np.testing.assert_allclose(ends, expected, atol=5e-5)
    np.testing.assert_allclose(generator.uniform((3,)), [0.8198, 0.9971, 0.6984], atol=5e-5)
    np.testing.assert_allclose(generator.randn((3,)), [-1.3927, -0.3611, 1.8740], atol=5e-5)
    # The first of these is the second of a pair: the call before used three values of four.
    np.testing.assert_allclose(generator.randn((2,)), [-1.3836, -0.5305], atol=5e-5)
    blocks = TorchGenerator(0)
    expected = [*blocks.randn((16,)), *blocks.randn((16,))]
    np.testing.assert_array_equal(TorchGenerator(0).randn((32,)), expected)


def test_the_notebooks_printed_numbers():
    generator = TorchGenerator(NOTEBOOK_SEED)
    init_params(generator)  # cell 3
    loader_order(generator, 60_000, legacy=True)  # cell 5
    init_params(generator)  # cell 11
    loader_order(generator, 60_000, legacy=True)  # cell 12
    x = generator.randn((2, 2))  # cell 16
    np.testing.assert_allclose(x, [[1.2447, 1.7893], [0.8041, 0.1500]], rtol=0, atol=5.1e-5)


def test_what_a_loader_takes():
    """Two seeds and, before PyTorch 1.6, one and the numbers of the shuffle."""
    generator, plain = TorchGenerator(0), TorchGenerator(0)
    plain.u64()
    order = plain.randperm(50)
    assert loader_order(generator, 50, legacy=True).tolist() == order.tolist()
    assert generator.u64() == plain.u64()
    seed = plain.u64()
    order = loader_order(generator, 50, workers_persist=True)
    assert order.tolist() == TorchGenerator(seed).randperm(50).tolist()
    pass_in_order(generator)
    plain.u64()
    assert generator.u64() == plain.u64()


def test_what_is_not_reproduced_is_refused():
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match=f"^a PyTorch seed is from .* not {seed}$"):
            TorchGenerator(seed)
    for n in (-1, 2**32 // 20):
        with pytest.raises(ValueError, match="randperm is for 0 to"):
            TorchGenerator(0).randperm(n)
    TorchGenerator(-(2**63)), TorchGenerator(2**64 - 1)
    assert TorchGenerator(0).randperm(0).shape == (0,)
