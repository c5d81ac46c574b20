"""Pictures of a run and of its data, as matplotlib figures; showing or saving them is the caller's.

matplotlib is an extra, `pip install 'jaxmnist[plots]'`, and is imported when a figure is drawn.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_curve(
    losses: Float[np.ndarray, "epochs steps"], records: Sequence[Mapping[str, float]]
) -> "Figure":
    """The training loss of every step and epoch, with the test's loss and accuracy.

    Args:
        losses: the loss of each step, in nats.
        records: an epoch's "train_loss" and "test_loss" in nats, "test_accuracy" in [0, 1].
    """
    from matplotlib.figure import Figure

    epochs, steps = losses.shape
    ends = np.arange(1, epochs + 1)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(1, losses.size + 1) / steps
    axes.plot(positions, losses.ravel(), color="0.75", linewidth=0.5, label="training, each step")
    means = [record["train_loss"] for record in records]  # stand in the middle of their epoch
    axes.plot(ends - 0.5, means, "o-", label="training, mean of the epoch")
    axes.plot(ends, [r["test_loss"] for r in records], "s--", label="test, after the epoch")
    for end, record in zip(ends, records, strict=True):
        axes.annotate(
            f"{record['test_accuracy']:.1%}",
            (end, record["test_loss"]),
            textcoords="offset points",
            xytext=(0, -16),
            ha="center",
            fontsize=8,
        )
    axes.set(xlabel="epochs", ylabel="loss (nats)", xlim=(0, epochs + 0.2), ylim=(0, None))
    axes.set_title("Loss, and test accuracy after each epoch", fontsize=11)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def digit_grid(images: UInt8[np.ndarray, "rows columns height width"]) -> "Figure":
    """The images side by side, white on black."""
    from matplotlib.figure import Figure

    rows, columns, height, width = images.shape
    figure = Figure(figsize=(columns * 0.42, rows * 0.42))
    axes = figure.add_axes((0, 0, 1, 1))
    tiled = images.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
    axes.imshow(tiled, cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()
    return figure
