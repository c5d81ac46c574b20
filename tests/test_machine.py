"""What a process may use: the host's cores and memory, or what its container leaves it."""

from unittest.mock import Mock

import jax
import pytest

from jaxmnist.runs import machine

USED = {"memory.max": "3000000000", "memory.current": "2900000000"}
LIMITS = {  # the groups that a process is in, their files, and the cores and megabytes that it has
    "none": ("0::/", {"cpu.max": "max 100000", "memory.max": "max"}, 16, 8000),
    "version 2": ("0::/", {"cpu.max": "150000 100000", "memory.max": "1000000000"}, 2, 1000),
    "around": ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 1"}, 3, 8000),
    "not seen": ("0::/no", {"cpu.max": "10000 100000"}, 1, 8000),
    "garbage": ("0::/", {"cpu.max": "x", "memory.max": "x"}, 16, 8000),
    "used": ("0::/", USED, 16, 100),
    "cache": ("0::/", USED | {"memory.stat": "anon 1\ninactive_file 800000000\n"}, 16, 900),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_containers_limits_count(tmp_path, monkeypatch, name):
    groups, files, cores, megabytes = LIMITS[name]
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)), raising=False)
    texts = {"proc/self/cgroup": groups + "\n", "proc/meminfo": "MemAvailable: 7812500 kB\n"}
    for path, text in (texts | {f"cgroup/{path}": text for path, text in files.items()}).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (cpu,) = jax.devices("cpu")[:1]
    assert machine.cpu_cores() == cores
    assert machine.free_memory([cpu]) == megabytes * 10**6
    assert machine.free_memory([cpu] * 4) == megabytes * 10**6 // 4


def test_of_accelerators():
    stats = [{"bytes_limit": 100, "bytes_in_use": 30}, {"bytes_limit": 100, "bytes_in_use": 40}]
    gpus = [Mock(spec=jax.Device, platform="gpu", memory_stats=Mock(return_value=s)) for s in stats]
    assert machine.free_memory(gpus) == 60
    assert machine.free_memory([Mock(spec=jax.Device, platform="tpu", memory_stats=dict)]) is None
