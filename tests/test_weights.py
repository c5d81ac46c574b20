"""Weights as a state dict and as files: there and back, and what is damaged or foreign."""

import re
import struct
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxmnist.errors import DataError
from jaxmnist.torch_compat import TorchGenerator, init_params
from jaxmnist.weights import (
    from_state_dict,
    layer_sizes,
    load_weights,
    to_safetensors,
    to_state_dict,
)


def small_params(sizes=(5, 4, 3)):
    return init_params(TorchGenerator(0), sizes)


@pytest.mark.parametrize("sizes", [(784, 128, 64, 10), (9,) * 14])
def test_state_dict_round_trip(sizes):
    params = jax.tree.map(np.asfortranarray, small_params(sizes))
    state_dict = to_state_dict(params)
    expected = {
        f"{2 * k}.{part}": params["params"][f"linear_{k}"][part]
        for k in range(len(sizes) - 1)
        for part in ("weight", "bias")
    }
    np.testing.assert_equal(state_dict, expected)
    assert list(state_dict) == list(expected)
    again = from_state_dict(state_dict)
    for array in state_dict.values():  # both directions copy
        assert array.flags.c_contiguous
        array[...] = 0
    np.testing.assert_equal(again, params)
    np.testing.assert_equal(params, small_params(sizes))


# The shapes by name, and what is said of them.
OTHER_MODELS = [
    ("", "unexpected keys [], missing keys ['0.weight', '0.bias']"),
    ("a 1 b 1 c 1 d 1 e 1 f 1 g 1", "unexpected keys ['a', 'b', 'c', 'd', 'e', 'f'], missing keys"),
    ("0.weight 4,5 0.bias 4 2.weight 3,4", "unexpected keys [], missing keys ['2.bias']"),
    ("0.weight 4,5,1 0.bias 4", "[4, 5, 1] and float32[4], not float32[out, in] and float32[out]"),
    ("0.weight 4,5 0.bias 5", "[4, 5] and float32[5], not float32[4, 5] and float32[4]"),
    ("0.weight 4,5 0.bias 4 2.weight 3,7 2.bias 3", "[3, 7] and float32[3], not float32[3, 4] and"),
    ("0.weight 0,5 0.bias 0", "[0, 5] and float32[0], not float32[out, in] and float32[out]"),
]


@pytest.mark.parametrize(("shapes", "message"), OTHER_MODELS)
def test_other_models_are_refused(shapes, message, tmp_path):
    pairs = re.findall(r"(\S+) (\S+)", shapes)
    arrays = {name: np.zeros([*map(int, shape.split(","))], np.float32) for name, shape in pairs}
    safetensors.numpy.save_file(arrays, tmp_path / "w")
    with pytest.raises(DataError, match=rf"/w: .*{re.escape(message)}"):
        load_weights(tmp_path / "w")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": np.ones((2, 3), np.float16)}, r"^0.weight and 0.bias are float16\[2, 3\] and"),
        ({"weight": np.float32([[1, np.nan]] * 2)}, "0.weight or 0.bias is not finite"),
        ({"bias": np.float32([1, -np.inf])}, "0.weight or 0.bias is not finite"),
        ({"scale": np.ones(1, np.float32)}, r"unexpected keys \['linear_0.scale'\]"),
    ],
)
def test_other_trees_are_not_saved(changes, message):
    layer = {"weight": np.ones((2, 3), np.float32), "bias": np.ones(2, np.float32)} | changes
    with pytest.raises(DataError, match=message):
        to_safetensors({"params": {"linear_0": layer}})
    with pytest.raises(DataError, match=r"missing keys \['linear_0.weight', 'linear_0.bias'\]"):
        to_state_dict({"linear_0": layer})


@pytest.mark.parametrize("sizes", [(783, 10), (784, 11)])
def test_layer_sizes_are_those_of_a_model_of_digits(sizes):
    assert layer_sizes(small_params((784, 7, 5, 10))) == (784, 7, 5, 10)
    with pytest.raises(DataError, match=f"a model of {sizes[0]} numbers and {sizes[1]} cl"):
        layer_sizes(small_params(sizes))


def test_files_round_trip(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(to_safetensors(jax.tree.map(jax.numpy.asarray, small_params())))
    for place in (str(path), tmp_path):
        np.testing.assert_equal(load_weights(place), small_params())
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"weights.safetensors"):
        load_weights(tmp_path)


GOOD = to_safetensors(small_params())
HEADER = GOOD[8 : 8 + struct.unpack("<Q", GOOD[:8])[0]]


def with_header(header):
    return struct.pack("<Q", len(header)) + header + GOOD[8 + len(HEADER) :]


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_a_header_may_be_as_long_as_looks_like_another_format(start, tmp_path):
    (tmp_path / "w").write_bytes(with_header(HEADER.ljust(65536 + int.from_bytes(start, "little"))))
    np.testing.assert_equal(load_weights(tmp_path / "w"), small_params())


UNKNOWN = [with_header(HEADER.replace(b"F32", dtype)) for dtype in (b"BF16", b"X7")]


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, GOOD[:7], GOOD[:-1], GOOD + b"\x00", *UNKNOWN]
)
def test_damaged_and_foreign_files(content, tmp_path):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(DataError, match=r"/w: damaged, or not a safetensors file of float32 arr"):
        load_weights(tmp_path / "w")


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip file", b"\x80\x02 a pickle"])
def test_without_pytorch_its_files_are_refused(content, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"w.safetensors: a PyTorch file; to read it, pip install"):
        load_weights(tmp_path / "w.safetensors")
