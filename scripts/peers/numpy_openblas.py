"""By hand in NumPy: its matmuls run in OpenBLAS on every core, the rest updates in place."""

import time
from itertools import pairwise

import numpy as np
from _job import MODELS, RATE, SIZES, batches, load, orders, report

images, labels, test_images, test_labels = load()


def init(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The weights and biases before the first step."""
    rng = np.random.default_rng(seed)
    weights, biases = [], []
    for inputs, outputs in pairwise(SIZES):
        bound = inputs**-0.5
        weights.append(rng.uniform(-bound, bound, (inputs, outputs)).astype(np.float32))
        biases.append(rng.uniform(-bound, bound, outputs).astype(np.float32))
    return weights, biases


def normalize(pixels: np.ndarray) -> np.ndarray:
    """Grey levels 0..255 to [-1, 1]."""
    x = pixels.astype(np.float32)
    x *= np.float32(1 / 127.5)
    x -= 1
    return x


def forward(x: np.ndarray) -> list[np.ndarray]:
    """What each layer takes in, and the logits last."""
    layers = [x]
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        x = x @ w
        x += b
        if i < len(weights) - 1:
            np.maximum(x, 0, out=x)
        layers.append(x)
    return layers


def step(x: np.ndarray, y: np.ndarray) -> float:
    """One update of the weights; the loss before it."""
    *inputs, z = forward(x)
    n = np.arange(len(y))
    z -= z.max(axis=1, keepdims=True)
    d = np.exp(z)
    total = d.sum(axis=1, keepdims=True)
    loss = (np.log(total[:, 0]) - z[n, y]).mean()
    d /= total
    d[n, y] -= 1
    d *= np.float32(RATE / len(y))  # the gradient of the logits, times the rate
    for i in reversed(range(len(weights))):
        previous = (d @ weights[i].T) * (inputs[i] > 0) if i else d
        weights[i] -= inputs[i].T @ d
        biases[i] -= d.sum(axis=0)
        d = previous
    return loss


models = [init(seed) for seed in range(MODELS)]

start = time.perf_counter()
for seed, model in enumerate(models):  # one after the other
    weights, biases = model
    for order in orders(len(images), seed):
        losses = [step(normalize(images[rows]), labels[rows]) for rows in batches(order)]
seconds = time.perf_counter() - start

predictions = forward(normalize(test_images))[-1].argmax(axis=1)
report(seconds, np.mean(losses), (predictions == test_labels).mean())
