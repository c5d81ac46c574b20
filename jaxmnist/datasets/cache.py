"""Arrays that took time to make, kept as one uncompressed .npz file in the user's cache directory.

A cache is a convenience: where it is absent, damaged or not writable, everything still works, only
slower. So `load` returns None and `store` returns the reason instead of raising.
"""

import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import platformdirs

from jaxmnist.files import atomic_write

_MAX_BYTES = 56_000_000  # MNIST and the synthetic digits take 55 MB


def cache_dir() -> Path:
    """Where caches live: `JAXMNIST_CACHE_DIR`, or the platform's cache directory for this user.

    A user without a home directory has none; then it is a path where nothing can be stored.
    """
    if named := os.environ.get("JAXMNIST_CACHE_DIR"):
        return Path(named)
    try:
        return platformdirs.user_cache_path("jaxmnist").expanduser()
    except RuntimeError:  # Path knows no home directory
        return Path(os.devnull, "no-home")


def load(
    name: str, keys: Iterable[str], made_from: str | None = None
) -> dict[str, np.ndarray] | None:
    """The arrays stored under `name`; None where they are not, or made from something else.

    Args:
        name: the entry's name.
        keys: the names of the arrays.
        made_from: the text that was given to `store`; None accepts any.
    """
    try:
        arrays = read_npz(cache_dir() / f"{name}.npz", [*keys, "made_from"])
    except Exception:  # zipfile and NumPy raise a dozen kinds of error for damaged files
        return None
    label = arrays.pop("made_from").tobytes()
    return arrays if made_from is None or label == os.fsencode(made_from) else None


def store(name: str, arrays: Mapping[str, np.ndarray], made_from: str) -> str | None:
    """Store `arrays` under `name`; None when done, otherwise the reason why it could not be.

    The file appears whole or not at all. `made_from` says what the arrays were made from.
    """
    path = cache_dir() / f"{name}.npz"
    label = np.frombuffer(os.fsencode(made_from), np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with atomic_write(path) as file:
            np.savez(file, allow_pickle=False, made_from=label, **arrays)
    except OSError as error:
        return f"{path.parent}: {error.strerror or error}; JAXMNIST_CACHE_DIR names another place"
    return None


def read_npz(path: Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of these names in an .npz file of at most MNIST's size.

    Pickled objects are refused, so no code in a file is ever run, and zipfile verifies each
    array's CRC-32, so a flipped byte is seen.

    Raises:
        Exception: the file cannot be read, is damaged, or would take more memory than MNIST;
            zipfile, zlib and NumPy raise a dozen kinds of error.
    """
    with path.open("rb") as file:
        with zipfile.ZipFile(file) as archive:  # no entry unpacks to more than it announces
            if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
                raise ValueError("larger than MNIST")
        with np.load(file, allow_pickle=False) as entries:
            arrays = {key: entries[key] for key in keys}
    if any(isinstance(array, bytes) for array in arrays.values()):  # NumPy's way with other files
        raise ValueError("an entry is no array")
    return arrays
