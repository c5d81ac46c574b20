"""What this process may use of its machine: CPU cores and memory, a container's limits included."""

import contextlib
import math
import os
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
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quotas = [_quota(directory) for directory in _cgroups("cpu")]
    return max(1, math.ceil(min([cores, *quotas])))


def use_cpu_cores() -> None:
    """Let JAX take the CPU for one device a core, where JAX_NUM_CPU_DEVICES is not set.

    It comes too late, and changes nothing, in a process that has used JAX.
    """
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", cpu_cores())


def free_memory(devices: Sequence[jax.Device]) -> int | None:
    """Bytes that each of the devices has left, the smallest of them; None if unknown.

    CPU devices share what Linux calls available, or the container's limit if that is less.
    """
    if devices[0].platform != "cpu":
        stats = [device.memory_stats() for device in devices]
        return min(s["bytes_limit"] - s["bytes_in_use"] for s in stats) if all(stats) else None
    found = []
    with contextlib.suppress(OSError):
        lines = (PROC / "meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    for directory in _cgroups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):  # of cgroup versions 2 and 1
            with contextlib.suppress(OSError, ValueError):  # where there is no limit it reads "max"
                found.append(int((directory / name).read_text()))
    return min(found) // len(devices) if found else None


def check_memory(needed: int, device: jax.Device, what: str) -> None:
    """Raise a JaxmnistError where the device has not this many bytes left."""
    free = free_memory([device])
    if free is not None and needed > free:
        raise JaxmnistError(
            f"{what} needs {needed / 1e9:,.1f} GB of memory, and there are {free / 1e9:,.1f} GB "
            "free; make --hidden or --batch-size smaller"
        )


def _quota(cgroup: Path) -> float:
    """CPU cores that the group may use, infinite without a limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()  # cgroup version 2
        return int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = (
            (cgroup / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
        )
        return int(quota) / int(period) if int(quota) > 0 else math.inf  # -1: no limit
    return math.inf


def _cgroups(controller: str) -> Iterator[Path]:
    """The directories of the groups that this process is in, and of all groups around them.

    Every group limits what is in it (https://docs.kernel.org/admin-guide/cgroup-v2.html).
    """
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = CGROUPS / controller if names else CGROUPS  # version 1, version 2
        group = root / path.lstrip("/")
        # A container often sees its own group as the root, and this path not at all.
        yield from (d for d in (group, *group.parents) if d.is_relative_to(root) and d.is_dir())
