"""Arrays that took time to make, kept as one uncompressed .npz file in the user's cache directory.

A cache is a convenience: where it is absent, damaged or not writable, everything still works, only
slower. So `load` answers None and `store` answers the reason instead of raising.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import platformdirs

from jaxmnist.files import replacing


def cache_dir() -> Path:
    """Where caches live: `JAXMNIST_CACHE_DIR`, or the platform's cache directory for this user."""
    return Path(os.environ.get("JAXMNIST_CACHE_DIR") or platformdirs.user_cache_path("jaxmnist"))


def load(name: str) -> dict[str, np.ndarray] | None:
    """The arrays stored under `name`, or None where there are none or the file is damaged.

    Reading to the end makes zipfile verify each array's CRC-32, so a flipped byte is seen; pickled
    objects are refused, so a foreign file is never executed.
    """
    try:
        with (cache_dir() / f"{name}.npz").open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            return {key: arrays[key] for key in arrays.files}
    except Exception:  # zipfile and NumPy meet damage with a dozen kinds of error
        return None


def store(name: str, arrays: Mapping[str, np.ndarray]) -> str | None:
    """Store `arrays` under `name`; None when done, otherwise the reason why it could not be.

    The file appears whole or not at all.
    """
    path = cache_dir() / f"{name}.npz"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        return f"{path.parent}: {error.strerror or error}"
    return None
