"""Pictures of runs, models and data, as matplotlib figures; showing or saving them is the caller's.

matplotlib is an extra, `pip install 'jaxmnist[plots]'`, and is imported when a figure is drawn.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, UInt8

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, float | int]]
"""An epoch's "train_loss" and "test_loss" in nats, "test_accuracy" in [0, 1]."""

# Each is read on white and on black: its contrast to either is at least 3.
COLORS = ("#3b82c4", "#e8710a", "#1f9a68", "#c74b86", "#8568cf", "#a4782a", "#0e96a8", "#d1494d")
_MARKERS = "os^Dv"


def loss_curve(losses: Float[np.ndarray, "epochs steps"], records: Records) -> "Figure":
    """The training loss of every step and epoch, with the test's loss and accuracy.

    Args:
        losses: the loss of each step, in nats; NaN where it is not known, no steps if none is.
        records: what was measured after each epoch.
    """
    from matplotlib.figure import Figure

    epochs, steps = losses.shape
    ends = np.arange(1, epochs + 1)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if steps:
        x, y = _extremes(losses.ravel(), most=10_000)
        axes.plot(x / steps, y, color="0.75", linewidth=0.5, label="training, each step")
    means = [record["train_loss"] for record in records]  # stand in the middle of their epoch
    tests = [record["test_loss"] for record in records]
    size = 6 if epochs <= 50 else 0
    axes.plot(ends - 0.5, means, "o-", ms=size, label="training, mean of the epoch")
    axes.plot(ends, tests, "s--", ms=size, label="test, after the epoch")
    for end in np.unique(np.linspace(1, epochs, 10).round().astype(int)):
        record = records[end - 1]
        axes.annotate(
            f"{record['test_accuracy']:.1%}",
            (end, record["test_loss"]),
            textcoords="offset points",
            xytext=(0, -16),
            ha="center",
            fontsize=8,
        )
    axes.set(xlabel="epochs", ylabel="loss (nats)", xlim=(0, epochs * 1.04), ylim=(0, None))
    axes.set_title("Loss, and test accuracy after each epoch", fontsize=11)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def run_curves(
    names: Sequence[str], runs: Sequence[tuple[Float[np.ndarray, "_epochs _steps"], Records]]
) -> "Figure":
    """Losses and test accuracies of runs against epochs, a colour and a marker for each.

    The training losses are averaged over stretches of a hundredth of the run, or over epochs where
    those of the steps are not known.

    Args:
        names: what the legend calls each run.
        runs: the loss of each step, in nats, and what was measured after each epoch.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(5, 5.2 + 0.12 * len(runs)), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    keys = [Line2D([], [], color="0.5", label="x"), Line2D([], [], color="0.5", ls="--", label="x")]
    for number, (losses, records) in enumerate(runs):
        ends = np.arange(1, len(records) + 1)
        look: dict[str, Any] = {
            "color": COLORS[number % len(COLORS)],
            "marker": _MARKERS[number % len(_MARKERS)],
        }
        look |= {"markersize": 5 if len(records) <= 50 else 0, "linewidth": 1.2}
        positions, means = _stretches(losses, records)
        upper.plot(positions, means, color=look["color"], linewidth=1.2)
        upper.plot(ends, [r["test_loss"] for r in records], ls="--", **look)
        lower.plot(ends, [r["test_accuracy"] for r in records], ls="--", **look)
        keys.append(Line2D([], [], label="x", **look))
    upper.set(ylabel="loss (nats)", ylim=(0, None))
    lower.set(xlabel="epochs", ylabel="test accuracy", xlim=(0, None))
    lower.yaxis.set_major_formatter(PercentFormatter(1.0))
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(handles=keys, loc="outside lower left", ncols=2, frameon=False)
    short = [name if len(name) <= 30 else f"{name[:14]}…{name[-15:]}" for name in names]
    texts = ["training", "test, after each epoch", *short]
    for text, value in zip(legend.get_texts(), texts, strict=True):
        text.set_parse_math(False)  # a name is a name, whatever dollars are in it
        text.set_text(value)
    return figure


def confusion_matrix(confusion: Int[np.ndarray, "classes classes"]) -> "Figure":
    """How many images of each digit (rows) were taken for which (columns)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    classes = len(confusion)
    digits, right = np.arange(classes), np.eye(classes, dtype=bool)
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    mistakes = np.ma.masked_array(confusion, right)
    worst = max(1, mistakes.max()) if classes > 1 else 1
    shown = axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=worst)
    axes.imshow(np.ma.masked_array(np.full_like(confusion, 3), ~right), "Blues", vmin=0, vmax=10)
    for row, column in np.argwhere(confusion):
        count = confusion[row, column]
        dark = not right[row, column] and count > 0.65 * worst
        axes.text(
            column, row, f"{count}", ha="center", va="center", size=9, color="w" if dark else "k"
        )
    axes.set(xticks=digits, yticks=digits, xlabel="taken for (digit)", ylabel="is (digit)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, label="images taken for another digit")
    bar.locator = MaxNLocator(integer=True, nbins=5)
    bar.outline.set_visible(False)
    figure.suptitle(
        f"{np.trace(confusion):,} of {confusion.sum():,} test images are right", size=11
    )
    return figure


def confident_mistakes(
    probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], count: int = 24
) -> Int[np.ndarray, " mistakes"]:
    """The indices of the mistakes of which the model was surest, the surest first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:count]


def mistake_grid(
    images: UInt8[np.ndarray, "n height width"],
    probabilities: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
) -> "Figure":
    """Images that were mistaken, each with what it was taken for and its label, and how surely."""
    from matplotlib.figure import Figure

    columns = 8
    rows = max(1, math.ceil(len(images) / columns))
    figure = Figure(figsize=(1.15 * columns, 1.45 * rows + 0.4), layout="constrained")
    title = f"The {len(images)} surest mistakes: what the model said and what it is, with the"
    title += " probability that it gave to each"
    figure.suptitle(title if len(images) else "No test image was mistaken", size=11)
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if number < len(images):
            label, chances = int(labels[number]), probabilities[number].tolist()
            taken = int(np.argmax(chances))
            axes.imshow(images[number], cmap="gray_r", vmin=0, vmax=255)
            lines = (
                f"said {taken}: {percent(chances[taken])}",
                f"is {label}: {percent(chances[label])}",
            )
            axes.set_title("\n".join(lines), size=9)
    return figure


def weight_grid(
    weight: Float[np.ndarray, "units 784"], columns: int = 16, most: int = 128
) -> "Figure":
    """The weights of the first layer's units as images of 28x28: what each of them looks for.

    Args:
        weight: that of the first layer, `params["params"]["linear_0"]["weight"]`.
        columns: units side by side.
        most: how many units are shown at most: those with the largest weights.
    """
    from matplotlib.figure import Figure

    units = len(weight)
    norms = np.linalg.norm(weight, axis=1)
    chosen = np.sort(np.argsort(-norms, kind="stable")[:most])
    rows = math.ceil(len(chosen) / columns)
    tiles = np.full((rows * columns, 30, 30), np.nan)  # 28 pixels and a gap
    tiles[: len(chosen), 1:29, 1:29] = weight[chosen].reshape(-1, 28, 28)
    tiled = tiles.reshape(rows, columns, 30, 30).transpose(0, 2, 1, 3).reshape(rows * 30, -1)
    limit = max(float(np.nanmax(np.abs(tiled))), 1e-12)
    figure = Figure(figsize=(columns * 0.5, rows * 0.5 + 1), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(tiled, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="none")
    axes.set_axis_off()
    look: dict[str, Any] = {"location": "bottom", "shrink": 0.6, "aspect": 40}
    figure.colorbar(shown, ax=axes, label="weight of a pixel (above 0: ink raises the sum)", **look)
    which = f"{units}" if units <= most else f"{most} largest of {units}"
    axes.set_title(f"First-layer weights, 28x28: {which} units", size=10)
    return figure


def percent(share: float) -> str:
    """A share of 1 with one digit after the point, rounded neither to nothing nor to all of it."""
    if 0 < share < 0.0005:
        return "< 0.1%"
    return "> 99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"


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


def _extremes(
    losses: Float[np.ndarray, " steps"], most: int
) -> tuple[Int[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Steps, from 1, and losses: all or, if they are many, each stretch's lowest and highest."""
    if losses.size <= most:
        return np.arange(1, losses.size + 1), losses
    starts = np.linspace(0, losses.size, most // 2, endpoint=False).astype(int)
    both = np.fmin.reduceat(losses, starts), np.fmax.reduceat(losses, starts)
    return np.repeat(starts + 1, 2), np.stack(both, axis=1).ravel()


def _stretches(
    losses: Float[np.ndarray, "epochs steps"], records: Records
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Mean losses of a hundredth of the run each, and the epochs on which these are centred."""
    epochs, flat = losses.shape[0], losses.ravel()
    known = np.isfinite(flat)
    if not known.any():
        return np.arange(epochs) + 0.5, np.array([r["train_loss"] for r in records])
    edges = np.unique(np.linspace(0, flat.size, 101).astype(int))
    counts = np.add.reduceat(known, edges[:-1], dtype=np.int64)
    sums = np.add.reduceat(np.where(known, flat, 0), edges[:-1], dtype=np.float64)
    means = np.where(counts, sums / np.maximum(counts, 1), np.nan)
    return (edges[:-1] + edges[1:]) / 2 / losses.shape[1], means
