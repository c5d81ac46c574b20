"""The charts of scripts/benchmark.py; it needs the extra "plots"."""

from __future__ import annotations

from typing import Any

from _scale import SCALED, TITLES
from matplotlib.figure import Figure

from jaxmnist.plots import COLORS


def save_programs(summary: dict[str, Any], path: str) -> None:
    """A bar for each program that ran."""
    rows = [row for row in summary["programs"].values() if row["whole_seconds"]]
    rows.sort(key=lambda row: -row["whole_seconds"]["median"])  # the slowest first
    figure = Figure(figsize=(8, 0.9 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for row in rows:  # training, then everything else of its process
        whole = row["whole_seconds"]["median"]
        train = row["train_seconds"]["median"] if row["train_seconds"] else 0.0
        color = COLORS[1] if row["label"].startswith("jaxmnist") else COLORS[0]
        axes.barh(row["label"], train, color=color)
        bar = axes.barh(row["label"], whole - train, left=train, color=color, alpha=0.45)
        text = f"{whole:.1f} s" + (f", training {train:.2f} s" if train else "")
        axes.bar_label(bar, [text], padding=4, color="#7f8790", fontsize=9)
    axes.margins(x=0.4)
    axes.set_xlabel("seconds, whole process; the full colour is training", color="#7f8790")
    title = f"784-128-64-10 on MNIST, five epochs in batches of 64\n{summary['machine']['device']}"
    axes.set_title(title, color="#7f8790", fontsize=10, loc="left")
    axes.tick_params(colors="#7f8790")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#7f8790")
    figure.savefig(path, dpi=160, transparent=True)


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
        axes.set_xlabel(title, color="#7f8790")
        axes.tick_params(colors="#7f8790")
        axes.grid(color="#7f8790", alpha=0.25)
        axes.spines[:].set_visible(False)
    panels[0].set_ylabel("µs an image and model", color="#7f8790")
    panels[0].legend(frameon=False, labelcolor="#7f8790", fontsize=9)
    figure.suptitle(summary["machine"]["device"], color="#7f8790", fontsize=10)
    figure.savefig(path, dpi=160, transparent=True)
