"""How much memory there is, so that what cannot fit is refused before it is tried."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from jaxmnist.errors import JaxmnistError

if TYPE_CHECKING:
    import jax


def available(device: jax.Device) -> int | None:
    """Bytes that are free for this process on the device; None where that is not known."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0) or None
    limits = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(("MemAvailable:", "SwapFree:")):
                limits.append(int(line.split()[1]) * 1024)
        limits = [sum(limits)] if limits else []
    with contextlib.suppress(OSError, ValueError):  # a container's limit
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        limits.append(int((group / "memory.max").read_text()) - used)
    return min(limits, default=None)


def check(needed: int, device: jax.Device, what: str) -> None:
    """Raise a JaxmnistError where the device has not this many bytes."""
    there = available(device)
    if there is not None and needed > there:
        raise JaxmnistError(
            f"{what} needs {needed / 1e9:,.1f} GB of memory, and there are {there / 1e9:,.1f} GB "
            "free; make --hidden or --batch-size smaller"
        )
