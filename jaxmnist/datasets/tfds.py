"""MNIST from tensorflow-datasets (TFDS), without TensorFlow: its prepared copy, its downloader."""

import contextlib
import hashlib
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxmnist.datasets import idx
from jaxmnist.errors import DataError, DataNotFoundError

# The address from which TFDS takes MNIST, and under which its checksums are registered.
MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
FILES = tuple(f"{name}.gz" for name, _ in idx.FILES.values())
_DOWNLOAD_BYTES = 11_594_722  # the four files together
_PROBE_SECONDS = 4.0
_CHILD = "from jaxmnist.datasets.tfds import _child; _child()"
_WRONG_CHECKSUM = 3  # its exit status
_SPLITS = {"train": 60_000, "test": 10_000}
_SHARD = f"{'[0-9]' * 5}-of-{'[0-9]' * 5}"
_ADVICE = "delete the directory or let tensorflow-datasets prepare it again"


def find_prepared(data_dir: Path | None = None) -> Path | None:
    """The directory of TFDS's prepared MNIST, version 3 as tfrecord or array_record; None if none.

    `data_dir` is TFDS's data directory, by default `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
    """
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    for path in sorted(Path(os.path.expanduser(root), "mnist").glob("3.*.*"), reverse=True):
        # An unfinished copy has another name: incomplete.XXXXXX_3.0.1, 3.0.1.incompleteXXXXXX.
        if re.fullmatch(r"3\.\d+\.\d+", path.name) and _file_format(path):
            return path
    return None


def read_prepared(directory: Path) -> dict[str, np.ndarray]:
    """The uint8 arrays in a directory that `find_prepared` found, back in MNIST's own order:
    `train_images` [60000, 28, 28], `train_labels` [60000], `test_images` [10000, 28, 28] and
    `test_labels` [10000]. A DataError tells what is missing or damaged.
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
    """Images [n, 28, 28] and labels [n] of one split, in MNIST's own order."""
    file_format = _file_format(directory)
    shards = sorted(directory.glob(f"mnist-{split}.{file_format}-{_SHARD}"))
    expected = int(shards[0].name[-5:]) if shards else 1
    if len(shards) != expected:
        raise DataError(f"{directory}: has {len(shards)} of {expected} {split} shards; {_ADVICE}")
    read_records = _read_tfrecord if file_format == "tfrecord" else _read_array_record
    parts = []
    for shard in shards:
        try:
            parts.append(_decode(read_records(shard)))
        except Exception as error:  # protobuf, Pillow and array_record: each has its own
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(f"{shard}: damaged ({reason}); {_ADVICE}") from error
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    if len(images) != count:
        raise DataError(f"{directory}: has {len(images)} of {count} {split} images; {_ADVICE}")
    own_order = np.argsort(stored_order(split, count))
    return images[own_order], labels[own_order]


def _read_tfrecord(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length (8 bytes), its CRC (4), the record, its CRC (4)."""
    content, position = path.read_bytes(), 0
    while position < len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        yield content[position + 12 : position + 12 + length]
        position += length + 16
    if position != len(content):
        raise ValueError("it ends within a record")


def _read_array_record(path: Path) -> Iterable[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    with contextlib.closing(ArrayRecordReader(str(path))) as reader:
        return reader.read_all()


def _decode(records: Iterable[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 28, 28] and labels [n] of serialised `tf.train.Example`s that hold PNG images."""
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    features = [tf_example_pb2.Example.FromString(record).features.feature for record in records]
    pngs = [feature["image"].bytes_list.value[0] for feature in features]
    images = np.stack([np.asarray(Image.open(io.BytesIO(png), formats=("PNG",))) for png in pngs])
    labels = np.array([feature["label"].int64_list.value[0] for feature in features], np.uint8)
    if images.shape[1:] != (28, 28) or images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype}{list(images.shape[1:])}, not uint8[28, 28]")
    return images, labels


def probe(base_url: str = MNIST_URL) -> None:
    """Ask the server, within seconds, whether it has MNIST: raise DataNotFoundError if not."""
    import requests

    url = base_url + FILES[0]
    answers = [f"no answer within {_PROBE_SECONDS:g} s"]  # "" is the good one

    def ask() -> None:
        try:
            status = requests.head(url, timeout=_PROBE_SECONDS, allow_redirects=True).status_code
            answers.append("" if status < 400 else f"HTTP status {status}")
        except Exception as error:
            answers.append(type(error).__name__)

    # A thread, because a name lookup obeys no timeout: it is left behind where it hangs.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    if answers[-1]:
        raise _not_downloaded(url, answers[-1])


def download(
    destination: Path,
    *,
    base_url: str = MNIST_URL,
    progress: bool = False,
    stall_seconds: float = 20.0,
) -> Path:
    """Download MNIST's four files into `destination`, which is returned; made if it is not there.

    TFDS retries for minutes where there is no network, knows no timeout and ignores Ctrl-C. So the
    server is probed first, and TFDS runs in a child process, ended when an exception ends this
    function or nothing arrives for `stall_seconds`. Files appear in `destination` only when all
    four have matched TFDS's checksums. `progress` shows a bar on standard error.

    Raises:
        DataNotFoundError: the server cannot be reached, lacks a file or stops sending.
        DataError: a file is not MNIST's.
    """
    probe(base_url)
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination, ignore_cleanup_errors=True) as temporary:
        _run_child(base_url, temporary, progress, stall_seconds)
        for name in FILES:
            os.replace(Path(temporary, name), destination / name)
    return destination


def _not_downloaded(url: str, reason: str) -> DataNotFoundError:
    local = reason.startswith("OSError: [Errno ")  # requests' errors have names of their own
    what = "the space for temporary files" if local else "the network and the proxy settings"
    return DataNotFoundError(f"{url}: {reason}; check {what}")


def _run_child(base_url: str, directory: str, progress: bool, stall_seconds: float) -> None:
    from tqdm import tqdm

    with (
        tqdm(total=_DOWNLOAD_BYTES, unit="B", unit_scale=True, disable=not progress) as bar,
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, base_url, directory],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},  # it imports as we do
            stdin=subprocess.PIPE,  # it closes when this process ends, however it ends
            stdout=log,
            stderr=log,
            start_new_session=True,  # a Ctrl-C in the terminal is for this process alone
        ) as child,
    ):
        try:
            _watch(child, base_url, directory, bar, stall_seconds)
        finally:
            child.kill()
        log.seek(0)
        reason = log.read().decode(errors="replace").strip().rpartition("\n")[2]
    if child.returncode == _WRONG_CHECKSUM:
        raise DataError(f"{reason}: wrong checksum, not MNIST's file; try again or elsewhere")
    if child.returncode:
        raise _not_downloaded(base_url, reason or f"exit status {child.returncode}")


def _watch(
    child: subprocess.Popen[bytes], url: str, directory: str, bar: Any, stall: float
) -> None:
    """Wait for `child` and show the bytes in `directory`; raise if none come for `stall` s."""
    size, since = 0, time.monotonic()
    while child.poll() is None:
        time.sleep(0.05)
        with contextlib.suppress(FileNotFoundError):  # a file was moved just now
            grown = sum(path.stat().st_size for path in Path(directory).rglob("*.gz")) - size
            if grown:
                size, since = size + grown, time.monotonic()
                bar.update(grown)
        if time.monotonic() - since > stall:
            raise _not_downloaded(url, f"nothing arrived for {stall:g} s")
    bar.update(_DOWNLOAD_BYTES - size if child.returncode == 0 else 0)


def _child() -> None:
    """The downloading process: fetch the files from `sys.argv[1]` into `sys.argv[2]`."""
    base_url, directory = sys.argv[1:]

    def end_with_parent() -> None:
        os.read(0, 1)
        shutil.rmtree(directory, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums, download_manager

    tfds.disable_progress_bar()
    registered = checksums.get_all_url_infos()
    manager = tfds.download.DownloadManager(
        download_dir=directory,
        url_infos={base_url + name: registered[MNIST_URL + name] for name in FILES},
        force_checksums_validation=True,
    )
    try:
        for name in FILES:
            os.replace(manager.download(base_url + name), Path(directory, name))
    except download_manager.NonMatchingChecksumError:
        print(base_url + name)
        sys.exit(_WRONG_CHECKSUM)
    except Exception as error:
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
