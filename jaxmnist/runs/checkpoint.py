"""A training run's state on the disk: whole or not at all, verified before it is used.

A checkpoint is one safetensors file of about the state's size, named after its step. One file is
moved into its place in one step and verified by one checksum, which covers every byte of it.
"""

import contextlib
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmnist.errors import CheckpointError
from jaxmnist.files import leftovers, replacing
from jaxmnist.runs.checkpoint_file import describe, encode, named_leaves, read
from jaxmnist.training import TrainState

_NAME = re.compile(r"checkpoint-(\d{8,})\.safetensors")


class Checkpoint(NamedTuple):
    """What a checkpoint holds. Its arrays are NumPy's; `jax.device_put` takes them to a device."""

    state: TrainState
    config: dict[str, Any]  # as JSON gives it back: with lists for tuples
    arrays: dict[str, np.ndarray]


def save(
    directory: str | os.PathLike[str],
    state: TrainState,
    *,
    config: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
    keep: int = 3,
) -> Path:
    """Write `checkpoint-<step>.safetensors`, wait until it is on the disk, and remove older ones.

    Args:
        directory: made if need be. Only one process may save into it; `lock` sees to that.
        state: the whole state, with any optax optimizer's. PRNG keys are to be made from the seed
            and the step instead; a typed key in it is a TypeError.
        config: what the run was started with, in words of JSON.
        arrays: more to keep, for instance the losses of the epoch so far.
        keep: how many of the checkpoints up to this step stay. Those of later steps all do: they
            are not this run's past, and `restore` may have refused them.

    Raises:
        CheckpointError: it could not be written. The checkpoints that were there still are.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    directory, step, content = Path(directory), int(state.step), _encode(state, config, arrays)
    _make(directory)
    return _write(directory, step, content, keep)


def load(path: str | os.PathLike[str], like: TrainState) -> Checkpoint:
    """The checkpoint in this file, once it is verified to be whole and of this model.

    Args:
        path: a file that `save` wrote. Nothing in it is executed.
        like: a state of the structure, shapes and dtypes that the checkpoint must have. Its leaves
            may be `jax.ShapeDtypeStruct`s, as `jax.eval_shape` makes them.

    Raises:
        CheckpointError: the file is missing, damaged, foreign, of another format or another model.
    """
    path = Path(path)
    config, tensors = read(path)
    arrays = {
        name.removeprefix("arrays."): tensors.pop(name)
        for name in list(tensors)
        if name.startswith("arrays.")
    }
    expected = named_leaves(like)
    for name in [*expected, *sorted(tensors)]:
        here, there = (describe(tree.get(name)) for tree in (expected, tensors))
        if here != there:
            raise CheckpointError(
                f"{path}: of another model or optimizer: {name!r} is {there} there, {here} here; "
                "use the options that it was made with, or start anew in another directory"
            )
    state = jax.tree.unflatten(jax.tree.structure(like), [tensors[name] for name in expected])
    return Checkpoint(state, config, arrays)


def restore(
    directory: str | os.PathLike[str], like: TrainState
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of the directory that `load` accepts, and a line for each newer one.

    (None, []) where there is no checkpoint, nor perhaps the directory.

    Raises:
        CheckpointError: there are checkpoints and none is good, or the directory cannot be read.
    """
    directory = Path(directory)
    refused: list[str] = []
    for _, path in reversed(_list(directory)):
        try:
            return load(path, like), refused
        except CheckpointError as error:
            refused.append(str(error))
    if refused:
        raise CheckpointError(f"{directory} has no good checkpoint; {refused[0]}")
    return None, []


class Writer:
    """Saves in the background: `with Writer(directory) as writer: ... writer.save(state, ...)`.

    Training neither waits for the disk nor ends because of it. `problem` is the line that says why
    the last write failed, or None; it stays until one succeeds. Leaving the block waits for the
    last write, so `problem` is final then.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 3) -> None:
        """Make the directory if need be; a CheckpointError where that fails. `keep` is `save`'s."""
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.problem: str | None = None
        self._directory, self._keep = Path(directory), keep
        _make(self._directory)
        self._waiting: deque[tuple[int, bytes]] = deque(maxlen=1)  # a newer one replaces it
        self._thread = ThreadPoolExecutor(max_workers=1)

    def save(
        self,
        state: TrainState,
        *,
        config: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """As the function `save`, but only copying the state is waited for: it may be donated then.

        While one checkpoint is being written one more can wait, the newest; so a slow disk makes
        checkpoints fewer and not training slower.
        """
        self._waiting.append((int(state.step), _encode(state, config, arrays)))
        self._thread.submit(self._write)

    def wait(self) -> None:
        """Wait until what was to be saved is saved, or `problem` tells why not."""
        self._thread.submit(lambda: None).result()

    def _write(self) -> None:
        try:
            step, content = self._waiting.pop()
        except IndexError:
            return  # it was the newest already when the call before came to it
        try:
            _write(self._directory, step, content, self._keep)
            self.problem = None
        except Exception as error:  # whatever it is, training goes on and its user is told
            self.problem = str(error) if isinstance(error, CheckpointError) else repr(error)

    def __enter__(self) -> "Writer":
        """This writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until what was to be saved is saved."""
        self._thread.shutdown()


@contextlib.contextmanager
def lock(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Within it no other process has this directory's lock; the directory is made if need be.

    The operating system takes the lock from a process that is killed. What killed ones have left
    half-written is removed.

    Raises:
        CheckpointError: another process has it, or the directory cannot be written to.
    """
    import filelock

    directory = Path(directory)
    _make(directory)
    owner = directory / ".lock.pid"  # not in the lock itself, which filelock empties
    held = filelock.FileLock(directory / ".lock", timeout=0)
    try:
        held.acquire()
    except filelock.Timeout as error:
        pid = owner.read_text() if os.access(owner, os.R_OK) else "unknown"
        raise CheckpointError(
            f"another process is training into {directory} (pid {pid}); "
            "wait for it, or name another directory"
        ) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{directory}: cannot be locked: {reason}") from error
    try:
        with contextlib.suppress(OSError):
            for path in leftovers(directory):
                path.unlink()
            owner.write_text(str(os.getpid()))
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        held.release()


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be made: {error.strerror}") from error


def _list(directory: Path) -> list[tuple[int, Path]]:
    """The checkpoints, the oldest first, with their steps."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be read: {error.strerror}") from error
    matches = filter(None, map(_NAME.fullmatch, names))
    return sorted((int(match[1]), directory / match[0]) for match in matches)


def _write(directory: Path, step: int, content: bytes, keep: int) -> Path:
    path = directory / f"checkpoint-{step:08}.safetensors"
    try:
        with replacing(path, durable=True) as file:
            file.write(content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error
    with contextlib.suppress(OSError, CheckpointError):  # one too many does no harm
        past = [path for found, path in _list(directory) if found <= step]
        for old in past[:-keep]:
            old.unlink()
    return path


def _encode(
    state: TrainState, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None
) -> bytes:
    more = {f"arrays.{name}": array for name, array in (arrays or {}).items()}
    return encode(named_leaves(state) | more, config)
