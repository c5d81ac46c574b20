"""What the PyTorch peers share: the device, the network, the data in memory, the loop."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import _job
import numpy as np
import torch
from _job import MODELS, SIZES
from torch import Tensor, nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def network() -> nn.Sequential:
    """784-128-64-10, or what `SIZES` says, with its initial weights."""
    pairs = [(nn.Linear(*sizes), nn.ReLU()) for sizes in pairwise(SIZES)]
    return nn.Sequential(*[layer for pair in pairs for layer in pair][:-1]).to(DEVICE)


def prepare(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """The images in [-1, 1] and the labels, on the device."""
    pixels = torch.from_numpy(images).to(DEVICE, torch.float32).div_(127.5).sub_(1)
    return pixels, torch.from_numpy(labels).to(DEVICE, torch.int64)


def shuffle(n: int, epoch: int) -> Tensor:
    """The order of an epoch: rows [n] or, of many models, [models, n]."""
    orders = [torch.randperm(n, device=DEVICE) for _ in range(MODELS)]
    return torch.stack(orders) if MODELS > 1 else orders[0]


def train(init: Callable, step: Callable, forward: Callable[[Any, Tensor], Tensor]) -> None:
    """`_job.train`, in memory; `forward(state, images)` are the logits."""

    def predict(state: Any, images: np.ndarray) -> np.ndarray:
        x, _ = prepare(images, np.zeros(1, np.int32))
        with torch.no_grad():
            return forward(state, x).argmax(1).cpu().numpy()

    def collect(losses: list[Tensor]) -> np.ndarray:
        return torch.stack(losses).cpu().numpy()

    torch.manual_seed(0)
    _job.train(init, step, predict, prepare=prepare, shuffle=shuffle, collect=collect)
