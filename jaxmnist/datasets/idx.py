"""IDX, the format of the four official MNIST files: a header that gives the shape, then the bytes.

The header is a magic number (two zero bytes, a type, the number of dimensions) and one big-endian
u32 a dimension; see https://yann.lecun.org/exdb/mnist/.
"""

import gzip
import math
import os
import re
import stat
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

from jaxmnist.errors import DataError, DataNotFoundError

# What each array of MNIST is called officially, and its shape.
FILES = {
    "train_images": ("train-images-idx3-ubyte", (60_000, 28, 28)),
    "train_labels": ("train-labels-idx1-ubyte", (60_000,)),
    "test_images": ("t10k-images-idx3-ubyte", (10_000, 28, 28)),
    "test_labels": ("t10k-labels-idx1-ubyte", (10_000,)),
}
_ARRAYS = {file: name for name, (file, _) in FILES.items()}
# Where people have them below the directory that they name: torchvision's layout, seen from each of
# its levels, and what unpacking an archive makes.
_FOLDERS = ("", "raw", "MNIST/raw", "MNIST", "mnist", "mnist/raw", "archive")
_UINT8 = 8
_ADVICE = "put the official file in its place"


def find_idx(directory: Path) -> dict[str, Path]:
    """The paths of the four files in `directory` or a usual folder below it, by array name.

    They may be gzipped or not, have another sign for a hyphen in their names, as in
    `train-images.idx3-ubyte`, and lie each in a folder of its own name.

    Raises:
        DataNotFoundError: there is none of them.
        DataError: some of them are there and others are missing.
        OSError: a place cannot be read.
    """
    best: dict[str, Path] = {}
    for folder in _FOLDERS:
        found = _find_in(directory / folder)
        if len(found) == len(FILES):
            return found
        if len(found) > len(best):
            best = found
    if best:
        missing = ", ".join(FILES[name][0] for name in FILES if name not in best)
        found_files = ", ".join(path.name for path in best.values())
        raise DataError(
            f"{next(iter(best.values())).parent}: {missing} (raw or .gz) is missing beside the "
            f"other MNIST files; found: {found_files}"
        )
    if not directory.is_dir():
        what = "is a file, not a directory" if directory.exists() else "no such directory"
        raise DataNotFoundError(f"{directory}: {what}, so no MNIST there")
    names = sorted(os.listdir(directory))
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    raise DataNotFoundError(
        f"{directory}: holds none of MNIST's files, such as {FILES['train_images'][0]}; "
        f"found: {', '.join(names[:8]) or 'nothing'}{more}"
    )


def _find_in(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for entry in _list(folder):
        official = _official_name(entry)
        name = _ARRAYS.get(official)
        if name is None or name in found:
            continue
        paths = [folder / entry]
        paths += [
            paths[0] / inner for inner in _list(paths[0]) if _official_name(inner) == official
        ]
        file = next((path for path in paths if _is_file(path)), None)
        if file:
            found[name] = file
    return {name: found[name] for name in FILES if name in found}


def _list(folder: Path) -> list[str]:
    """The names in a folder, files with an official name first; none where it is no folder."""
    official = [*_ARRAYS, *(f"{name}.gz" for name in _ARRAYS)]
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        if not os.access(folder, os.X_OK):
            raise
        return official  # this one may be entered though not listed
    return sorted(names, key=lambda name: (name not in official, name))


def _official_name(name: str) -> str:
    return re.sub("[._ ]", "-", name.lower().removesuffix(".gz"))


def _is_file(path: Path) -> bool:
    """Unlike Path.is_file, never says that what may not be looked at is not there."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def read_idx(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "*shape"]:
    """The uint8 array in an IDX file, gzipped or raw whatever its name, which must have this shape.

    Raises:
        DataError: the file cannot be read, or is no IDX file of this shape, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return parse_idx(file, str(path), shape)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def parse_idx(file: BinaryIO, name: str, shape: tuple[int, ...]) -> UInt8[np.ndarray, "*shape"]:
    """The uint8 array in an open IDX file, see `read_idx`; errors speak of it as `name`.

    What the header claims is compared with `shape` before the data is read, and no more than that
    is ever read, so a file that claims or decompresses to gigabytes costs nothing.
    """
    header_size, data_size = 4 + 4 * len(shape), math.prod(shape)
    # By its content: some browsers unpack a download and leave it its name.
    is_gzip = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    content = gzip.GzipFile(fileobj=file) if is_gzip else file
    try:
        header = content.read(header_size)
        _check_header(name, header, shape)
        data = content.read(data_size)
        excess = content.read(1)  # reading past the end makes gzip compare its checksum
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name}: the file is damaged ({error}); {_ADVICE}") from error
    if len(data) < data_size or excess:
        size = "more" if excess else f"{len(data):,}"
        raise DataError(
            f"{name}: holds {size} bytes of data where its header says {data_size:,}; {_ADVICE}"
        )
    return np.frombuffer(data, np.uint8).reshape(shape).copy()  # a copy can be written to


def _check_header(name: str, header: bytes, shape: tuple[int, ...]) -> None:
    if len(header) < 4 + 4 * len(shape):
        raise DataError(f"{name}: too short for an IDX file; {_ADVICE}")
    magic, *dims = struct.unpack(f">{1 + len(shape)}I", header)
    expected = _UINT8 << 8 | len(shape)
    if magic != expected:
        raise DataError(f"{name}: wrong magic number {magic}, expected {expected}; {_ADVICE}")
    if tuple(dims) != shape:
        found, expected_shape = (" x ".join(map(str, sizes)) for sizes in (dims, shape))
        raise DataError(f"{name}: claims {found} values, expected {expected_shape}; {_ADVICE}")
