"""What the PyTorch peers share: the device, the network, the data in memory, the order."""

from itertools import pairwise

import _job
import torch
from _job import MODELS, SIZES
from torch import Tensor, nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)


def network() -> nn.Sequential:
    """784-128-64-10, or what `SIZES` says, with its initial weights."""
    pairs = [(nn.Linear(*sizes), nn.ReLU()) for sizes in pairwise(SIZES)]
    return nn.Sequential(*[layer for pair in pairs for layer in pair][:-1]).to(DEVICE)


def load() -> tuple[Tensor, Tensor]:
    """The images in [-1, 1] and the labels, on the device."""
    x, y = map(torch.from_numpy, _job.load())
    return x.to(DEVICE, torch.float32).div_(127.5).sub_(1), y.to(DEVICE, torch.int64)


def shuffle(n: int, epoch: int) -> Tensor:
    """The order of an epoch: rows [n] or, of many models, [models, n]."""
    return torch.stack([torch.randperm(n, device=DEVICE) for _ in range(MODELS)]).squeeze(0)
