"""PyTorch on a GPU with the whole step captured in a CUDA graph, one for each batch size."""

import time

import torch
from _job import BATCH, EPOCHS, RATE, load, report
from _torch_job import accuracy, network, to_device
from torch import nn

torch.set_default_device("cuda")


def step(rows: torch.Tensor) -> None:
    """One batch further; adds its loss to the total."""
    loss = criterion(model(x[rows]), y[rows])
    loss.backward()
    optimizer.step()
    total.add_(loss.detach())


def capture(rows: torch.Tensor) -> torch.cuda.CUDAGraph:
    """A graph of the step that reads its batch's indices from `rows`."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what PyTorch's guide asks for: steps before the capture
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            step(rows)
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad(set_to_none=True)  # the graph's gradients are written, not added to
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(rows)
    return graph


images, labels, test_images, test_labels = load()
torch.manual_seed(0)
model = network()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=RATE, fused=True)
x, y = to_device(images, labels)
total = torch.zeros(())
initial = {name: value.clone() for name, value in model.state_dict().items()}
inputs = {size: torch.arange(size) for size in (BATCH, len(x) % BATCH) if size}
graphs = {size: capture(rows) for size, rows in inputs.items()}
model.load_state_dict(initial)

torch.cuda.synchronize()
start = time.perf_counter()
for _ in range(EPOCHS):
    total.zero_()
    order = torch.randperm(len(x)).split(BATCH)
    for rows in order:
        inputs[len(rows)].copy_(rows)
        graphs[len(rows)].replay()
mean_loss = total.item() / len(order)
seconds = time.perf_counter() - start

report(seconds, mean_loss, accuracy(model, test_images, test_labels))
