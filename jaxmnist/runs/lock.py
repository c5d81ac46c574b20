"""One process a directory, as far as the file system knows locks."""

import contextlib
import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from jaxmnist.errors import CheckpointError
from jaxmnist.files import open_regular, stale_files
from jaxmnist.runs.checkpoint import make_directory

# What a file system says that has no locks, or broken ones; 524 is Linux's own ENOTSUPP, of NFS.
NO_LOCKS = {errno.ENOLCK, errno.EBADF, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
NO_LOCKS |= {errno.EINVAL, errno.EIO, 524}


@contextlib.contextmanager
def lock(directory: str | os.PathLike[str]) -> Iterator[str | None]:
    """Within it no other process has this directory's lock; the directory is created if missing.

    The operating system takes the lock from a process that is killed. Temporary files that killed
    ones have left are removed. Gives a line of warning where the file system has no locks.

    Raises:
        CheckpointError: another process has it, or the directory cannot be written to.
    """
    import filelock

    directory = Path(directory)
    make_directory(directory)
    owner = directory / ".lock.pid"  # not in the lock itself, which filelock empties
    held, note = filelock.FileLock(directory / ".lock", timeout=0), None
    try:
        with warnings.catch_warnings():  # of its own substitute for a missing lock, which holds
            warnings.simplefilter("ignore")
            held.acquire()
    except filelock.Timeout as error:
        raise CheckpointError(
            f"another process is training into {directory} (pid {_read(owner)}); "
            "wait for it, or name another directory"
        ) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise CheckpointError(f"{directory}: cannot be locked: {reason}") from error
        note = (
            f"{directory} cannot be locked ({reason}): "
            "make sure that no other process trains into it"
        )
    try:
        with contextlib.suppress(OSError):
            for path in stale_files(directory):
                path.unlink()
        _write(owner)
        yield note
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        if note is None:
            held.release()


def _read(owner: Path) -> str:
    with contextlib.suppress(OSError, ValueError), open_regular(owner) as file:
        return str(int(file.read(20)))
    return "unknown"


def _write(owner: Path) -> None:
    with contextlib.suppress(OSError):  # it only names the process to others
        owner.unlink(missing_ok=True)
        with open_regular(owner, "xb") as file:
            file.write(str(os.getpid()).encode())
