"""Arrays that took time to make, kept as one uncompressed .npz file in the user's cache directory.

A cache is a convenience: where it is absent, damaged or not writable, everything still works, only
slower. So `load` answers None and `store` answers the reason instead of raising.
"""

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import platformdirs


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

    The file is written beside its place and moved there in one step, so that no reader and no
    process starting at the same moment ever sees half of it.
    """
    path = cache_dir() / f"{name}.npz"
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            return f"{path.parent}: {error.strerror or error}"
        raise
    return None
