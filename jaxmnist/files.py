"""Files that appear whole or not at all, whatever happens to the process that writes them."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


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
