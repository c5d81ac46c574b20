"""Arrays that took time to make, kept as one uncompressed .npz file in the user's cache directory.

A cache is a convenience: where it is absent, damaged or not writable, everything still works, only
slower. So `load` returns None and `store` returns the reason instead of raising.
"""

import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import platformdirs

from jaxmnist.files import atomic_write

Spec = tuple[tuple[int, ...], str]  # an array's shape and dtype

# Nothing can be made below it, not even by root.
_NOWHERE = Path(os.devnull, "no-home-directory")


def cache_dir() -> Path:
    """Where caches live: `JAXMNIST_CACHE_DIR`, or the platform's cache directory for this user.

    A user without a home directory has none; then it is a path where nothing can be stored.
    """
    named = os.environ.get("JAXMNIST_CACHE_DIR")
    if named:
        return Path(named)
    try:
        return platformdirs.user_cache_path("jaxmnist").expanduser()
    except RuntimeError:  # what Path says where it knows no home directory
        return _NOWHERE


def load(
    name: str, specs: Mapping[str, Spec], made_from: str | None = None
) -> dict[str, np.ndarray] | None:
    """The arrays stored under `name`; None where there are none or not those expected.

    Args:
        name: the entry's name.
        specs: the shape and dtype of each array, see `read_npz`.
        made_from: what was given to `store`; None accepts an entry made from anything.
    """
    path = cache_dir() / f"{name}.npz"
    label = None if made_from is None else _label(made_from)
    wanted = dict(specs) if label is None else {**specs, "made_from": (label.shape, "uint8")}
    try:
        arrays = read_npz(path, wanted)
    except Exception:  # zipfile and NumPy raise a dozen kinds of error for damaged files
        return None
    if label is not None and not np.array_equal(arrays.pop("made_from"), label):
        return None
    return arrays


def store(name: str, arrays: Mapping[str, np.ndarray], made_from: str) -> str | None:
    """Store `arrays` under `name`; None when done, otherwise the reason why it could not be.

    The file appears whole or not at all. `made_from` says what the arrays were made from and by
    which version of their format: `load` takes them for nothing else.
    """
    path = cache_dir() / f"{name}.npz"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with atomic_write(path) as file:
            np.savez(file, allow_pickle=False, made_from=_label(made_from), **arrays)
    except OSError as error:
        if path.parent == _NOWHERE:
            return "no home directory is known; name a directory with JAXMNIST_CACHE_DIR"
        return f"{path.parent}: {error.strerror or error}"
    return None


def read_npz(path: Path, specs: Mapping[str, Spec]) -> dict[str, np.ndarray]:
    """The arrays of these names, each of which must have its shape and dtype.

    Each array's header is compared with its spec before its data is read, and no more than that is
    read, whatever the file claims or would decompress to. Pickled objects are refused, so no code
    in a file is ever run, and zipfile verifies each array's CRC-32, so a flipped byte is seen.

    Raises:
        Exception: the file cannot be read or holds something else; zipfile, zlib and NumPy raise
            a dozen kinds of error for that.
    """
    total = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in specs.values())
    if path.stat().st_size > total + 100_000:  # or its table of contents could be long
        raise ValueError("larger than what it should hold")
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        return {name: _read_array(archive, name, *spec) for name, spec in specs.items()}


def _read_array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: str
) -> np.ndarray:
    entry = f"{name}.npy"
    with archive.open(entry) as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"{name} has a header of an unknown version")
        found = np.lib.format.read_array_header_1_0(member)
        if found != (shape, False, np.dtype(dtype)):
            raise ValueError(f"{name} is {found[2]}{list(found[0])}, not {dtype}{list(shape)}")
    with archive.open(entry) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):  # reading to the end compares the CRC-32
            raise ValueError(f"{name} holds more than its header says")
    return array


def _label(text: str) -> np.ndarray:
    """The text as an array of bytes: its length is known before it is read, and it is no pickle."""
    return np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)
