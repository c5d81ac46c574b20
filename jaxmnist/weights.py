"""An MLP's weights as a PyTorch state dict, and as files: safetensors, or PyTorch's .pt."""

import io
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from jaxmnist.errors import DataError
from jaxmnist.files import atomic_write

Params = dict[str, dict[str, dict[str, Float32[np.ndarray, "..."]]]]
"""A Flax tree, `{"params": {"linear_0": {"weight": [out, in], "bias": [out]}, ...}}`."""


def to_state_dict(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """`params` under the names of an `nn.Sequential` of Linear, ReLU, Linear, ReLU, ..., Linear.

    `linear_k`'s weight `[out, in]` becomes `{2k}.weight`, its bias `{2k}.bias`. Raises a
    DataError where `params` is not such a tree of float32 arrays.
    """
    layers = params.get("params", {})
    names = [f"linear_{k}" for k in range(max(1, len(layers)))]
    if set(layers) != set(names):
        raise DataError(f"params['params'] must hold {', '.join(names)}, not {list(layers)}")
    state_dict = {}
    for k, name in enumerate(names):
        if set(layers[name]) != {"weight", "bias"}:
            raise DataError(f"{name} must hold a weight and a bias, not {list(layers[name])}")
        for part in ("weight", "bias"):
            state_dict[f"{2 * k}.{part}"] = np.array(layers[name][part], order="C")
    from_state_dict(state_dict)  # what cannot be read back is not handed out
    return state_dict


def from_state_dict(state_dict: Mapping[str, np.ndarray]) -> Params:
    """The inverse of `to_state_dict`, into new arrays; any number of layers, of any sizes.

    Raises a DataError that names the key that is missing, unexpected, not float32 or does not fit.
    """
    count = max(1, (len(state_dict) + 1) // 2)
    expected = {f"{2 * k}.{name}" for k in range(count) for name in ("weight", "bias")}
    if unexpected := set(state_dict) - expected:
        raise DataError(f"unexpected key {min(unexpected, key=str)!r}")
    if missing := expected - set(state_dict):
        raise DataError(f"missing key {min(missing)!r}")
    layers: dict[str, dict[str, np.ndarray]] = {}
    fan_in = None
    for k in range(count):
        weight, bias = state_dict[f"{2 * k}.weight"], state_dict[f"{2 * k}.bias"]
        found = " and ".join(f"{value.dtype}{list(value.shape)}" for value in (weight, bias))
        rows, columns = weight.shape if weight.ndim == 2 and weight.size else ("out", "in")
        needed = f"float32[{rows}, {fan_in or columns}] and float32[{rows}]"
        if found != needed:
            raise DataError(f"{2 * k}.weight and {2 * k}.bias are {found}, not {needed}")
        layers[f"linear_{k}"] = {"weight": np.array(weight, order="C"), "bias": np.array(bias)}
        fan_in = rows
    return {"params": layers}


def layer_sizes(params: Mapping[str, Any]) -> tuple[int, ...]:
    """The width of each layer from the pixels to the logits, for instance (784, 128, 64, 10).

    Raises a DataError where `params` is not an MLP's from 784 pixels to 10 logits, or not finite.

    >>> from jaxmnist.torch_compat import TorchGenerator, init_params
    >>> layer_sizes(init_params(TorchGenerator(0), (784, 32, 10)))
    (784, 32, 10)
    """
    state_dict = to_state_dict(params)
    _check_finite(state_dict)
    weights = [value for name, value in state_dict.items() if name.endswith(".weight")]
    sizes = (weights[0].shape[1], *(len(weight) for weight in weights))
    if (sizes[0], sizes[-1]) != (784, 10):
        raise DataError(
            f"the model takes {sizes[0]} numbers and gives {sizes[-1]}, "
            "not the 784 pixels of an image and 10 logits"
        )
    return sizes


def _check_finite(state_dict: Mapping[str, np.ndarray]) -> None:
    for name, value in state_dict.items():
        if not np.isfinite(value).all():
            raise DataError(f"{name} holds numbers that are not finite: the training diverged")


def save_weights(path: str | os.PathLike[str], params: Mapping[str, Any]) -> None:
    """Write `to_state_dict(params)` to `path`: as safetensors, or .pt and .pth by PyTorch.

    The file appears whole or not at all. Raises a DataError where it cannot be written, PyTorch is
    needed and not installed, or a weight is not finite.
    """
    import safetensors.numpy

    path = Path(path)
    torch = _torch_for(path)
    state_dict = to_state_dict(params)
    try:
        _check_finite(state_dict)
        if torch:
            buffer = io.BytesIO()
            torch.save({name: torch.tensor(value) for name, value in state_dict.items()}, buffer)
            content = buffer.getvalue()
        else:
            content = safetensors.numpy.save(state_dict)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def load_weights(path: str | os.PathLike[str]) -> Params:
    """The params in a file that `save_weights` or `torch.save(model.state_dict(), path)` wrote.

    A directory stands for the `weights.safetensors` in it, as `scripts/train.py --out` writes it.
    Nothing in the file is executed: a .pt or .pth is read with `weights_only=True`. Raises a
    DataError where it is missing, damaged or foreign, a weight is not finite, or PyTorch is needed
    and not installed.
    """
    import safetensors.numpy

    path = Path(path)
    if path.is_dir():
        path = path / "weights.safetensors"
    torch = _torch_for(path)
    try:
        content = path.read_bytes()
        state_dict = _load_torch(torch, content) if torch else safetensors.numpy.load(content)
        params = from_state_dict(state_dict)
        _check_finite(state_dict)
        return params
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # on foreign bytes the two readers raise errors of a dozen kinds
        kind = "PyTorch state dict" if torch else "safetensors file"
        raise DataError(f"{path}: damaged, or not a {kind} of float32 arrays") from error


def _load_torch(torch: Any, content: bytes) -> dict[str, np.ndarray]:
    """The state dict in a PyTorch file, if its tensors take no more memory than the file does.

    Such a file can be far smaller than what it stands for: a zip archive may be compressed, and a
    tensor may repeat one number along a stride of 0.
    """
    file = io.BytesIO(content)
    sizes = [0]
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            sizes = [entry.file_size for entry in archive.infolist()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PyTorch finds odd, but can read
        if sum(sizes) <= len(content):
            file.seek(0)
            tensors = torch.load(file, map_location="cpu", weights_only=True)
            sizes = [tensor.numel() * tensor.element_size() for tensor in tensors.values()]
        if sum(sizes) > len(content):
            raise DataError(
                f"takes {sum(sizes):,} bytes, more than the file has ({len(content):,})"
            )
        return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def _torch_for(path: Path) -> Any:
    """PyTorch, where a file of this name is in its format, or None."""
    if path.suffix not in (".pt", ".pth"):
        return None
    try:
        import torch
    except ImportError as error:
        raise DataError(f"{path}: install PyTorch (pip install torch) for this format") from error
    return torch
