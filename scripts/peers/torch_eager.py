"""PyTorch with the data in memory, or on the GPU: batches by index, a fused optimizer."""

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
optimizer = torch.optim.SGD(model.parameters(), lr=RATE, fused=True)

x, y = to_device(images, labels)
start = time.perf_counter()
for _ in range(EPOCHS):
    total = torch.zeros((), device=device())
    order = torch.randperm(len(x), device=device()).split(BATCH)
    for rows in order:
        optimizer.zero_grad()
        loss = criterion(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        total += loss.detach()
mean_loss = total.item() / len(order)
seconds = time.perf_counter() - start

with torch.no_grad():
    x, y = to_device(test_images, test_labels)
    report(seconds, mean_loss, (model(x).argmax(1) == y).float().mean().item())
