"""Watches for broken releases of what we stand on, and that importing us changes nothing."""

import subprocess
import sys

import jax
import numpy as np
import pytest

IMPORTS = """
import jax, flax.linen, optax, sys
before = dict(jax.config.values)
import importlib, pkgutil, jaxmnist
heavy = {"tensorflow_datasets", "tensorflow", "torch", "matplotlib", "PIL", "requests", "onnx"}
heavy |= {"optuna", "tensorboardX", "scipy.ndimage", "jinja2"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
for module in pkgutil.walk_packages(jaxmnist.__path__, "jaxmnist."):
    importlib.import_module(module.name)
large = {"tensorflow_datasets", "tensorflow", "torch", "matplotlib", "onnx"}
assert not large & set(sys.modules), large & set(sys.modules)
assert dict(jax.config.values) == before
jax.config.update("jax_num_cpu_devices", 3)  # refused once a backend has started
assert len(jax.devices("cpu")) == 3
"""


def test_this_jaxlib_multiplies_correctly():
    """jaxlib 0.10.2 gives wrong sums for a vmapped matmul over 32,769 rows (jax issue 39103)."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(4, 4)).astype(np.float32)
    rows = rng.normal(size=(32_769, 4)).astype(np.float32)
    got = jax.jit(jax.vmap(lambda row: ((matrix @ row) ** 2).sum()))(rows)
    expected = ((rows.astype(np.float64) @ matrix.T.astype(np.float64)) ** 2).sum(axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.slow
def test_importing_starts_no_backend_sets_no_flag_and_waits_for_no_large_package():
    """Neither TFDS nor plots nor PyTorch is imported before something needs it."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
