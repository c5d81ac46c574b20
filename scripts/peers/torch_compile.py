"""PyTorch with the data in memory, or on the GPU, and a functional step under torch.compile.

The step is one graph: gather, gradient and update. A step that calls `backward` is two, and slower.
"""

import time

import numpy as np
import torch
from _job import BATCH, EPOCHS, RATE, device, load, report
from torch import nn
from torch.func import functional_call, grad_and_value

Params = dict[str, torch.Tensor]


def to_device(images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The images in [-1, 1] and the labels."""
    pixels = torch.from_numpy(images).to(device(), torch.float32)
    return pixels.div_(127.5).sub_(1), torch.from_numpy(labels).to(device(), torch.int64)


def loss_fn(params: Params, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of a batch."""
    return nn.functional.cross_entropy(functional_call(model, params, (x,)), y)


@torch.compile(dynamic=False)
def step(params: Params, x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """One batch further, in place; the loss."""
    grads, loss = grad_and_value(loss_fn)(params, x[rows], y[rows])
    for name, grad in grads.items():
        params[name].sub_(grad, alpha=RATE)
    return loss


images, labels, test_images, test_labels = load()
torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
).to(device())
params = {name: value.detach().clone() for name, value in model.named_parameters()}

x, y = to_device(images, labels)
for rows in torch.arange(len(x), device=device()).split(BATCH)[-2:]:  # compiles both sizes
    step(params, x, y, rows)
for name, value in model.named_parameters():
    params[name].copy_(value.detach())

start = time.perf_counter()
for _ in range(EPOCHS):
    total = torch.zeros((), device=device())
    order = torch.randperm(len(x), device=device()).split(BATCH)
    for rows in order:
        total += step(params, x, y, rows)
mean_loss = total.item() / len(order)
seconds = time.perf_counter() - start

x, y = to_device(test_images, test_labels)
accuracy = (functional_call(model, params, (x,)).argmax(1) == y).float().mean()
report(seconds, mean_loss, accuracy.item())
