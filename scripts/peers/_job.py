"""The job that every peer does: its recipe, its data, its loop, and the line in which it reports.

argv: the file with the data, and the changes to the notebook's training, as JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

CHANGES = json.loads(sys.argv[2])
SIZES = (784, *CHANGES.get("hidden", (128, 64)), 10)
BATCH, EPOCHS, RATE = CHANGES.get("batch", 64), CHANGES.get("epochs", 5), 0.003
IMAGES, MODELS = CHANGES.get("images", 60_000), CHANGES.get("models", 1)


def load() -> dict[str, np.ndarray]:
    """Images uint8 [n, 784] and labels int32 [n], of the training and of the test."""
    with np.load(sys.argv[1]) as file:
        data = {name: file[name] for name in file.files}
    return data | {name: data[name][:IMAGES] for name in ("images", "labels")}


def shuffle(n: int, seed: int) -> np.ndarray:
    """The order of an epoch: rows [n] or, of many models, [models, n]."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(n) for _ in range(MODELS)]
    return np.stack(orders) if MODELS > 1 else orders[0]


def train(
    init: Callable[[], Any],
    step: Callable[[Any, Any, Any, Any], tuple[Any, Any]],
    predict: Callable[[Any, Any], Any],
    *,
    prepare: Callable[[np.ndarray, np.ndarray], tuple[Any, Any]] = lambda x, y: (x, y),
    shuffle: Callable[[int, int], Any] = shuffle,
    collect: Callable[[list], Any] = list,
    times: int = 1,
) -> None:
    """Train, test, report.

    Args:
        init: the state before the first step, the same each time.
        step: `step(state, images, labels, rows)`, the next state and the loss of the batch.
        predict: the digit of each test image.
        prepare: brings images and labels to where a step takes its rows.
        shuffle: the order of an epoch, of the number of images and the epoch.
        collect: the losses as numbers of NumPy; it waits until they are computed.
        times: how often to train, one after the other.
    """
    data = load()
    x, y = prepare(data["images"], data["labels"])
    n = len(data["labels"])
    starts = range(0, n, BATCH)
    for i in {0, starts[-1]}:  # compiles both sizes
        step(init(), x, y, shuffle(n, 0)[..., i : i + BATCH])
    state, start = init(), time.perf_counter()
    for epoch in range(times * EPOCHS):
        if epoch and epoch % EPOCHS == 0:
            state = init()
        order, losses = shuffle(n, epoch), []
        for i in starts:
            state, loss = step(state, x, y, order[..., i : i + BATCH])
            losses.append(loss)
    mean = np.mean(collect(losses))
    seconds = time.perf_counter() - start
    right = np.asarray(predict(state, data["test_images"])) == data["test_labels"]
    report(seconds, mean, right.mean())


def report(seconds: float, loss: Any, accuracy: Any) -> None:
    """The training's time, its loss over the last epoch, and the test accuracy."""
    print(json.dumps({"training": seconds, "loss": float(loss), "accuracy": float(accuracy)}))
