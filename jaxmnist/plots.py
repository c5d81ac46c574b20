"""Plots of runs, models and digits, as matplotlib figures.

matplotlib is the extra "plots", and is imported when a figure is made.

>>> records = [{"train_loss": 0.9, "test_loss": 0.5, "test_accuracy": 0.86}]
>>> figure = loss_curves({"a run": records}, np.array([[1.2, 0.6]]))
>>> save_figure(figure, Path("runs/loss.png"))  # doctest: +SKIP
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxmnist.files import atomic_write
from jaxmnist.metrics import confusion_matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, float | int]]
"""An epoch's "train_loss" and "test_loss" in nats, "test_accuracy" in [0, 1]."""

Images = UInt8[np.ndarray, "n height width"]
Labels = Int[np.ndarray, " n"]
Probabilities = Float[np.ndarray, "n classes"]
Losses = Float[np.ndarray, "epochs steps"]

# The contrast of each to white and to black is at least 3.
COLORS = ("#3b82c4", "#e8710a", "#1f9a68", "#c74b86", "#8568cf", "#a4782a", "#0e96a8", "#d1494d")
_MARKERS = "os^Dv"


def run_figures(
    run: Any, images: Images, labels: Labels, probabilities: Probabilities
) -> "dict[str, Figure]":
    """The figures of a finished run by file name: losses, confusion, mistakes, weights.

    `run` has the `records` and `losses` of `loss_curves` and the `params` of an MLP, as `read_run`
    gives them; `probabilities` are what this gives to the test's `images`.
    """
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    return {
        "loss.png": loss_curves({"test accuracy": run.records}, run.losses),
        "confusion.png": confusion_figure(confusion),
        "mistakes.png": mistake_grid(images, labels, probabilities),
        "weights.png": weight_grid(run.params["params"]["linear_0"]["weight"]),
    }


def loss_curves(runs: Mapping[str, Records], losses: Losses | None = None) -> "Figure":
    """Losses and test accuracies of runs against epochs, a colour and a marker for each run.

    Args:
        runs: what was measured after each epoch of a run, by the name for the legend.
        losses: of a single run, the loss of each step, in nats; NaN where it is not known.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = _figure(6.5, 5.2 + 0.12 * len(runs), "Loss and test accuracy")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    legend = [Line2D([], [], color="0.4", label="training, mean of the epoch")]
    legend += [Line2D([], [], color="0.4", ls="--", label="test, after the epoch")]
    if losses is not None and losses.size:
        steps = np.arange(1, losses.size + 1) / losses.shape[1]
        label = "training, each step"
        legend += upper.plot(steps, losses.ravel(), color="0.75", linewidth=0.5, label=label)
    for number, (name, records) in enumerate(runs.items()):
        style: dict[str, Any] = {"color": COLORS[number % len(COLORS)]}
        style |= {"marker": _MARKERS[number % len(_MARKERS)], "ms": 5 if len(records) <= 50 else 0}
        ends = np.arange(1, len(records) + 1)
        upper.plot(ends - 0.5, [record["train_loss"] for record in records], **style)
        upper.plot(ends, [record["test_loss"] for record in records], ls="--", **style)
        lower.plot(ends, [record["test_accuracy"] for record in records], ls="--", **style)
        # Without the space matplotlib 3.9 hides a name that begins with an underscore.
        label = f" {_short(name, 30)}: {records[-1]['test_accuracy']:.2%}"
        legend.append(Line2D([], [], label=label.replace("$", r"\$"), **style))
    upper.set(ylabel="loss (nats)", ylim=(0, None))
    lower.set(xlabel="epochs", ylabel="test accuracy", xlim=(0, None))
    lower.yaxis.set_major_formatter(PercentFormatter(1.0))
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(handles=legend, loc="outside lower left", ncols=2, frameon=False)
    return figure


def confusion_figure(confusion: Int[np.ndarray, "classes classes"]) -> "Figure":
    """How many images of each digit (rows) were predicted as which (columns)."""
    title = f"{np.trace(confusion):,} of {confusion.sum():,} test images are right"
    figure = _figure(6, 5.2, title)
    axes = figure.subplots()
    mistakes = np.ma.masked_array(confusion, np.eye(len(confusion), dtype=bool))
    worst = max(1, mistakes.max())
    axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=worst)
    for row, column in np.argwhere(confusion):
        count = confusion[row, column]
        color = "w" if row != column and count > 0.65 * worst else "k"
        axes.text(column, row, f"{count}", ha="center", va="center", size=9, color=color)
    digits = np.arange(len(confusion))
    axes.set(xticks=digits, yticks=digits, xlabel="predicted digit", ylabel="true digit")
    axes.set_facecolor("#d6e6f4")  # of what is right
    return figure


def mistake_grid(
    images: Images, labels: Labels, probabilities: Probabilities, columns: int = 8
) -> "Figure":
    """The 24 most confident mistakes, with the probabilities of the prediction and the label."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    worst = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:24]
    titles = [
        f"said {row.argmax()}: {row.max():.1%}\nis {label}: {row[label]:.1%}"
        for row, label in zip(probabilities[worst], labels[worst], strict=True)
    ]
    title = f"The {len(worst)} most confident mistakes" if titles else "No test image was mistaken"
    return contact_sheet(list(zip(images[worst], titles, strict=True)), title, columns)


def contact_sheet(
    pictures: Sequence[tuple[UInt8[np.ndarray, "height width"], str]], title: str, columns: int = 8
) -> "Figure":
    """Images side by side, dark on light, with a title above each and one for all."""
    rows = max(1, math.ceil(len(pictures) / columns))
    figure = _figure(1.15 * columns, 1.5 * rows + 0.4, title)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, (image, name) in zip(grid, pictures, strict=False):
        _show_digit(axes, image, name)
    return figure


def weight_grid(
    weight: Float[np.ndarray, "units 784"], columns: int = 16, most: int = 128
) -> "Figure":
    """The weights of the first layer's units as images of 28x28.

    Args:
        weight: that of the first layer, `params["params"]["linear_0"]["weight"]`.
        columns: units side by side.
        most: how many units are shown at most: those with the largest weights.
    """
    chosen = np.sort(np.argsort(-np.linalg.norm(weight, axis=1), kind="stable")[:most])
    rows = math.ceil(len(chosen) / columns)
    tiles = np.full((rows * columns, 30, 30), np.nan)  # 28 pixels and a gap
    tiles[: len(chosen), 1:29, 1:29] = weight[chosen].reshape(-1, 28, 28)
    picture = tiles.reshape(rows, columns, 30, 30).swapaxes(1, 2).reshape(rows * 30, -1)
    limit = max(float(np.nanmax(np.abs(tiles))), 1e-12)
    which = "all" if len(chosen) == len(weight) else f"{most} largest of"
    title = f"First-layer weights: {which} {len(weight)} units"
    figure = _figure(0.5 * columns, 0.5 * rows + 1.3, title)
    axes = figure.subplots()
    axes.set_axis_off()
    shown = axes.imshow(picture, "RdBu_r", vmin=-limit, vmax=limit, interpolation="none")
    label = "weight of a pixel (above 0: ink raises the sum)"
    figure.colorbar(shown, location="bottom", shrink=0.6, aspect=40, label=label)
    return figure


def probability_figure(
    images: Images, probabilities: Probabilities, names: Sequence[str]
) -> "Figure":
    """Each image beside the probabilities of its classes."""
    columns = round(math.sqrt(len(images) / 2)) or 1
    rows = math.ceil(len(images) / columns)
    title = "Digits as the model sees them, and their probabilities"
    figure = _figure(6 * columns, 2.6 * rows + 0.4, title)
    grid = figure.add_gridspec(rows, 2 * columns, width_ratios=(1, 1.7) * columns)
    for k, (image, row, name) in enumerate(zip(images, probabilities, names, strict=True)):
        left, right = (figure.add_subplot(grid[place]) for place in (2 * k, 2 * k + 1))
        _show_digit(left, image, _short(name, 24))
        colors = [COLORS[int(digit == row.argmax())] for digit in range(len(row))]
        bars = right.barh(np.arange(len(row)), row, color=colors)
        right.bar_label(bars, fmt="{:.1%}", padding=3, fontsize=8)
        right.set(xlim=(0, 1.2), xticks=(0, 0.5, 1), xlabel="probability")
        right.set(yticks=range(len(row)), ylabel="digit", ylim=(len(row) - 0.4, -0.6))
        right.tick_params(labelsize=8)
    return figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Write the figure into a .png, .pdf or .svg file, which appears whole or not at all."""
    with warnings.catch_warnings(), atomic_write(path) as file:
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a name may be in any script
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=150)


def _figure(width: float, height: float, title: str) -> "Figure":
    """An empty figure of this many inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, size=11)
    return figure


def _show_digit(axes: Any, image: np.ndarray, title: str) -> None:
    """A digit, dark on light."""
    axes.set_axis_off()
    axes.imshow(image, "gray_r", vmin=0, vmax=255)
    axes.set_title(title, size=9, parse_math=False)


def _short(name: str, most: int) -> str:
    """The name, or its beginning and end."""
    half = most // 2
    return name if len(name) <= most else f"{name[:half]}…{name[1 - half :]}"
