"""Weights as a state dict and as files: there and back, and what is damaged or foreign."""

import json
import re
import struct
import sys

import jax
import numpy as np
import pytest
from safetensors import safe_open

from jaxmnist.errors import DataError
from jaxmnist.torch_compat import TorchGenerator, init_params
from jaxmnist.weights import from_state_dict, layer_sizes, load_weights, save_weights, to_state_dict


def small_params(sizes=(5, 4, 3)):
    return init_params(TorchGenerator(0), sizes)


def assert_same(params, others):
    assert jax.tree.structure(params) == jax.tree.structure(others)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("sizes", [(784, 128, 64, 10), (5, 3), (9,) * 14])
def test_state_dict_round_trip(sizes):
    params = jax.tree.map(np.asfortranarray, small_params(sizes))
    state_dict = to_state_dict(params)
    names = [f"{2 * k}.{part}" for k in range(len(sizes) - 1) for part in ("weight", "bias")]
    assert list(state_dict) == names
    for k in range(len(sizes) - 1):
        np.testing.assert_array_equal(
            state_dict[f"{2 * k}.weight"], params["params"][f"linear_{k}"]["weight"]
        )
    again = from_state_dict(state_dict)
    assert_same(params, again)
    for array in state_dict.values():  # both directions copy
        assert array.flags.c_contiguous
        array[...] = 0
    assert_same(params, again)


# The shapes by name, and what is said of them.
OTHER_MODELS = [
    ("", "unexpected keys [], missing keys ['0.weight', '0.bias']"),
    ("a 1 b 1 c 1 d 1 e 1 f 1 g 1", "unexpected keys ['a', 'b', 'c', 'd', 'e', 'f'], missing keys"),
    ("0.weight 4,5 0.bias 4 2.weight 3,4", "unexpected keys [], missing keys ['2.bias']"),
    (
        "module.0.weight 4,5 module.0.bias 4",
        "unexpected keys ['module.0.bias', 'module.0.weight'], missing keys ['0.weight', '0.bias']",
    ),
    ("0.weight 4,5,1 0.bias 4", "[4, 5, 1] and float32[4], not float32[out, in] and float32[out]"),
    ("0.weight 4,5 0.bias 5", "[4, 5] and float32[5], not float32[4, 5] and float32[4]"),
    ("0.weight 4,5 0.bias 4 2.weight 3,7 2.bias 3", "[3, 7] and float32[3], not float32[3, 4] and"),
    ("0.weight 0,5 0.bias 0", "[0, 5] and float32[0], not float32[out, in] and float32[out]"),
]


@pytest.mark.parametrize(("shapes", "message"), OTHER_MODELS)
def test_other_models_are_refused(shapes, message, tmp_path):
    words = iter(shapes.split())
    arrays = {
        name: np.zeros([*map(int, shape.split(","))], np.float32)
        for name, shape in zip(words, words, strict=True)
    }
    (tmp_path / "w").write_bytes(by_hand(arrays))
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
def test_other_trees_are_neither_converted_nor_saved(changes, message, tmp_path):
    layer = {"weight": np.ones((2, 3), np.float32), "bias": np.ones(2, np.float32)} | changes
    with pytest.raises(DataError, match=message):
        save_weights(tmp_path / "w.safetensors", {"params": {"linear_0": layer}})
    with pytest.raises(DataError, match=r"missing keys \['linear_0.weight', 'linear_0.bias'\]"):
        to_state_dict({"linear_0": layer})
    assert not list(tmp_path.iterdir())


def test_layer_sizes_are_those_of_a_model_of_digits():
    assert layer_sizes(small_params((784, 7, 5, 10))) == (784, 7, 5, 10)
    for sizes in ((783, 10), (784, 11)):
        with pytest.raises(DataError, match=f"a model of {sizes[0]} numbers and {sizes[1]} cl"):
            layer_sizes(small_params(sizes))


def by_hand(arrays, dtype="F32"):
    """A safetensors file: a length, a JSON header, the bytes."""
    header, data = {}, b""
    for name, array in arrays.items():
        spans = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": spans}
        data += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_files_round_trip(tmp_path):
    path = tmp_path / "new" / "folder" / "weights.safetensors"
    save_weights(path, jax.tree.map(jax.numpy.asarray, small_params()))
    assert_same(small_params(), load_weights(str(path)))
    save_weights(path, small_params((2, 2)))  # in the place of the first
    assert_same(small_params((2, 2)), load_weights(path.parent))
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
    with pytest.raises(ValueError, match=r"w.pt: weights are written as safetensors"):
        save_weights(tmp_path / "w.pt", small_params())
    with pytest.raises(FileNotFoundError, match=r"weights.safetensors"):
        load_weights(tmp_path)


@pytest.mark.parametrize("first", [128, ord("P") + 256 * ord("K")])
def test_a_header_may_be_as_long_as_looks_like_another_format(first, tmp_path):
    content = by_hand(to_state_dict(small_params()))
    text = content[8 : 8 + struct.unpack("<Q", content[:8])[0]].ljust(65536 + first)
    (tmp_path / "w").write_bytes(
        struct.pack("<Q", len(text)) + text + content[8 + len(text.rstrip()) :]
    )
    assert_same(small_params(), load_weights(tmp_path / "w"))


GOOD = by_hand(to_state_dict(small_params()))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 64, GOOD[:7], GOOD[:-1], GOOD + b"\x00",
     by_hand(to_state_dict(small_params()), "BF16"), by_hand(to_state_dict(small_params()), "X7")],
)  # fmt: skip
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
