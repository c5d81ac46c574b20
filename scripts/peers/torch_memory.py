"""PyTorch with the data in memory, or on the GPU: batches by index, a fused optimizer."""

import torch
from _job import RATE, train
from _torch import load, network, shuffle
from torch import Tensor, nn

State = tuple[nn.Module, torch.optim.Optimizer]
criterion = nn.CrossEntropyLoss()


def init() -> State:
    """Model and optimizer before the first step."""
    model = network()
    return model, torch.optim.SGD(model.parameters(), lr=RATE, fused=True)


def step(state: State, x: Tensor, y: Tensor, rows: Tensor) -> tuple[State, Tensor]:
    """One batch further, in place."""
    model, optimizer = state
    optimizer.zero_grad()
    loss = criterion(model(x[rows]), y[rows])
    loss.backward()
    optimizer.step()
    return state, loss.detach()


train(*load(), init, step, shuffle=shuffle)
