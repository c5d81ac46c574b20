"""What the PyTorch peers share: the network, the data where it is computed, the test."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from _job import SIZES, device
from torch import Tensor, nn


def network() -> nn.Sequential:
    """784-128-64-10, or what `SIZES` says, with its initial weights."""
    pairs = [(nn.Linear(*sizes), nn.ReLU()) for sizes in pairwise(SIZES)]
    return nn.Sequential(*[layer for pair in pairs for layer in pair][:-1]).to(device())


def to_device(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """The images in [-1, 1] and the labels."""
    pixels = torch.from_numpy(images).to(device(), torch.float32)
    return pixels.div_(127.5).sub_(1), torch.from_numpy(labels).to(device(), torch.int64)


def accuracy(model: Callable[[Tensor], Tensor], images: np.ndarray, labels: np.ndarray) -> float:
    """The share of the images whose label is predicted."""
    x, y = to_device(images, labels)
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()
