"""The copy of MNIST that tensorflow-datasets (TFDS) prepared, read without TensorFlow."""

import contextlib
import hashlib
import io
import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxmnist.errors import DataError

_SPLITS = {"train": 60_000, "test": 10_000}
_ADVICE = "delete the directory or let tensorflow-datasets prepare it again"


def data_dir() -> Path:
    """TFDS's data directory: what `TFDS_DATA_DIR` names, or `~/tensorflow_datasets`."""
    return Path(os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))


def find_prepared(directory: Path) -> Path | None:
    """The directory of TFDS's prepared MNIST, version 3 as tfrecord or array_record; None if none.

    Args:
        directory: TFDS's data directory, the `mnist` in it, or the version's directory in that.

    Raises:
        OSError: a place cannot be read.
    """
    versions = [*directory.glob("mnist/3.[0-9].[0-9]"), *directory.glob("3.[0-9].[0-9]")]
    places = [*sorted(versions, reverse=True), directory]
    return next((place for place in places if _shards(place, "*")), None)


def read_prepared(directory: Path) -> dict[str, UInt8[np.ndarray, "..."]]:
    """The arrays in a directory that `find_prepared` found, back in MNIST's own order.

    Returns:
        uint8 `train_images` [60000, 28, 28], `train_labels` [60000], `test_images`
        [10000, 28, 28] and `test_labels` [10000].

    Raises:
        DataError: something is missing or damaged, or cannot be read.
    """
    arrays: dict[str, np.ndarray] = {}
    for split, count in _SPLITS.items():
        images, labels = np.empty((count, 28, 28), np.uint8), np.empty(count, np.uint8)
        try:
            records = itertools.chain.from_iterable(map(_records, _shards(directory, split)))
            for index, record in zip(stored_order(split, count), records, strict=True):
                images[index], labels[index] = _decode(record)
        except Exception as error:  # protobuf, Pillow and array_record: each has its own
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(f"{directory}: {split} is damaged ({reason}); {_ADVICE}") from error
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    return arrays


def stored_order(split: str, count: int) -> list[int]:
    """MNIST's own indices in the order in which TFDS's writer stores them (its core/shuffle.py)."""
    names = [f"{split}{index}".encode() for index in range(count)]
    return sorted(range(count), key=lambda i: hashlib.md5(names[i], usedforsecurity=False).digest())


def _shards(directory: Path, split: str) -> list[Path]:
    """The files of one split in their order, of the first format that is there."""
    formats = ("tfrecord", "array_record")
    found = (sorted(directory.glob(f"mnist-{split}.{name}-*-of-*")) for name in formats)
    return next(filter(None, found), [])


def _records(path: Path) -> Iterator[bytes]:
    """The records of a shard."""
    if ".array_record-" in path.name:
        from array_record.python.array_record_module import ArrayRecordReader

        with contextlib.closing(ArrayRecordReader(str(path))) as reader:
            yield from reader.read_all()
        return
    content, at = path.read_bytes(), 0
    while at < len(content):  # length (8 bytes), its CRC (4), the record, its CRC (4)
        end = at + 12 + struct.unpack_from("<Q", content, at)[0]
        yield content[at + 12 : end]
        at = end + 4


def _decode(record: bytes) -> tuple[np.ndarray, int]:
    """Image [28, 28] and label of a serialised `tf.train.Example` that holds a PNG image."""
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    feature = tf_example_pb2.Example.FromString(record).features.feature
    image = Image.open(io.BytesIO(feature["image"].bytes_list.value[0]), formats=("PNG",))
    if (image.size, image.mode) != ((28, 28), "L"):  # before Pillow makes a large array
        raise ValueError("an image is not a PNG of 28x28 grey pixels")
    return np.asarray(image), feature["label"].int64_list.value[0]
