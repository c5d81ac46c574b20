"""PyTorch's random stream, checked against values that PyTorch 2.13 gave."""

import doctest
import subprocess
import sys
import zlib

import numpy as np
import pytest

from jaxmnist import torch_compat
from jaxmnist.torch_compat import TorchGenerator, init_params, loader_order
from jaxmnist.weights import to_state_dict

NOTEBOOK_SEED = 165286645


def crc(*arrays):
    return zlib.crc32(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))


def test_examples_in_the_docstrings():
    assert doctest.testmod(torch_compat).failed == 0


def test_pytorch_is_not_imported():
    code = (
        "import sys, jaxmnist.torch_compat as t; t.TorchGenerator(0); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


# seed, then CRC-32 of: the six arrays of the notebook's model in PyTorch's layout; the orders of
# the next two epochs of a modern DataLoader; then the next torch.empty((), dtype=int64).random_().
@pytest.mark.parametrize(
    ("seed", "weights", "first", "second", "after"),
    [
        (0, 3595164876, 1427465398, 3277571762, 8530672899829034726),
        (1, 3137273995, 3638056879, 791015653, 2663290926015928709),
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
    np.testing.assert_allclose(
        generator.randn((2, 2)), [[0.6472, 0.2490], [-0.3354, 0.4564]], atol=5e-5
    )
    np.testing.assert_allclose(
        generator.randn((17,))[[0, 1, 15, 16]], [-1.6959, -0.4927, 1.2032, 0.0845], atol=5e-5
    )
    np.testing.assert_allclose(generator.uniform((3,)), [0.8198, 0.9971, 0.6984], atol=5e-5)
    np.testing.assert_allclose(generator.randn((3,)), [-1.3927, -0.3611, 1.8740], atol=5e-5)
    # The first of these is the second of a pair: the call before used three values of four.
    np.testing.assert_allclose(generator.randn((2,)), [-1.3836, -0.5305], atol=5e-5)


def test_the_notebooks_printed_numbers():
    generator = TorchGenerator(NOTEBOOK_SEED)
    init_params(generator)  # cell 3
    loader_order(generator, 60_000, legacy=True)  # cell 5
    init_params(generator)  # cell 11
    loader_order(generator, 60_000, legacy=True)  # cell 12
    x = generator.randn((2, 2))  # cell 16
    np.testing.assert_allclose(x, [[1.2447, 1.7893], [0.8041, 0.1500]], rtol=0, atol=5.1e-5)
    np.testing.assert_allclose(x**2, [[1.5492, 3.2016], [0.6465, 0.0225]], rtol=0, atol=5.1e-5)
    weight = init_params(generator)["params"]["linear_0"]["weight"]  # cell 24, printed by cell 27
    printed = [
        [-0.0196, -0.0063, 0.0280, -0.0045, -0.0026, -0.0128],
        [0.0056, 0.0230, -0.0016, 0.0097, -0.0002, -0.0232],
        [0.0003, 0.0046, -0.0290, -0.0219, 0.0272, -0.0255],
        [0.0313, 0.0219, 0.0083, -0.0112, -0.0125, -0.0222],
        [0.0109, 0.0193, -0.0083, 0.0302, -0.0084, -0.0076],
        [0.0195, -0.0014, -0.0175, 0.0230, 0.0278, -0.0125],
    ]
    edge = np.array([0, 1, 2, -3, -2, -1])
    np.testing.assert_allclose(weight[np.ix_(edge, edge)], printed, rtol=0, atol=5.1e-5)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 1000, 60_000])
def test_randperm_is_a_permutation(n):
    order = TorchGenerator(3).randperm(n)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_legacy_and_modern_loaders_differ():
    modern, legacy = TorchGenerator(0), TorchGenerator(0)
    assert loader_order(modern, 50).tolist() != loader_order(legacy, 50, legacy=True).tolist()
    plain = TorchGenerator(0)
    plain.u64()
    assert loader_order(TorchGenerator(0), 50, legacy=True).tolist() == plain.randperm(50).tolist()


@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (16,), (4, 5), (2, 3, 7)])
def test_shapes_and_types(shape):
    generator = TorchGenerator(0)
    for values in (
        generator.uniform(shape),
        generator.uniform(shape, -1.0, 1.0),
        generator.randn(shape),
    ):
        assert (values.shape, values.dtype) == (shape, np.float32)


def test_randn_is_standard_normal():
    values = TorchGenerator(0).randn((100_000,))
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01


def test_uniform_stays_between_its_bounds():
    values = TorchGenerator(0).uniform((100_000,), -0.25, 0.75)
    assert -0.25 <= values.min() < -0.2499
    assert 0.7499 < values.max() <= 0.75


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**30])
def test_a_seed_outside_64_bits_is_refused(seed):
    with pytest.raises(ValueError, match=r"^a PyTorch seed is from .* not -?\d+$"):
        TorchGenerator(seed)


@pytest.mark.parametrize("n", [-1, 2**32 // 20])
def test_randperm_refuses_sizes_it_does_not_reproduce(n):
    with pytest.raises(ValueError, match="randperm is for 0 to"):
        TorchGenerator(0).randperm(n)


def test_only_the_low_32_bits_of_a_seed_count():
    assert (
        TorchGenerator(5).u64()
        == TorchGenerator(5 + 2**32).u64()
        == TorchGenerator(5 - 2**32).u64()
    )
