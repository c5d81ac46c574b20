"""Time scripts/train.py beside programs that train the same in other libraries.

Each program is a process of its own, and they take turns: a ratio is of two programs that ran in
the same turn, so that a machine that is slow for a while slows down both.
"""

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "peers")]
import dataclasses
import json
import re
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import _cli as cli
import _measure
from _measure import spread
from _options import FilePath, Flag, at_least, check_path, wrong
from _programs import PROGRAMS, Bench, why_not
from _results import Record, number, spread_text, summarize, summarize_embedded
from _tables import markdown


@dataclasses.dataclass(frozen=True)
class Options:
    """The options. All programs together take about two minutes a turn on two CPU cores."""

    runs: int = 7
    """How often each program is timed, after one run that warms up."""
    time_limit: float = 0.0
    """Minutes after which no more programs are started; 0 is no limit. As after Ctrl-C, what is
    measured by then is reported."""
    only: tuple[str, ...] = ()
    """Run just these of the programs, by name."""
    peers: Literal["all", "none"] = "all"
    """All that are installed, or only jaxmnist itself."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to train; auto is the best that JAX finds."""
    out: FilePath = None
    """File for everything measured, as JSON."""
    chart: FilePath = None
    """File for a bar chart, .png or .svg."""
    profile: Flag = False
    """Show where the time of scripts/train.py goes instead."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is started."""
        at_least(1, runs=self.runs)
        at_least(0, time_limit=self.time_limit)
        check_path(out=self.out, chart=self.chart)
        for name in self.only:
            if name not in PROGRAMS:
                wrong(f"--only {name}: no such program, there are {', '.join(PROGRAMS)}")
        if self.profile and self.chart:
            wrong("--chart shows the programs; --profile runs none of them")
        for path in (self.out, self.chart):
            if path and not path.absolute().parent.is_dir():
                wrong(f"{path}: there is no directory {path.absolute().parent}")


def main(options: Options) -> None:
    """Measure, show, write."""
    from jaxmnist.errors import Stopped

    if options.chart:
        import matplotlib.figure  # noqa: F401  (missed now rather than after the work)
    with tempfile.TemporaryDirectory(prefix="jaxmnist-benchmark-") as name:
        bench = Bench(Path(name), options.device)
        bench.prepare()
        if options.profile:
            summary = profile(bench, options.runs)
            print(profile_text(summary))
        else:
            summary = measure_all(bench, options)
            print(text(summary))
    if options.out:
        options.out.write_text(json.dumps(summary, indent=2) + "\n")
    if options.chart:
        save_chart(summary, options.chart)
    if summary.get("stopped") == "Ctrl-C":
        raise Stopped(signal.SIGINT, "interrupted; the turns before it are reported")


def measure_all(bench: Bench, options: Options) -> dict[str, Any]:
    """Time every program, in turns, and sum it up."""
    import tqdm

    deadline = time.monotonic() + 60 * options.time_limit if options.time_limit else float("inf")
    machine, peaks, stopped = _measure.machine(), [bench.peak()], None
    records, skipped = {}, {}
    for name, program in PROGRAMS.items():
        if options.only and name not in options.only:
            continue
        if options.peers == "none" and not program.ours:
            continue
        if reason := why_not(program, bench.platform):
            skipped[name] = reason
        else:
            records[name] = Record()
    turns = [(turn, name) for turn in range(options.runs + 1) for name in records]
    try:
        for turn, name in tqdm.tqdm(turns, unit="run", leave=False, disable=None):
            if time.monotonic() > deadline:
                stopped = f"--time-limit {options.time_limit:g}"
                break
            if turn == 1 and not records[name].problem:
                records[name] = Record()  # the first was to warm up
            if not records[name].problem:
                records[name].add(turn, bench.run(PROGRAMS[name]))
            if turn and name == turns[-1][1]:
                peaks.append(bench.peak())
    except KeyboardInterrupt:
        stopped = "Ctrl-C"
    machine["load_average_after"] = os.getloadavg()[0]
    cpu = f"{machine['cpu']}, {machine['cores']} cores"
    machine["device"] = cpu if bench.platform == "cpu" else peaks[0]["device"]
    peak = {library: max(p[library] for p in peaks) for library in ("numpy", "xla")}
    ours = records.get("ours", Record())
    summary: dict[str, Any] = {"machine": machine, "runs": options.runs, "stopped": stopped}
    summary |= {"peak_gflops": peak, "skipped": skipped, "programs": {}, "embedded": {}}
    for name, record in records.items():
        if PROGRAMS[name].embedded:
            summary["embedded"][name] = summarize_embedded(PROGRAMS[name].label, record)
        elif record.runs:
            summary["programs"][name] = summarize(
                PROGRAMS[name].label, record, ours, max(peak.values())
            )
    return summary


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
    peak = summary["peak_gflops"]
    lines = [headline(summary["machine"]), f"device: {summary['machine']['device']}", ""]
    lines += [markdown(rows), ""] if summary["programs"] else []
    lines += [f"Median (smallest to largest) of {summary['runs']} turns; ratios within each turn."]
    lines += [f"Stopped early by {summary['stopped']}."] if summary["stopped"] else []
    lines += [f"Matmul peak: NumPy {peak['numpy']:,.0f}, XLA {peak['xla']:,.0f} GFLOP/s."]
    for row in summary["embedded"].values():
        for key, values in row["figures"].items():
            what = re.sub("models_([0-9]+)", r"\1 models at once", key).replace("_", " ")
            lines.append(f"{row['label']}, {what}: {spread_text(values)}")
    every = {**summary["programs"], **summary["embedded"]}
    notes += [f"[!] {name}: {row['problem']}" for name, row in every.items() if row["problem"]]
    notes += [f"Skipped: {name} ({reason})" for name, reason in summary["skipped"].items()]
    return "\n".join(lines + notes)


def save_chart(summary: dict[str, Any], path: Path) -> None:
    """A bar for each program that ran."""
    from jaxmnist.plots import time_bars

    rows = [row for row in summary["programs"].values() if row["whole_seconds"]]
    whole, train = (
        [row[key]["median"] if row[key] else 0.0 for row in rows]
        for key in ("whole_seconds", "train_seconds")
    )
    title = f"784-128-64-10 on MNIST, five epochs in batches of 64\n{summary['machine']['device']}"
    figure = time_bars([row["label"] for row in rows], whole, train, title)
    figure.savefig(path, dpi=160, transparent=True)


def profile(bench: Bench, runs: int) -> dict[str, Any]:
    """Where the time of scripts/train.py goes, medians; and how long it takes unobserved."""
    from jaxmnist import JaxmnistError

    machine, record, profiles = _measure.machine(), Record(), []
    for turn in range(runs + 1):
        record.add(turn, bench.run(PROGRAMS["ours"]))
        try:
            if record.problem:
                raise RuntimeError(record.problem)
            profiles.append(_measure.profile(bench.train_command, bench.ours))
        except RuntimeError as error:
            raise JaxmnistError(f"scripts/train.py: {error}") from error
    seconds = {
        name: statistics.median(profile.get(name, 0.0) for profile in profiles[1:])
        for name in profiles[-1]
    }
    plain = spread([run.seconds for turn, run in record.runs.items() if turn])
    return {"machine": machine, "profile_seconds": seconds, "unobserved_seconds": plain}


def profile_text(summary: dict[str, Any]) -> str:
    """The profile, to be read."""
    seconds = summary["profile_seconds"]
    rows = [["scripts/train.py", "seconds", "share"]]
    rows += [[name, f"{s:.3f}", f"{s / seconds['whole']:.1%}"] for name, s in seconds.items()]
    plain = spread_text(summary["unobserved_seconds"])
    return f"{headline(summary['machine'])}\n\n{markdown(rows)}\n\nUnobserved: {plain} s"


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
