"""PyTorch's CPU random stream and its weight files, without PyTorch.

With the seed that was given to `torch.manual_seed`, this gives the initial weights and the epoch
orders that PyTorch 2.13 would draw, bit for bit. The sources named below are files of PyTorch.
"""

import io
import itertools
import math
import os
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt32

from jaxmnist.errors import DataError
from jaxmnist.files import atomic_write

Params = dict[str, dict[str, dict[str, Float32[np.ndarray, "..."]]]]
"""A Flax tree, `{"params": {"linear_0": {"weight": [out, in], "bias": [out]}, ...}}`."""


class TorchGenerator:
    """The random stream of PyTorch's CPU generator after `torch.manual_seed(seed)`.

    Each method gives what the PyTorch function of its name gives and leaves the stream where that
    function leaves it. The generator is MT19937 seeded with the low 32 bits of the seed
    (aten/src/ATen/CPUGeneratorImpl.cpp), as NumPy's legacy generator is.

    >>> TorchGenerator(0).uniform((2,))
    array([0.4962566, 0.7682218], dtype=float32)
    """

    def __init__(self, seed: int) -> None:
        """Start the stream; a seed that is not in -2**63 to 2**64 - 1 is a ValueError."""
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"a PyTorch seed is from -2**63 to 2**64 - 1, not {seed}")
        self._mt19937 = np.random.RandomState(seed & 0xFFFFFFFF)
        self._spare_normal: float | None = None

    def _u32(self, n: int) -> UInt32[np.ndarray, " n"]:
        """The next `n` outputs of the Mersenne Twister."""
        return self._mt19937.randint(0, 2**32, n, dtype=np.uint32)

    def u64(self) -> int:
        """64 random bits: two outputs, the first one high (CPUGeneratorImpl::random64)."""
        high, low = self._u32(2).tolist()
        return high << 32 | low

    def uniform(
        self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0
    ) -> Float32[np.ndarray, "..."]:
        """`torch.empty(shape).uniform_(low, high)`, every bit: 24 random bits an element.

        uniform_real_distribution (aten/src/ATen/core/DistributionsHelper.h) multiplies and adds in
        float32; compilers fuse the two, so here it is float64, rounded once.
        """
        start, width = np.float32(low), np.float32(high) - np.float32(low)
        unit = (self._u32(math.prod(shape)) & 0xFFFFFF) * 2.0**-24
        return (unit * float(width) + float(start)).astype(np.float32).reshape(shape)

    def randn(self, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
        """`torch.randn(shape)`, to 1e-6: standard normal values by the Box-Muller transform.

        Fewer than 16 are made in pairs, more in blocks of 16; where a block is not full, the *last
        16* are sampled again (normal_fill, aten/src/ATen/native/cpu/DistributionTemplates.h).
        """
        size = math.prod(shape)
        if size < 16:
            return np.array([self._normal() for _ in range(size)], np.float32).reshape(shape)
        values = self.uniform((size,))
        whole = size - size % 16
        values[:whole] = _box_muller(values[:whole])
        if whole < size:
            values[-16:] = _box_muller(self.uniform((16,)))
        return values.reshape(shape)

    def _normal(self) -> float:
        """The next value of normal_distribution<double> (DistributionsHelper.h), made in pairs."""
        if self._spare_normal is not None:
            normal, self._spare_normal = self._spare_normal, None
            return normal  # the second of a pair, which may be an earlier `randn`'s
        turn, u = ((self.u64() & (2**53 - 1)) * 2.0**-53 for _ in range(2))
        radius = math.sqrt(-2 * math.log1p(-u))
        self._spare_normal = radius * math.sin(2 * math.pi * turn)
        return radius * math.cos(2 * math.pi * turn)

    def randperm(self, n: int) -> Int32[np.ndarray, " n"]:
        """`torch.randperm(n)`: 0 to n - 1 in random order, by the Fisher-Yates shuffle.

        randperm_cpu (aten/src/ATen/native/TensorFactories.cpp), which does it otherwise from
        214,748,364 elements on: a ValueError here. 60,000 elements take about 8 ms.
        """
        if not 0 <= n < (2**32 - 1) // 20:
            raise ValueError(f"randperm is for 0 to 214,748,363 elements, not {n}")
        left = np.arange(n, 1, -1, dtype=np.uint32)
        partners = self._u32(len(left)) % left + np.arange(len(left), dtype=np.uint32)
        order = list(range(n))  # a list: its elements are swapped twice as fast as an array's
        for k, partner in enumerate(partners.tolist()):
            order[k], order[partner] = order[partner], order[k]
        return np.array(order, np.int32)


def _box_muller(uniforms: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """Uniforms in blocks of 16 (8 radii, 8 angles) to normals (8 cosines, 8 sines)."""
    u, turn = uniforms.reshape(-1, 2, 8).swapaxes(0, 1)
    radius, angle = np.sqrt(-2 * np.log1p(-u)), np.float32(2 * np.pi) * turn
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def init_params(generator: TorchGenerator, sizes: Sequence[int] = (784, 128, 64, 10)) -> Params:
    """The initial parameters of `nn.Linear(sizes[0], sizes[1])`, `nn.Linear(sizes[1], ...)`, ...

    `reset_parameters` (torch/nn/modules/linear.py) samples a layer's weight `[out, in]`, then its
    bias `[out]`; the bounds are those of `kaiming_uniform_(weight, a=sqrt(5))` (torch/nn/init.py).
    """
    gain = math.sqrt(2 / (1 + math.sqrt(5) ** 2))
    layers = {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        weight_bound, bias_bound = math.sqrt(3) * (gain / math.sqrt(fan_in)), 1 / math.sqrt(fan_in)
        weight = generator.uniform((fan_out, fan_in), -weight_bound, weight_bound)
        bias = generator.uniform((fan_out,), -bias_bound, bias_bound)
        layers[f"linear_{layer}"] = {"weight": weight, "bias": bias}
    return {"params": layers}


def loader_order(
    generator: TorchGenerator, n: int, legacy: bool = False
) -> Int32[np.ndarray, " n"]:
    """The order in which one pass over `DataLoader(shuffle=True)` visits its `n` examples.

    The loader takes a seed for its workers, then its sampler one for a generator of its own
    (dataloader.py and sampler.py in torch/utils/data). Before PyTorch 1.6, which is `legacy`, the
    sampler took none and shuffled with the global generator.
    """
    generator.u64()
    return (generator if legacy else TorchGenerator(generator.u64())).randperm(n)


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
