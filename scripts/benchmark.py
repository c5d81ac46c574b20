"""Time scripts/train.py beside programs that train the same in other libraries.

Each program is a process of its own, and they take turns: a ratio is of two programs that ran in
the same turn, so that a machine that is slow for a while slows down both.
"""

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "peers")]
import _cli as cli

# isort: split
import dataclasses
import json
import signal
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import _measure
from _options import FilePath, Flag, at_least, check_path, wrong
from _profile import profile, profile_text
from _programs import PROGRAMS, Bench, why_not
from _results import Record, summarize, summarize_embedded, text


@dataclasses.dataclass(frozen=True)
class Options:
    """The options. All programs take about two minutes a turn on two CPU cores."""

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


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
