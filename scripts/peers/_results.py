"""What the runs of the programs gave: read, checked, and summed up as figures."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from _measure import Run, read_laps, spread, training_flops

SIZES, IMAGES = (784, 128, 64, 10), 5 * 60_000
# What every seed of this training ends in: the mean loss of the fifth epoch, the test accuracy.
EXPECTED = {"loss": (0.37, 0.41), "accuracy": (0.885, 0.915)}


@dataclasses.dataclass
class Record:
    """What the runs of one program gave, by turn."""

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
        for key, (low, high) in EXPECTED.items():
            if key in result and not low <= result[key] <= high:
                self.problem = f"its {key} is {result[key]:.4f}, outside {low} to {high}"

    def seconds(self, key: str) -> dict[int, float]:
        """Seconds of the whole process or of the training, by turn."""
        if key == "whole_seconds":
            return {turn: run.seconds for turn, run in self.runs.items() if not run.code}
        return {turn: result[key] for turn, result in self.results.items() if key in result}


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
    """What a program tells of its training, in JSON or in the words of scripts/train.py."""
    lines = stdout.splitlines()
    if lines and lines[-1].startswith("{"):
        return json.loads(lines[-1])
    laps = read_laps(stdout)
    epochs = re.findall(r"Training loss: ([\d.]+).*test accuracy: ([\d.]+)%", stdout)
    if not laps or not epochs:
        raise ValueError("it printed no result")
    loss, percent = map(float, epochs[-1])
    return {"train_seconds": laps["train"], "loss": loss, "accuracy": percent / 100}


def last_line(message: str) -> str:
    """The last line of an error, which says most."""
    return (message.strip().splitlines() or ["no message"])[-1]


def number(value: float | None, form: str) -> str:
    """A table's cell."""
    return "" if value is None else format(value, form)


def spread_text(values: dict[str, Any] | None) -> str:
    """Median, smallest and largest."""
    return "{median:.2f} ({min:.2f} to {max:.2f})".format(**values) if values else ""
