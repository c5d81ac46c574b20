"""IDX, the format of the four official MNIST files: a header that gives the shape, then the bytes.

The header is a magic number (two zero bytes, a type, the number of dimensions) and one big-endian
u32 a dimension; see https://yann.lecun.org/exdb/mnist/.
"""

import gzip
import io
import math
import re
import struct
import zlib
from pathlib import Path

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
_ADVICE = "put the official file in its place"


def find_idx(directory: Path) -> dict[str, Path]:
    """The paths of the four files in `directory` or a usual folder below it, by array name.

    They may be gzipped or not, have another sign for a hyphen in their names, as in
    `train-images.idx3-ubyte`, and lie each in a folder of its own name.

    Raises:
        DataNotFoundError: there is none of them.
        DataError: some of them are there and others are missing.
        OSError: the directory cannot be read.
    """
    found = max((_find_in(directory / folder) for folder in _FOLDERS), key=len)
    if len(found) == len(FILES):
        return found
    if found:
        missing = ", ".join(file for name, (file, _) in FILES.items() if name not in found)
        raise DataError(f"{missing} (raw or .gz) is missing beside {min(found.values())}")
    what = "MNIST is not in it" if directory.is_dir() else "no such directory"
    files = f"its four IDX files ({FILES['train_images'][0]}...)"
    forms = f"{files}, from Keras's mnist.npz or from tensorflow-datasets' copy"
    raise DataNotFoundError(f"{directory}: {what}; MNIST is read from {forms}")


def _find_in(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted([*folder.glob("*"), *folder.glob("*ubyte*/*ubyte*")]):
        name = _ARRAYS.get(re.sub("[._ ]", "-", path.name.lower().removesuffix(".gz")))
        if name and path.is_file():
            found.setdefault(name, path)
    return found


def read_idx(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "*shape"]:
    """The uint8 array in an IDX file, gzipped or raw whatever its name, which must have this shape.

    Raises:
        DataError: it is no IDX file of this shape, or damaged.
        OSError: the file cannot be read.
    """
    return parse_idx(path.read_bytes(), str(path), shape)


def parse_idx(content: bytes, name: str, shape: tuple[int, ...]) -> UInt8[np.ndarray, "*shape"]:
    """The uint8 array in the content of an IDX file, see `read_idx`; errors speak of it as `name`.

    Unpacks no more than the array's size, whatever the content claims.
    """
    header = struct.pack(f">{1 + len(shape)}I", 0x800 | len(shape), *shape)  # 8 is uint8
    size = len(header) + math.prod(shape)
    try:
        # By its content: some browsers unpack a download and leave it its name.
        if content.startswith(b"\x1f\x8b"):
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: the file is damaged ({error}); {_ADVICE}") from error
    if len(content) != size or not content.startswith(header):
        shown = " x ".join(map(str, shape))
        raise DataError(f"{name}: not a header and {shown} bytes; {_ADVICE}")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape).copy()
