"""How long a whole program takes and how much memory it needs; where the time of one goes.

Run as a program this file is the launcher of `measure`, so it imports nothing that is not light.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

# What a program may need to find its files and its GPU. Nothing else reaches it: no number of
# threads, no flags of XLA, JAX or PyTorch.
KEPT = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
# Those whose imports are told in any case; others only if they take more than LARGE seconds.
PACKAGES = ("jax", "flax", "optax", "numpy", "jaxmnist")
LARGE = 0.05


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


def spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Smallest, median and largest value, and all of them; None if there are none."""
    if not values:
        return None
    median = statistics.median(values)
    return {"min": min(values), "median": median, "max": max(values), "runs": list(values)}


def training_flops(sizes: Sequence[int], images: int) -> int:
    """Floating-point operations of the matmuls that train an MLP on so many images.

    Each layer has two, its outputs and the gradient of its weights, and each but the first a third,
    the gradient of its inputs; a product of [m, k] and [k, n] is m*k*n multiplications and as many
    additions.
    """
    products = [inputs * outputs for inputs, outputs in pairwise(sizes)]
    return 2 * images * (3 * sum(products) - products[0])


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


def profile(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, float]:
    """Run scripts/train.py and tell its seconds by what they were spent on; "whole" is all.

    Python's own report of imports, JAX's log of compilations and the script's closing line, read
    as they appear. What they leave is "rest"; steps that overlap make it smaller, or negative.

    Raises:
        RuntimeError: the script failed or did not report; the message is its last line.
    """
    environment = {**environment, "JAX_LOG_COMPILES": "1", "PYTHONUNBUFFERED": "1"}
    start = ended = time.perf_counter()
    imports: dict[str, float] = {}
    laps: dict[str, float] = {}
    compiled: list[tuple[float, float]] = []
    traced: list[tuple[float, float]] = []
    line = ""
    with subprocess.Popen(
        [command[0], "-X", "importtime", *command[1:]],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            now = time.perf_counter()
            if found := re.match(r"import time: +(\d+) \| +\d+ \| +([^.\s]+)", line):
                package = "jax" if found[2] == "jaxlib" else found[2]
                imports[package] = imports.get(package, 0.0) + int(found[1]) / 1e6
            elif found := re.search(r"Finished (.*) in ([\d.e-]+) sec", line):
                spans = compiled if found[1].startswith("XLA compilation") else traced
                spans.append((now - float(found[2]), now))
            elif line.strip() and not line.startswith("import time:"):
                laps = laps or read_laps(line)
                ended = now
    whole = time.perf_counter() - start
    if process.returncode or not laps:
        raise RuntimeError(line.strip() or f"exit code {process.returncode}")
    compiling = covered(compiled)
    tracing = covered(compiled + traced) - compiling
    laps.setdefault("init", laps.pop("compile", 0.0) - compiling - tracing)
    seconds = {f"import {name}": imports.pop(name, 0.0) for name in PACKAGES}
    seconds |= {f"import {name}": s for name, s in imports.items() if s > LARGE}
    seconds["import other"] = sum(s for s in imports.values() if s <= LARGE)
    seconds |= {"load": laps.pop("load", 0.0), "init": laps.pop("init"), "trace": tracing}
    seconds |= {"compile": compiling, **laps, "exit": start + whole - ended}
    return {**seconds, "rest": whole - sum(seconds.values()), "whole": whole}


def read_laps(text: str) -> dict[str, float]:
    """What scripts/train.py says of its time in the line such as `load 0.09 s, compile 2.04 s`."""
    line = next((line for line in text.splitlines() if re.match(r" +\w+ [\d.]+ s(, |$)", line)), "")
    return {name: float(seconds) for name, seconds in re.findall(r"(\w+) ([\d.]+) s", line)}


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The seconds that are in at least one of the spans, which may be nested."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


if __name__ == "__main__":
    launch(*sys.argv[1:])
