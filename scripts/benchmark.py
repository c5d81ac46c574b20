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
import importlib.util
import json
import re
import shutil
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import _cli as cli
import _measure
from _measure import Run, spread
from _options import FilePath, Flag, at_least, check_path, wrong
from _programs import PEERS, PROGRAMS, TRAIN, Program
from _tables import markdown

SIZES, IMAGES = (784, 128, 64, 10), 5 * 60_000
# What every seed of this training ends in: the mean loss of the fifth epoch, the test accuracy.
EXPECTED = {"loss": (0.37, 0.41), "accuracy": (0.885, 0.915)}


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


class Bench:
    """The directory, the environments and the commands of one benchmark."""

    def __init__(self, directory: Path, device: str) -> None:
        self.directory, self.device, self.platform = directory, device, "cpu"
        platforms = {"JAX_PLATFORMS": "cpu"} if device == "cpu" else {}
        data_dir = os.environ.get("JAXMNIST_DATA_DIR")
        self.peers = _measure.clean_environment(
            **platforms, TORCHINDUCTOR_CACHE_DIR=str(directory / "inductor")
        )
        self.ours = _measure.clean_environment(
            JAXMNIST_CACHE_DIR=str(directory / "warm"),
            **({"JAXMNIST_DATA_DIR": data_dir} if data_dir else {}),
        )
        self.train_command = [sys.executable, str(TRAIN), "--device", device]

    def prepare(self) -> None:
        """Write MNIST where the peers read it, and into the caches that ours start from."""
        import numpy as np

        from jaxmnist import load_mnist
        from jaxmnist.datasets.cache import cache_dir

        arrays: Any = {
            f"{part}_{what}": np.asarray(values, np.uint8)
            for part, dataset in zip(("train", "test"), load_mnist(), strict=True)
            for what, values in dataset._asdict().items()
        }
        np.savez(self.directory / "mnist.npz", **arrays)
        (self.directory / "data").mkdir()
        for path in cache_dir().glob("mnist*"):
            shutil.copy(path, self.directory / "data")
        shutil.copytree(self.directory / "data", self.directory / "warm")

    def peak(self) -> dict[str, Any]:
        """GFLOP/s of large matmuls, and the device that JAX computes on."""
        from jaxmnist import JaxmnistError

        done = _measure.measure([sys.executable, str(PEERS / "matmul_peak.py")], self.peers)
        if done.code:
            raise JaxmnistError(f"JAX does not start: {last_line(done.stderr)}")
        result = json.loads(done.stdout)
        if self.device == "gpu" and result["platform"] != "gpu":
            raise JaxmnistError(f"--device gpu: JAX finds no GPU, only {result['platform']}")
        self.platform = result["platform"]
        return result

    def run(self, name: str) -> Run:
        """Run a program once."""
        program = PROGRAMS[name]
        environment = dict(self.ours if program.path == TRAIN else self.peers)
        if program.one_thread:
            environment["PJRT_NPROC"] = "1"
        if name == "ours-cold":
            cold = self.directory / "cold"
            shutil.rmtree(cold, ignore_errors=True)
            shutil.copytree(self.directory / "data", cold)
            environment["JAXMNIST_CACHE_DIR"] = str(cold)
        if program.path == TRAIN:
            return _measure.measure(self.train_command, environment)
        device = "cuda" if self.platform == "gpu" else "cpu"
        command = [sys.executable, str(program.path), str(self.directory / "mnist.npz"), device]
        return _measure.measure(command, environment)


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
                records[name].add(turn, bench.run(name))
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
            summary["embedded"][name] = summarize_embedded(name, record)
        elif record.runs:
            summary["programs"][name] = summarize(name, record, ours, max(peak.values()))
    return summary


def why_not(program: Program, platform: str) -> str | None:
    """Why the program cannot be timed here, if it cannot."""
    if program.needs and not importlib.util.find_spec(program.needs):
        return f"{program.needs} is not installed"
    if program.gpu and platform != "gpu":
        return "no GPU"
    if program.one_thread and platform != "cpu":
        return "on a CPU only"  # elsewhere it would be the same as with all threads
    return None


def summarize(name: str, record: Record, ours: Record, peak: float) -> dict[str, Any]:
    """The figures of one program; its ratios to ours are taken within each turn."""
    row: dict[str, Any] = {"label": PROGRAMS[name].label, "problem": record.problem}
    for key in ("whole_seconds", "train_seconds"):
        seconds, base = record.seconds(key), ours.seconds(key)
        row[key] = spread(list(seconds.values()))
        row[f"{key}_ratio"] = spread([seconds[t] / base[t] for t in seconds if t in base])
    last = list(record.results.values())[-1:]
    row |= {key: last[0].get(key) if last else None for key in EXPECTED}
    row["peak_bytes"] = max(run.peak_bytes for run in record.runs.values())
    train = row["train_seconds"]["median"] if row["train_seconds"] else None
    row["images_per_second"] = IMAGES / train if train else None
    row["gflops"] = _measure.training_flops(SIZES, IMAGES) / train / 1e9 if train else None
    row["share_of_peak"] = row["gflops"] / peak if train else None
    return row


def summarize_embedded(name: str, record: Record) -> dict[str, Any]:
    """The figures of a program that times single steps and many models at once."""
    results = list(record.results.values())
    figures = (
        {key: spread([result[key] for result in results]) for key in results[0]} if results else {}
    )
    return {"label": PROGRAMS[name].label, "problem": record.problem, "figures": figures}


def read_result(stdout: str) -> dict[str, float]:
    """What a program tells of its training, in JSON or in the words of scripts/train.py."""
    lines = stdout.splitlines()
    if lines and lines[-1].startswith("{"):
        return json.loads(lines[-1])
    laps = _measure.read_laps(stdout)
    epochs = re.findall(r"Training loss: ([\d.]+).*test accuracy: ([\d.]+)%", stdout)
    if not laps or not epochs:
        raise ValueError("it printed no result")
    loss, percent = map(float, epochs[-1])
    return {"train_seconds": laps["train"], "loss": loss, "accuracy": percent / 100}


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


def number(value: float | None, form: str) -> str:
    """A table's cell."""
    return "" if value is None else format(value, form)


def spread_text(values: dict[str, Any] | None) -> str:
    """Median, smallest and largest."""
    return "{median:.2f} ({min:.2f} to {max:.2f})".format(**values) if values else ""


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
        record.add(turn, bench.run("ours"))
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
