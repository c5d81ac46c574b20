"""PyTorch's random stream and weight files, checked against values that PyTorch 2.13 gave."""

import doctest
import json
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import safetensors.numpy

from jaxmnist import torch_compat
from jaxmnist.errors import DataError
from jaxmnist.torch_compat import (
    TorchGenerator,
    from_state_dict,
    init_params,
    load_weights,
    loader_order,
    save_weights,
    to_state_dict,
)

NOTEBOOK_SEED = 165286645


def crc(*arrays):
    return zlib.crc32(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))


def small_params(sizes=(5, 4, 3)):
    return init_params(TorchGenerator(0), sizes)


def assert_same(params, others):
    assert list(params["params"]) == list(others["params"])
    for name, layer in params["params"].items():
        for part in ("weight", "bias"):
            assert others["params"][name][part].dtype == np.float32
            np.testing.assert_array_equal(layer[part], others["params"][name][part])


def test_examples_in_the_docstrings():
    assert doctest.testmod(torch_compat).failed == 0


def test_pytorch_is_not_imported():
    code = (
        "import sys, jaxmnist.torch_compat as t; t.TorchGenerator(0); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


# The random stream.


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


# Weights in and out.


@pytest.mark.parametrize(
    "sizes", [(784, 128, 64, 10), (5, 3), (3, 3, 3, 3, 3, 3), (1, 1), (9,) * 14]
)
def test_state_dict_round_trip(sizes):
    params = init_params(TorchGenerator(7), sizes)
    state_dict = to_state_dict(params)
    names = [f"{2 * k}.{part}" for k in range(len(sizes) - 1) for part in ("weight", "bias")]
    assert list(state_dict) == names
    for k in range(len(sizes) - 1):
        assert state_dict[f"{2 * k}.weight"].shape == (sizes[k + 1], sizes[k])
        assert state_dict[f"{2 * k}.bias"].shape == (sizes[k + 1],)
    assert all(array.flags.c_contiguous for array in state_dict.values())
    assert_same(params, from_state_dict(state_dict))


def test_conversions_copy():
    params = small_params()
    state_dict = to_state_dict(params)
    again = from_state_dict(state_dict)
    for array in state_dict.values():
        array[...] = 0
    assert_same(params, small_params())
    assert_same(again, small_params())


def test_jax_params_are_taken(tmp_path):
    jax = pytest.importorskip("jax")
    save_weights(tmp_path / "w.safetensors", jax.tree.map(jax.numpy.asarray, small_params()))
    assert_same(small_params(), load_weights(tmp_path / "w.safetensors"))


def test_flax_names_its_layers_so():
    jax = pytest.importorskip("jax")
    from jaxmnist import MLP

    theirs = jax.eval_shape(MLP().init, jax.random.key(0), np.zeros((1, 784), np.float32))
    ours = jax.eval_shape(lambda: init_params(TorchGenerator(0)))
    assert jax.tree.structure(theirs) == jax.tree.structure(ours)
    assert jax.tree.leaves(theirs) == jax.tree.leaves(ours)


BAD_STATE_DICTS = {
    "empty": ({}, "missing key '0.bias'"),
    "no bias": ({"0.weight": (4, 5)}, "missing key '0.bias'"),
    "no second bias": (
        {"0.weight": (4, 5), "0.bias": (4,), "2.weight": (3, 4)},
        "missing key '2.bias'",
    ),
    "a gap": (
        {"0.weight": (4, 5), "0.bias": (4,), "4.weight": (3, 4), "4.bias": (3,)},
        "unexpected key '4.bias'",
    ),
    "a stranger": ({"0.weight": (4, 5), "0.bias": (4,), "scale": (1,)}, "unexpected key 'scale'"),
    "a prefix": (
        {"model.0.weight": (4, 5), "model.0.bias": (4,)},
        "unexpected key 'model.0.bias'",
    ),
    "two lines": ({"0.weight": (4, 5), "a\nb": (4,)}, r"unexpected key 'a\nb'"),
    "rank": (
        {"0.weight": (4, 5, 1), "0.bias": (4,)},
        "0.weight and 0.bias are float32[4, 5, 1] and float32[4], "
        "not float32[out, in] and float32[out]",
    ),
    "bias": (
        {"0.weight": (4, 5), "0.bias": (5,)},
        "0.weight and 0.bias are float32[4, 5] and float32[5], not float32[4, 5] and float32[4]",
    ),
    "bias rank": (
        {"0.weight": (4, 5), "0.bias": ()},
        "0.weight and 0.bias are float32[4, 5] and float32[], not float32[4, 5] and float32[4]",
    ),
    "chain": (
        {"0.weight": (4, 5), "0.bias": (4,), "2.weight": (3, 7), "2.bias": (3,)},
        "2.weight and 2.bias are float32[3, 7] and float32[3], not float32[3, 4] and float32[3]",
    ),
    "nothing in it": (
        {"0.weight": (0, 5), "0.bias": (0,)},
        "0.weight and 0.bias are float32[0, 5] and float32[0], "
        "not float32[out, in] and float32[out]",
    ),
}


@pytest.mark.parametrize("case", BAD_STATE_DICTS)
def test_bad_state_dicts(case, tmp_path):
    shapes, message = BAD_STATE_DICTS[case]
    state_dict = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(DataError) as error:
        from_state_dict(state_dict)
    assert str(error.value) == message
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors_bytes(state_dict))
    with pytest.raises(DataError) as error:
        load_weights(path)
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "bool"])
def test_other_types_are_refused(dtype):
    state_dict = {"0.weight": np.ones((2, 3), dtype), "0.bias": np.ones(2, np.float32)}
    with pytest.raises(DataError, match=rf"^0.weight and 0.bias are {dtype}\[2, 3\] and .*\]$"):
        from_state_dict(state_dict)
    params = {"params": {"linear_0": {"weight": np.ones((2, 3), dtype), "bias": np.ones(2)}}}
    with pytest.raises(DataError, match=rf"^0.weight and 0.bias are {dtype}\[2, 3\] and float64"):
        to_state_dict(params)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"params": {}},
        small_params()["params"],
        {"params": {"linear_1": small_params()["params"]["linear_0"]}},
        {"params": {"Conv_0": small_params()["params"]["linear_0"]}},
        {"params": {"linear_0": {"weight": np.zeros((2, 2), np.float32)}}},
        {"params": {"linear_0": small_params()["params"]["linear_0"] | {"scale": np.zeros(1)}}},
    ],
)
def test_trees_of_another_model_are_refused(params, tmp_path):
    with pytest.raises(DataError, match=r"^(params\['params'\]|linear_0) must hold [^\n]*$"):
        save_weights(tmp_path / "w.safetensors", params)
    assert not list(tmp_path.iterdir())


# Files.


def safetensors_bytes(arrays, **changes):
    """The format written by hand: a length, a JSON header, the bytes."""
    header, data = {}, b""
    for name, array in arrays.items():
        spans = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": spans} | changes
        data += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_safetensors_round_trip(tmp_path):
    path = tmp_path / "new" / "folder" / "w.safetensors"
    params = init_params(TorchGenerator(2))
    save_weights(path, params)
    assert_same(params, load_weights(str(path)))
    save_weights(str(path), small_params())  # over a file that is there
    assert_same(small_params(), load_weights(path))
    assert [file.name for file in path.parent.iterdir()] == ["w.safetensors"]


def test_a_new_file_is_as_readable_as_any(tmp_path):
    save_weights(tmp_path / "w.safetensors", small_params())
    (tmp_path / "other").write_bytes(b"")
    modes = {file.stat().st_mode for file in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_file_written_by_hand_is_read(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors_bytes(to_state_dict(small_params())))
    assert_same(small_params(), load_weights(path))


GOOD = safetensors_bytes(to_state_dict(small_params()))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 64,
        b"\xff" * 64,
        b"not weights at all",
        b"\x80\x04\x95 a pickle",
        b"PK\x03\x04 a zip file",
        GOOD[:7],
        GOOD[:100],
        GOOD[:-1],
        GOOD + b"\x00",
        safetensors_bytes(to_state_dict(small_params()), dtype="BF16"),
        safetensors_bytes(to_state_dict(small_params()), dtype="X7"),
        safetensors_bytes({"0.weight": np.zeros((2, 3), np.float32)}, shape=[2, 3, 4]),
        safetensors_bytes({"0.weight": np.zeros((2, 3), np.float32)}, data_offsets=[0, 2**40]),
    ],
)
def test_damaged_and_foreign_files(content, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        load_weights(path)
    message = f"{path}: damaged, or not a safetensors file of float32 arrays"
    assert str(error.value) == message
    assert path.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_half_precision_is_named(tmp_path):
    arrays = {"0.weight": np.zeros((2, 3), np.float16), "0.bias": np.zeros(2, np.float16)}
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors_bytes(arrays, dtype="F16"))
    with pytest.raises(DataError, match=r"w.safetensors: 0.weight and 0.bias are float16\[2, 3\]"):
        load_weights(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"^.*/w.safetensors: cannot be read: No such file.*$"):
        load_weights(tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"^.*/weights.safetensors: cannot be read: No such file"):
        load_weights(tmp_path)


def test_a_directory_stands_for_the_weights_in_it(tmp_path):
    save_weights(tmp_path / "weights.safetensors", small_params())
    assert_same(small_params(), load_weights(tmp_path))


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"here")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    for path in (tmp_path / "file" / "w.safetensors", tmp_path / "folder", tmp_path / ("a" * 300)):
        with pytest.raises(DataError, match=r"^[^\n]*: cannot be written: [^\n]+$"):
            save_weights(path, small_params())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    ("failure", "raised"), [(OSError(28, "No space left"), DataError), (KeyboardInterrupt(),) * 2]
)
def test_a_failed_write_leaves_the_old_file(failure, raised, tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, small_params())

    def replace(source, target):
        assert os.path.exists(source)
        raise failure

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(raised if isinstance(raised, type) else type(raised)):
        save_weights(path, small_params((2, 2)))
    assert_same(small_params(), load_weights(path))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["w.pt", "w.pth"])
def test_without_pytorch_its_files_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    message = r"^[^\n]*: install PyTorch \(pip install torch\) for this format$"
    with pytest.raises(DataError, match=message):
        save_weights(tmp_path / name, small_params())
    assert not list(tmp_path.iterdir())
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=message):
        load_weights(tmp_path / name)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(value, tmp_path):
    params = small_params()
    params["params"]["linear_0"]["bias"][1] = value
    path = tmp_path / "w.safetensors"
    message = "w.safetensors: 0.bias holds numbers that are not finite"
    with pytest.raises(DataError, match=message):
        save_weights(path, params)
    assert not list(tmp_path.iterdir())
    safetensors.numpy.save_file(to_state_dict(params), path)
    with pytest.raises(DataError, match=message):
        load_weights(path)
