"""PyTorch with the data in memory, or on the GPU, and a functional step under torch.compile.

The step is one graph: gather, gradient and update. A step that calls `backward` is two, and slower.
Many models are a vmap of the gradient.
"""

import time
from itertools import pairwise

import numpy as np
import torch
from _job import BATCH, EPOCHS, MODELS, RATE, SIZES, device, load, report
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
    grads, loss = grad_fn(params, x[rows], y[rows])
    for name, grad in grads.items():
        params[name].sub_(grad, alpha=RATE)
    return loss


def layers() -> nn.Sequential:
    """784-128-64-10, or what `SIZES` says."""
    pairs = [(nn.Linear(*sizes), nn.ReLU()) for sizes in pairwise(SIZES)]
    return nn.Sequential(*[layer for pair in pairs for layer in pair][:-1]).to(device())


def init() -> Params:
    """The weights before the first step, of the model or of all models."""
    models = [dict(layers().named_parameters()) for _ in range(MODELS)]
    names = models[0]
    stack = {name: torch.stack([params[name].detach() for params in models]) for name in names}
    return stack if MODELS > 1 else {name: leaf[0].clone() for name, leaf in stack.items()}


def order() -> list[torch.Tensor]:
    """The rows of each batch of an epoch, of the model or of all models."""
    permutations = [torch.randperm(len(x), device=device()) for _ in range(MODELS)]
    rows = torch.stack(permutations) if MODELS > 1 else permutations[0]
    return [batch.contiguous() for batch in rows.split(BATCH, dim=-1)]


grad_fn = grad_and_value(loss_fn) if MODELS == 1 else torch.vmap(grad_and_value(loss_fn))
images, labels, test_images, test_labels = load()
torch.manual_seed(0)
model, params = layers(), init()

x, y = to_device(images, labels)
for rows in order()[-2:]:  # compiles both sizes
    step(params, x, y, rows)
params = init()

start = time.perf_counter()
for _ in range(EPOCHS):
    total = torch.zeros((), device=device())
    batches = order()
    for rows in batches:
        total += step(params, x, y, rows).mean()
mean_loss = total.item() / len(batches)
seconds = time.perf_counter() - start

if MODELS > 1:
    params = {name: leaf[0] for name, leaf in params.items()}
x, y = to_device(test_images, test_labels)
accuracy = (functional_call(model, params, (x,)).argmax(1) == y).float().mean()
report(seconds, mean_loss, accuracy.item())
