"""What scripts/benchmark.py measured, as tables to be read and as a bar chart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def headline(machine: dict[str, Any]) -> str:
    """The machine, in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    busy = machine["load_average"]
    text = f"{machine['cpu']}, {machine['cores']} cores; Python {machine['python']}, {versions}\n"
    text += f"load average before: {busy:.2f}"
    if busy > machine["cores"] / 4:
        text += "\nWARNING: other programs are running, which slows these down unevenly"
    return text


def table(summary: dict[str, Any]) -> str:
    """Everything measured, to be read; the table itself is Markdown."""
    header = ["program", "whole process, s", "to ours", "training, s", "to ours"]
    header += ["images/s", "GFLOP/s", "of peak", "memory, MB"]
    rows = [header]
    for row in summary["programs"].values():
        cells = [row["label"] + (" [!]" if row["problem"] else "")]
        for key in ("whole_seconds", "train_seconds"):
            cells += [spread_text(row[key]), number(row[f"{key}_ratio"], ".2f")]
        cells += [number(row["images_per_second"], ",.0f"), number(row["gflops"], ",.0f")]
        cells += [number(row["share_of_peak"], ".0%"), number(row["peak_bytes"] / 1e6, ",.0f")]
        rows.append(cells)
    peak = summary["peak_gflops"]
    lines = [headline(summary["machine"]), f"device: {summary['machine']['device']}", ""]
    lines += [*grid(rows), ""] if summary["programs"] else []
    lines += [f"Median (smallest to largest) of {summary['runs']} runs in turns."]
    lines += [f"Matmul peak: NumPy {peak['numpy']:,.0f}, XLA {peak['xla']:,.0f} GFLOP/s."]
    for row in summary["embedded"].values():
        for key, values in row["figures"].items():
            what = re.sub("models_([0-9]+)", r"\1 models at once", key).replace("_", " ")
            lines.append(f"{row['label']}, {what}: {spread_text(values)}")
    rows_by_name = {**summary["programs"], **summary["embedded"]}
    problems = {name: row["problem"] for name, row in rows_by_name.items()}
    lines += [f"[!] {name}: {problem}" for name, problem in problems.items() if problem]
    lines += [f"Skipped: {name} ({reason})" for name, reason in summary["skipped"].items()]
    return "\n".join(lines)


def number(value: float | None, form: str) -> str:
    """A table's cell."""
    return "" if value is None else format(value, form)


def spread_text(values: dict[str, Any] | None) -> str:
    """Median, smallest and largest."""
    return "{median:.2f} ({min:.2f} to {max:.2f})".format(**values) if values else ""


def grid(rows: list[list[str]]) -> list[str]:
    """The rows as a Markdown table; all columns but the first are aligned right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [
        "| "
        + " | ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in (rows[0], rule, *rows[1:])
    ]


def profile_table(summary: dict[str, Any]) -> str:
    """The profile, to be read."""
    seconds = summary["profile_seconds"]
    whole = seconds["whole"]
    rows = [["scripts/train.py", "seconds", "share"]]
    rows += [[name, f"{s:.3f}", f"{s / whole:.1%}"] for name, s in seconds.items()]
    plain = spread_text(summary["unobserved_seconds"])
    return "\n".join([headline(summary["machine"]), "", *grid(rows), "", f"Unobserved: {plain} s"])


def draw_chart(summary: dict[str, Any], path: Path) -> None:
    """One bar a program: training, then everything else of its process."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    grey = "#7f8790"  # is read on white and on black
    rows = [row for row in summary["programs"].values() if row["whole_seconds"]]
    rows.sort(key=lambda row: -row["whole_seconds"]["median"])
    ours = [row["label"].startswith("jaxmnist") for row in rows]
    labels = [row["label"] for row in rows]
    whole = [row["whole_seconds"]["median"] for row in rows]
    train = [row["train_seconds"]["median"] if row["train_seconds"] else 0.0 for row in rows]
    rest = [w - t for w, t in zip(whole, train, strict=True)]
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.36 * len(rows)), layout="constrained")
    colors = ["#e8710a" if mine else "#3b82c4" for mine in ours]
    axes.barh(labels, train, color=colors)
    bars = axes.barh(labels, rest, left=train, color=colors, alpha=0.45)
    texts = [
        f"{w:.1f} s, training {t:.2f} s" if t else f"{w:.1f} s"
        for w, t in zip(whole, train, strict=True)
    ]
    axes.bar_label(bars, texts, padding=4, color=grey, fontsize=9)
    axes.set_xlim(0, max(whole) * 1.4)
    axes.set_xlabel("seconds, whole process; the full colour is training", color=grey)
    title = f"784-128-64-10 on MNIST, five epochs in batches of 64\n{summary['machine']['device']}"
    axes.set_title(title, color=grey, fontsize=10, loc="left")
    axes.tick_params(colors=grey)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(grey)
    figure.savefig(path, dpi=160, transparent=True)
    plt.close(figure)
