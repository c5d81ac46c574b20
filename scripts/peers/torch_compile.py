"""PyTorch with the data in memory, or on the GPU, and a functional step under torch.compile.

The step is one graph: gather, gradient and update. A step that calls `backward` is two, and slower.
Many models are a vmap of the gradient.
"""

import time

import torch
from _job import BATCH, EPOCHS, MODELS, RATE, device, load, report
from _torch_job import accuracy, network, to_device
from torch import nn
from torch.func import functional_call, grad_and_value

Params = dict[str, torch.Tensor]


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


def init() -> Params:
    """The weights before the first step, of the model or of all models."""
    models = [dict(network().named_parameters()) for _ in range(MODELS)]
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
model, params = network(), init()

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
report(
    seconds,
    mean_loss,
    accuracy(lambda x: functional_call(model, params, (x,)), test_images, test_labels),
)
