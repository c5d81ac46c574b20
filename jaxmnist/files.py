"""Files that appear whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from jaxmnist.errors import UsageError

MANIFEST = "export.json"  # of a directory: the SHA-256 of every other file in it

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


def stale_files(directory: Path) -> list[Path]:
    """The temporary files of `atomic_write`, of a process that is writing or was killed."""
    return list(directory.glob(f"*.{'[0-9a-f]' * 8}.tmp"))


def open_regular(path: Path, mode: str = "rb") -> BinaryIO:
    """Open a file of our own: one that is a link, a pipe or a device is an OSError.

    Whoever prepared the directory could otherwise have us overwrite another file, or wait forever.
    """

    def opener(name: str, flags: int) -> int:
        # Without O_NONBLOCK opening a pipe would wait for its other end.
        extra = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        number = os.open(name, flags | extra, 0o666)
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise OSError(errno.EINVAL, "is no regular file", name)
        return number

    try:
        return open(path, mode, opener=opener)  # type: ignore[return-value]
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):  # Linux and macOS; FreeBSD
            raise OSError(error.errno, "is a link, and is not followed", str(path)) from None
        raise


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
    raise UsageError(
        f"{option} {path}: already exists and was made by something else; name a new file"
    )


def may_replace(out: Path) -> bool:
    """Whether there is nothing at `out`, or exactly what `write_directory` once wrote there."""
    if not os.path.lexists(out):
        return True
    if out.is_symlink() or not out.is_dir():
        return False
    names = {path.name for path in out.iterdir()}
    if not names:
        return True
    try:
        manifest = json.loads((out / MANIFEST).read_bytes())
        return names == {MANIFEST, *manifest} and all(
            hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
            for name, digest in manifest.items()
        )
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return False


def write_directory(out: Path, contents: Mapping[str, bytes]) -> None:
    """Write these files and their manifest into `out`, which appears complete.

    What already exists is replaced: ask `may_replace` first.
    """
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=out.parent, prefix=f".{out.name[:64]}-", ignore_cleanup_errors=True
    ) as name:
        new = Path(name, "new")
        new.mkdir()  # unlike the directory that it is in, with the permissions that are usual here
        for file, content in contents.items():
            (new / file).write_bytes(content)
        (new / MANIFEST).write_text(json.dumps(digests, indent=1) + "\n")
        if out.exists():
            os.rename(out, Path(name, "old"))
        os.rename(new, out)
