"""A training state on the disk: whole or not at all, verified before it is used.

A checkpoint is one safetensors file of about the state's size, named after its step. We keep a
file of our own since a checksum over every byte, one atomic move, and a reader that executes
nothing and takes no more memory than the file warrants are what Orbax and pickles do not give.
"""

import contextlib
import os
import re
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmnist.errors import CheckpointError
from jaxmnist.files import atomic_write
from jaxmnist.runs.checkpoint_file import describe, encode, named_leaves, read

_NAME = re.compile(r"checkpoint-(\d{8,})\.safetensors")


class Checkpoint(NamedTuple):
    """What a checkpoint holds. Its arrays are NumPy's; `jax.device_put` takes them to a device."""

    state: Any
    config: dict[str, Any]  # as JSON gives it back: with lists for tuples
    arrays: dict[str, np.ndarray]


def save(
    directory: str | os.PathLike[str],
    state: Any,
    *,
    step: int | None = None,
    config: Mapping[str, Any] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
    keep: int = 3,
) -> Path:
    """Write `checkpoint-<step>.safetensors`, wait until it is on the disk, and remove older ones.

    >>> import jax.numpy as jnp, tempfile
    >>> directory = tempfile.mkdtemp()
    >>> path = save(directory, {"w": jnp.ones(3)}, step=7)
    >>> path.name, load(path, {"w": jnp.zeros(3)}).state
    ('checkpoint-00000007.safetensors', {'w': array([1., 1., 1.], dtype=float32)})

    Args:
        directory: created if missing. Only one process may save into it; `lock` sees to that.
        state: any pytree of numeric arrays and typed PRNG keys, for instance a TrainState.
        step: its number, by default `state.step`.
        config: what the run was started with: what JSON can hold.
        arrays: more to keep, for instance the losses of the epoch so far.
        keep: how many of the checkpoints up to this step stay. Those of later steps all do: they
            are not this run's past, and `restore` may have refused them.

    Raises:
        CheckpointError: it could not be written. The checkpoints that were there still are.
        TypeError: a leaf is no array of numbers, or the config is not JSON.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    directory, step = Path(directory), _step(state, step)
    content = _encode(state, config, arrays)
    make_directory(directory)
    return _write(directory, step, content, keep)


def load(path: str | os.PathLike[str], like: Any) -> Checkpoint:
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
                "use the options that it was made with, or another directory"
            )
    state = jax.tree.unflatten(jax.tree.structure(like), [tensors[name] for name in expected])
    return Checkpoint(state, config, arrays)


def restore(directory: str | os.PathLike[str], like: Any) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of the directory that `load` accepts, and a line for each newer one.

    (None, []) where there is no checkpoint, nor perhaps the directory.

    Raises:
        CheckpointError: there are checkpoints and none is good, or the directory cannot be read.
    """
    directory = Path(directory)
    refused: list[str] = []
    for _, path in reversed(list_checkpoints(directory)):
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
        """Create a missing directory; a CheckpointError where that fails. `keep` is `save`'s."""
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.problem: str | None = None
        self._directory, self._keep = Path(directory), keep
        make_directory(self._directory)
        self._waiting: deque[tuple[int, bytes]] = deque(maxlen=1)  # a newer one replaces it
        self._thread = ThreadPoolExecutor(max_workers=1)

    def save(
        self,
        state: Any,
        *,
        step: int | None = None,
        config: Mapping[str, Any] | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """As the function `save`, but only copying the state is waited for: it may be donated then.

        While one checkpoint is being written one more can wait, the newest; so a slow disk makes
        checkpoints fewer and not training slower.
        """
        self._waiting.append((_step(state, step), _encode(state, config, arrays)))
        self._thread.submit(self._write)

    def wait(self) -> None:
        """Wait until the last save has ended; `problem` says why it failed."""
        self._thread.submit(lambda: None).result()

    def _write(self) -> None:
        try:
            step, content = self._waiting.pop()
        except IndexError:
            return  # the call before has already written the newest
        try:
            _write(self._directory, step, content, self._keep)
            self.problem = None
        except Exception as error:  # whatever it is, training continues and the user is told
            self.problem = str(error) if isinstance(error, CheckpointError) else repr(error)

    def __enter__(self) -> "Writer":
        """This writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until what was to be saved is saved."""
        self._thread.shutdown()


def make_directory(directory: Path) -> None:
    """Create a missing directory; a CheckpointError where that fails."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be made: {error.strerror}") from error


def list_checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """The step and the path of each checkpoint in the directory, the oldest first."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be read: {error.strerror}") from error
    matches = filter(None, map(_NAME.fullmatch, names))
    return sorted((int(match[1]), directory / match[0]) for match in matches)


def _step(state: Any, step: int | None) -> int:
    if step is None and not hasattr(state, "step"):
        raise TypeError("this state has no step: give one, save(..., step=...)")
    return int(state.step if step is None else step)


def _write(directory: Path, step: int, content: bytes, keep: int) -> Path:
    path = directory / f"checkpoint-{step:08}.safetensors"
    try:
        with atomic_write(path, durable=True) as file:
            file.write(content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error
    with contextlib.suppress(OSError, CheckpointError):  # one too many does no harm
        past = [path for found, path in list_checkpoints(directory) if found <= step]
        for old in past[:-keep]:
            old.unlink()
    return path


def _encode(
    state: Any, config: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray] | None
) -> bytes:
    more = {f"arrays.{name}": array for name, array in (arrays or {}).items()}
    return encode(named_leaves(state) | more, config or {})
