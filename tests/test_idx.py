"""The four official files: found where people have them, read strictly."""

import gzip
import os
import struct

import numpy as np
import pytest

from jaxmnist.datasets.idx import FILES, find_idx, read_idx
from jaxmnist.errors import DataError, DataNotFoundError

NAMES = [name for name, _ in FILES.values()]
HEADER = struct.pack(">3I", 2050, 2, 3)


def dotted(name):
    return name.replace("-idx", ".idx")


@pytest.mark.parametrize("folder", ["", "raw", "MNIST/raw", "archive"])
@pytest.mark.parametrize("rename", [str, "{}.gz".format, dotted, lambda n: f"{n}/{dotted(n)}"])
def test_layouts(tmp_path, folder, rename):
    for name in NAMES:
        path = tmp_path / folder / rename(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = find_idx(tmp_path)
    assert set(found) == set(FILES)
    assert all(path.is_file() for path in found.values())


def test_a_missing_file_is_named(tmp_path):
    for name in ("TRAIN_IMAGES_IDX3_UBYTE", "train labels idx1 ubyte.gz"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"^t10k-images.*, t10k-labels.* is missing beside /.*"):
        find_idx(tmp_path)


def test_what_is_read_is_told_where_there_is_nothing(tmp_path):
    for place, words in ((".", "MNIST is not in it"), ("none", "no such directory")):
        with pytest.raises(DataNotFoundError, match=f"{words}; MNIST is read from its four IDX"):
            find_idx(tmp_path / place)


@pytest.mark.parametrize("name", ["array", "array.gz"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_what_a_file_holds_counts_and_not_its_suffix(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(HEADER + bytes(range(6))))
    array = read_idx(tmp_path / name, (2, 3))
    np.testing.assert_array_equal(array, np.arange(6, dtype=np.uint8).reshape(2, 3), strict=True)
    array[0, 0] = 1  # the caller's


PACKED = gzip.compress(HEADER + os.urandom(6))
DAMAGES = {
    "truncated": (PACKED[:-1], "the file is damaged"),
    "longer": (PACKED + b"x", "the file is damaged"),
    "checksum": (PACKED[:-8] + bytes([PACKED[-8] ^ 1]) + PACKED[-7:], "the file is damaged"),
    "deflate": (PACKED[:12] + b"\xff" + PACKED[13:], "the file is damaged"),
    "shape": (struct.pack(">3I", 2050, 3, 2) + bytes(6), "not a header and 2 x 3 bytes"),
    "short": (HEADER + bytes(5), "not a header and 2 x 3 bytes"),
    "long": (HEADER + bytes(7), "not a header and 2 x 3 bytes"),
    "bomb": (gzip.compress(HEADER + bytes(10**7)), "not a header and 2 x 3 bytes"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(tmp_path, damage):
    content, words = DAMAGES[damage]
    (tmp_path / "it").write_bytes(content)
    with pytest.raises(DataError, match=f"/it: {words}.*; put the official file in its place$"):
        read_idx(tmp_path / "it", (2, 3))
