"""Plots of losses, accuracies and confusions, as matplotlib figures.

matplotlib is the extra "plots", and is imported when a figure is made.
"""

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from jaxmnist.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, float | int]]
"""An epoch's "train_loss" and "test_loss" in nats, "test_accuracy" in [0, 1]."""

# Each is read on white and on black: its contrast to either is at least 3.
COLORS = ("#3b82c4", "#e8710a", "#1f9a68", "#c74b86", "#8568cf", "#a4782a", "#0e96a8", "#d1494d")
GREY = "#7f8790"  # likewise
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
        style: dict[str, Any] = {
            "color": COLORS[number % len(COLORS)],
            "marker": _MARKERS[number % len(_MARKERS)],
        }
        style |= {"markersize": 5 if len(records) <= 50 else 0, "linewidth": 1.2}
        positions, means = _stretches(losses, records)
        upper.plot(positions, means, color=style["color"], linewidth=1.2)
        upper.plot(ends, [r["test_loss"] for r in records], ls="--", **style)
        lower.plot(ends, [r["test_accuracy"] for r in records], ls="--", **style)
        keys.append(Line2D([], [], label="x", **style))
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
    """How many images of each digit (rows) were predicted as which (columns)."""
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
    axes.set(xticks=digits, yticks=digits, xlabel="predicted digit", ylabel="true digit")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, label="images predicted as another digit")
    bar.locator = MaxNLocator(integer=True, nbins=5)
    bar.outline.set_visible(False)
    figure.suptitle(
        f"{np.trace(confusion):,} of {confusion.sum():,} test images are right", size=11
    )
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


def save_figure(figure: "Figure", path: Path, creator: str, *, transparent: bool = False) -> None:
    """Write the figure into a .png, .pdf or .svg file, which appears whole or not at all.

    The file names its creator, by which `check_output` knows it again.
    """
    kind = path.suffix[1:].lower()
    metadata = {"Software" if kind == "png" else "Creator": creator}
    with warnings.catch_warnings(), atomic_write(path) as file:
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a name may be in any script
        figure.savefig(file, format=kind, dpi=150, transparent=transparent, metadata=metadata)


def to_svg(figure: "Figure", label: str) -> str:
    """The figure as an `<svg>` element for an HTML page, light or dark.

    What is black in it takes the colour of the text around it, its background is the page's, its
    text is text, and it is as wide as its container. Screen readers get the label, which no other
    figure of the page may have.
    """
    import matplotlib

    content = io.StringIO()
    # The salt makes ids that no other figure of the page has, and the same ones every time.
    options: Any = {"svg.fonttype": "none", "svg.hashsalt": label}
    with matplotlib.rc_context(options), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has others
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=nothing)
    svg = content.getvalue()
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    head = f'<svg {view[0]} role="img" aria-label="{html.escape(label)}" fill="currentColor"'
    svg = re.sub("^.*?<svg[^>]*", lambda _: head, svg, count=1, flags=re.DOTALL)
    return svg.replace("#000000", "currentColor")
