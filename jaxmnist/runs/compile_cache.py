"""Compiled programs kept in the user's cache directory, so that the next run need not compile.

It is JAX's own persistent cache. What JAX reads there it runs, so the directory must be the user's
alone and is one for each kind of processor, and an entry is kept only while a checksum beside it,
written when the entry was new, still holds: a damaged or foreign one is compiled again.
"""

import contextlib
import hashlib
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

KEPT = 200  # programs, the newest; a run has about six, and each start checks them all


@contextlib.contextmanager
def compile_cache(directory: Path) -> Iterator[None]:
    """Within it JAX keeps its compiled programs below `directory`, if that is safe and can be."""
    import jax

    place = directory / f"programs-{_processor()}"
    if not _is_ours(place):
        yield
        return
    for entry in place.glob("*-cache"):
        if not _is_sealed(entry):
            _remove(entry)
    # One that another process is just writing or removing is compiled here too, without ado.
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
                if not _seal(entry).exists():
                    _seal(entry).write_text(_digest(entry))


def _is_ours(place: Path) -> bool:
    """Whether only this user can write there."""
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = place.stat()
    except OSError:
        return False
    mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return mine and not status.st_mode & 0o022 and os.access(place, os.W_OK)


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
    for path in (entry, _seal(entry)):  # no two compilations give the same bytes, so both
        with contextlib.suppress(OSError):
            path.unlink()


def _is_sealed(entry: Path) -> bool:
    try:
        return _seal(entry).read_text() == _digest(entry)
    except (OSError, ValueError):
        return False


def _seal(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.sha256")


def _digest(entry: Path) -> str:
    return hashlib.sha256(entry.name.encode() + entry.read_bytes()).hexdigest()
