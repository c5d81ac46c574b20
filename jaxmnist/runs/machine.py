"""The CPU cores and the memory that this process may use, a container's limits included."""

import contextlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from jaxmnist.errors import JaxmnistError

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def cpu_cores() -> int:
    """CPU cores that this process may use: its affinity, or its CPU quota if that is less.

    A quota of one and a half cores counts as two, since a single core could not use it up.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = [len(affinity(0)) if affinity else os.cpu_count() or 1]
    for group in _cgroups():
        with contextlib.suppress(ValueError):  # without a limit it reads "max 100000"
            quota, period = map(int, _read(group / "cpu.max").split())
            cores.append(math.ceil(quota / period))
    return min(cores)


def use_cpu_cores() -> None:
    """Let JAX take the CPU for one device a core, where JAX_NUM_CPU_DEVICES is not set.

    It comes too late, and changes nothing, in a process that has used JAX.
    """
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", cpu_cores())


def free_memory(devices: Sequence[jax.Device]) -> int | None:
    """Free bytes on the fullest of the devices; None if unknown.

    CPU devices share what Linux calls available, or what a container's limit leaves.
    """
    if devices[0].platform != "cpu":
        stats = [device.memory_stats() for device in devices]
        return min(s["bytes_limit"] - s["bytes_in_use"] for s in stats) if all(stats) else None
    lines = _read(PROC / "meminfo").splitlines()
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    for group in _cgroups():
        with contextlib.suppress(ValueError):  # without a limit it reads "max"
            free = int(_read(group / "memory.max")) - int(_read(group / "memory.current") or 0)
            # What was read from files and can be dropped counts as used.
            cache = re.search(r"^inactive_file (\d+)", _read(group / "memory.stat"), re.M)
            found.append(max(0, free + (int(cache[1]) if cache else 0)))
    return min(found) // len(devices) if found else None


def check_memory(needed: int, device: jax.Device, what: str) -> None:
    """Raise a JaxmnistError where the device has not this many bytes left."""
    free = free_memory([device])
    if free is not None and needed > free:
        told = f"{what} needs {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free"
        raise JaxmnistError(f"{told}; make --hidden or --batch-size smaller")


def _read(path: Path) -> str:
    """The text of a file; "" where it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _cgroups() -> Iterator[Path]:
    """The directories of the control group that this process is in, and of all groups around it.

    Every group limits what is in it (https://docs.kernel.org/admin-guide/cgroup-v2.html).
    """
    for line in _read(PROC / "self/cgroup").splitlines():
        if line.startswith("0::/"):  # version 2
            group = CGROUPS / line[4:]
            # A container often sees its own group as the root, and this path not at all.
            yield from (d for d in (group, *group.parents) if d.is_relative_to(CGROUPS))
