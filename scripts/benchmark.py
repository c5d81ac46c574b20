"""Time scripts/train.py beside programs that train the same in other libraries.

Each program is a process of its own, and they take turns. A peer that is not installed is skipped.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import _measure
from _cli import run
from _report import draw_chart, profile_table, table

SCRIPTS = Path(__file__).parent
PEERS = SCRIPTS / "peers"
SIZES, IMAGES = (784, 128, 64, 10), 5 * 60_000
# What every seed of this training ends in: the mean loss of the fifth epoch, the test accuracy.
EXPECTED = {"loss": (0.37, 0.41), "accuracy": (0.885, 0.915)}


class Program(NamedTuple):
    """A program to time. It prints its result as a line of JSON, or as scripts/train.py does."""

    label: str
    path: Path
    needs: tuple[str, ...] = ()
    ours: bool = False
    gpu: bool = False  # runs on a GPU only
    one_thread: bool = False  # XLA's on a CPU, which has one for each core otherwise


TRAIN = SCRIPTS / "train.py"
PROGRAMS = {
    "ours": Program("jaxmnist", TRAIN, ours=True),
    "ours-cold": Program("jaxmnist, first start (nothing compiled)", TRAIN, ours=True),
    "numpy": Program("NumPy by hand, OpenBLAS", PEERS / "numpy_openblas.py"),
    "linen": Program("Flax Linen, a step per batch", PEERS / "flax_linen.py"),
    "nnx": Program("Flax NNX, a step per batch", PEERS / "flax_nnx.py"),
    "equinox": Program("Equinox, a step per batch", PEERS / "equinox_optax.py", ("equinox",)),
    "torch": Program("PyTorch, data in memory", PEERS / "torch_eager.py", ("torch",)),
    "torch-compile": Program("PyTorch, torch.compile", PEERS / "torch_compile.py", ("torch",)),
    "torch-graphs": Program(
        "PyTorch, CUDA graphs", PEERS / "torch_graphs.py", ("torch",), gpu=True
    ),
    "notebook": Program("PyTorch as in the notebook", PEERS / "torch_notebook.py", ("torch",)),
    "import": Program("import jax, flax, optax: no more", PEERS / "imports_only.py"),
    "embedded": Program("Embedded", PEERS / "ours_embedded.py", ours=True),
    "embedded-1": Program(
        "Embedded, one thread", PEERS / "ours_embedded.py", ours=True, one_thread=True
    ),
}
EMBEDDED = ("embedded", "embedded-1")  # what they print are no trainings of five epochs


@dataclasses.dataclass(frozen=True)
class Config:
    """The options. All programs together take about two minutes a run on two CPU cores."""

    runs: int = 7
    """How often each program is timed, after one run that warms up."""
    only: tuple[str, ...] = ()
    """Run just these of the programs, by name."""
    peers: Literal["all", "none"] = "all"
    """All that are installed, or only jaxmnist itself."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to train; auto is the best that JAX finds."""
    out: Path | None = None
    """File for everything measured, as JSON."""
    chart: Path | None = None
    """File for a bar chart, .png or .svg."""
    profile: bool = False
    """Show where the time of scripts/train.py goes instead."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is started."""
        if self.runs < 1:
            raise ValueError(f"--runs must be at least 1, not {self.runs}")
        for name in self.only:
            if name not in PROGRAMS:
                raise ValueError(f"--only {name}: no such program, there are {', '.join(PROGRAMS)}")
        if self.profile and self.chart:
            raise ValueError("--chart shows the programs; --profile runs none of them")


@dataclasses.dataclass
class Record:
    """What the runs of one program gave."""

    runs: list[_measure.Run] = dataclasses.field(default_factory=list)
    results: list[dict[str, float]] = dataclasses.field(default_factory=list)
    problem: str | None = None


class Bench:
    """The directory, the environment and the commands of one benchmark."""

    def __init__(self, config: Config, directory: Path) -> None:
        self.config, self.directory = config, directory
        platforms = {"JAX_PLATFORMS": "cpu"} if config.device == "cpu" else {}
        data_dir = os.environ.get("JAXMNIST_DATA_DIR")
        self.peers = _measure.clean_environment(
            **platforms, TORCHINDUCTOR_CACHE_DIR=str(directory / "inductor")
        )
        self.ours = _measure.clean_environment(
            JAXMNIST_CACHE_DIR=str(directory / "warm"),
            **({"JAXMNIST_DATA_DIR": data_dir} if data_dir else {}),
        )
        self.platform = "cpu"

    def prepare(self) -> None:
        """Write MNIST where the peers read it, and into the caches that ours start from."""
        import numpy as np

        from jaxmnist import load_mnist
        from jaxmnist.datasets.cache import cache_dir

        train, test = load_mnist()
        np.savez(
            self.directory / "mnist.npz",
            train_images=train.images,
            train_labels=train.labels.astype(np.uint8),
            test_images=test.images,
            test_labels=test.labels.astype(np.uint8),
        )
        (self.directory / "data").mkdir()
        for path in cache_dir().glob("mnist*"):
            shutil.copy(path, self.directory / "data")
        shutil.copytree(self.directory / "data", self.directory / "warm")

    def train_command(self) -> list[str]:
        """The command line of scripts/train.py."""
        return [sys.executable, str(TRAIN), "--device", self.config.device]

    def peak(self) -> dict[str, Any]:
        """GFLOP/s of large matmuls, and the device that JAX computes on."""
        from jaxmnist import JaxmnistError

        done = _measure.measure([sys.executable, str(PEERS / "matmul_peak.py")], self.peers)
        if done.code:
            raise JaxmnistError(f"JAX does not start: {last_line(done.stderr)}")
        result = json.loads(done.stdout)
        if self.config.device == "gpu" and result["platform"] != "gpu":
            raise JaxmnistError(f"--device gpu: JAX finds no GPU, only {result['platform']}")
        return result

    def time(self, name: str, record: Record) -> None:
        """Run a program once and note what it gave."""
        program = PROGRAMS[name]
        environment = self.ours if program.path == TRAIN else self.peers
        if program.one_thread:
            environment = {**environment, "PJRT_NPROC": "1"}
        if name == "ours-cold":
            cold = self.directory / "cold"
            shutil.rmtree(cold, ignore_errors=True)
            shutil.copytree(self.directory / "data", cold)
            environment = {**environment, "JAXMNIST_CACHE_DIR": str(cold)}
        if program.path == TRAIN:
            command = self.train_command()
        else:
            command = [sys.executable, str(program.path), str(self.directory / "mnist.npz")]
            command.append("cuda" if self.platform == "gpu" else "cpu")
        done = _measure.measure(command, environment)
        record.runs.append(done)
        try:
            if done.code:
                raise ValueError(f"exit code {done.code}: {last_line(done.stderr)}")
            result = read_result(done.stdout)
        except (ValueError, LookupError) as error:
            record.problem = f"failed: {error}"
            return
        record.results.append(result)
        for key, (low, high) in EXPECTED.items():
            if key in result and not low <= result[key] <= high:
                record.problem = f"its {key} is {result[key]:.4f}, outside {low} to {high}"


def main(config: Config) -> None:
    """Measure, show, write."""
    from jaxmnist.errors import UsageError

    for path in (config.out, config.chart):
        if path and not path.absolute().parent.is_dir():
            raise UsageError(f"{path}: there is no directory {path.absolute().parent}")
    if config.chart and not importlib.util.find_spec("matplotlib"):
        raise UsageError("--chart needs matplotlib; the extra jaxmnist[plots] installs it")
    with tempfile.TemporaryDirectory(prefix="jaxmnist-benchmark-") as name:
        bench = Bench(config, Path(name))
        bench.prepare()
        if config.profile:
            summary = summarize_profile(bench)
            print(profile_table(summary))
        else:
            summary = measure_all(bench)
            print(table(summary))
    if config.out:
        config.out.write_text(json.dumps(summary, indent=2) + "\n")
    if config.chart:
        draw_chart(summary, config.chart)


def measure_all(bench: Bench) -> dict[str, Any]:
    """Time every program, in turns, and sum it up."""
    import tqdm

    config, machine = bench.config, _measure.machine()
    peaks = [bench.peak()]
    bench.platform = peaks[0]["platform"]
    records, skipped = {}, {}
    for name, program in PROGRAMS.items():
        if (config.only and name not in config.only) or (
            config.peers == "none" and not program.ours
        ):
            continue
        reason = why_not(program, bench.platform)
        if reason:
            skipped[name] = reason
        else:
            records[name] = Record()
    turns = [(number, name) for number in range(config.runs + 1) for name in records]
    for number, name in tqdm.tqdm(turns, unit="run", leave=False, disable=None):
        if number == 1 and not records[name].problem:
            records[name] = Record()  # the first was to warm up
        if not records[name].problem:
            bench.time(name, records[name])
        if number and name == turns[-1][1]:
            peaks.append(bench.peak())
    machine["load_average_after"] = os.getloadavg()[0]
    cpu = f"{machine['cpu']}, {machine['cores']} cores"
    machine["device"] = cpu if bench.platform == "cpu" else peaks[0]["device"]
    peak = {library: max(p[library] for p in peaks) for library in ("numpy", "xla")}
    summary = {"machine": machine, "runs": config.runs, "peak_gflops": peak, "skipped": skipped}
    summary["embedded"] = {
        name: summarize_embedded(name, records.pop(name)) for name in EMBEDDED if name in records
    }
    programs = {
        name: summarize(name, record, max(peak.values())) for name, record in records.items()
    }
    for row in programs.values():
        for key in ("whole_seconds", "train_seconds"):
            ours = programs.get("ours", {}).get(key)
            row[f"{key}_ratio"] = row[key]["median"] / ours["median"] if ours and row[key] else None
    return summary | {"programs": programs}


def why_not(program: Program, platform: str) -> str | None:
    """Why the program cannot be timed here, if it cannot."""
    missing = [package for package in program.needs if not importlib.util.find_spec(package)]
    if missing:
        return f"{', '.join(missing)} is not installed"
    if program.gpu and platform != "gpu":
        return "no GPU"
    if program.one_thread and platform != "cpu":
        return "on a CPU only"  # elsewhere it would be the same as with all threads
    return None


def summarize(name: str, record: Record, peak: float) -> dict[str, Any]:
    """The figures of one program."""
    results = record.results
    row: dict[str, Any] = {"label": PROGRAMS[name].label, "problem": record.problem}
    whole = [done.seconds for done in record.runs if not done.code]
    train = [result["train_seconds"] for result in results if "train_seconds" in result]
    row["whole_seconds"] = _measure.spread(whole) if whole else None
    row["train_seconds"] = _measure.spread(train) if train else None
    row["peak_bytes"] = max(done.peak_bytes for done in record.runs)
    for key in ("loss", "accuracy"):
        row[key] = results[-1].get(key) if results else None
    seconds = row["train_seconds"]["median"] if train else None
    row["images_per_second"] = IMAGES / seconds if seconds else None
    row["gflops"] = _measure.training_flops(SIZES, IMAGES) / seconds / 1e9 if seconds else None
    row["share_of_peak"] = row["gflops"] / peak if seconds else None
    return row


def summarize_embedded(name: str, record: Record) -> dict[str, Any]:
    """The figures of a program that times single steps and many models at once."""
    keys = record.results[0] if record.results else {}
    spreads = {key: _measure.spread([result[key] for result in record.results]) for key in keys}
    return {"label": PROGRAMS[name].label, "problem": record.problem, "figures": spreads}


def read_result(stdout: str) -> dict[str, float]:
    """What a program tells of its training, in JSON or in the words of scripts/train.py."""
    lines = stdout.splitlines()
    if lines and lines[-1].startswith("{"):
        return json.loads(lines[-1])
    laps = _measure.read_laps(stdout)
    epochs = [line.split() for line in lines if line.startswith("Training loss: ")]
    if not laps or not epochs:
        raise ValueError("it printed no result")
    accuracy = float(epochs[-1][-1].rstrip("%")) / 100
    return {"train_seconds": laps["train"], "loss": float(epochs[-1][2]), "accuracy": accuracy}


def last_line(text: str) -> str:
    """The last line of an error, which says most."""
    return (text.strip().splitlines() or ["no message"])[-1]


def summarize_profile(bench: Bench) -> dict[str, Any]:
    """Where the time of scripts/train.py goes, medians; and how long it takes unobserved."""
    from jaxmnist import JaxmnistError

    machine, record, profiles = _measure.machine(), Record(), []
    for _ in range(bench.config.runs + 1):
        bench.time("ours", record)
        try:
            if record.problem:
                raise RuntimeError(record.problem)
            profiles.append(_measure.profile(bench.train_command(), bench.ours))
        except RuntimeError as error:
            raise JaxmnistError(f"scripts/train.py: {error}") from error
    seconds = {
        name: statistics.median(profile.get(name, 0.0) for profile in profiles[1:])
        for name in profiles[-1]
    }
    plain = _measure.spread([done.seconds for done in record.runs[1:]])
    return {"machine": machine, "profile_seconds": seconds, "unobserved_seconds": plain}


if __name__ == "__main__":
    run(main, Config, __doc__)
