"""One file of named arrays and a config, verified to the last byte before anything is used.

It is a safetensors file whose metadata is the config with a sha256 checksum over the whole file.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from jaxmnist.errors import CheckpointError

FORMAT = 1
# The metadata is JSON in a string of the header's JSON; the checksum is the first thing in it. It
# is taken over the whole file, with zeros in its own place. No format may change these three lines.
_METADATA = "jaxmnist_checkpoint"
_DIGEST = re.compile(rb'"jaxmnist_checkpoint":"\{\\"sha256\\": \\"([0-9a-f]{64})\\"')
_NO_DIGEST = b"0" * 64
# What a header of any other bytes raises while it is looked into.
_BAD_HEADER = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)
_ADVICE = "remove it to continue from an earlier one"
_DTYPES = {
    **{"BOOL": "bool", "F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


def encode(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> bytes:
    """The file's content.

    Args:
        tensors: arrays on the host or on a device, of any numeric dtype, and typed PRNG keys, which
            are stored as their key data and the name of their algorithm.
        config: what JSON can hold.

    Raises:
        TypeError: a tensor is none, or the config is not JSON.
    """
    import safetensors.numpy

    keys = {name: str(jax.random.key_impl(x)) for name, x in tensors.items() if _is_key(x)}
    fields = {"sha256": _NO_DIGEST.decode(), "format": FORMAT, "config": dict(config)}
    # One entry of metadata, because safetensors stores several in random order.
    metadata = json.dumps(fields | ({"keys": keys} if keys else {}))
    arrays = {name: _to_numpy(name, x) for name, x in tensors.items()}
    content = safetensors.numpy.save(arrays, {_METADATA: metadata})
    digest = hashlib.sha256(content).hexdigest().encode()
    return content.replace(_NO_DIGEST, digest, 1)


def named_leaves(state: Any) -> dict[str, Any]:
    """The leaves under names like `state.params['params']['linear_0']['weight']`."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {f"state{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves}


def describe(leaf: Any) -> str:
    """The dtype and shape of a leaf, which need not be an array; "not" for None."""
    if leaf is None:
        return "not"
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return f"{dtype}{list(np.shape(leaf))}"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def _to_numpy(name: str, leaf: Any) -> np.ndarray:
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")
    if str(array.dtype) not in _DTYPES.values():
        raise TypeError(f"{name}: {array.dtype} is no dtype that a checkpoint can hold")
    return array


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the tensors in a file of `encode`'s: NumPy's, but for typed PRNG keys.

    Raises:
        CheckpointError: it is missing, damaged, foreign or of another format.
    """
    import safetensors

    try:
        with path.open("rb") as file:
            start, header, digest, data_size = _read_header(file)
            content = start + header + file.read(data_size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _BAD_HEADER as error:
        raise CheckpointError(f"{path}: no checkpoint, or damaged; {_ADVICE}") from error
    zeroed = content.replace(digest, _NO_DIGEST, 1)
    if hashlib.sha256(zeroed).hexdigest().encode() != digest:
        raise CheckpointError(f"{path}: damaged, its checksum does not match; {_ADVICE}")
    try:
        metadata = json.loads(json.loads(header)["__metadata__"][_METADATA])
        found, config = metadata["format"], metadata["config"]
        if found == FORMAT:
            keys = metadata.get("keys", {})
            if not (isinstance(config, dict) and isinstance(keys, dict)):
                raise TypeError("the config is no mapping")
            tensors = {name: _array(**x) for name, x in safetensors.deserialize(content)}
            for name, key_impl in keys.items():
                tensors[name] = jax.random.wrap_key_data(jnp.asarray(tensors[name]), impl=key_impl)
            return config, tensors
    except Exception as error:  # made with a right checksum, but not by `save`
        raise CheckpointError(f"{path}: no checkpoint; {_ADVICE}") from error
    raise CheckpointError(
        f"{path}: its format is {found!r} and this jaxmnist reads {FORMAT}; "
        "use the version of jaxmnist that wrote it"
    )


def _read_header(file: BinaryIO) -> tuple[bytes, bytes, bytes, int]:
    """The header's length, the header, the checksum in it, and the size of the data behind it.

    Raises one of _BAD_HEADER where it is none. What it claims is compared with the file's size, so
    that no memory is taken for what is not there.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    data_size = size - 8 - length
    if data_size < 0 or length > 100_000_000:  # safetensors' own limit
        raise ValueError("the header is longer than the file")
    header = file.read(length)
    digest = _DIGEST.search(header)
    if not digest:
        raise ValueError("the header has no checksum")
    tensors = [x for name, x in json.loads(header).items() if name != "__metadata__"]
    if max(tensor["data_offsets"][1] for tensor in tensors) != data_size:
        raise ValueError("the header's tensors are not as large as the data")
    return start, header, digest[1], data_size


def _array(dtype: str, shape: list[int], data: bytes | bytearray) -> np.ndarray:
    return np.frombuffer(data, _DTYPES[dtype]).reshape(shape).copy()  # that can be written to
