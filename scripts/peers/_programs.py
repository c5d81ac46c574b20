"""The programs that scripts/benchmark.py times, and how each is started."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import _measure
from _measure import Run
from _results import last_line

Which = TypeVar("Which")
PEERS = Path(__file__).parent
TRAIN = PEERS.parent / "train.py"


class Program(NamedTuple):
    """A program to time. It prints its result as a line of JSON, or as scripts/train.py does."""

    label: str
    path: Path
    needs: str = ""  # a package
    ours: bool = False
    cold: bool = False  # with nothing compiled before
    embedded: bool = False  # what it prints is not the training of five epochs
    gpu: bool = False  # runs on a GPU only
    one_thread: bool = False  # XLA's on a CPU, which has one for each core otherwise


PROGRAMS = {
    "ours": Program("jaxmnist", TRAIN, ours=True),
    "ours-cold": Program("jaxmnist, first start (nothing compiled)", TRAIN, ours=True, cold=True),
    "numpy": Program("NumPy by hand, OpenBLAS", PEERS / "numpy_openblas.py"),
    "linen": Program("Flax Linen, a step per batch", PEERS / "flax_linen.py"),
    "nnx": Program("Flax NNX, a step per batch", PEERS / "flax_nnx.py"),
    "equinox": Program("Equinox, a step per batch", PEERS / "equinox_optax.py", "equinox"),
    "torch": Program("PyTorch, data in memory", PEERS / "torch_eager.py", "torch"),
    "torch-compile": Program("PyTorch, torch.compile", PEERS / "torch_compile.py", "torch"),
    "torch-graphs": Program("PyTorch, CUDA graphs", PEERS / "torch_graphs.py", "torch", gpu=True),
    "notebook": Program("PyTorch as in the notebook", PEERS / "torch_notebook.py", "torch"),
    "import": Program("import jax, flax, optax: no more", PEERS / "imports_only.py"),
    "embedded": Program("Embedded", PEERS / "ours_embedded.py", ours=True, embedded=True),
    "embedded-1": Program(
        "Embedded, one thread",
        PEERS / "ours_embedded.py",
        ours=True,
        embedded=True,
        one_thread=True,
    ),
}


def why_not(program: Program, platform: str) -> str | None:
    """Why the program cannot be timed here, if it cannot."""
    if program.needs and not importlib.util.find_spec(program.needs):
        return f"{program.needs} is not installed"
    if program.gpu and platform != "gpu":
        return "no GPU"
    if program.one_thread and platform != "cpu":
        return "on a CPU only"  # elsewhere it would be the same as with all threads
    return None


def take_turns(
    turns: Iterable[int],
    programs: Sequence[Which],
    time_limit: float,
    started: float,
    run: Callable[[int, Which], None],
) -> str | None:
    """Call `run(turn, program)` for all programs in each turn.

    Args:
        turns: their numbers.
        programs: what there is to run.
        time_limit: minutes after which no more is started; 0 is no limit.
        started: when they began, by `time.monotonic`.
        run: what runs it.

    Returns:
        Why it ended early, if it did.
    """
    import tqdm

    deadline = started + 60 * time_limit if time_limit else float("inf")
    everything = [(turn, program) for turn in turns for program in programs]
    try:
        for turn, program in tqdm.tqdm(everything, unit="run", leave=False, disable=None):
            if time.monotonic() > deadline:
                return f"--time-limit {time_limit:g}"
            run(turn, program)
    except KeyboardInterrupt:
        return "Ctrl-C"
    return None


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

    def name(self, machine: Mapping[str, Any], peak: Mapping[str, Any]) -> str:
        """Of the device, for a reader; JAX calls every processor "cpu"."""
        cpu = f"{machine['cpu']}, {machine['cores']} cores"
        return cpu if self.platform == "cpu" else str(peak["device"])

    def environment(self, program: Program) -> dict[str, str]:
        """The environment of a program, with its cache as it is to find it."""
        environment = dict(self.ours if program.path == TRAIN else self.peers)
        if program.one_thread:
            environment["PJRT_NPROC"] = "1"
        if program.cold:
            cold = self.directory / "cold"
            shutil.rmtree(cold, ignore_errors=True)
            shutil.copytree(self.directory / "data", cold)
            environment["JAXMNIST_CACHE_DIR"] = str(cold)
        return environment

    def run(self, program: Program, changes: Mapping[str, Any] | None = None) -> Run:
        """Run a program once; `changes` are what `_job` is to do otherwise."""
        environment = self.environment(program)
        if program.path == TRAIN:
            return _measure.measure(self.train_command, environment)
        device = "cuda" if self.platform == "gpu" else "cpu"
        command = [sys.executable, str(program.path), str(self.directory / "mnist.npz"), device]
        command += [json.dumps(changes)] if changes else []
        return _measure.measure(command, environment)
