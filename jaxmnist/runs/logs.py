"""What a run logs while it trains: the loss of each step as JSON lines, and TensorBoard's events.

Neither needs the other's file, and after an OSError each can be written on. We use TensorBoard's
record writer and not its SummaryWriter, since that queues in a thread, which hides a full disk and
leaves points that are missing, or there twice, when a run was killed and resumed.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from jaxmnist.errors import DataError
from jaxmnist.files import open_regular

if TYPE_CHECKING:
    import numpy as np

_LINE = re.compile(rb'\{"step": (\d{1,15}), "loss": (-?\d+(?:\.\d+)?(?:e[+-]\d\d)?)\}\n')


class StepLog:
    """`steps.jsonl`, the loss of every step: a line each, `{"step": 1, "loss": 2.3052788}`.

    It is appended to and, when a run continues from a checkpoint, cut back to its step.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = 0  # behind the last whole line
        self._waiting = b""  # lines that could not be written yet

    def cut(self, done: int) -> int:
        """Leave the lines of the steps up to `done`; how many of these are missing."""
        self._end = found = last = 0
        with contextlib.suppress(FileNotFoundError), open_regular(self._path, "r+b") as file:
            for step, _, size in _entries(file):
                if not last < step <= done:
                    break
                last, found, self._end = step, found + 1, self._end + size
            file.truncate(self._end)
        return done - found

    def add(self, first: int, losses: np.ndarray) -> None:
        """Append the losses of steps, float32 `[n]`, of which `first` is the number of the first.

        They get as many digits as it takes to read the same float32 back. An OSError loses none of
        them: they are written the next time.
        """
        digits = map(str, losses)  # a format would have those of a float64
        lines = (f'{{"step": {n}, "loss": {loss}}}\n' for n, loss in enumerate(digits, first))
        self._waiting += "".join(lines).encode()
        self.settle()

    def settle(self) -> None:
        """Write what is left to be written."""
        if not self._waiting:
            return
        with open_regular(self._path, "ab") as file:
            start = min(self._end, file.tell())
            file.truncate(start)  # a full disk may have let a part of a line through
            file.write(self._waiting)
        self._end, self._waiting = start + len(self._waiting), b""

    def read(self) -> Iterator[tuple[int, float]]:
        """The number of each step, counted from 1, and its loss; nothing where there is no file.

        Raises a DataError that names the first damaged line.
        """
        if not self._path.exists():
            return
        last = lines = size = 0
        with open_regular(self._path) as file:
            for step, loss, length in _entries(file):
                if step <= last:
                    break
                yield step, loss
                last, lines, size = step, lines + 1, size + length
        if size < self._path.stat().st_size:
            raise DataError(
                f"{self._path}: line {lines + 1} is damaged; remove the file to do without the "
                "losses of the steps"
            )


def _entries(file: BinaryIO) -> Iterator[tuple[int, float, int]]:
    """Step, loss and length of each line, up to the first that is damaged."""
    while found := _LINE.fullmatch(file.readline(100)):
        yield int(found[1]), float(found[2]), len(found[0])


class EventLog:
    """TensorBoard's event file, rebuilt from the other logs when a run begins or is resumed.

    So however the run was stopped before, no point is missing and none is there twice.
    """

    def __init__(self, directory: Path) -> None:
        """A ModuleNotFoundError where the package tensorboard is not installed."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._directory, self._path, self._make_writer = directory, directory, RecordWriter
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer: Any = None
        self._broken = False  # incomplete, so that nothing is added until it is rebuilt

    def rebuild(
        self, steps: Iterator[tuple[int, float]], records: Sequence[Mapping[str, float]]
    ) -> None:
        """A new file with everything so far, which takes the place of any that is there."""
        self.close()
        with self._breaking():
            if self._directory.is_symlink():  # what it leads to is not ours to write to
                raise OSError(f"{self._directory} is a link, and is not followed")
            self._directory.mkdir(exist_ok=True)
            old = list(self._directory.glob("events.out.tfevents.*"))
            self._path = self._directory / f"events.out.tfevents.{time.time_ns()}"
            self._writer = self._make_writer(self._path.open("xb"))
            self._write(0, file_version="brain.Event:2")
            self._write(0, session_log=self._start)  # whoever reads it now forgets the old points
            entry = next(steps, None)
            for record in records:
                while entry and entry[0] <= record["step"]:
                    self._write_loss(*entry)
                    entry = next(steps, None)
                self._write_record(record)
            while entry:
                self._write_loss(*entry)
                entry = next(steps, None)
            self._writer.flush()
            for path in old:
                path.unlink()

    def is_whole(self) -> bool:
        """Whether everything that was added is in the file, and that is still there."""
        return not self._broken and self._path.exists()

    def add(self, first: int, losses: np.ndarray) -> None:
        """The losses of steps, float32 `[n]`, of which `first` is the number of the first."""
        if not self._broken:
            with self._breaking():
                for step, loss in enumerate(losses.tolist(), first):
                    self._write_loss(step, loss)
                self._writer.flush()

    def add_record(self, record: Mapping[str, float]) -> None:
        """What was measured after an epoch."""
        if not self._broken:
            with self._breaking():
                self._write_record(record)
                self._writer.flush()

    def remove(self) -> None:
        """Leave nothing behind."""
        self.close()
        for path in self._directory.glob("events.out.tfevents.*"):
            path.unlink()
        with contextlib.suppress(OSError):  # somebody else's file is in it, or it is not there
            self._directory.rmdir()

    def close(self) -> None:
        """Close the file."""
        writer, self._writer = self._writer, None
        with contextlib.suppress(OSError):  # of what is reported already
            if writer:
                writer.close()

    def _write_loss(self, step: int, loss: float) -> None:
        self._write(step, {"train/step_loss": loss})

    def _write_record(self, record: Mapping[str, float]) -> None:
        names = ("train_loss", "test_loss", "test_accuracy")
        scalars = {name.replace("_", "/", 1): record[name] for name in names}
        self._write(int(record["step"]), scalars)

    def _write(self, step: int, scalars: Mapping[str, float] | None = None, **more: Any) -> None:
        if scalars:
            values = [self._summary.Value(tag=tag, simple_value=x) for tag, x in scalars.items()]
            more["summary"] = self._summary(value=values)
        event = self._event(step=step, wall_time=time.time(), **more)
        self._writer.write(event.SerializeToString())

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        """What goes wrong in the block leaves the file incomplete."""
        self._broken = True
        try:
            yield
        except OSError:
            self.close()
            raise
        self._broken = False
