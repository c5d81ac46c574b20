"""The job that every peer does: its recipe, its data and the line of JSON in which it reports.

argv: the file with the data, the device, and for `benchmark.py --scale` what is not the notebook's.
"""

import json
import sys
from collections.abc import Iterator

import numpy as np

CHANGES = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
SIZES = (784, *CHANGES.get("hidden", (128, 64)), 10)
BATCH, EPOCHS, RATE = CHANGES.get("batch", 64), CHANGES.get("epochs", 5), 0.003
IMAGES, MODELS = CHANGES.get("images", 60_000), CHANGES.get("models", 1)


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The file that argv[1] names: train images u8 [IMAGES, 784], labels i32, and the test's."""
    with np.load(sys.argv[1]) as file:
        train, train_labels, test, test_labels = (
            file[f"{part}_{what}"] for part in ("train", "test") for what in ("images", "labels")
        )
    return (
        train.reshape(len(train), -1)[:IMAGES],
        train_labels.astype(np.int32)[:IMAGES],
        test.reshape(len(test), -1),
        test_labels.astype(np.int32),
    )


def device() -> str:
    """PyTorch's name of the device to train on, argv[2]: cpu or cuda."""
    return sys.argv[2]


def orders(n: int, seed: int = 0) -> Iterator[np.ndarray]:
    """The order of each epoch, for peers that shuffle with NumPy."""
    rng = np.random.default_rng(seed)
    return (rng.permutation(n) for _ in range(EPOCHS))


def batches(order: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of each batch, along the last axis; the last one is short."""
    return (order[..., i : i + BATCH] for i in range(0, order.shape[-1], BATCH))


def report(train_seconds: float, loss: float | np.floating, accuracy: float | np.floating) -> None:
    """Report the training's time, its loss over the last epoch, and the test accuracy."""
    result = {"train_seconds": train_seconds, "loss": float(loss), "accuracy": float(accuracy)}
    print(json.dumps(result))
