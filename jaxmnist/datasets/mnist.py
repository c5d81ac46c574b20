"""MNIST from a directory, the notebook's, TFDS's, the cache of an earlier run, or a download.

The arrays have the same checksum whatever their source, so a seed trains the same model.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jaxmnist.data import Dataset
from jaxmnist.datasets import cache, download, synthetic, tfds
from jaxmnist.datasets.idx import FILES, find_idx, read_idx
from jaxmnist.errors import DataError, DataNotFoundError

Arrays = Mapping[str, np.ndarray]
Say = Callable[[str], object]  # called with a line for the user

NOTEBOOK_DIR = "~/.pytorch/MNIST_data"
# sha256 of the dtype, shape and bytes of each array, in the order of FILES.
SHA256 = "47510164af9e915b85ff5c4079de0537fd7ff4c9896c45daecb9acb218a75680"
_KERAS_NAMES = ("x_train", "y_train", "x_test", "y_test")  # in mnist.npz, in the order of FILES


class Data(NamedTuple):
    """Training and test images, and their source."""

    train: Dataset  # 60,000 images
    test: Dataset  # 10,000 images
    source: str  # one line: where they were found, or how they were made
    synthetic: bool = False  # whether they are synthetic digits, not MNIST


def load_mnist(directory: str | os.PathLike[str] | None = None) -> tuple[Dataset, Dataset]:
    """Load MNIST's 60,000 training and 10,000 test images, in their official order.

    >>> from jaxmnist.datasets import load_mnist
    >>> train, test = load_mnist()
    >>> train.images.shape, train.labels[:5].tolist()
    ((60000, 28, 28), [5, 0, 4, 1, 9])

    Args:
        directory: where MNIST is; without it, what the environment variable `JAXMNIST_DATA_DIR`
            names. It has the four IDX files, gzipped or raw, there or in a usual folder below it
            such as torchvision's `MNIST/raw`, or what tensorflow-datasets prepared, or Keras's
            `mnist.npz`, which may be named itself. If neither is given, these places are tried in
            turn: `~/.pytorch/MNIST_data`, a copy that tensorflow-datasets prepared, the cache of an
            earlier run, a download. A place that this user may not read is skipped.

    Returns:
        (train, test): images uint8 [n, 28, 28], white (255) on black (0), and labels int32 [n].

    Raises:
        DataNotFoundError: it is nowhere, or not in the directory that was named.
        DataError: something was found, but it is damaged, incomplete or not MNIST.
        OSError: the directory that was named cannot be read.
    """
    found = load_data("mnist", directory)
    return found.train, found.test


def load_data(
    dataset: Literal["auto", "mnist", "synthetic"] = "auto",
    directory: str | os.PathLike[str] | None = None,
    seed: int = 0,
    *,
    say: Say = lambda line: None,
) -> Data:
    """Load MNIST, or synthetic digits.

    >>> from jaxmnist.datasets import load_data
    >>> data = load_data("synthetic", seed=0)
    >>> data.train.images.shape, data.test.labels.shape, data.synthetic
    ((60000, 28, 28), (10000,), True)
    >>> data.source
    'synthetic digits, seed 0: not MNIST'

    Args:
        dataset: "mnist", "synthetic", or "auto" for MNIST or, if it is in none of its places and
            cannot be downloaded, synthetic digits; `synthetic` of the result tells which.
        directory: where MNIST is, see `load_mnist`. If it is named, here or by the environment
            variable JAXMNIST_DATA_DIR, no other place is tried.
        seed: makes the synthetic digits, 0 to 2**32 - 1. MNIST does not depend on it.
        say: called with a line before a download or the making of digits, which take seconds; with
            a warning before synthetic digits replace MNIST; and with the reason if MNIST cannot be
            cached. A download shows a progress bar if standard error is a terminal.

    Raises:
        DataNotFoundError: MNIST is in none of its places, and nothing else was asked for.
        DataError: MNIST was found, but it is damaged or incomplete.
        OSError: the directory that was named cannot be read.
        ValueError: another dataset.
    """
    if dataset not in ("auto", "mnist", "synthetic"):
        raise ValueError(f'dataset must be "auto", "mnist" or "synthetic", not {dataset!r}')
    if dataset != "synthetic":
        named = os.environ.get("JAXMNIST_DATA_DIR") if directory is None else directory
        try:
            return _from_directory(Path(os.path.expanduser(named)), say) if named else _search(say)
        except DataNotFoundError as error:
            if dataset == "mnist" or named:
                raise
            say(f"WARNING: this is NOT MNIST but synthetic digits: {error}")
    train, test = synthetic.load_synthetic(seed, say=say)
    source = f"synthetic digits, seed {seed}: not MNIST"
    return Data(train, test, source, synthetic=True)


def _search(say: Say) -> Data:
    for place in (Path(os.path.expanduser(NOTEBOOK_DIR)), tfds.data_dir()):
        # A damaged copy is an error, though a later place might hold a good one.
        with contextlib.suppress(DataNotFoundError, OSError):
            return _from_directory(place, say)
    cached = cache.load("mnist", FILES)
    if cached is not None and _is_mnist(cached):
        return _data(cached, f"{cache.cache_dir()} (cache of an earlier run)")
    return _through_cache("a download", [], lambda: download.fetch(say), say)


def _from_directory(directory: Path, say: Say) -> Data:
    """MNIST in any form in this directory; a DataNotFoundError where there is none."""
    if prepared := tfds.find_prepared(directory):
        source = f"{prepared} (prepared by tensorflow-datasets)"
        files = prepared.iterdir()
        return _through_cache(source, files, lambda: tfds.read_prepared(prepared), say)
    keras = directory if directory.suffix == ".npz" else directory / "mnist.npz"
    if keras.is_file():
        return _through_cache(str(keras), [keras], lambda: _read_keras(keras), say)
    paths = find_idx(directory)
    source = f"{next(iter(paths.values())).parent} (IDX files)"

    def read() -> Arrays:
        return {name: read_idx(path, FILES[name][1]) for name, path in paths.items()}

    return _through_cache(source, paths.values(), read, say)


def _read_keras(path: Path) -> Arrays:
    try:
        return dict(zip(FILES, cache.read_npz(path, _KERAS_NAMES).values(), strict=True))
    except Exception as error:  # zipfile and NumPy raise a dozen kinds of error
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{path}: not Keras's mnist.npz, or damaged ({reason})") from error


def _through_cache(
    source: str, files: Iterable[Path], read: Callable[[], Arrays], say: Say
) -> Data:
    """The cached arrays if these files made them, otherwise those of `read`."""
    stamps = ((path.resolve(), path.stat()) for path in sorted(files))
    origin = "\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stamps)
    cached = cache.load("mnist", FILES, origin)
    if cached is not None and _is_mnist(cached):
        return _data(cached, f"{source}, cached")
    arrays = read()
    if not _is_mnist(arrays):
        raise DataError(f"{source}: checksum differs from MNIST's; put the official files there")
    if problem := cache.store("mnist", arrays, origin):
        say(f"Note: MNIST is not cached, every start reads it again: {problem}")
    return _data(arrays, source)


def _is_mnist(arrays: Arrays) -> bool:
    digest = hashlib.sha256()
    for name in FILES:
        digest.update(f"{arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest() == SHA256


def _data(arrays: Arrays, source: str) -> Data:
    train, test = (
        Dataset(arrays[f"{part}_images"], arrays[f"{part}_labels"].astype(np.int32))
        for part in ("train", "test")
    )
    return Data(train, test, f"MNIST from {source}")
