"""PyTorch with the data in memory, or on the GPU: batches by index, a fused optimizer."""

import time

import torch
from _job import BATCH, EPOCHS, RATE, device, load, report
from _torch_job import accuracy, network, to_device
from torch import nn

images, labels, test_images, test_labels = load()
torch.manual_seed(0)
model = network()
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

report(seconds, mean_loss, accuracy(model, test_images, test_labels))
