"""The directory of a run: what it was started with, its checkpoints, its metrics, its weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmnist.errors import CheckpointError, DataError, UsageError
from jaxmnist.files import atomic_write, open_regular, stale_files
from jaxmnist.runs import checkpoint
from jaxmnist.runs.checkpoint_file import read
from jaxmnist.runs.identity import differences, other_versions
from jaxmnist.runs.lock import lock
from jaxmnist.runs.logs import EventLog
from jaxmnist.runs.processes import OneProcess
from jaxmnist.runs.run_logs import RunLogs, naming
from jaxmnist.weights import save_weights


class RunDirectory:
    """`with RunDirectory(path, warn=print) as run: ...`: one run in it, and no other process.

    What cannot be written during training is reported by `warn`, and training continues.

    Args:
        path: created if missing. One that holds files, but no run's, is a UsageError.
        warn: is called with a line that the user should see.
        keep: how many checkpoints stay.
        events: TensorBoard's log, if one is written.
    """

    def __init__(
        self,
        path: Path,
        *,
        warn: Callable[[str], None],
        keep: int = 3,
        events: EventLog | None = None,
    ) -> None:
        self.path = path
        self.logs = RunLogs(path, warn=warn, events=events)
        self._warn, self._keep = warn, keep
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> RunDirectory:
        """Lock the directory; refuse one that holds what is no run's."""
        new = not self.path.exists()
        if not new and not self.path.is_dir():
            raise UsageError(f"{self.path}: already exists and is not a directory")
        there = set() if new else {path for path in self.path.iterdir() if path.name[0] != "."}
        there -= set(stale_files(self.path))
        if there and not (self.path / "config.json").exists() and not self._checkpoints():
            raise UsageError(f"{self.path}: already exists and holds no run; name a new directory")
        with contextlib.ExitStack() as stack:
            note = stack.enter_context(lock(self.path))
            if note:
                self._warn(note)
            self._writer = checkpoint.Writer(self.path, keep=self._keep)
            if not there:
                stack.callback(self._clear, new)
            stack.enter_context(self._writer)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for the last checkpoint."""
        self._stack.close()

    def begin(
        self, config: Mapping[str, Any], like: Any, *, resume: bool
    ) -> checkpoint.Checkpoint | None:
        """Compare the config with that of the run in the directory; its newest good checkpoint.

        Args:
            config: what `identity` knows, and anything else to record.
            like: the state, see `checkpoint.load`.
            resume: whether a run that already exists may continue.

        Raises:
            UsageError: another run is there, or this one and `resume` is false.
        """
        config, found = json.loads(json.dumps(config, default=str)), None
        recorded = self._recorded_config()
        if recorded is not None:
            self._compare(recorded, config, resume)
            found, refused = checkpoint.restore(self.path, like)
            for line in refused:
                self._warn(f"skipped a checkpoint: {line}")
        if found:
            self._compare(found.config.get("options", {}), config, resume)  # it may be a copy
            versions = other_versions(recorded or {}, config)
            if versions:
                self._warn(f"other versions, so the last digits may differ: {versions}")
        self._config = config
        self._write_config()
        records = found.config.get("records", []) if found else []
        self.logs.begin(int(found.state.step) if found else 0, records)
        self._stack.callback(self.logs.close)
        return found

    def save(self, state: Any, arrays: Mapping[str, Any]) -> None:
        """Start to write a checkpoint; a failure is reported once, and training continues."""
        self.logs.tell("checkpoint", self._writer.problem)
        config = {"options": self._config, "records": self.logs.records}
        self._writer.save(state, config=config, arrays=arrays)

    def settle(self) -> None:
        """Wait for the last checkpoint. Raises the OSError that kept it from being written."""
        self._stack.close()
        if self._writer.problem:
            raise OSError(self._writer.problem)

    def finish(self, params: Any) -> None:
        """Write the weights; here a failure is an error."""
        self._writer.wait()  # or else it would depend on who is first whether it finds a directory
        self.path.mkdir(parents=True, exist_ok=True)  # in case it was removed during training
        save_weights(self.path / "weights.safetensors", params)
        self._write_config()
        self.logs.finish()
        self.settle()

    def _checkpoints(self) -> list[tuple[int, Path]]:
        return checkpoint.list_checkpoints(self.path)

    def _recorded_config(self) -> dict[str, Any] | None:
        """What the run in the directory was started with; None if there is none."""
        path = self.path / "config.json"
        try:
            with naming(path, "read"), open_regular(path) as file:
                return dict(json.loads(file.read()))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path}: damaged; remove it if there are checkpoints, or name a new directory"
            ) from error
        except OSError:
            if path.exists() or path.is_symlink():
                raise
        saved = self._checkpoints()
        for _, good in reversed(saved):  # config.json is lost; each of them holds it
            with contextlib.suppress(CheckpointError, KeyError, TypeError):
                return dict(read(good)[0]["options"])
        if saved:
            raise CheckpointError(f"{self.path}: has no config.json and no good checkpoint")
        return None

    def _compare(self, there: Mapping[str, Any], here: Mapping[str, Any], resume: bool) -> None:
        if phrases := differences(there, here):
            raise UsageError(
                f"{self.path}: holds another run ({', '.join(phrases)}); name another directory"
            )
        if not resume:
            raise UsageError(f"{self.path}: holds this run already; --resume continues it")

    def _write_config(self) -> None:
        path = self.path / "config.json"
        with naming(path), atomic_write(path) as file:
            file.write(json.dumps(self._config, indent=2).encode() + b"\n")

    def _clear(self, made: bool) -> None:
        """Leave nothing behind of a run that has not come to its first checkpoint.

        What others put there is left alone, and so is what is there of a run whose checkpoints
        could not be written.
        """
        if self._writer.problem or any(self.path.glob("*.safetensors")):
            return
        with contextlib.suppress(OSError):
            (self.path / "config.json").unlink(missing_ok=True)
            self.logs.remove()
            if made:
                for name in (".lock", ".lock.pid"):
                    (self.path / name).unlink(missing_ok=True)
                self.path.rmdir()


class NoDirectory(contextlib.nullcontext):
    """What a run that is not kept has in place of a RunDirectory: nothing is found or written."""

    def __init__(self) -> None:
        super().__init__(self)
        self.logs = self
        self.records: tuple[dict[str, float], ...] = ()

    def begin(self, *_: Any, **__: Any) -> None:
        """Nothing to continue from."""

    add_steps = add_record = save = settle = finish = begin


def find_state(
    directory: RunDirectory | NoDirectory,
    config: Mapping[str, Any],
    shapes: Any,
    steps: int,
    resume: bool,
    group: OneProcess,
) -> tuple[Any, np.ndarray]:
    """The state to continue from, or None, and the losses of the steps of its epoch so far.

    The first process of the group reads them, and all get them.

    Args:
        directory: the run's; it begins here, see `RunDirectory.begin`.
        config: what is recorded of the run.
        shapes: the state, with shapes and dtypes for arrays.
        steps: how many an epoch has.
        resume: whether a run that already exists may continue.
        group: the processes that train.

    Raises:
        UsageError: another run is there, or one that has been trained for longer.
    """
    losses, state = np.zeros(steps, np.float32), None
    found = directory.begin(config, shapes, resume=resume)
    if found is not None:
        state, losses[:] = found.state, found.arrays["losses"]
        epochs = config["epochs"]
        if state.step > epochs * steps:
            raise UsageError(
                f"the run there has been trained for {state.step / steps:.4g} epochs, which are "
                f"more than --epochs {epochs}"
            )
    if group.maximum(found is not None):
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        state, losses = group.broadcast((state or zeros, losses))
    return state, np.array(losses)  # those of another process cannot be written to
