"""By hand in NumPy: its matmuls run in OpenBLAS on every core, the rest updates in place."""

from itertools import pairwise

import numpy as np
from _job import RATE, SIZES, load, train

State = list[tuple[np.ndarray, np.ndarray]]  # weights and biases of each layer


def init() -> State:
    """The layers before the first step, as PyTorch draws them."""
    rng, layers = np.random.default_rng(0), []
    for inputs, outputs in pairwise(SIZES):
        bound = inputs**-0.5
        shapes = ((inputs, outputs), (outputs,))
        w, b = (rng.uniform(-bound, bound, shape).astype(np.float32) for shape in shapes)
        layers.append((w, b))
    return layers


def step(layers: State, x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> tuple[State, float]:
    """One update of the weights; the loss before it."""
    z, inputs = x[rows].astype(np.float32), []
    z *= np.float32(1 / 127.5)
    z -= 1
    for i, (w, b) in enumerate(layers):
        if i:
            np.maximum(z, 0, out=z)
        inputs.append(z)
        z = z @ w
        z += b
    n, labels = np.arange(len(rows)), y[rows]
    z -= z.max(axis=1, keepdims=True)
    d = np.exp(z)
    total = d.sum(axis=1, keepdims=True)
    loss = (np.log(total[:, 0]) - z[n, labels]).mean()
    d /= total
    d[n, labels] -= 1
    d *= np.float32(RATE / len(rows))  # the gradient of the logits, times the rate
    for i, (w, b) in reversed(list(enumerate(layers))):
        previous = (d @ w.T) * (inputs[i] > 0) if i else d
        w -= inputs[i].T @ d
        b -= d.sum(axis=0)
        d = previous
    return layers, loss


train(*load(), init, step)
