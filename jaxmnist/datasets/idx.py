"""IDX, the format of the four official MNIST files: a header that gives the shape, then the bytes.

The header is a magic number (two zero bytes, a type, the number of dimensions) and one big-endian
u32 a dimension; see https://yann.lecun.org/exdb/mnist/.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxmnist.errors import DataError

# What each array of MNIST is called officially, and its shape.
FILES = {
    "train_images": ("train-images-idx3-ubyte", (60_000, 28, 28)),
    "train_labels": ("train-labels-idx1-ubyte", (60_000,)),
    "test_images": ("t10k-images-idx3-ubyte", (10_000, 28, 28)),
    "test_labels": ("t10k-labels-idx1-ubyte", (10_000,)),
}
_UINT8 = 8
_ADVICE = "put the official file in its place"


def read_idx(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "*shape"]:
    """The uint8 array in an IDX file, gzipped (`.gz`) or raw, which must have this shape.

    What the header claims is compared with `shape` before the data is read, and no more than that
    is ever read, so a file that claims billions of images costs nothing.

    Raises:
        DataError: the file cannot be read, or is no IDX file of this shape, or is damaged.
    """
    header_size, data_size = 4 + 4 * len(shape), math.prod(shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(header_size)
            _check_header(path, header, shape)
            data = file.read(data_size)
            excess = file.read(1)  # reading past the end makes gzip compare its checksum
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        raise DataError(f"{path}: the file is damaged ({error}); {_ADVICE}") from error
    if len(data) < data_size or excess:
        size = "more" if excess else f"{len(data):,}"
        raise DataError(
            f"{path}: holds {size} bytes of data where its header says {data_size:,}; {_ADVICE}"
        )
    return np.frombuffer(data, np.uint8).reshape(shape).copy()  # a copy can be written to


def _check_header(path: Path, header: bytes, shape: tuple[int, ...]) -> None:
    if len(header) < 4 + 4 * len(shape):
        raise DataError(f"{path}: too short for an IDX file; {_ADVICE}")
    magic, *dims = struct.unpack(f">{1 + len(shape)}I", header)
    expected = _UINT8 << 8 | len(shape)
    if magic != expected:
        raise DataError(f"{path}: wrong magic number {magic}, expected {expected}; {_ADVICE}")
    if tuple(dims) != shape:
        found, expected_shape = (" x ".join(map(str, sizes)) for sizes in (dims, shape))
        raise DataError(f"{path}: claims {found} values, expected {expected_shape}; {_ADVICE}")
