"""How long a whole program takes, how much memory it needs, and on which machine.

Run as a program this file is the launcher of `measure`, so it imports nothing that is not light.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

# What a program may need to find its files and its GPU. Nothing else reaches it: no number of
# threads, no flags of XLA, JAX or PyTorch.
KEPT = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


class Run(NamedTuple):
    """One run of a program, from its start to the end of its process."""

    seconds: float
    peak_bytes: int  # of resident memory
    code: int
    stdout: str
    stderr: str


def clean_environment(**more: str) -> dict[str, str]:
    """The environment in which every program runs."""
    return {name: os.environ[name] for name in KEPT if name in os.environ} | more


def measure(command: Sequence[str], environment: Mapping[str, str], timeout: int = 1200) -> Run:
    """Run a program; killed after `timeout` seconds.

    A small process of its own starts it and takes its figures: Linux counts the peak memory of the
    process that forks into that of its child, and ours is not small.
    """
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory, "result")
        launcher = [sys.executable, "-I", "-S", __file__, str(result), str(timeout)]
        with subprocess.Popen(
            [*launcher, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                stdout, stderr = process.communicate()
            except BaseException:
                process.terminate()  # the launcher ends its child
                raise
        if not result.exists():
            return Run(0.0, 0, process.returncode, stdout, stderr)
        seconds, peak, code = json.loads(result.read_text())
        return Run(seconds, peak, code, stdout, stderr)


def launch(result: str, timeout: str, *command: str) -> None:
    """Run a program and write its seconds, peak memory in bytes and exit code to a file."""
    start = time.perf_counter()
    child = subprocess.Popen(command)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, lambda *_: child.kill())
    signal.alarm(int(timeout))
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    Path(result).write_text(json.dumps([seconds, peak, os.waitstatus_to_exitcode(status)]))


def machine() -> dict[str, Any]:
    """What a timing is worth nothing without: processor, cores, versions, how busy it is."""
    try:
        cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        cpu = None
    versions = {}
    for name in ("numpy", "jax", "jaxlib", "flax", "optax", "equinox", "torch"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": cpu[1] if cpu else platform.processor() or platform.machine(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": versions,
        "load_average": os.getloadavg()[0],
    }


if __name__ == "__main__":
    launch(*sys.argv[1:])
