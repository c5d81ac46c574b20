"""The directory of a run: what it was started with, its checkpoints, its metrics, its weights."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmnist.errors import UsageError
from jaxmnist.runs.logs import EventLog, StepLog

if TYPE_CHECKING:
    import numpy as np

    from jaxmnist import Dataset
    from jaxmnist.runs.checkpoint import Checkpoint

# Options that do not make it another run: where it trains, for how long, what it leaves.
FREE = {
    *("epochs", "data_dir", "device", "devices", "compile_cache", "source"),
    *("distributed", "coordinator", "processes", "process_id", "timeout"),
    *("out", "resume", "checkpoint_every", "checkpoint_unit", "keep"),
    *("plots", "tensorboard"),
}


class Output:
    """What `--out` names; where it is None, nothing is written and nothing is resumed."""

    def __init__(
        self, out: Path | None, resume: bool, keep: int, plots: bool, tensorboard: bool
    ) -> None:
        self.records: list[dict[str, float]] = []  # the metrics of the epochs so far
        self._out, self._resume, self._keep = out, resume, keep
        self._plots, self._tensorboard = plots, tensorboard
        self._events: EventLog | None = None
        self._stack = contextlib.ExitStack()
        self._failing: set[str] = set()  # what could not be written the last time

    def __enter__(self) -> Output:
        """Lock the directory, made if need be; refuse one that holds what is no run's."""
        if self._out is None:
            return self
        if self._plots:
            import matplotlib.figure  # noqa: F401  (missed now, and not when all is trained)
        if self._tensorboard:
            self._events = EventLog(self._out / "tensorboard")
        self._steps = StepLog(self._out / "steps.jsonl")
        from jaxmnist.files import leftovers
        from jaxmnist.runs import checkpoint

        out, new = self._out, not self._out.exists()
        if not new and not out.is_dir():
            raise UsageError(f"--out {out}: is there already and no directory")
        there = set() if new else {path for path in out.iterdir() if path.name[0] != "."}
        there -= set(leftovers(out))
        if there and not (out / "config.json").exists():
            raise UsageError(f"--out {out}: is there already and no run's; name a new directory")
        with contextlib.ExitStack() as stack:
            stack.enter_context(checkpoint.lock(out))
            self._writer = checkpoint.Writer(out, keep=self._keep)
            if not there:
                stack.callback(self._clear, new)
            stack.enter_context(self._writer)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for the last checkpoint."""
        self._stack.close()

    def begin(self, options: Mapping[str, Any], like: Any) -> Checkpoint | None:
        """Compare the options with the run's that is there, if any; its newest good checkpoint."""
        if self._out is None:
            return None
        from jaxmnist.runs import checkpoint

        path, found = self._out / "config.json", None
        options = json.loads(json.dumps(options, default=str))
        if path.exists():
            self._compare(_read_json(path), options)
            found, refused = checkpoint.restore(self._out, like)
            for line in refused:
                _warn(f"skipped a checkpoint: {line}")
            self.records = found.config["records"] if found else []
        self._options = options
        self._write_config()
        self._write_metrics()
        self._begin_logs(int(found.state.step) if found else 0)
        return found

    def add_steps(self, first: int, losses: np.ndarray) -> None:
        """The losses of steps, float32 `[n]`, of which `first` is the number of the first."""
        if self._out is None:
            return
        self._log("steps.jsonl", lambda: self._steps.add(first, losses))
        if events := self._events:
            self._log("tensorboard", lambda: events.add(first, losses))

    def add(self, record: dict[str, float]) -> None:
        """One more epoch's metrics."""
        self.records.append(record)
        if self._out is None:
            return
        path, problem = self._out / "metrics.jsonl", None
        try:
            if "metrics" in self._failing:  # some lines are missing, or a part of one
                self._write_metrics()
            else:
                with _naming(path), path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
        except OSError as error:
            problem = str(error)
        self._tell("metrics", problem)
        if events := self._events:
            self._log("tensorboard", lambda: events.add_record(record))

    def save(self, state: Any, arrays: Mapping[str, Any]) -> None:
        """Start to write a checkpoint; a failure is told once, and training goes on."""
        if self._out is None:
            return
        self._tell("checkpoint", self._writer.problem)
        config = {"options": self._options, "records": self.records}
        self._writer.save(state, config=config, arrays=arrays)

    def settle(self) -> None:
        """Wait for the last checkpoint. Raises the OSError that kept it from being written."""
        self._stack.close()
        if self._out is not None and self._writer.problem:
            raise OSError(self._writer.problem)

    def finish(self, params: Any) -> None:
        """Write the weights; here a failure is an error."""
        if self._out is None:
            return
        from jaxmnist.torch_compat import save_weights

        self._writer.wait()  # or else it would depend on who is first whether it finds a directory
        self._out.mkdir(parents=True, exist_ok=True)  # where somebody has removed it meanwhile
        save_weights(self._out / "weights.safetensors", params)
        self._write_config()
        self._write_metrics()
        with _naming(self._out / "steps.jsonl"):
            self._steps.settle()
        if self._events and not self._events.is_whole():
            self._rebuild_events()
        self.settle()

    def draw(self, test: Dataset) -> None:
        """Draw the pictures of the finished run."""
        if self._out is not None:
            from jaxmnist.runs.finished import draw

            with _naming(self._out, "drawn into"):
                draw(self._out, test)

    def _begin_logs(self, step: int) -> None:
        assert self._out is not None
        path = self._out / "steps.jsonl"
        with _naming(path):
            missing = self._steps.cut(step)
        if missing:
            _warn(f"{path}: the losses of {missing:,} steps are gone; pictures leave them out")
        if self._events:
            self._stack.callback(self._events.close)
            self._rebuild_events()

    def _rebuild_events(self) -> None:
        assert self._out is not None
        assert self._events is not None
        with _naming(self._out / "tensorboard"):
            self._events.rebuild(self._steps.read(), self.records)

    def _log(self, name: str, write: Callable[[], None]) -> None:
        """What goes wrong with a log is told, and training goes on."""
        assert self._out is not None
        problem = None
        try:
            with _naming(self._out / name):
                write()
        except OSError as error:
            problem = str(error)
        self._tell(name, problem)

    def _compare(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        names = [name for name in {**there, **here} if name not in FREE]
        differing = [name for name in names if there.get(name) != here.get(name)]
        if differing:
            fields = ", ".join(f"{n} {there.get(n)} there, {here.get(n)} here" for n in differing)
            raise UsageError(f"--out {self._out}: holds another run ({fields}); name another")
        if not self._resume:
            raise UsageError(f"--out {self._out}: holds this run already; --resume goes on with it")

    def _tell(self, what: str, problem: str | None) -> None:
        """Once, until it has succeeded again: a full disk would fill the screen too."""
        if problem is None:
            self._failing.discard(what)
        elif what not in self._failing:
            self._failing.add(what)
            _warn(f"training goes on, but {problem}")

    def _write_config(self) -> None:
        self._replace("config.json", json.dumps(self._options, indent=2) + "\n")

    def _write_metrics(self) -> None:
        self._replace("metrics.jsonl", "".join(json.dumps(r) + "\n" for r in self.records))

    def _replace(self, name: str, text: str) -> None:
        from jaxmnist.files import replacing

        assert self._out is not None
        with _naming(self._out / name), replacing(self._out / name) as file:
            file.write(text.encode())

    def _clear(self, made: bool) -> None:
        """Leave nothing behind of a run that has not come to its first checkpoint.

        What others put there is left alone, and so is what is there of a run whose checkpoints
        could not be written.
        """
        assert self._out is not None
        if self._writer.problem or any(self._out.glob("*.safetensors")):
            return
        with contextlib.suppress(OSError):
            for name in ("config.json", "metrics.jsonl", "steps.jsonl"):
                (self._out / name).unlink(missing_ok=True)
            if self._events:
                self._events.remove()
            if made:
                for name in (".lock", ".lock.pid"):
                    (self._out / name).unlink(missing_ok=True)
                self._out.rmdir()


def _warn(line: str) -> None:
    import tqdm

    with contextlib.suppress(OSError):  # where nobody can be told, nothing more is lost
        tqdm.tqdm.write(f"Warning: {line}", file=sys.stderr)  # above the bar


@contextlib.contextmanager
def _naming(path: Path, what: str = "written") -> Iterator[None]:
    """An error of the operating system as one line that begins with the file's name."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot be {what}: {error.strerror or error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    from jaxmnist import DataError

    try:
        with _naming(path, "read"):
            return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: damaged; name a new directory with --out") from error
