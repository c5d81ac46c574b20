"""Where MNIST comes from: a directory, the notebook's, TFDS's, the cache of an earlier run, or a
download. Whichever it is, the arrays end in the same checksums, so a seed trains the same from all.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np

from jaxmnist.data import Dataset
from jaxmnist.datasets import cache, tfds
from jaxmnist.datasets.idx import FILES, read_idx
from jaxmnist.errors import DataError, DataNotFoundError

Arrays = Mapping[str, np.ndarray]

# sha256 of the decoded arrays, one after the other in the order of FILES.
SHA256 = "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"
NOTEBOOK_DIR = "~/.pytorch/MNIST_data"
_CACHE = "mnist"


class Mnist(NamedTuple):
    """MNIST, and how it was come by."""

    train: Dataset
    test: Dataset
    source: str  # one line: where it was found
    note: str | None = None  # what a user may want to know: why it is not cached


def load_mnist(data_dir: str | os.PathLike[str] | None = None) -> tuple[Dataset, Dataset]:
    """MNIST's 60,000 training and 10,000 test images, in their official order.

    Looked for in `data_dir` or, without it, the environment variable `JAXMNIST_DATA_DIR`: the four
    IDX files, gzipped or raw, directly there or in its `MNIST/raw` (torchvision's) or `mnist`. If
    neither is given: in `~/.pytorch/MNIST_data`, in a copy that tensorflow-datasets prepared, in
    the cache of an earlier run, and then it is downloaded.

    Raises:
        DataNotFoundError: it is nowhere, or not in the directory that was named.
        DataError: something was found, but it is damaged, incomplete or no MNIST.
    """
    mnist = find_mnist(data_dir)
    return mnist.train, mnist.test


def find_mnist(data_dir: str | os.PathLike[str] | None = None, *, progress: bool = False) -> Mnist:
    """`load_mnist`, telling where it was found; `progress` shows a download's progress."""
    named = data_dir or os.environ.get("JAXMNIST_DATA_DIR")
    if named:
        return _from_idx(Path(named).expanduser())
    with contextlib.suppress(DataNotFoundError):
        return _from_idx(Path(NOTEBOOK_DIR).expanduser())
    return _from_tfds() or _from_cache() or _from_download(progress)


def _from_idx(directory: Path) -> Mnist:
    paths = _idx_files(directory)
    source = f"{next(iter(paths.values())).parent} (IDX files)"
    return _through_cache(source, paths.values(), lambda: _read(paths))


def _read(paths: Mapping[str, Path]) -> Arrays:
    return {name: read_idx(path, FILES[name][1]) for name, path in paths.items()}


def _idx_files(directory: Path) -> dict[str, Path]:
    """The four files' paths. DataNotFoundError: there is none of them; DataError: only some."""
    best: dict[str, Path] = {}
    for folder in (directory, directory / "MNIST" / "raw", directory / "mnist"):
        candidates = {
            name: path
            for name, (file, _) in FILES.items()
            for path in (folder / file, folder / f"{file}.gz")
            if path.is_file()
        }
        if len(candidates) > len(best):
            best = candidates
    if len(best) == len(FILES):
        return best
    if best:
        missing = ", ".join(FILES[name][0] for name in FILES if name not in best)
        folder = next(iter(best.values())).parent
        raise DataError(f"{folder}: {missing} (raw or .gz) is missing beside the other MNIST files")
    if not directory.is_dir():
        raise DataNotFoundError(f"{directory}: no such directory, so no MNIST there")
    raise DataNotFoundError(
        f"{directory}: holds none of MNIST's files, as {FILES['train_images'][0]}"
    )


def _from_tfds() -> Mnist | None:
    directory = tfds.find_prepared()
    if directory is None:
        return None
    return _through_cache(
        f"{directory} (prepared by tensorflow-datasets)",
        directory.iterdir(),
        lambda: tfds.read_prepared(directory),
    )


def _from_cache() -> Mnist | None:
    arrays = cache.load(_CACHE)
    if arrays is None or not _is_official(arrays):
        return None
    return _mnist(arrays, f"{cache.cache_dir()} (cache of an earlier run)")


def _from_download(progress: bool) -> Mnist:
    try:
        tfds.probe()
    except DataNotFoundError as error:
        raise DataNotFoundError(
            f"MNIST is neither in {NOTEBOOK_DIR} nor prepared by tensorflow-datasets nor cached, "
            f"and cannot be downloaded ({error}); put its four IDX files into a directory and name "
            "that with --data-dir or JAXMNIST_DATA_DIR"
        ) from error
    with contextlib.ExitStack() as stack:
        # Of several processes that start at once, one downloads and the others find its cache. If
        # the cache cannot be written, each downloads for itself.
        with contextlib.suppress(OSError):
            cache.cache_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
            stack.enter_context(filelock.FileLock(cache.cache_dir() / "download.lock"))
            cached = _from_cache()
            if cached is not None:
                return cached
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxmnist-")))
        tfds.download(directory, progress=progress)
        paths = {name: directory / f"{file}.gz" for name, (file, _) in FILES.items()}
        return _fresh(tfds.MNIST_URL, "", lambda: _read(paths))


def _through_cache(source: str, files: Iterable[Path], parse: Callable[[], Arrays]) -> Mnist:
    """What `parse` makes of these files, or the cache's copy if it was made from just these."""
    stamps = ((path.resolve(), path.stat()) for path in sorted(files))
    origin = "\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stamps)
    cached = cache.load(_CACHE)
    if cached is not None and str(cached.get("origin")) == origin and _is_official(cached):
        return _mnist(cached, f"{source}, cached")
    return _fresh(source, origin, parse)


def _fresh(source: str, origin: str, parse: Callable[[], Arrays]) -> Mnist:
    """What `parse` makes, if it is MNIST; cached as made from `origin`."""
    arrays = parse()
    for name in ("train_labels", "test_labels"):
        if arrays[name].max() > 9:
            raise DataError(
                f"{source}: {FILES[name][0]} has the label {arrays[name].max()}, over 9"
            )
    if not _is_official(arrays):
        raise DataError(f"{source}: checksum differs from MNIST's; put the official files there")
    problem = cache.store(_CACHE, {**arrays, "origin": np.array(origin)})
    return _mnist(arrays, source, problem and f"not cached, every start parses again: {problem}")


def _is_official(arrays: Arrays) -> bool:
    digest = hashlib.sha256()
    for name, (_, shape) in FILES.items():
        array = arrays.get(name)
        if array is None or array.shape != shape or array.dtype != np.uint8:
            return False
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest() == SHA256


def _mnist(arrays: Arrays, source: str, note: str | None = None) -> Mnist:
    train, test = (
        Dataset(arrays[f"{part}_images"], arrays[f"{part}_labels"].astype(np.int32))
        for part in ("train", "test")
    )
    return Mnist(train, test, source, note)
