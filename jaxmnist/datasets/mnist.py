"""MNIST from a directory, the notebook's, TFDS's, the cache of an earlier run, or a download.

Wherever it is from, the arrays must have the same checksum, so a seed trains the same from all.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmnist.data import Dataset
from jaxmnist.datasets import cache, download, tfds
from jaxmnist.datasets.idx import FILES, find_idx, parse_idx, read_idx
from jaxmnist.errors import DataError, DataNotFoundError, UsageError

Arrays = Mapping[str, np.ndarray]

# sha256 of the decoded arrays, one after the other in the order of FILES.
SHA256 = "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"
NOTEBOOK_DIR = "~/.pytorch/MNIST_data"
_SPECS = {name: (shape, "uint8") for name, (_, shape) in FILES.items()}
_KERAS_NAMES = ("x_train", "y_train", "x_test", "y_test")  # in mnist.npz, in the order of FILES


class Mnist(NamedTuple):
    """MNIST, and where it was found."""

    train: Dataset
    test: Dataset
    source: str  # one line
    note: str | None = None  # one line that a user may want to know: why it is not cached


def load_mnist(data_dir: str | os.PathLike[str] | None = None) -> tuple[Dataset, Dataset]:
    """Load MNIST's 60,000 training and 10,000 test images, in their official order.

    >>> from jaxmnist.datasets import load_mnist
    >>> train, test = load_mnist()
    >>> train.images.shape, train.labels[:5].tolist()
    ((60000, 28, 28), [5, 0, 4, 1, 9])

    Args:
        data_dir: the directory with MNIST; without it, the one that the environment variable
            `JAXMNIST_DATA_DIR` names. It has the four IDX files, gzipped or raw, there or in a
            usual folder below it such as torchvision's `MNIST/raw`, or what tensorflow-datasets
            prepared, or Keras's `mnist.npz`. If neither is given, these places are tried in turn:
            `~/.pytorch/MNIST_data`, a copy that tensorflow-datasets prepared, the cache of an
            earlier run, a download. A place that this user may not read is skipped.

    Returns:
        (train, test): images uint8 [n, 28, 28], white (255) on black (0), and labels int32 [n].

    Raises:
        DataNotFoundError: it is nowhere, or not in the directory that was named.
        DataError: something was found, but it is damaged, incomplete or not MNIST, or the
            directory that was named cannot be read.
        UsageError: the directory's name is empty.
    """
    mnist = find_mnist(data_dir)
    return mnist.train, mnist.test


def find_mnist(data_dir: str | os.PathLike[str] | None = None, *, progress: bool = False) -> Mnist:
    """`load_mnist`, telling where it was found; `progress` shows a download's progress bar."""
    directory = named_dir(data_dir)
    if directory:
        return _from_named(directory)
    return _from_usual_places() or _from_download(progress)


def named_dir(data_dir: str | os.PathLike[str] | None) -> Path | None:
    """The directory that the user named, here or in the environment; None if there is none."""
    if data_dir is not None and not os.fspath(data_dir):
        raise UsageError("the name of the data directory is empty")
    named = data_dir or os.environ.get("JAXMNIST_DATA_DIR")
    return Path(os.path.expanduser(named)) if named else None  # leaves an unknown ~user as it is


def _from_named(directory: Path) -> Mnist:
    """What is in this directory and nowhere else, so that whatever is wrong there is an error."""
    try:
        try:
            return _from_idx(directory)
        except DataNotFoundError:
            found = _from_tfds(directory) or _from_keras(directory / "mnist.npz")
            if not found:
                raise
            return found
    except OSError as error:
        place = error.filename or directory
        raise DataError(f"{place}: cannot be read: {error.strerror or error}") from error


def _from_usual_places() -> Mnist | None:
    for place in (
        lambda: _from_idx(Path(os.path.expanduser(NOTEBOOK_DIR))),
        _from_tfds,
        _from_cache,
    ):
        try:
            found = place()
        except (DataError, OSError) as error:
            # A place that this user may not look into, or whose files may not be read, holds
            # nothing. A damaged copy is an error, though a later place might hold a good one.
            damaged = isinstance(error, DataError) and not isinstance(error, DataNotFoundError)
            if damaged and not isinstance(error.__cause__, PermissionError):
                raise
            continue
        if found:
            return found
    return None


def _from_idx(directory: Path) -> Mnist:
    paths = find_idx(directory)
    source = f"{next(iter(paths.values())).parent} (IDX files)"
    return _through_cache(source, paths.values(), lambda: _read(paths))


def _read(paths: Mapping[str, Path]) -> Arrays:
    return {name: read_idx(path, FILES[name][1]) for name, path in paths.items()}


def _from_tfds(data_dir: Path | None = None) -> Mnist | None:
    """TFDS's prepared copy below its own data directory, or below one that the user named."""
    directory = tfds.find_prepared(data_dir)
    if directory is None:
        return None
    source = f"{directory} (prepared by tensorflow-datasets)"
    return _through_cache(source, directory.iterdir(), lambda: tfds.read_prepared(directory))


def _from_keras(path: Path) -> Mnist | None:
    if not path.is_file():
        return None

    def parse() -> Arrays:
        specs = dict(zip(_KERAS_NAMES, _SPECS.values(), strict=True))
        try:
            return dict(zip(FILES, cache.read_npz(path, specs).values(), strict=True))
        except Exception as error:  # zipfile and NumPy raise a dozen kinds of error
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(f"{path}: not Keras's mnist.npz, or damaged ({reason})") from error

    return _through_cache(str(path), [path], parse)


def _from_cache() -> Mnist | None:
    arrays = cache.load("mnist", _SPECS)
    if arrays is None or not _is_official(arrays):
        return None
    return _mnist(arrays, f"{cache.cache_dir()} (cache of an earlier run)")


def _from_download(progress: bool) -> Mnist:
    try:
        files = download.fetch(progress=progress)
    except DataNotFoundError as error:
        raise DataNotFoundError(
            f"MNIST is neither in {NOTEBOOK_DIR} nor prepared by tensorflow-datasets nor cached, "
            f"and cannot be downloaded ({error}); put its four IDX files into a directory and name "
            "that with --data-dir or JAXMNIST_DATA_DIR"
        ) from error

    def parse() -> Arrays:
        return {
            name: parse_idx(io.BytesIO(files[f"{file}.gz"]), f"{file}.gz", shape)
            for name, (file, shape) in FILES.items()
        }

    return _parse(download.MNIST_URL, "", parse)


def _through_cache(source: str, files: Iterable[Path], parse: Callable[[], Arrays]) -> Mnist:
    """What `parse` makes of these files, or the cache's copy if it was made from just these."""
    stamps = ((path.resolve(), path.stat()) for path in sorted(files))
    origin = "\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stamps)
    cached = cache.load("mnist", _SPECS, origin)
    if cached is not None and _is_official(cached):
        return _mnist(cached, f"{source}, cached")
    return _parse(source, origin, parse)


def _parse(source: str, origin: str, parse: Callable[[], Arrays]) -> Mnist:
    """What `parse` makes, if it is MNIST; cached as made from `origin`."""
    arrays = parse()
    for name in ("train_labels", "test_labels"):
        if arrays[name].max() > 9:
            raise DataError(
                f"{source}: {FILES[name][0]} has the label {arrays[name].max()}, over 9"
            )
    if not _is_official(arrays):
        raise DataError(f"{source}: checksum differs from MNIST's; put the official files there")
    problem = cache.store("mnist", arrays, origin)
    return _mnist(arrays, source, problem and f"not cached, every start parses again: {problem}")


def _is_official(arrays: Arrays) -> bool:
    digest = hashlib.sha256()
    for name in FILES:
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest() == SHA256


def _mnist(arrays: Arrays, source: str, note: str | None = None) -> Mnist:
    train, test = (
        Dataset(arrays[f"{part}_images"], arrays[f"{part}_labels"].astype(np.int32))
        for part in ("train", "test")
    )
    return Mnist(train, test, source, note)
