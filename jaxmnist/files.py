"""Files that appear whole or not at all, whatever happens to the process that writes them."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jaxmnist.errors import UsageError


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """A new file to write to, which takes the place of `path` when the block ends.

    It is written beside its place and moved there in one step, so that no reader and no process
    starting at the same moment ever sees half of it. An error in the block, or the OSError that
    writing can raise, leaves `path` as it was; a process killed in the block leaves one of the
    `leftovers` behind.

    Args:
        path: where the file is to be, in a directory that exists.
        durable: wait until it is on the disk, so that it also outlives a power cut.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable and os.name != "nt":  # Windows has no way to do this, and no need
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def leftovers(directory: Path) -> list[Path]:
    """The files in `directory` that `replacing` is writing, or was when its process was killed."""
    return list(directory.glob(f"*.{'[0-9a-f]' * 8}.tmp"))


def check_output(option: str, path: Path, mark: bytes) -> None:
    """Refuse, before any work, a file that cannot be written or that another program made.

    So a command can be run again, and no other file is ever lost. Raises a UsageError.

    Args:
        option: the option that names the file, for the message.
        path: where it is to be.
        mark: what the caller's own files have within 64 kB of their beginning or end.
    """
    directory = path.absolute().parent
    if not (directory.is_dir() and os.access(directory, os.W_OK)):
        raise UsageError(f"{option} {path}: {directory} is no directory that can be written to")
    if not os.path.lexists(path):
        return
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(1 << 16)
            file.seek(max(0, os.path.getsize(path) - (1 << 16)))
            if mark in head or mark in file.read():
                return
    raise UsageError(f"{option} {path}: is there already, made by something else; name a new file")
