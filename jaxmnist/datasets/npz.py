"""NumPy's .npz files, read so that a file takes no more memory than the arrays it should hold."""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

Spec = tuple[tuple[int, ...], str]  # an array's shape and dtype


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
