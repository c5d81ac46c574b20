"""What a process may use: the host's cores and memory, or what its container lets it."""

from unittest.mock import Mock

import jax
import pytest

from jaxmnist.runs import machine
from jaxmnist.runs.machine import cpu_cores, free_memory


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A machine of 16 cores and 8 GB; call it with the groups this process is in, and files."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)), raising=False)

    def make(groups, files):
        files = {"proc/self/cgroup": groups, "proc/meminfo": "MemAvailable: 8000000 kB\n", **files}
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    return make


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {}, 16),
        ("0::/\n", {"cgroup/cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cgroup/cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cgroup/cpu.max": "10000 100000\n"}, 1),
        ("0::/a/b\n", {"cgroup/a/cpu.max": "300000 100000", "cgroup/a/b/cpu.max": "max 100000"}, 3),
        ("0::/not/seen\n", {"cgroup/cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cgroup/cpu.max": "garbage"}, 16),
        (
            "4:memory:/x\n3:cpu,cpuacct:/x\n",
            {"cgroup/cpu/x/cpu.cfs_quota_us": "400000", "cgroup/cpu/x/cpu.cfs_period_us": "100000"},
            4,
        ),
        (
            "3:cpu:/\n",
            {"cgroup/cpu/cpu.cfs_quota_us": "-1\n", "cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            16,
        ),
    ],
)
def test_cpu_quotas_count(container, groups, files, cores):
    container(groups, files)
    assert cpu_cores() == cores


@pytest.mark.parametrize(
    ("groups", "files", "memory"),
    [
        ("0::/\n", {"cgroup/memory.max": "max\n"}, 8_192_000_000),
        ("0::/\n", {"cgroup/memory.max": "1000000000\n"}, 10**9),
        ("4:memory:/x\n", {"cgroup/memory/x/memory.limit_in_bytes": "2000000000"}, 2 * 10**9),
    ],
)
def test_memory_limits_count(container, groups, files, memory):
    container(groups, files)
    (cpu,) = jax.devices("cpu")[:1]
    assert free_memory([cpu]) == memory
    assert free_memory([cpu] * 4) == memory // 4


def test_of_this_machine():
    (cpu,) = jax.devices("cpu")[:1]
    assert 2**20 < free_memory([cpu] * 4) <= free_memory([cpu]) // 2 < 2**50
    assert 1 <= cpu_cores() < 10_000


def test_memory_of_accelerators():
    stats = [{"bytes_limit": 100, "bytes_in_use": 30}, {"bytes_limit": 100, "bytes_in_use": 40}]
    gpus = [Mock(spec=jax.Device, platform="gpu", memory_stats=Mock(return_value=s)) for s in stats]
    assert free_memory(gpus) == 60
    assert free_memory([Mock(spec=jax.Device, platform="tpu", memory_stats=dict)]) is None
