"""A training state on the disk: whole or not at all, verified before it is used.

A checkpoint is one safetensors file, about as large as the state and named after its step. Its
metadata hold a config and a sha256 over the whole file, with zeros in its own place. Nothing in it
is executed. We keep a format of our own for that checksum: Orbax and pickles have none.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmnist.checks import describe
from jaxmnist.errors import CheckpointError
from jaxmnist.files import atomic_write

StrPath = str | os.PathLike[str]
Config = Mapping[str, Any]  # anything that JSON can hold
_NAME = re.compile(r"checkpoint-(\d{8,})\.safetensors")
_METADATA = "jaxmnist_checkpoint"  # one entry: safetensors stores several in random order
# The metadata is JSON in a string of the header's JSON, and the checksum the first thing in it.
_MARK = b'"jaxmnist_checkpoint":"{\\"sha256\\": \\"'
_NO_DIGEST = b"0" * 64
_KEPT = 3  # checkpoints of a directory


class Checkpoint(NamedTuple):
    """The content of a checkpoint. Its arrays are NumPy's: `jax.device_put` moves them."""

    state: Any
    config: dict[str, Any]  # as JSON gives it back: with lists for tuples


def save(
    directory: StrPath, state: Any, *, step: int | None = None, config: Config | None = None
) -> Path:
    """Write `checkpoint-<step>.safetensors` and wait until it is on the disk; the newest 3 stay.

    >>> import jax.numpy as jnp, tempfile
    >>> directory = tempfile.mkdtemp()
    >>> path = save(directory, {"w": jnp.ones(3)}, step=7)
    >>> path.name, load(path, {"w": jnp.zeros(3)}).state
    ('checkpoint-00000007.safetensors', {'w': array([1., 1., 1.], dtype=float32)})

    Args:
        directory: an existing one, into which no other process saves.
        state: any pytree of numeric arrays and typed PRNG keys, for instance a TrainState.
        step: its number, by default `state.step`.
        config: anything else to keep that JSON can hold.

    Raises:
        OSError: it cannot be written. The earlier checkpoints are still there.
        TypeError: a leaf is no array of numbers, or the config is not JSON.
    """
    step = int(state.step if step is None else step)
    content = _encode(named_leaves(state), config or {})
    path = Path(directory, f"checkpoint-{step:08}.safetensors")
    with atomic_write(path, durable=True) as file:
        file.write(content)
    # Those of later steps stay: they are not this run's past, and `restore` may have refused them.
    past = [path for found, path in list_checkpoints(directory) if found <= step]
    for old in past[:-_KEPT]:
        old.unlink()
    return path


def load(path: StrPath, like: Any = None) -> Checkpoint:
    """The checkpoint in this file, after its checksum and its structure are verified.

    Args:
        path: a file that `save` wrote.
        like: a state with the structure, shapes and dtypes that are expected; its leaves may be
            `jax.ShapeDtypeStruct`s. Without it the state is a dict of the `named_leaves`.

    Raises:
        CheckpointError: the file is damaged, no checkpoint, or of another model.
        OSError: it cannot be read.
    """
    path = Path(path)
    found = _decode(path, path.read_bytes())
    return found._replace(state=as_tree(path, found.state, like))


def restore(directory: StrPath, like: Any = None) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of a directory, and a line about each newer, damaged one.

    (None, []) where there is no checkpoint. `like` is as in `load`.

    Raises:
        CheckpointError: there are checkpoints and none is whole, or the newest is another model's.
        OSError: the directory cannot be read.
    """
    damaged: list[str] = []
    for _, path in reversed(list_checkpoints(directory)):
        try:
            found = load(path)
        except (CheckpointError, OSError) as error:
            damaged.append(str(error))
        else:
            return found._replace(state=as_tree(path, found.state, like)), damaged
    if damaged:
        raise CheckpointError(f"{directory} has no good checkpoint; {damaged[0]}")
    return None, []


def list_checkpoints(directory: StrPath) -> list[tuple[int, Path]]:
    """The step and the path of each checkpoint in the directory, the oldest first."""
    names = os.listdir(directory) if os.path.isdir(directory) else []
    matches = filter(None, map(_NAME.fullmatch, names))
    return sorted((int(match[1]), Path(directory, match[0])) for match in matches)


def named_leaves(state: Any) -> dict[str, Any]:
    """The leaves under names like `state.params['params']['linear_0']['weight']`."""
    leaves = jax.tree.leaves_with_path(state)
    return {f"state{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves}


def as_tree(path: Path, leaves: Mapping[str, Any], like: Any) -> Any:
    """The `named_leaves` in the structure of `like`, or a CheckpointError that names `path`.

    Without `like` they are given back as they are.
    """
    if like is None:
        return leaves
    expected = named_leaves(like)
    for name in [*expected, *sorted(leaves)]:
        here, there = _describe(expected.get(name)), _describe(leaves.get(name))
        if here != there:
            differs = f"{name!r} is {there} there, {here} here"
            advice = "use the options that it was made with, or another directory"
            raise CheckpointError(f"{path}: of another model or optimizer: {differs}; {advice}")
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in expected])


def _describe(leaf: Any) -> str:
    if leaf is None:
        return "missing"
    return describe(leaf if hasattr(leaf, "dtype") else np.asarray(leaf))


def _encode(leaves: Mapping[str, Any], config: Config) -> bytes:
    """The content of the file. Typed keys are stored as key data and the name of the algorithm."""
    import safetensors.numpy

    keys, arrays = {}, {}
    for name, leaf in leaves.items():
        if jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
            keys[name], leaf = str(jax.random.key_impl(leaf)), jax.random.key_data(leaf)
        arrays[name] = np.asarray(leaf, order="C")
    # safetensors has names of its own for them, and NumPy none for bfloat16
    dtypes = {name: array.dtype.name for name, array in arrays.items()}
    metadata = {"sha256": _NO_DIGEST.decode(), "config": dict(config)}
    metadata |= {"keys": keys, "dtypes": dtypes}
    try:
        content = safetensors.numpy.save(arrays, {_METADATA: json.dumps(metadata)})
    except safetensors.SafetensorError as error:
        raise TypeError(f"a checkpoint holds arrays of numbers: {error}") from error
    return content.replace(_NO_DIGEST, hashlib.sha256(content).hexdigest().encode(), 1)


def _decode(path: Path, content: bytes) -> Checkpoint:
    """What `_encode` was given, or a CheckpointError."""
    import safetensors

    advice = "remove it to continue from an earlier one"
    start = content.find(_MARK) + len(_MARK)
    if start < len(_MARK):
        raise CheckpointError(f"{path}: no checkpoint, or damaged; {advice}")
    unsigned = content[:start] + _NO_DIGEST + content[start + 64 :]
    if hashlib.sha256(unsigned).hexdigest().encode() != content[start : start + 64]:
        raise CheckpointError(f"{path}: damaged, its checksum does not match; {advice}")
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = json.loads(header["__metadata__"][_METADATA])
        leaves: dict[str, Any] = {
            name: np.frombuffer(x["data"], metadata["dtypes"][name]).reshape(x["shape"]).copy()
            for name, x in safetensors.deserialize(content)
        }
        for name, impl in metadata["keys"].items():
            leaves[name] = jax.random.wrap_key_data(jnp.asarray(leaves[name]), impl=impl)
        return Checkpoint(leaves, dict(metadata["config"]))
    except Exception as error:  # the checksum is right, but `save` did not write it
        raise CheckpointError(f"{path}: no checkpoint; {advice}") from error
