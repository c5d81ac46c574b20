"""Set each flag that JAX lists, in the environment, and train.

The run must be the usual one to the bit, end in one line, or be another run by its identity.
"""

from __future__ import annotations

import enum
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import tqdm
import tyro

from jaxmnist.runs import identity
from tests.helpers import TRAIN
from tests.stress.every_script import QUICK, environment, prepare

PATIENCE = 300  # seconds
# What is tried where the type of a flag does not tell it.
VALUES = {
    "jax_platforms": "cuda",
    "jax_pjrt_client_create_options": "nonsense:1",
    "jax_persistent_cache_enable_xla_caches": "all",
    "jax_hlo_source_file_canonicalization_regex": "/.*/",
    "jax_source_url_schema": "https://example.com/{file}#{line}",
    "jax_compilation_cache_dir": "compiled",
    "jax_default_device": "cpu:0",
    "jax_debug_log_modules": "jax",
    "jax_default_matmul_precision": "bfloat16",
    "jax_transfer_guard": "disallow",
    "jax_transfer_guard_host_to_device": "disallow",
    "jax_transfer_guard_device_to_host": "disallow",
    "jax_transfer_guard_device_to_device": "disallow",
    "jax_optimization_level": "O1",
    "jax_memory_fitting_level": "O1",
    "jax_num_cpu_devices": "2",
    "jax_dump_ir_to": "dump",
    "jax_dump_ir_modes": "jaxpr",
    "jax_xla_backend": "nonsense",
    "jax_backend_target": "nonsense",
    "jax_platform_name": "gpu",
    "jax_cuda_visible_devices": "0",
    "jax_rocm_visible_devices": "0",
    "jax_oneapi_visible_devices": "0",
    "jax_mock_gpu_topology": "1x1x1",
    "jax_cross_host_transfer_socket_address": "127.0.0.1:1",
    "jax_cross_host_transport_addresses": "127.0.0.1:1",
}


def main(flags: tuple[str, ...] = tuple(jax.config.values), jobs: int = 2) -> None:
    """Train with each flag of JAX set to another value.

    Prints a Markdown table. A run takes about three seconds on two CPU cores.

    Args:
        flags: names of flags, as `jax.config` has them.
        jobs: how many runs at once.
    """
    with (
        tempfile.TemporaryDirectory(prefix="jaxmnist-flags-") as name,
        ThreadPoolExecutor(jobs) as pool,
    ):
        root = Path(name)
        prepare(root)

        def work(flag: str) -> str:
            row = f"| {flag} | {other_value(flag)} | {attempt(flag, root)} |"
            tqdm.tqdm.write(row, file=sys.stderr)
            return row

        rows = list(pool.map(work, flags))
    print("\n".join(["| flag | value | the run |", "| --- | --- | --- |", *rows]))
    if bad := sum("| FAILED" in row for row in rows):
        sys.exit(f"error: {bad} of {len(flags)} flags gave another run under the usual identity")


def other_value(flag: str) -> str | None:
    """A value that is not the default, as a variable holds it; None where none is known."""
    default, (kind, _, options) = jax.config.values[flag], jax.config.meta[flag]
    if flag in VALUES:
        return VALUES[flag]
    if kind is bool:
        return str(not default)
    if kind in (int, float):
        return str((default or 0) + 1)
    if isinstance(default, enum.Enum):
        return next(str(x.value) for x in reversed(type(default)) if x is not default)
    choices = options.get("enum_values", ())
    return next((choice for choice in reversed(choices) if choice != default), None)


def attempt(flag: str, root: Path) -> str:
    """Train with the flag: "equal", "one line: ...", "another run: ..." or "FAILED: ..."."""
    value, place = other_value(flag), root / flag
    if value is None:
        return "FAILED: no value to try is known; add one to VALUES"
    place.mkdir()
    command = [sys.executable, str(TRAIN), *QUICK.split(), "--out", "run", "--no-compile-cache"]
    try:
        done = subprocess.run(
            command,
            cwd=place,
            env=os.environ | environment(root) | {flag.upper(): value},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return f"FAILED: not done after {PATIENCE} s"
    lines = done.stderr.splitlines()
    if done.returncode in (1, 2) and len(lines) == 1 and "error: " in lines[0]:
        return "one line: " + re.sub(r"\s+", " ", lines[0]).replace("|", r"\|")
    if done.returncode:
        return f"FAILED: code {done.returncode}, {done.stderr[-1000:]!r}"
    usual, here = (directory / "run" for directory in (root, place))
    if _weights(usual) == _weights(here):
        return "equal"
    phrases = identity.differences(_config(usual), _config(here))
    return f"another run: {'; '.join(phrases)}" if phrases else "FAILED: another result"


def _weights(run: Path) -> bytes:
    return (run / "weights.safetensors").read_bytes()


def _config(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())


if __name__ == "__main__":
    tyro.cli(main)
