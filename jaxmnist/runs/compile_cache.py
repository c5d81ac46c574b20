"""Compiled programs in the user's cache directory, so that the next run need not compile them.

It is JAX's own persistent compilation cache. We check it ourselves since JAX runs what it reads
there: the directory must be the user's alone, there is one for each kind of processor, and an entry
is used only while the checksum beside it, written when the entry was new, still matches. So a
damaged or foreign entry is compiled again.
"""

import contextlib
import hashlib
import os
import platform
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

from jaxmnist.files import open_regular

KEPT = 200  # programs, the newest; a run has about six, and each start checks them all


@contextlib.contextmanager
def compile_cache(directory: Path) -> Iterator[None]:
    """Within it JAX caches compiled programs below `directory`, if that is safe and possible."""
    import jax

    place = _private_directory(directory / f"programs-{_processor()}")
    if place is None:
        yield
        return
    for entry in place.glob("*-cache"):
        if not _matches(entry):
            _remove(entry)
    # An entry that another process is writing or removing is compiled here too.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        entries = sorted(place.glob("*-cache"), key=_written)
        for entry in entries[:-KEPT]:
            _remove(entry)
        for entry in entries[-KEPT:]:
            with contextlib.suppress(OSError):  # the cache is a convenience
                if not _checksum_file(entry).exists():
                    with open_regular(_checksum_file(entry), "xb") as file:
                        file.write(_checksum(entry).encode())


def _private_directory(place: Path) -> Path | None:
    """The directory's real path, created if missing; None where another user could change it.

    Whoever owns a directory on the way could put another one in its place after the check, so each
    up to the root must be ours or root's, and no other user may write to it, but for directories
    like /tmp, where nobody can rename the files of others.
    """
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        place = place.resolve(strict=True)
        if not hasattr(os, "getuid"):
            return place if os.access(place, os.W_OK) else None
        for path in (place, *place.parents):
            status = path.stat()
            owned = status.st_uid in (os.getuid(), 0)
            shared = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
            if not owned or shared:
                return None
        status = place.stat()
    except (OSError, RuntimeError):  # RuntimeError: a circle of links, before Python 3.13
        return None
    private = status.st_uid == os.getuid() and not status.st_mode & 0o022
    return place if private and os.access(place, os.W_OK) else None


def _processor() -> str:
    """A name for this kind of processor: programs compiled for another may not run."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return hashlib.sha256(line.encode()).hexdigest()[:16]
    return f"{platform.machine()}-{platform.processor()}".replace(" ", "-")


def _written(entry: Path) -> float:
    with contextlib.suppress(OSError):
        return entry.stat().st_mtime
    return 0.0  # another process has just removed it


def _remove(entry: Path) -> None:
    for path in (entry, _checksum_file(entry)):  # no two compilations give the same bytes, so both
        with contextlib.suppress(OSError):
            path.unlink()


def _matches(entry: Path) -> bool:
    try:
        with open_regular(_checksum_file(entry)) as file:
            return file.read(100).decode() == _checksum(entry)
    except (OSError, ValueError):
        return False


def _checksum_file(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.sha256")


def _checksum(entry: Path) -> str:
    with open_regular(entry) as file:
        return hashlib.sha256(entry.name.encode() + file.read()).hexdigest()
