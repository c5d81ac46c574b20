"""Compiled programs are kept, and what is kept can neither break nor change a run; devices."""

import os
import shutil
import sys

import jax
import pytest

from jaxmnist.errors import JaxmnistError
from jaxmnist.runs import programs
from tests.helpers import ROOT, finish

# Two programs, one after the other; prints their results.
COMPILE = """
import jax, jax.numpy as jnp
from jaxmnist.runs.programs import compile_cache
with compile_cache():
    print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.arange(3.0)), jax.jit(jnp.cumsum)(jnp.arange(3)))
"""


@pytest.fixture(scope="module")
def compute(tmp_path_factory):
    """Runs the programs in a process of their own, all with one cache: what it printed."""
    cache = tmp_path_factory.mktemp("cache")
    names = {"JAXMNIST_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}

    def run() -> str:
        return finish([sys.executable, "-c", COMPILE], env=os.environ | names)

    run.entries = lambda: sorted(cache.glob("programs-*/*-cache"))
    run.stamps = lambda: [path.stat().st_mtime_ns for path in run.entries()]
    return run


@pytest.mark.slow
def test_damaged_foreign_and_unknown_entries_are_compiled_again(compute):
    printed, entries = compute(), compute.entries()
    assert len(entries) >= 2
    before = compute.stamps()
    assert (compute(), compute.stamps()) == (printed, before)  # they are used
    content = entries[0].read_bytes()
    entries[0].write_bytes(content[:-7] + b"damaged")
    shutil.copy(entries[2], entries[1])  # a whole program, with the name of another
    entries[2].with_name(f"{entries[2].name}.sha256").unlink()
    assert compute() == printed
    assert compute.entries() == entries
    assert all(new > old for new, old in zip(compute.stamps()[:3], before, strict=False))
    before = compute.stamps()
    assert (compute(), compute.stamps()) == (printed, before)  # and whole again


def test_a_cache_that_cannot_be_made_is_none(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXMNIST_CACHE_DIR", str(tmp_path / "file"))
    with programs.compile_cache():
        assert jax.jit(lambda x: x + 7)(1) == 8
    assert jax.config.jax_compilation_cache_dir is None


def test_many_programs_are_not_kept_for_ever(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMNIST_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(programs, "_MOST", 1)
    for k in range(3):
        with programs.compile_cache():
            jax.jit(lambda x, k=k: x * k - 1)(1.0).block_until_ready()
        assert len(list(tmp_path.glob("programs-*/*-cache"))) < 6


@pytest.mark.slow
def test_a_device_that_is_not_there():
    with pytest.raises(JaxmnistError, match=r"no device for --device tpu: .*the extras cu"):
        programs.find_device("tpu")
    code = "from jaxmnist.runs.programs import find_device; print(find_device({!r}))"
    environment = os.environ | {"JAX_PLATFORMS": "gpu", "PYTHONPATH": str(ROOT)}
    with pytest.raises(RuntimeError, match=r"no device for --device auto: .*JAX_PLATFORMS"):
        finish([sys.executable, "-c", code.format("auto")], env=environment)
    assert "cpu:0" in finish([sys.executable, "-c", code.format("cpu")], env=environment)


def test_a_single_device_is_no_mesh():
    (cpu,) = jax.devices("cpu")[:1]
    assert programs.find_mesh(cpu, 1) is programs.find_mesh(cpu, "all") is None
