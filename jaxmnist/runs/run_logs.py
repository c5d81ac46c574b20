"""All logs of a run: metrics.jsonl, steps.jsonl and, if asked for, TensorBoard's.

During training, what cannot be written is reported and written later; at the end it is an error.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmnist.errors import NonFiniteLossError
from jaxmnist.files import atomic_write, open_regular
from jaxmnist.runs.logs import EventLog, StepLog

if TYPE_CHECKING:
    import numpy as np


class RunLogs:
    """The logs in a run's directory.

    Args:
        directory: the run's.
        warn: is called with a line that the user should see.
        events: TensorBoard's log, if one is written.
    """

    def __init__(
        self, directory: Path, *, warn: Callable[[str], None], events: EventLog | None = None
    ) -> None:
        self.records: list[dict[str, float]] = []  # the metrics of the epochs so far
        self._directory, self._warn, self._events = directory, warn, events
        self._steps = StepLog(directory / "steps.jsonl")
        self._failing: set[str] = set()  # what could not be written the last time

    def begin(self, step: int, records: Sequence[dict[str, float]]) -> None:
        """Leave what belongs to the steps up to `step`, whose epochs have these records."""
        self.records = list(records)
        self._write_metrics()
        path = self._directory / "steps.jsonl"
        with naming(path):
            missing = self._steps.cut(step)
        if missing:
            self._warn(f"{path}: the losses of {missing:,} steps are missing; plots leave them out")
        if self._events:
            self._rebuild(self._events)

    def add_steps(self, first: int, losses: np.ndarray) -> None:
        """The losses of steps, float32 `[n]`, of which `first` is the number of the first."""
        self._try("steps.jsonl", lambda: self._steps.add(first, losses))
        if events := self._events:
            self._try("tensorboard", lambda: events.add(first, losses))

    def add_record(self, record: dict[str, float]) -> None:
        """One more epoch's metrics."""
        self.records.append(record)
        self._try("metrics.jsonl", lambda: self._append_metrics(record))
        if events := self._events:
            self._try("tensorboard", lambda: events.add_record(record))

    def tell(self, what: str, problem: str | None) -> None:
        """Once, until it has succeeded again: a full disk would fill the screen too."""
        if problem is None:
            self._failing.discard(what)
        elif what not in self._failing:
            self._failing.add(what)
            self._warn(f"training continues, but {problem}")

    def finish(self) -> None:
        """Write what is left to be written; here a failure is an OSError."""
        self._write_metrics()
        with naming(self._directory / "steps.jsonl"):
            self._steps.settle()
        if self._events and not self._events.is_whole():
            self._rebuild(self._events)

    def close(self) -> None:
        """Close the files."""
        if self._events:
            self._events.close()

    def remove(self) -> None:
        """Leave nothing behind."""
        for name in ("metrics.jsonl", "steps.jsonl"):
            (self._directory / name).unlink(missing_ok=True)
        if self._events:
            self._events.remove()

    def _append_metrics(self, record: Mapping[str, float]) -> None:
        if "metrics.jsonl" in self._failing:  # some lines are missing, or a part of one
            self._write_metrics()
            return
        with open_regular(self._directory / "metrics.jsonl", "ab") as file:
            file.write(_line(record))

    def _write_metrics(self) -> None:
        path = self._directory / "metrics.jsonl"
        with naming(path), atomic_write(path) as file:
            file.write(b"".join(map(_line, self.records)))

    def _rebuild(self, events: EventLog) -> None:
        with naming(self._directory / "tensorboard"):
            events.rebuild(self._steps.read(), self.records)

    def _try(self, name: str, write: Callable[[], None]) -> None:
        problem = None
        try:
            with naming(self._directory / name):
                write()
        except OSError as error:
            problem = str(error)
        self.tell(name, problem)


def epoch_record(
    epoch: int, step: int, losses: np.ndarray, tests: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """A line of metrics.jsonl.

    Args:
        epoch: its number, from 1.
        step: how many steps have been taken.
        losses: the training loss of each of the epoch's steps.
        tests: what `evaluate` gives on each test set, on the host; its "loss" and "accuracy" count.

    Raises:
        NonFiniteLossError: one of the losses is infinite or not a number.
    """
    record = {"epoch": epoch, "step": step, "train_loss": float(losses.mean(dtype="float64"))}
    for name, metrics in tests.items():
        if not math.isfinite(metrics["loss"]):
            raise NonFiniteLossError(
                f"the {name} loss after epoch {epoch} is {metrics['loss']}: training has diverged, "
                "try a lower learning rate"
            )
        record[f"{name}_loss"] = float(metrics["loss"])
        record[f"{name}_accuracy"] = float(metrics["accuracy"])
    return record


def describe_epoch(record: Mapping[str, float], epochs: int) -> str:
    """A line about one of the epochs, in the notebook's words; of a validation too, if any."""
    words = [f"Epoch {record['epoch']}/{epochs}   Training loss: {record['train_loss']:.6f}"]
    for name in ("validation", "test"):
        if f"{name}_loss" in record:
            words.append(f"{name} loss: {record[f'{name}_loss']:.6f}")
            words.append(f"{name} accuracy: {record[f'{name}_accuracy']:.2%}")
    return "   ".join(words)


@contextlib.contextmanager
def naming(path: Path, what: str = "written") -> Iterator[None]:
    """An error of the operating system as one line that begins with the file's name."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot be {what}: {error.strerror or error}") from error


def _line(record: Mapping[str, float]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"
