"""PyTorch with the data in memory, or on the GPU, and a functional step under torch.compile.

The step is one graph: gather, gradient and update. A step that calls `backward` is two, and slower.
Many models are a vmap of the gradient.
"""

import torch
from _job import MODELS, RATE, train
from _torch import load, network, shuffle
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

Params = dict[str, Tensor]
model = network()


def loss_fn(params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of a batch."""
    return nn.functional.cross_entropy(functional_call(model, params, (x,)), y)


grad_fn = grad_and_value(loss_fn) if MODELS == 1 else torch.vmap(grad_and_value(loss_fn))


@torch.compile(dynamic=False)
def update(params: Params, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """One batch further, in place; the loss."""
    grads, loss = grad_fn(params, x[rows], y[rows])
    for name, grad in grads.items():
        params[name].sub_(grad, alpha=RATE)
    return loss.mean()


def init() -> Params:
    """The weights before the first step, of the model or of all models."""
    models = [dict(network().named_parameters()) for _ in range(MODELS)]
    stacked = {name: torch.stack([params[name] for params in models]) for name in models[0]}
    return {name: leaves.detach().squeeze(0) for name, leaves in stacked.items()}


def step(params: Params, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Params, Tensor]:
    """`update`, as `train` calls it."""
    return params, update(params, x, y, rows)


train(*load(), init, step, shuffle=shuffle, times=1)
