"""The copy of MNIST that tensorflow-datasets (TFDS) prepared, read without TensorFlow."""

import contextlib
import hashlib
import io
import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from jaxmnist.errors import DataError

_SPLITS = {"train": 60_000, "test": 10_000}
_SHARD = f"{'[0-9]' * 5}-of-{'[0-9]' * 5}"
# An example is a PNG of 784 pixels and a label, at most 1,300 bytes. So no file, whatever it claims
# or decompresses to, takes more memory than this many times the number of images.
_MAX_RECORD = 4096
_BLOCK, _CHUNK_HEADER = 65_536, 40  # bytes, in an ArrayRecord file
# The signature and the start of the first chunk: width, height, bits a pixel, colour type.
_PNG_HEADER = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBB", 28, 28, 8, 0)
_ADVICE = "delete the directory or let tensorflow-datasets prepare it again"


def find_prepared(data_dir: Path | None = None) -> Path | None:
    """The directory of TFDS's prepared MNIST, version 3 as tfrecord or array_record; None if none.

    Args:
        data_dir: TFDS's data directory, the `mnist` in it, or the version's directory in that; by
            default what `TFDS_DATA_DIR` names, or `~/tensorflow_datasets`.

    Raises:
        OSError: a place cannot be read.
    """
    root = data_dir or os.path.expanduser(
        os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    )
    for place in (Path(root, "mnist"), Path(root)):
        for path in sorted(place.glob("3.*.*"), reverse=True):
            # An unfinished copy has another name: incomplete.XXXXXX_3.0.1, 3.0.1.incompleteXXXXXX.
            if re.fullmatch(r"3\.\d+\.\d+", path.name) and _file_format(path):
                return path
    return data_dir if data_dir and _file_format(data_dir) else None


def read_prepared(directory: Path) -> dict[str, np.ndarray]:
    """The arrays in a directory that `find_prepared` found, back in MNIST's own order.

    Returns:
        uint8 `train_images` [60000, 28, 28], `train_labels` [60000], `test_images`
        [10000, 28, 28] and `test_labels` [10000].

    Raises:
        DataError: something is missing or damaged.
    """
    arrays: dict[str, np.ndarray] = {}
    for split, count in _SPLITS.items():
        images, labels = _read_split(directory, split, count)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    return arrays


def stored_order(split: str, count: int) -> list[int]:
    """MNIST's own indices in the order in which TFDS's writer stores them (its core/shuffle.py)."""
    names = [f"{split}{index}".encode() for index in range(count)]
    return sorted(range(count), key=lambda i: hashlib.md5(names[i], usedforsecurity=False).digest())


def _file_format(directory: Path) -> str | None:
    formats = ("tfrecord", "array_record")
    return next((f for f in formats if any(directory.glob(f"mnist-*.{f}-{_SHARD}"))), None)


def _read_split(directory: Path, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [count, 28, 28] and labels [count] of one split, in MNIST's own order."""
    file_format = _file_format(directory)
    shards = sorted(directory.glob(f"mnist-{split}.{file_format}-{_SHARD}"))
    expected = int(shards[0].name[-5:]) if shards else 1
    if len(shards) != expected:
        raise DataError(f"{directory}: has {len(shards)} of {expected} {split} shards; {_ADVICE}")
    read_records = _read_tfrecord if file_format == "tfrecord" else _read_array_record
    images, labels = np.empty((count, 28, 28), np.uint8), np.empty(count, np.uint8)
    filled = 0
    for shard in shards:
        begin = filled
        try:
            for record in read_records(shard, count - filled):
                if filled == count:
                    raise ValueError(f"more than {count} images")
                images[filled], labels[filled] = _decode(record)
                filled += 1
            if filled == begin:
                raise ValueError("it is empty")
        except Exception as error:  # protobuf, Pillow and array_record: each has its own
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(f"{shard}: damaged ({reason}); {_ADVICE}") from error
    if filled < count:
        raise DataError(f"{directory}: has {filled} of {count} {split} images; {_ADVICE}")
    own_order = np.argsort(stored_order(split, count))
    return images[own_order], labels[own_order]


def _decode(record: bytes) -> tuple[np.ndarray, int]:
    """Image [28, 28] and label of a serialised `tf.train.Example` that holds a PNG image."""
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    feature = tf_example_pb2.Example.FromString(record).features.feature
    png = feature["image"].bytes_list.value[0]
    if not png.startswith(_PNG_HEADER):  # before Pillow makes an array of another size
        raise ValueError("an image is not a PNG of 28x28 grey pixels")
    pixels = np.asarray(Image.open(io.BytesIO(png), formats=("PNG",)))
    return pixels, feature["label"].int64_list.value[0]


def _read_tfrecord(path: Path, limit: int) -> Iterator[bytes]:
    """The records of a TFRecord file: length (8 bytes), its CRC (4), the record, its CRC (4)."""
    with path.open("rb") as file:
        while header := file.read(12):
            if len(header) < 12:
                raise ValueError("it ends within a record")
            (length,) = struct.unpack_from("<Q", header)
            if length > _MAX_RECORD:
                raise ValueError(f"a record of {length} bytes")
            record = file.read(length + 4)
            if len(record) < length + 4:
                raise ValueError("it ends within a record")
            yield record[:length]


def _read_array_record(path: Path, limit: int) -> Iterable[bytes]:
    """The records of an ArrayRecord file, if they are at most `limit` and not too large."""
    from array_record.python.array_record_module import ArrayRecordReader

    size = _decoded_size(path)
    if size > limit * _MAX_RECORD:
        raise ValueError(f"decompresses to {size} bytes")
    with contextlib.closing(ArrayRecordReader(str(path))) as reader:
        if reader.num_records() > limit:
            raise ValueError(f"{reader.num_records()} records where {limit} are missing")
        return reader.read_all()


def _decoded_size(path: Path) -> int:
    """The bytes that the chunks of an ArrayRecord file say they decompress to.

    It is a file of chunks in Riegeli's format, https://github.com/google/riegeli ("Riegeli/records
    file format"): a chunk is a header of 40 bytes and its data, interrupted by a block header of 24
    bytes wherever the position is a multiple of 64 KiB.
    """
    size = position = 0
    with path.open("rb") as file:
        end_of_file = file.seek(0, os.SEEK_END)
        while position < end_of_file:
            begin, header = position, b""
            while len(header) < _CHUNK_HEADER and position < end_of_file:
                start = _skip_block_header(position)
                position = min(start + _CHUNK_HEADER - len(header), (start // _BLOCK + 1) * _BLOCK)
                file.seek(start)
                header += file.read(position - start)
            data_size, _, kind_and_records, decoded = struct.unpack_from("<4Q", header, 8)
            if data_size > end_of_file:
                raise ValueError("it ends within a chunk")
            size += decoded
            while data_size:
                start = _skip_block_header(position)
                position = min(start + data_size, (start // _BLOCK + 1) * _BLOCK)
                data_size -= position - start
            position = max(position, begin + (kind_and_records >> 8))
    if position > end_of_file:
        raise ValueError("it ends within a chunk")
    return size


def _skip_block_header(position: int) -> int:
    return position if position % _BLOCK else position + 24
