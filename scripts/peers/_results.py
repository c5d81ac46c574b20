"""What the runs of the programs gave: read, checked, summed up as figures and shown."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from _measure import Run
from _output import markdown

SIZES, IMAGES = (784, 128, 64, 10), 5 * 60_000
# What every seed of this training ends in: the mean loss of the fifth epoch, the test accuracy.
EXPECTED = {"loss": (0.37, 0.41), "accuracy": (0.885, 0.915)}


@dataclasses.dataclass
class Record:
    """What the runs of one program gave, by turn."""

    expected: dict[str, tuple[float, float]] = dataclasses.field(default_factory=EXPECTED.copy)
    runs: dict[int, Run] = dataclasses.field(default_factory=dict)
    results: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)
    problem: str | None = None

    def add(self, turn: int, run: Run) -> None:
        """Note a run; a failure or an unexpected result is the record's problem."""
        self.runs[turn] = run
        try:
            if run.code:
                raise ValueError(f"exit code {run.code}: {last_line(run.stderr)}")
            result = self.results[turn] = read_result(run.stdout)
        except (ValueError, LookupError) as error:
            self.problem = f"failed: {error}"
            return
        for key, (low, high) in self.expected.items():
            if key in result and not low <= result[key] <= high:
                self.problem = f"its {key} is {result[key]:.4f}, outside {low} to {high}"

    def seconds(self, key: str) -> dict[int, float]:
        """Seconds of the whole process or of the training, by turn."""
        if key == "whole_seconds":
            return {turn: run.seconds for turn, run in self.runs.items() if not run.code}
        return {turn: result[key] for turn, result in self.results.items() if key in result}


def spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Smallest, median and largest value, and all of them; None if there are none."""
    if not values:
        return None
    median = statistics.median(values)
    return {"min": min(values), "median": median, "max": max(values), "runs": list(values)}


def training_flops(sizes: Sequence[int], images: int) -> int:
    """Floating-point operations of the matmuls that train an MLP on so many images.

    Each layer has two, its outputs and the gradient of its weights, and each but the first a third,
    the gradient of its inputs; a product of [m, k] and [k, n] is m*k*n multiplications and as many
    additions.
    """
    products = [inputs * outputs for inputs, outputs in pairwise(sizes)]
    return 2 * images * (3 * sum(products) - products[0])


def summarize(label: str, record: Record, ours: Record, peak: float) -> dict[str, Any]:
    """The figures of one program; its ratios to ours are taken within each turn."""
    row: dict[str, Any] = {"label": label, "problem": record.problem}
    for key in ("whole_seconds", "train_seconds"):
        seconds, base = record.seconds(key), ours.seconds(key)
        row[key] = spread(list(seconds.values()))
        row[f"{key}_ratio"] = spread([seconds[t] / base[t] for t in seconds if t in base])
    last = list(record.results.values())[-1:]
    row |= {key: last[0].get(key) if last else None for key in EXPECTED}
    row["peak_bytes"] = max(run.peak_bytes for run in record.runs.values())
    train = row["train_seconds"]["median"] if row["train_seconds"] else None
    row["images_per_second"] = IMAGES / train if train else None
    row["gflops"] = training_flops(SIZES, IMAGES) / train / 1e9 if train else None
    row["share_of_peak"] = row["gflops"] / peak if train else None
    return row


def summarize_embedded(label: str, record: Record) -> dict[str, Any]:
    """The figures of a program that times single steps and many models at once."""
    results = list(record.results.values())
    figures = (
        {key: spread([result[key] for result in results]) for key in results[0]} if results else {}
    )
    return {"label": label, "problem": record.problem, "figures": figures}


def read_result(stdout: str) -> dict[str, float]:
    """What a program reports of its training, in JSON or in the words of scripts/train.py."""
    lines = stdout.splitlines()
    if lines and lines[-1].startswith("{"):
        return json.loads(lines[-1])
    laps = read_laps(stdout)
    epochs = re.findall(r"Training loss: ([\d.]+).*test accuracy: ([\d.]+)%", stdout)
    if not laps or not epochs:
        raise ValueError("it printed no result")
    loss, percent = map(float, epochs[-1])
    return {"train_seconds": laps["train"], "loss": loss, "accuracy": percent / 100}


def read_laps(text: str) -> dict[str, float]:
    """What scripts/train.py says of its time in the line such as `load 0.09 s, compile 2.04 s`."""
    line = next((line for line in text.splitlines() if re.match(r" +\w+ [\d.]+ s(, |$)", line)), "")
    return {name: float(seconds) for name, seconds in re.findall(r"(\w+) ([\d.]+) s", line)}


def last_line(message: str) -> str:
    """The last line of an error, which says most."""
    return (message.strip().splitlines() or ["no message"])[-1]


def headline(machine: dict[str, Any]) -> str:
    """The machine, in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    busy = machine["load_average"]
    line = f"{machine['cpu']}, {machine['cores']} cores; Python {machine['python']}, {versions}\n"
    line += f"load average before: {busy:.2f}"
    if busy > machine["cores"] / 4:
        line += "\nWARNING: other programs are running, which slows these down unevenly"
    return line


def text(summary: dict[str, Any]) -> str:
    """Everything measured, to be read; the table itself is Markdown."""
    header = ["program", "whole process, s", "to ours", "training, s", "to ours"]
    rows = [[*header, "images/s", "GFLOP/s", "of peak", "memory, MB"]]
    notes = []
    for name, row in summary["programs"].items():
        ratios = [row["whole_seconds_ratio"], row["train_seconds_ratio"]]
        unsure = name != "ours" and any(r and r["min"] < 1 < r["max"] for r in ratios)
        if unsure:
            notes.append(f"[~] {name}: faster than ours in one turn and slower in another")
        cells = [row["label"] + (" [!]" if row["problem"] else "") + (" [~]" if unsure else "")]
        for key in ("whole_seconds", "train_seconds"):
            cells += [spread_text(row[key]), spread_text(row[f"{key}_ratio"])]
        cells += [number(row["images_per_second"], ",.0f"), number(row["gflops"], ",.0f")]
        cells += [number(row["share_of_peak"], ".0%"), number(row["peak_bytes"] / 1e6, ",.0f")]
        rows.append(cells)
    lines = framed(summary, [rows])
    for row in summary["embedded"].values():
        for key, values in row["figures"].items():
            what = re.sub("models_([0-9]+)", r"\1 models at once", key).replace("_", " ")
            lines.append(f"{row['label']}, {what}: {spread_text(values)}")
    every = {**summary["programs"], **summary["embedded"]}
    notes += [f"[!] {name}: {row['problem']}" for name, row in every.items() if row["problem"]]
    return "\n".join(lines + notes)


def framed(summary: dict[str, Any], tables: list[list[list[str]]], left: int = 1) -> list[str]:
    """The machine, the tables that have rows, and how they were measured."""
    peak, stopped = summary["peak_gflops"], summary["stopped"]
    lines = [headline(summary["machine"]), f"device: {summary['machine']['device']}", ""]
    for rows in tables:
        lines += [markdown(rows, left=left), ""] if len(rows) > 1 else []
    lines += [f"Median (smallest to largest) of {summary['runs']} turns; ratios within each turn."]
    lines += [f"Stopped early by {stopped}."] if stopped else []
    lines += [f"Matmul peak: NumPy {peak['numpy']:,.0f}, XLA {peak['xla']:,.0f} GFLOP/s."]
    return lines + [f"Skipped: {name} ({why})" for name, why in summary["skipped"].items()]


def number(value: float | None, form: str) -> str:
    """A table's cell."""
    return "" if value is None else format(value, form)


def spread_text(values: dict[str, Any] | None) -> str:
    """Median, smallest and largest."""
    return "{median:.2f} ({min:.2f} to {max:.2f})".format(**values) if values else ""
