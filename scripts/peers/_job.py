"""The job that every peer does: its recipe, its data, its loop, and the line in which it reports.

argv: the file with the data, and the change to the notebook's training, as JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

CHANGE = json.loads(sys.argv[2])
SIZES = (784, *CHANGE.get("hidden", (128, 64)), 10)
BATCH, EPOCHS, RATE = CHANGE.get("batch", 64), 1 if CHANGE else 5, 0.003
IMAGES, MODELS = CHANGE.get("images", 60_000), CHANGE.get("models", 1)

Step = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


def load() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 784] and labels int32 [n]."""
    with np.load(sys.argv[1]) as file:
        return file["images"][:IMAGES], file["labels"][:IMAGES]


def shuffle(n: int, epoch: int) -> np.ndarray:
    """The rows of an epoch in their order."""
    return np.random.default_rng(epoch).permutation(n)


def train(
    x: Any, y: Any, init: Callable[[], Any], step: Step, shuffle: Any = shuffle, times: int = MODELS
) -> None:
    """Train and report.

    Args:
        x: the images, where a step takes its rows.
        y: the labels alike.
        init: the state before the first step.
        step: `step(state, x, y, rows)`, the next state and the loss of the batch.
        shuffle: the order of an epoch, of the number of images and the epoch.
        times: how often to train, one after the other.
    """
    n = len(y)
    starts = range(0, n, BATCH)
    for i in {0, starts[-1]}:  # compiles both sizes
        step(init(), x, y, shuffle(n, 0)[..., i : i + BATCH])
    states = [init() for _ in range(times)]
    start = time.perf_counter()
    for state in states:
        for epoch in range(EPOCHS):
            order, losses = shuffle(n, epoch), []
            for i in starts:
                state, loss = step(state, x, y, order[..., i : i + BATCH])
                losses.append(loss)
        mean = np.mean([float(loss) for loss in losses])  # waits until they are computed
    report(time.perf_counter() - start, mean)


def report(seconds: float, loss: Any) -> None:
    """Print the training's time, and its loss over the last epoch, as scripts/train.py does."""
    print(f"Training loss: {loss:.6f}   train {seconds:.6f} s")
