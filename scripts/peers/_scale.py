"""How the cost of training grows with the batch, the width and the number of models."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import _measure
from _programs import PEERS, PROGRAMS, Bench, Program, take_turns, why_not
from _results import SIZES, Record, framed, number, spread, spread_text, training_flops

TITLES = {
    "batch": "images in a batch",
    "width": "width of both hidden layers",
    "models": "models at once",
}
VALUES = {"batch": (16, 64, 256, 1024, 4096), "width": (64, 256, 1024, 4096)}
MODELS = {"cpu": (1, 4, 16, 64), "gpu": (1, 8, 64, 1024)}
SCALED = {"ours": Program("jaxmnist", PEERS / "ours_scan.py", ours=True)} | {
    name: PROGRAMS[name] for name in ("torch-compile", "linen", "numpy")
}
# A measurement has so much work, but at most an epoch and at least LEAST batches.
WORK = {"cpu": 60e9, "gpu": 6e12}  # FLOP
LEAST = 8
AHEAD = 1.1  # a program this much faster than ours is named


class Point(NamedTuple):
    """What is trained for one row of the table."""

    axis: str
    value: int
    job: dict[str, Any]  # what is not the notebook's, for `_job`

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of all layers."""
        return (SIZES[0], *self.job.get("hidden", SIZES[1:-1]), SIZES[-1])

    @property
    def trained(self) -> int:
        """How many images are trained on, by all models."""
        return self.job["images"] * self.job.get("models", 1)


def points(platform: str) -> list[Point]:
    """The rows of the table."""
    found = []
    for axis, values in {**VALUES, "models": MODELS[platform]}.items():
        for value in values:
            job = {"hidden": (value, value)} if axis == "width" else {axis: value}
            point = Point(axis, value, {"epochs": 1, "images": 1} | job)
            batch = point.job.get("batch", 64)
            work = training_flops(point.sizes, batch) * point.job.get("models", 1)
            batches = min(60_000 // batch, max(LEAST, int(WORK[platform] / work)))
            found.append(point._replace(job=point.job | {"images": batches * batch}))
    return found


def measure(bench: Bench, runs: int, time_limit: float) -> dict[str, Any]:
    """Time every program at every point, in turns, and sum it up."""
    started = time.monotonic()
    machine, peak = _measure.machine(), bench.peak()
    machine["device"] = bench.name(machine, peak)
    skipped = {n: why for n, p in SCALED.items() if (why := why_not(p, bench.platform))}
    programs = {n: program for n, program in SCALED.items() if n not in skipped}
    rows = points(bench.platform)
    records = {(k, name): Record(expected={}) for k in range(len(rows)) for name in programs}

    def run(turn: int, which: tuple[int, str]) -> None:
        k, name = which
        if not records[which].problem:
            records[which].add(turn, bench.run(programs[name], rows[k].job))

    stopped = take_turns(range(1, runs + 1), list(records), time_limit, started, run)
    summary: dict[str, Any] = {"machine": machine, "runs": runs, "stopped": stopped}
    summary |= {"peak_gflops": peak, "skipped": skipped}
    best = max(peak["numpy"], peak["xla"])
    summary["scale"] = [
        {"axis": point.axis, "value": point.value, "job": point.job, "program": name}
        | summarize(point, records[k, name], records[k, "ours"], best)
        for k, point in enumerate(rows)
        for name in programs
        if records[k, name].runs
    ]
    return summary


def summarize(point: Point, record: Record, ours: Record, peak: float) -> dict[str, Any]:
    """The figures of one program at one point; its ratios to ours are taken within each turn."""
    seconds, base = record.seconds("train_seconds"), ours.seconds("train_seconds")
    per_image = spread([s / point.trained * 1e6 for s in seconds.values()])
    flops = training_flops(point.sizes, point.trained) / 1e9
    problem = record.problem
    if seconds and base:
        loss, expected = (list(r.results.values())[-1]["loss"] for r in (record, ours))
        if not 0.9 < loss / expected < 1.1:
            problem = f"its loss is {loss:.4f}, ours {expected:.4f}"
    return {
        "problem": problem,
        "us_per_image": per_image,
        "ratio": spread([seconds[turn] / base[turn] for turn in seconds if turn in base]),
        "share_of_peak": flops / peak / statistics.median(seconds.values()) if seconds else None,
        "peak_bytes": max(run.peak_bytes for run in record.runs.values()),
    }


def text(summary: dict[str, Any]) -> str:
    """Everything measured, to be read; the tables are Markdown."""
    notes, tables = [], []
    for axis, title in TITLES.items():
        rows = [[title, "program", "us an image", "to ours", "of peak", "memory, MB"]]
        for row in (row for row in summary["scale"] if row["axis"] == axis):
            ratio, name = row["ratio"], f"{title} {row['value']}, {row['program']}"
            ahead = ratio and ratio["median"] * AHEAD < 1
            if row["problem"]:
                notes.append(f"[!] {name}: {row['problem']}")
            elif ahead:
                notes.append(f"[>] {name}: ahead of ours by more than {AHEAD - 1:.0%}")
            label = SCALED[row["program"]].label
            label += " [!]" if row["problem"] else " [>]" if ahead else ""
            cells = [f"{row['value']:,}", label, spread_text(row["us_per_image"])]
            cells += [spread_text(ratio), number(row["share_of_peak"], ".0%")]
            rows.append([*cells, number(row["peak_bytes"] / 1e6, ",.0f")])
        tables.append(rows)
    lines = framed(summary, tables, left=2)
    lines += ["Training only, after compiling; the time is for one image and one model."]
    return "\n".join(lines + notes)
