"""Pictures of sweeps, as matplotlib figures; showing or saving them is the caller's.

matplotlib is an extra, `pip install 'jaxmnist[plots]'`, and is imported when a figure is drawn.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from jaxmnist.ranking import over_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS = {
    "train_loss": "training loss (nats), mean of the epoch",
    "validation_loss": "validation loss (nats)",
    "validation_accuracy": "validation accuracy",
    "test_loss": "test loss (nats)",
    "test_accuracy": "test accuracy",
}
_COLUMNS = 4  # of panels
_PLACES = 6  # values of an option that stand side by side
_BINS = 8  # at most, of an option with more values, each with as many settings


def curves_figure(
    scores: Mapping[str, Float[np.ndarray, "settings seeds epochs"]],
    diverged: Bool[np.ndarray, "settings seeds"],
    labels: Sequence[str],
) -> "Figure":
    """Each score against epochs: a line for the mean of each setting's seeds, in a band.

    The band reaches a standard deviation up and down. Seeds that have diverged are left out.

    Args:
        scores: by name, as in `METRICS`; losses in nats.
        diverged: which to leave out; the legend says how many.
        labels: what the legend calls each setting.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(3.4 * len(scores), 3.8), layout="constrained")
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(labels)))
    panels = np.ravel(figure.subplots(1, len(scores)))
    for axes, (name, values) in zip(panels, scores.items(), strict=True):
        epochs = np.arange(1, values.shape[-1] + 1)
        for row, setting, color, mean, deviation in zip(
            diverged, labels, colors, *over_seeds(values, diverged), strict=True
        ):
            if row.any():
                setting += f" ({row.sum()} of {row.size} diverged)"
            band = np.nan_to_num(deviation)  # a single seed has none
            axes.errorbar(
                epochs, mean, band, fmt="o-", ms=3, elinewidth=1, color=color, label=setting
            )
            axes.fill_between(
                epochs, mean - band, mean + band, color=color, alpha=0.25, linewidth=0
            )
        axes.set(xlabel="epochs", xlim=(0.5, epochs.size + 0.5), ylabel=METRICS[name])
        _set_scale(axes, name, empty=bool(diverged.all()))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    return figure


def effects_figure(
    settings: Sequence[Mapping[str, Any]],
    values: Float[np.ndarray, "settings seeds"],
    diverged: Bool[np.ndarray, "settings seeds"],
    name: str = "test_accuracy",
) -> "Figure":
    """What each option does to an accuracy: a panel an option, a dot a setting's mean over seeds.

    Settings with a seed that has diverged are crosses at the bottom. What is far below the median
    stands at the bottom too, as a triangle, so that the good ones can be distinguished.

    Args:
        settings: the value of each option; those with a single value get no panel.
        values: the accuracy after the last epoch.
        diverged: which seeds have diverged.
        name: the accuracy's name, as in `METRICS`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    names = [n for n in settings[0] if len({repr(setting[n]) for setting in settings}) > 1]
    names = names or list(settings[0])[:1]
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.2 * columns + 0.4, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    whole = ~diverged.any(axis=1)
    means = np.where(whole, over_seeds(values[..., None], diverged)[0][:, 0], np.nan)
    low, high = _limits(means[whole])
    for axes, option in zip(panels.flat, names, strict=False):
        x, numbers = _positions(axes, [setting[option] for setting in settings])
        inside = whole & (np.nan_to_num(means) >= low)
        for chosen, marker, color in (
            (inside, "o", "#3b82c4"),
            (whole & ~inside, "v", "0.6"),
            (~whole, "x", "#d1494d"),
        ):
            y = np.where(inside, means, low)[chosen]
            axes.plot(x[chosen], y, marker, ms=4, color=color, alpha=0.7)
        _draw_medians(axes, x[whole], means[whole], low, "-" if numbers else "_")
        axes.set(xlabel=option.replace("_", " "), ylim=(low - 0.03 * (high - low), high))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(METRICS[name])
    for axes in panels.flat[len(names) :]:
        axes.remove()
    return figure


def _set_scale(axes: "Axes", name: str, empty: bool) -> None:
    """Accuracies in percent; losses on a logarithmic axis with as many labels as there is room."""
    from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

    if name.endswith("accuracy"):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif not empty:  # matplotlib has no logarithm of nothing
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        # Within a decade or so the powers of ten are too few, and all nine between them too many.
        subs = (1, 2, 5) if high > 4 * low else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else subs))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _limits(means: Float[np.ndarray, " settings"]) -> tuple[float, float]:
    """From as far below the median as twice the best is above it, to a little over the best."""
    if not means.size:
        return 0.0, 1.0
    best, median = means.max(), np.median(means)
    low = max(means.min(), median - 2 * (best - median))
    margin = 0.05 * (best - low) or 0.01
    return float(low - margin), float(best + margin)


def _positions(axes: "Axes", values: Sequence[Any]) -> tuple[Float[np.ndarray, " settings"], bool]:
    """Where each value is on the x axis, and whether by its size; a few values get a place each."""
    many = len(set(values)) > _PLACES
    numbers = many and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )
    if numbers:
        x = np.asarray(values, float)
        if x.min() > 0 and x.max() > 5 * np.median(x):  # crowded at the left
            axes.set_xscale("log")
        return x, True
    order = list(dict.fromkeys(values))
    with contextlib.suppress(TypeError):  # None among numbers
        order = sorted(set(values))
    kinds = ["-".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in order]
    axes.set_xticks(range(len(kinds)), kinds, rotation=30 if len(kinds) > 4 else 0)
    axes.set_xlim(-0.5, len(kinds) - 0.5)
    return np.array([float(order.index(value)) for value in values]), False


def _draw_medians(
    axes: "Axes",
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    low: float,
    style: str,
) -> None:
    """The medians of the values of x, or of bins of them where there are many."""
    kinds = np.unique(x)
    if kinds.size > _PLACES:
        bins = min(_BINS, max(2, len(x) // 15))
        groups = np.array_split(np.argsort(x, kind="stable"), bins)
    else:
        groups = [np.flatnonzero(x == kind) for kind in kinds]
    if len(groups) < 2 or len(x) < 2 * len(groups):  # a median of one is the dot itself
        return
    medians = [max(np.median(y[group]), low) for group in groups]
    axes.plot([np.median(x[group]) for group in groups], medians, style, ms=30, mew=2, color="0.3")
