"""The data of a run by the name of a dataset: MNIST, drawn digits, or the first that is there."""

import os
from typing import Literal, NamedTuple

from jaxmnist.data import Dataset
from jaxmnist.datasets import mnist, synthetic
from jaxmnist.errors import DataNotFoundError, UsageError


class Data(NamedTuple):
    """The images to train and to test with, and where they are from."""

    train: Dataset  # 60,000 images
    test: Dataset  # 10,000 images
    source: str  # one line: where they were found, or how they were made
    note: str | None = None  # one line that a user may want to know: why MNIST is not cached
    drawn: bool = False  # drawn digits: not MNIST
    missing: str | None = None  # one line: why MNIST is not available; None where it was not tried


def load_data(
    dataset: Literal["auto", "mnist", "synthetic"] = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    *,
    progress: bool = False,
) -> Data:
    """Load MNIST, or digits drawn by a program.

    Nothing is printed: a caller who must not take drawn digits for MNIST looks at `drawn`.

    >>> from jaxmnist.datasets import load_data
    >>> data = load_data("synthetic", seed=0)
    >>> data.train.images.shape, data.test.labels.shape, data.drawn
    ((60000, 28, 28), (10000,), True)
    >>> data.source
    'drawn digits, seed 0: not MNIST'

    Args:
        dataset: "mnist", "synthetic" for drawn digits, or "auto" for MNIST and, where that is in
            none of its places and cannot be downloaded, drawn digits.
        data_dir: the directory with MNIST's files, see `load_mnist`. If it is named, here or by the
            environment variable JAXMNIST_DATA_DIR, nothing else than MNIST is taken.
        seed: which digits are drawn, 0 to 2**32 - 1. MNIST does not depend on it.
        progress: show a progress bar on standard error if MNIST has to be downloaded.

    Raises:
        DataNotFoundError: MNIST is nowhere, and nothing else may be taken.
        DataError: MNIST was found, but it is damaged, incomplete or cannot be read.
        UsageError: a data directory is given for drawn digits, or its name is empty.
        ValueError: another dataset, or the seed is out of range.
    """
    if dataset not in ("auto", "mnist", "synthetic"):
        raise ValueError(f'dataset must be "auto", "mnist" or "synthetic", not {dataset!r}')
    if dataset == "synthetic" and data_dir is not None:
        raise UsageError("a data directory is for MNIST: the synthetic digits read no files")
    missing = None
    if dataset != "synthetic":
        try:
            found = mnist.find_mnist(data_dir, progress=progress)
            return Data(found.train, found.test, f"MNIST from {found.source}", found.note)
        except DataNotFoundError as error:
            if dataset == "mnist" or mnist.named_dir(data_dir):
                raise
            missing = str(error)
    train, test = synthetic.load_synthetic(seed)
    source = f"drawn digits, seed {seed}: not MNIST"
    return Data(train, test, source, drawn=True, missing=missing)
