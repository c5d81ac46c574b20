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
import _scale
from _options import at_least, local_path, wrong
from _profile import profile, profile_text
from _programs import PROGRAMS, Bench, take_turns, why_not
from _results import Record, summarize, summarize_embedded, text


@dataclasses.dataclass(frozen=True)
class Options:
    """The options. All programs take about two minutes a turn on two CPU cores."""

    runs: int = cli.option(
        7, "How often each program is timed, after one run that warms up.", at_least(1)
    )
    time_limit: float = cli.option(
        0.0, "Minutes after which no more programs are started; 0 is no limit.", at_least(0)
    )
    only: tuple[str, ...] = cli.option((), "Run just these of the programs, by name.")
    peers: Literal["all", "none"] = cli.option(
        "all", "All that are installed, or only jaxmnist itself."
    )
    device: Literal["auto", "cpu", "gpu"] = cli.option(
        "auto", "Where to train; auto is the best that JAX finds."
    )
    out: Path | None = cli.option(None, "File for everything measured, as JSON.", local_path)
    chart: Path | None = cli.option(None, "File for a bar chart, .png or .svg.", local_path)
    profile: bool = cli.option(False, "Show where the time of scripts/train.py goes instead.")
    scale: bool = cli.option(
        False,
        "Show instead how the time of an image grows with the batch, the width of the layers and "
        "the number of models. Takes about five minutes a turn; three turns do.",
    )

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in PROGRAMS:
                wrong(f"--only {name}: no such program, there are {', '.join(PROGRAMS)}")
        if self.profile and (self.chart or self.scale):
            wrong("--profile runs no other programs: it has no --chart, and no --scale")
        if self.scale and (self.only or self.peers == "none"):
            wrong("--scale has its own programs: leave out --only and --peers")
        for path in (self.out, self.chart):
            if path and not path.absolute().parent.is_dir():
                wrong(f"{path}: there is no directory {path.absolute().parent}")


def main(options: Options) -> None:
    """Measure, show, write."""
    from jaxmnist.errors import Stopped

    if options.chart:
        import _charts  # a matplotlib that is missing is missed now, and not after the work
    with tempfile.TemporaryDirectory(prefix="jaxmnist-benchmark-") as name:
        bench = Bench(Path(name), options.device)
        bench.prepare()
        if options.profile:
            summary = profile(bench, options.runs)
            print(profile_text(summary))
        elif options.scale:
            summary = _scale.measure(bench, options.runs, options.time_limit)
            print(_scale.text(summary))
        else:
            summary = measure_all(bench, options)
            print(text(summary))
    if options.out:
        options.out.write_text(json.dumps(summary, indent=2) + "\n")
    if options.chart:
        save = _charts.save_scale if options.scale else _charts.save_programs
        save(summary, str(options.chart))
    if summary.get("stopped") == "Ctrl-C":
        raise Stopped(signal.SIGINT, "interrupted; the turns before it are reported")


def measure_all(bench: Bench, options: Options) -> dict[str, Any]:
    """Time every program, in turns, and sum it up."""
    started = time.monotonic()
    machine, peaks = _measure.machine(), [bench.peak()]
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

    def run(turn: int, name: str) -> None:
        if turn == 1 and not records[name].problem:
            records[name] = Record()  # the first was to warm up
        if not records[name].problem:
            records[name].add(turn, bench.run(PROGRAMS[name]))
        if turn and name == list(records)[-1]:
            peaks.append(bench.peak())

    stopped = take_turns(range(options.runs + 1), list(records), options.time_limit, started, run)
    machine["load_average_after"] = os.getloadavg()[0]
    machine["device"] = bench.name(machine, peaks[0])
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


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
