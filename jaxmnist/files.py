"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# Errors of file systems that cannot flush (network shares, FUSE, some containers), and of a
# directory that may be written but not read.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.ENOTTY, errno.EACCES}


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """A new file to write to, which takes the place of `path` when the block ends.

    It is written next to its place and moved there in one step, so that no reader ever sees half
    of it. After an error `path` is as it was; a process that is killed in the block leaves a file
    `NAME.????????.tmp` behind.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "result")
    >>> with atomic_write(path) as file:
    ...     _ = file.write(b"whole")
    >>> path.read_bytes()
    b'whole'

    Args:
        path: where the file is to be, in a directory that exists.
        durable: wait until it is on the disk, so that it also outlives a power cut.

    Raises:
        OSError: it cannot be written. The message is one line that begins with the path.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    with naming(path):
        try:
            with temporary.open("xb") as file:
                yield file
            if durable:
                _flush(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if durable:
            _flush(path.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of the block becomes one line that begins with the path."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot be written: {error.strerror or error}") from error


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    try:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
