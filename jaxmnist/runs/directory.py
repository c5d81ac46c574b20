"""The directory of a run: its lock, its identity, its checkpoints, logs and weights.

What cannot be written ends the run with one line that names the file. However a run ends, its last
checkpoint is whole. The other files follow from it: `save` writes them after it, and `begin` again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32

from jaxmnist import checkpoint
from jaxmnist.errors import CheckpointError, NonFiniteLossError, UsageError
from jaxmnist.files import atomic_write, naming
from jaxmnist.weights import to_safetensors

Record = dict[str, float]  # a row of metrics.jsonl: epoch, step, train_loss, test_loss, ...

# JAX's flags that change random numbers or rounding.
_FLAGS = (
    *("jax_default_prng_impl", "jax_threefry_partitionable", "jax_random_seed_offset"),
    *("jax_enable_x64", "jax_disable_most_optimizations", "jax_default_matmul_precision"),
)
# Another version of one of these may round otherwise; a run continues, with a warning.
_PACKAGES = ("jaxmnist", "jax", "jaxlib", "flax", "optax", "numpy")
# The name of a parameter in a checkpoint, with its layer and its part.
_PARAMETER = re.compile(r"state\['training'\]\.params\['params'\]\['(\w+)'\]\['(\w+)'\]")


def environment() -> dict[str, dict[str, Any]]:
    """JAX's "flags" and the packages' "versions" that a run's numbers depend on."""
    flags = {name: jax.config.values.get(name) for name in _FLAGS}
    versions = {name: importlib.import_module(name).__version__ for name in _PACKAGES}
    return {"flags": flags, "versions": versions}


def make_config(groups: Iterable[Any], **more: Any) -> dict[str, Any]:
    """What config.json holds: the options, the run's identity and the versions.

    Two runs of one identity end in the same bits on one kind of device. It is made of the options
    that change numbers, of JAX's flags, and of `more`, for instance the kind of data.

    Args:
        groups: dataclasses of options; the metadata of a field that does not change a run's numbers
            have `changes_run=False`.
        **more: what else belongs to the identity.
    """
    here, options, identity = environment(), dict[str, Any](), dict[str, Any]()
    for group in groups:
        for field in dataclasses.fields(group):
            options[field.name] = getattr(group, field.name)
            if field.metadata.get("changes_run", True):
                identity[field.name] = options[field.name]
    identity |= more | here["flags"]
    config = {"options": options, "identity": identity, "versions": here["versions"]}
    return json.loads(json.dumps(config, default=str))


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Describe the entries of `here` that differ from `there`; "" if none do."""
    names = [name for name in here if there.get(name) != here[name]]
    return ", ".join(f"{name} {there.get(name)} there, {here[name]} here" for name in names)


@contextlib.contextmanager
def open_run(
    path: Path, *, warn: Callable[[str], None], tensorboard: bool = False
) -> Iterator[RunDirectory]:
    """The directory of a run, locked against other processes until the block ends.

    Args:
        path: created if missing. One that holds other files than a run's is a UsageError.
        warn: is called with a line that the user should see.
        tensorboard: whether losses and accuracies are written for TensorBoard, too.
    """
    if tensorboard:
        import tensorboardX  # noqa: F401  (missed now, and not after the first epoch)
    path.mkdir(parents=True, exist_ok=True)
    names = [n for n in os.listdir(path) if not n.startswith(".") and n[-4:] != ".tmp"]
    if names and not checkpoint.list_checkpoints(path):
        raise UsageError(f"{path}: already exists and holds no run; name a new directory")
    with (path / ".lock").open("a") as file:  # locked until the file is closed or the process ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            advice = "wait for it, or name another directory"
            raise CheckpointError(f"{path}: another process trains into it; {advice}") from None
        except OSError as error:  # some network file systems have no locks
            warn(f"{path} cannot be locked ({error.strerror}): let no other process use it")
        for stale in path.glob("*.????????.tmp"):  # of processes that were killed
            stale.unlink()
        yield RunDirectory(path, warn, tensorboard)


class RunDirectory:
    """The files of a run, for the process that has the directory's lock; see `open_run`."""

    def __init__(self, path: Path, warn: Callable[[str], None], tensorboard: bool) -> None:
        self.path = path
        self.records: list[Record] = []  # of the epochs so far
        self._losses: list[np.ndarray] = []  # of their steps
        self._rows: list[str] = []  # of steps.jsonl, for each of these epochs
        self._warn, self._tensorboard, self._config = warn, tensorboard, dict[str, Any]()

    def begin(self, config: Mapping[str, Any], like: Any, *, resume: bool) -> Any:
        """The state to continue from, or None where there is no run yet.

        Args:
            config: one of `make_config`.
            like: the state, or its shapes and dtypes.
            resume: whether a run that is there may continue.

        Raises:
            UsageError: another run is there, or this one and `resume` is false.
            CheckpointError: there are checkpoints, and none is whole.
        """
        self._config = dict(config)
        found, damaged = checkpoint.restore(self.path)
        for line in damaged:
            self._warn(f"skipped a checkpoint: {line}")
        if not found:
            return None
        there = found.config
        if line := differences(there.get("identity", {}), config["identity"]):
            raise UsageError(f"{self.path}: holds another run ({line}); name another directory")
        if not resume:
            raise UsageError(f"{self.path}: holds this run already; --resume continues it")
        if line := differences(there["versions"], config["versions"]):
            self._warn(f"other versions, so the last digits may differ: {line}")
        self.records, self._losses = there["records"], [*found.state.pop("state['losses']")]
        state = checkpoint.as_tree(self.path, found.state, {"training": like})["training"]
        self._write_others(state)
        return state

    def save(self, state: Any, record: Record, losses: Float32[np.ndarray, " steps"]) -> None:
        """Write the end of an epoch: its checkpoint, then the files that follow from it.

        Args:
            state: after the epoch.
            record: the epoch's row of metrics.jsonl, see `epoch_record`.
            losses: the training loss of each of its steps.
        """
        self.records.append(record)
        self._losses.append(losses)
        content = {"training": state, "losses": np.stack(self._losses)}
        config = self._config | {"records": self.records}
        checkpoint.save(self.path, content, step=int(record["step"]), config=config)
        self._write_others(state)

    def _write_others(self, state: Any) -> None:
        """Write the files that follow from the state and the rows."""
        for losses in self._losses[len(self._rows) :]:
            rows = enumerate(losses, len(self._rows) * len(losses) + 1)
            # `str` gives as many digits as it takes to read the same float32 back.
            self._rows.append("".join(f'{{"step": {n}, "loss": {x!s}}}\n' for n, x in rows))
        records = (json.dumps(record, allow_nan=False) + "\n" for record in self.records)
        contents = {
            "weights.safetensors": to_safetensors(state.params),
            "steps.jsonl": "".join(self._rows).encode(),
            "config.json": json.dumps(self._config, indent=2).encode() + b"\n",
            "metrics.jsonl": "".join(records).encode(),
        }
        for name, content in contents.items():
            with atomic_write(self.path / name) as file:
                file.write(content)
        if self._tensorboard:
            _write_events(self.path / "tensorboard", self.records[-1], self._losses[-1])


class Run(NamedTuple):
    """What the newest checkpoint of a run holds."""

    config: dict[str, Any]  # "options", "identity", "versions"
    records: list[Record]  # of the epochs that are done
    losses: Float32[np.ndarray, "epochs steps"]  # of each step
    params: Any  # after the last of these epochs
    finished: bool  # whether these are all epochs


def read_run(path: Path) -> Run:
    """Read the run in a directory; it may be unfinished.

    Raises:
        UsageError: the directory holds no run, or no epoch of it is done.
        CheckpointError: its newest checkpoint is damaged.
    """
    checkpoints = checkpoint.list_checkpoints(path)
    found = checkpoint.load(checkpoints[-1][1]) if checkpoints else None
    if found is None or "records" not in found.config:
        what = "it has no epoch that is done" if path.is_dir() else "there is no such directory"
        raise UsageError(f"{path}: no run of scripts/train.py --out: {what}")
    params: dict[str, dict[str, np.ndarray]] = {}
    for name, leaf in sorted(found.state.items()):  # safetensors gives them in any order
        if match := _PARAMETER.fullmatch(name):
            params.setdefault(match[1], {})[match[2]] = leaf
    config, records = found.config, found.config["records"]
    finished = len(records) >= config["options"]["epochs"]
    return Run(config, records, found.state["state['losses']"], {"params": params}, finished)


def epoch_record(
    epoch: int, losses: Float32[np.ndarray, " steps"], tests: Mapping[str, Mapping[str, Any]]
) -> Record:
    """A row of metrics.jsonl.

    Args:
        epoch: its number, from 1.
        losses: the training loss of each of its steps.
        tests: the "loss" and "accuracy" on each test set.

    Raises:
        NonFiniteLossError: one of the losses is infinite or not a number.
    """
    record: Record = {"epoch": epoch, "step": epoch * len(losses)}
    record["train_loss"] = float(losses.mean(dtype="float64"))
    for name, metrics in tests.items():
        if not math.isfinite(metrics["loss"]):
            what = f"the {name} loss after epoch {epoch} is {metrics['loss']}"
            raise NonFiniteLossError(f"{what}: training has diverged, try a lower learning rate")
        record |= {f"{name}_{key}": float(metrics[key]) for key in ("loss", "accuracy")}
    return record


def describe_epoch(record: Mapping[str, float], epochs: int) -> str:
    """A line of at most 79 columns about an epoch.

    >>> record = {"epoch": 5, "train_loss": 0.38765, "test_loss": 0.35357, "test_accuracy": 0.9012}
    >>> describe_epoch(record, 5)
    'Epoch 5/5   Training loss: 0.387650   test loss: 0.353570   accuracy: 90.12%'
    """
    line, train = f"Epoch {record['epoch']}/{epochs}", record["train_loss"]
    if "validation_loss" not in record:
        line += f"   Training loss: {train:.6f}   test loss: {record['test_loss']:.6f}"
        return f"{line}   accuracy: {record['test_accuracy']:.2%}"
    line += f"  Loss: {train:.4f}"
    for name in ("validation", "test"):
        line += f"  {name}: {record[f'{name}_loss']:.4f} {record[f'{name}_accuracy']:.2%}"
    return line


def _write_events(directory: Path, record: Record, losses: np.ndarray) -> None:
    """Write a file for TensorBoard, one for each epoch.

    Not by tensorboardX's SummaryWriter: its thread hangs the process where the disk is full.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    epoch, step = int(record["epoch"]), int(record["step"])
    points = [(n, "train/step_loss", x) for n, x in enumerate(losses, step - len(losses) + 1)]
    points += [(step, name.replace("_", "/", 1), x) for name, x in record.items() if "_" in name]
    with naming(directory):
        directory.mkdir(exist_ok=True)
        for old in directory.glob(f"*.epoch-{epoch}"):  # of a process that was killed
            old.unlink()
        writer = EventsWriter(str(directory / "events"), f".epoch-{epoch}")
        for n, tag, x in points:
            writer.write_event(Event(step=n, wall_time=time.time(), summary=scalar(tag, x)))
        writer.close()
