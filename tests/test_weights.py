"""Weights as a state dict and as files: there and back, and what is damaged or foreign."""

import doctest
import json
import os
import struct
import sys

import numpy as np
import pytest
import safetensors.numpy

from jaxmnist import weights
from jaxmnist.errors import DataError
from jaxmnist.torch_compat import TorchGenerator, init_params
from jaxmnist.weights import from_state_dict, load_weights, save_weights, to_state_dict


def small_params(sizes=(5, 4, 3)):
    return init_params(TorchGenerator(0), sizes)


def assert_same(params, others):
    assert list(params["params"]) == list(others["params"])
    for name, layer in params["params"].items():
        for part in ("weight", "bias"):
            assert others["params"][name][part].dtype == np.float32
            np.testing.assert_array_equal(layer[part], others["params"][name][part])


def test_examples_in_the_docstrings():
    assert doctest.testmod(weights).failed == 0


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
