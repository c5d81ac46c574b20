"""MNIST's four files from the network, verified against tensorflow-datasets' own checksums."""

import hashlib
import importlib.metadata
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import UInt8

from jaxmnist.datasets.idx import FILES, parse_idx
from jaxmnist.errors import DataError, DataNotFoundError

# The address from which TFDS takes MNIST, under which it registers the checksums; torchvision's.
MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)


def registered() -> dict[str, tuple[int, str]]:
    """The size in bytes and the sha256 of the file of each array, as TFDS registers them.

    Read from TFDS's own table, a text file, since importing TFDS takes seconds.
    """
    package = importlib.metadata.distribution("tensorflow-datasets")
    table = Path(str(package.locate_file("tensorflow_datasets/url_checksums/mnist.txt")))
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    found = {url: (int(size), checksum) for url, size, checksum, *_ in rows}
    return {name: found[f"{MIRRORS[0]}{file}.gz"] for name, (file, _) in FILES.items()}


def fetch(
    say: Callable[[str], object] = lambda line: None,
    mirrors: Sequence[str] = MIRRORS,
    timeout: float = 5.0,
) -> dict[str, UInt8[np.ndarray, "..."]]:
    """Download MNIST's four files, 11.6 MB, and return their arrays by name.

    Nothing is written, and nothing is returned before all four have matched their checksums.

    Args:
        say: called with a line before each mirror is asked.
        mirrors: addresses of directories, with a slash at the end; each is asked if those before
            it failed.
        timeout: seconds without any data after which a mirror is given up.

    Raises:
        DataNotFoundError: no mirror can be reached and sends MNIST's files.
    """
    reasons = {}
    for mirror in mirrors:
        say(f"Downloading MNIST (11.6 MB) from {urlsplit(mirror).netloc}")
        try:
            arrays = {}
            for name, (size, checksum) in registered().items():
                file, shape = FILES[name]
                content = _fetch(f"{mirror}{file}.gz", size, checksum, timeout)
                arrays[name] = parse_idx(content, file, shape)
            return arrays
        except Exception as error:  # requests, urllib3, ssl and socket: each has its own
            reasons[str(error) if isinstance(error, DataError) else type(error).__name__] = 1
    advice = "name a directory that has it with --data-dir or JAXMNIST_DATA_DIR"
    raise DataNotFoundError(f"MNIST cannot be downloaded ({', '.join(reasons)}); {advice}")


def _fetch(url: str, size: int, checksum: str, timeout: float) -> bytes:
    import requests

    response: Future[Any] = Future()

    def ask() -> None:
        try:
            # Some of a host's addresses may not answer (IPv6 where there is none).
            response.set_result(requests.get(url, stream=True, timeout=(timeout / 3, timeout)))
        except Exception as error:
            response.set_exception(error)

    # The lookup of a host's name obeys neither a timeout nor Ctrl-C: a thread that hangs in it is
    # left behind.
    threading.Thread(target=ask, daemon=True).start()
    with response.result(timeout) as answer:
        if answer.status_code != 200:
            raise DataError(f"HTTP status {answer.status_code}")
        content: bytes = answer.raw.read(size + 1)  # as it is sent: gzipped
    if hashlib.sha256(content).hexdigest() != checksum:
        raise DataError("wrong checksum: incomplete, or another file")
    return content
