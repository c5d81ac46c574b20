"""MNIST's four files from the network, verified against tensorflow-datasets' own checksums."""

import hashlib
import importlib.util
import queue
import sys
import threading
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from jaxmnist.datasets import idx
from jaxmnist.errors import DataError, DataNotFoundError

# The address from which TFDS takes MNIST, and under which its checksums are registered.
MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
FILES = tuple(f"{name}.gz" for name, _ in idx.FILES.values())
_CHUNK_BYTES = 65_536


def registered() -> dict[str, tuple[int, str]]:
    """The size in bytes and the sha256 of each file, as TFDS registers them.

    Read from TFDS's own table, a text file, since importing TFDS takes seconds.
    """
    spec = importlib.util.find_spec("tensorflow_datasets")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        table = Path(folder, "url_checksums", "mnist.txt")
        rows = (
            [line.split("\t") for line in table.read_text().splitlines()] if table.exists() else []
        )
        found = {row[0]: (int(row[1]), row[2]) for row in rows if len(row) >= 3}
        if all(MNIST_URL + name in found for name in FILES):
            return {name: found[MNIST_URL + name] for name in FILES}
    raise DataNotFoundError(
        "this version of tensorflow-datasets has no checksums to verify MNIST's files with; "
        "install tensorflow-datasets 4.9.10"
    )


def fetch(
    base_url: str = MNIST_URL, *, progress: bool = False, timeout: float = 10.0
) -> dict[str, bytes]:
    """Download MNIST's four files, 11.6 MB, and return their bytes by name.

    Nothing is written, and nothing is returned before all four have matched their checksums.

    Args:
        base_url: the address of the server's directory, with a slash at the end.
        progress: show a progress bar on standard error.
        timeout: seconds without any data after which the download fails.

    Raises:
        DataNotFoundError: the server cannot be reached, lacks a file or stops sending.
        DataError: a file is not MNIST's.
    """
    from tqdm import tqdm

    expected = registered()
    total, files = sum(size for size, _ in expected.values()), {}
    shown = progress and sys.stderr is not None
    with tqdm(total=total, unit="B", unit_scale=True, disable=not shown) as bar:
        for name, (size, checksum) in expected.items():
            content = bytearray()
            with closing(_receive(base_url + name, timeout)) as chunks:
                for chunk in chunks:
                    content += chunk
                    bar.update(len(chunk))
                    if len(content) > size:
                        break
            if hashlib.sha256(content).hexdigest() != checksum:
                raise DataError(
                    f"{base_url + name}: wrong checksum, not MNIST's file; try again or elsewhere"
                )
            files[name] = bytes(content)
    return files


def _receive(url: str, timeout: float) -> Generator[bytes]:
    """The body of `url`, in chunks; DataNotFoundError when none comes for `timeout` seconds.

    It is received in a thread, which is left behind where it hangs: the lookup of a host's name
    obeys neither a timeout nor Ctrl-C.
    """
    import requests

    # `_next` decides when the download fails. A host may have several addresses that do not answer
    # (IPv6 where there is none), so connecting to one must fail before that; reading ends after it.
    timeouts = (timeout / 3, 2 * timeout)
    chunks: queue.Queue[bytes | Exception] = queue.Queue()
    abandoned = threading.Event()

    def receive() -> None:
        try:
            with requests.get(
                url, stream=True, timeout=timeouts, headers={"Accept-Encoding": "identity"}
            ) as response:
                if response.status_code != 200:
                    raise _StatusError(f"HTTP status {response.status_code}")
                # As it is sent: these files are gzipped and are to stay so.
                for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=False):
                    if abandoned.is_set():
                        return
                    chunks.put(chunk)
            chunks.put(b"")
        except Exception as error:  # requests, urllib3, ssl and socket: each has its own
            chunks.put(error)

    threading.Thread(target=receive, daemon=True).start()
    try:
        while chunk := _next(chunks, url, timeout):
            yield chunk
    finally:
        abandoned.set()


class _StatusError(Exception):
    """The server's answer is no file."""


def _next(chunks: queue.Queue[bytes | Exception], url: str, timeout: float) -> bytes:
    try:
        chunk = chunks.get(timeout=timeout)
    except queue.Empty:
        raise _not_downloaded(url, f"nothing arrived for {timeout:g} s") from None
    if isinstance(chunk, Exception):
        raise _not_downloaded(url, _reason(chunk)) from chunk
    return chunk


def _reason(error: Exception) -> str:
    import requests
    import urllib3

    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
        return "nothing arrived in time"
    return str(error) if isinstance(error, _StatusError) else type(error).__name__


def _not_downloaded(url: str, reason: str) -> DataNotFoundError:
    return DataNotFoundError(f"{url}: {reason}; check the network and the proxy settings")
