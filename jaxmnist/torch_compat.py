"""PyTorch's CPU random stream, without PyTorch.

With the seed that was given to `torch.manual_seed`, this gives the initial weights and the epoch
orders that PyTorch 2.13 would draw, bit for bit. The sources named below are files of PyTorch.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int32, UInt32

from jaxmnist.weights import Params


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

        randperm_cpu (aten/src/ATen/native/TensorFactories.cpp) has another algorithm from
        214,748,364 elements on, which are a ValueError here. 60,000 elements take about 8 ms.
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
    generator: TorchGenerator, n: int, legacy: bool = False, *, workers_persist: bool = False
) -> Int32[np.ndarray, " n"]:
    """The order in which one pass over `DataLoader(shuffle=True)` visits its `n` examples.

    The loader takes a seed for its workers, then its sampler one for a generator of its own
    (dataloader.py and sampler.py in torch/utils/data). Before PyTorch 1.6, which is `legacy`, the
    sampler took none and shuffled with the global generator. With `persistent_workers=True` only
    the first pass takes a seed for the workers: set `workers_persist` for the later ones.

    Other calls of a script draw numbers too: `next(iter(loader))` as many as a whole pass; a pass
    over a loader that does not shuffle, those of `pass_in_order`; `random_split`, those of
    `generator.randperm(n)`, whose first indices are the first part.
    """
    if not workers_persist:
        generator.u64()
    return (generator if legacy else TorchGenerator(generator.u64())).randperm(n)


def pass_in_order(generator: TorchGenerator) -> None:
    """Draw what one pass over `DataLoader(shuffle=False)` draws, as over a test set: one seed."""
    generator.u64()
