"""The charts of scripts/benchmark.py; it needs the extra "plots"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from _scale import SCALED, TITLES
from matplotlib.figure import Figure

from jaxmnist.plots import COLORS, GREY


def save_programs(summary: dict[str, Any], path: str) -> None:
    """A bar for each program that ran."""
    rows = [row for row in summary["programs"].values() if row["whole_seconds"]]
    whole, train = (
        [row[key]["median"] if row[key] else 0.0 for row in rows]
        for key in ("whole_seconds", "train_seconds")
    )
    title = f"784-128-64-10 on MNIST, five epochs in batches of 64\n{summary['machine']['device']}"
    figure = time_bars([row["label"] for row in rows], whole, train, title)
    figure.savefig(path, dpi=160, transparent=True)


def time_bars(
    labels: Sequence[str], whole: Sequence[float], train: Sequence[float], title: str
) -> Figure:
    """One bar a program, the slowest first: training, then everything else of its process.

    Args:
        labels: the programs' names; ours begin with "jaxmnist".
        whole: seconds of each process.
        train: seconds of each training, 0 where it is not known.
        title: what was measured, and on which machine.
    """
    figure = Figure(figsize=(8, 0.9 + 0.36 * len(labels)), layout="constrained")
    axes = figure.subplots()
    programs = sorted(zip(labels, whole, train, strict=True), key=lambda bar: -bar[1])
    names, widths, starts = (
        [name for name, _, _ in programs],
        [width for _, width, _ in programs],
        [start for _, _, start in programs],
    )
    colors = [COLORS[1] if name.startswith("jaxmnist") else COLORS[0] for name in names]
    axes.barh(names, starts, color=colors)
    rest = [width - start for width, start in zip(widths, starts, strict=True)]
    bars = axes.barh(names, rest, left=starts, color=colors, alpha=0.45)
    texts = [
        f"{width:.1f} s, training {start:.2f} s" if start else f"{width:.1f} s"
        for width, start in zip(widths, starts, strict=True)
    ]
    axes.bar_label(bars, texts, padding=4, color=GREY, fontsize=9)
    axes.set_xlim(0, max(whole, default=1) * 1.4)
    axes.set_xlabel("seconds, whole process; the full colour is training", color=GREY)
    axes.set_title(title, color=GREY, fontsize=10, loc="left")
    axes.tick_params(colors=GREY)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    return figure


def save_scale(summary: dict[str, Any], path: str) -> None:
    """The time of an image over each axis, both logarithmic, with a line for each program."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, len(TITLES), sharey=True)
    for axes, (axis, title) in zip(panels, TITLES.items(), strict=True):
        for (name, program), color in zip(SCALED.items(), COLORS[1::-1] + COLORS[2:], strict=False):
            rows = [
                row for row in summary["scale"] if (row["axis"], row["program"]) == (axis, name)
            ]
            rows = [row for row in rows if row["us_per_image"]]
            x, y = [row["value"] for row in rows], [row["us_per_image"]["median"] for row in rows]
            axes.plot(x, y, "o-", ms=4, color=color, label=program.label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({row["value"] for row in summary["scale"] if row["axis"] == axis})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_xlabel(title, color=GREY)
        axes.tick_params(colors=GREY)
        axes.grid(color=GREY, alpha=0.25)
        axes.spines[:].set_visible(False)
    panels[0].set_ylabel("µs an image and model", color=GREY)
    panels[0].legend(frameon=False, labelcolor=GREY, fontsize=9)
    figure.suptitle(summary["machine"]["device"], color=GREY, fontsize=10)
    figure.savefig(path, dpi=160, transparent=True)
