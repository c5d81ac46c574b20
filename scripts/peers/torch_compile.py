"""PyTorch with the data in memory, or on the GPU, and the step under torch.compile."""

import time

import numpy as np
import torch
from _job import BATCH, EPOCHS, RATE, device, load, report
from torch import nn


def to_device(images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The images in [-1, 1] and the labels."""
    pixels = torch.from_numpy(images).to(device(), torch.float32)
    return pixels.div_(127.5).sub_(1), torch.from_numpy(labels).to(device(), torch.int64)


images, labels, test_images, test_labels = load()
torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
).to(device())
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=RATE)


@torch.compile(dynamic=False)
def step(x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """One batch further, the batch gathered in the program; the loss."""
    optimizer.zero_grad()
    loss = criterion(model(x[rows]), y[rows])
    loss.backward()
    optimizer.step()
    return loss.detach()


x, y = to_device(images, labels)
initial = {name: value.clone() for name, value in model.state_dict().items()}
for rows in torch.arange(len(x), device=device()).split(BATCH)[-2:]:  # compiles both sizes
    step(x, y, rows)
model.load_state_dict(initial)

start = time.perf_counter()
for _ in range(EPOCHS):
    total = torch.zeros((), device=device())
    order = torch.randperm(len(x), device=device()).split(BATCH)
    for rows in order:
        total += step(x, y, rows)
mean_loss = total.item() / len(order)
seconds = time.perf_counter() - start

with torch.no_grad():
    x, y = to_device(test_images, test_labels)
    report(seconds, mean_loss, (model(x).argmax(1) == y).float().mean().item())
