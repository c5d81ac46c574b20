"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# What a file system says that cannot flush: network shares, FUSE, some containers.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.ENOTTY}


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
                    file.flush()
                    _flush(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        if durable:
            _flush_directory(path.parent)


@contextlib.contextmanager
def naming(path: Path, what: str = "written") -> Iterator[None]:
    """An OSError of the block becomes one line that begins with the path."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot be {what}: {error.strerror or error}") from error


def _flush(number: int) -> None:
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


def _flush_directory(directory: Path) -> None:
    with contextlib.suppress(PermissionError):  # not to be listed; the file itself is on the disk
        number = os.open(directory, os.O_RDONLY)
        try:
            _flush(number)
        finally:
            os.close(number)
