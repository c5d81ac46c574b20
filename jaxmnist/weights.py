"""An MLP's weights as a PyTorch state dict; files are safetensors, and read from PyTorch's too.

>>> from jaxmnist.torch_compat import TorchGenerator, init_params
>>> state_dict = to_state_dict(init_params(TorchGenerator(0), (784, 32, 10)))
>>> {name: value.shape for name, value in state_dict.items()}
{'0.weight': (32, 784), '0.bias': (32,), '2.weight': (10, 32), '2.bias': (10,)}
"""

import io
import os
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from jaxmnist.errors import DataError

Params = dict[str, dict[str, dict[str, Float32[np.ndarray, "..."]]]]
"""A Flax tree, `{"params": {"linear_0": {"weight": [out, in], "bias": [out]}, ...}}`."""


def to_state_dict(params: Mapping[str, Any]) -> dict[str, Float32[np.ndarray, "..."]]:
    """`params` under the names of an `nn.Sequential` of Linear, ReLU, Linear, ReLU, ..., Linear.

    `linear_k`'s weight `[out, in]` becomes `{2k}.weight`, its bias `{2k}.bias`; the arrays are new.
    Raises a DataError where `params` is not such a tree of finite float32 arrays.
    """
    layers = params.get("params", {})
    arrays = {f"{name}.{part}": x for name, layer in layers.items() for part, x in layer.items()}
    state_dict = {}
    for name in _expect_names(arrays, "linear_", 1):
        k, part = name.removeprefix("linear_").split(".")
        state_dict[f"{2 * int(k)}.{part}"] = np.array(arrays[name], order="C")
    from_state_dict(state_dict)  # checks the arrays
    return state_dict


def from_state_dict(state_dict: Mapping[str, np.ndarray]) -> Params:
    """The inverse of `to_state_dict`, into new arrays; any number of layers, of any sizes.

    Raises a DataError that names the keys that are missing or unexpected, or the layer whose arrays
    are not float32, do not fit together or are not finite.
    """
    names = iter(_expect_names(state_dict))
    layers: dict[str, dict[str, np.ndarray]] = {}
    fan_in = None
    for k, (weight_name, bias_name) in enumerate(zip(names, names, strict=True)):
        weight, bias = np.array(state_dict[weight_name], order="C"), np.array(state_dict[bias_name])
        found = " and ".join(f"{value.dtype}{list(value.shape)}" for value in (weight, bias))
        rows, columns = weight.shape if weight.ndim == 2 and weight.size else ("out", "in")
        needed = f"float32[{rows}, {fan_in or columns}] and float32[{rows}]"
        if found != needed:
            raise DataError(f"{weight_name} and {bias_name} are {found}, not {needed}")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise DataError(f"{weight_name} or {bias_name} is not finite: the training diverged")
        layers[f"linear_{k}"] = {"weight": weight, "bias": bias}
        fan_in = rows
    return {"params": layers}


def _expect_names(found: Collection[str], prefix: str = "", stride: int = 2) -> list[str]:
    """The names of the arrays of as many layers as are in `found`; a DataError if it has others."""
    layers = range(0, stride * max(1, (len(found) + 1) // 2), stride)
    names = [f"{prefix}{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    unexpected = sorted((name for name in found if name not in names), key=str)
    missing = [name for name in names if name not in found]
    if unexpected or missing:
        raise DataError(f"unexpected keys {unexpected[:6]}, missing keys {missing[:6]}")
    return names


def layer_sizes(params: Mapping[str, Any]) -> tuple[int, ...]:
    """The width of each layer from the pixels to the logits.

    Raises a DataError as `to_state_dict`, or where they are not 784 pixels and 10 logits.

    >>> from jaxmnist.torch_compat import TorchGenerator, init_params
    >>> layer_sizes(init_params(TorchGenerator(0), (784, 32, 10)))
    (784, 32, 10)
    """
    weights = list(to_state_dict(params).values())[::2]
    sizes = (weights[0].shape[1], *map(len, weights))
    if (sizes[0], sizes[-1]) != (784, 10):
        raise DataError(f"a model of {sizes[0]} numbers and {sizes[-1]} classes, not of 784 and 10")
    return sizes


def to_safetensors(params: Mapping[str, Any]) -> bytes:
    """`to_state_dict(params)` as the content of a safetensors file, for `Path.write_bytes`.

    In PyTorch, `model.load_state_dict(safetensors.torch.load_file(path))` loads it. Raises a
    DataError as `to_state_dict`.
    """
    import safetensors.numpy

    # "pt" is what other programs look for: the arrays are named as PyTorch's.
    return safetensors.numpy.save(to_state_dict(params), metadata={"format": "pt"})


def load_weights(path: str | os.PathLike[str]) -> Params:
    """The params in a safetensors file, or in one of `torch.save(model.state_dict(), path)`.

    The content tells which of the two it is, not the name. A directory stands for the
    `weights.safetensors` in it, as `scripts/train.py --out` writes it. No pickle is executed:
    PyTorch reads its own files with `weights_only=True`, and must be installed for them. Raises an
    OSError where the file cannot be read, and a DataError where it is damaged or of another model.
    """
    import safetensors.numpy

    path = Path(path)
    if path.is_dir():
        path = path / "weights.safetensors"
    content = path.read_bytes()
    # safetensors begin with a length of 8 bytes, which may be any, and then a JSON object
    is_torch = content.startswith((b"PK", b"\x80")) and content[8:9] != b"{"
    try:
        return from_state_dict((_load_torch if is_torch else safetensors.numpy.load)(content))
    except ImportError as error:
        raise DataError(f"{path}: a PyTorch file; to read it, pip install torch") from error
    except Exception as error:  # on foreign bytes the two readers raise errors of a dozen kinds
        kind = "PyTorch state dict" if is_torch else "safetensors file"
        damaged = f"damaged, or not a {kind} of float32 arrays"
        reason = error if isinstance(error, DataError) else damaged
        raise DataError(f"{path}: {reason}") from error


def _load_torch(content: bytes) -> dict[str, np.ndarray]:
    """The state dict in a PyTorch file, if its tensors take no more memory than the file does.

    Such a file can be far smaller than its tensors: a zip archive may be compressed, and a tensor
    may repeat one number along a stride of 0.
    """
    import torch

    if content.startswith(b"PK"):
        # PyTorch verifies no checksum, and fills what a damaged archive lacks with any memory.
        with zipfile.ZipFile(io.BytesIO(content)) as old:
            _check_size(sum(entry.file_size for entry in old.infolist()), content)
            with zipfile.ZipFile(copy := io.BytesIO(), "w") as new:
                for name in set(old.namelist()):
                    new.writestr(name, old.read(name))
        content = copy.getvalue()
    with warnings.catch_warnings(action="ignore"):  # about formats of tensors that are refused here
        tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        _expect_names(tensors.keys())  # names those of a checkpoint with more than weights
        _check_size(sum(tensor.nbytes for tensor in tensors.values()), content)
        return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def _check_size(size: int, content: bytes) -> None:
    if size > len(content):
        raise DataError(f"its arrays take {size:,} bytes, more than the file")
