"""What all tests share: a private cache, a user without data, data to test with, scripts to run.

With `JAXMNIST_TESTS=strict` in the environment the types and shapes of every public function are
checked while the tests run, and JAX refuses implicit dtype and rank promotion: a leg of .ci/run.
Without it the tests run what a user runs.
"""

import functools
import gzip
import math
import os
import resource
import signal
import struct
from pathlib import Path

import numpy as np
import pytest

STRICT = os.environ.get("JAXMNIST_TESTS") == "strict"
if STRICT:
    import jaxtyping

    # As for mypy, an int is a float too (PEP 484's numeric tower).
    jaxtyping.install_import_hook(
        "jaxmnist", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
    )
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # as scripts/_cli.py does, which comes too late here

import jax  # noqa: E402

from jaxmnist.data import Dataset  # noqa: E402
from jaxmnist.datasets.mnist import FILES, load_mnist  # noqa: E402
from tests.helpers import run_script, use_few_digits  # noqa: E402

# Not everything here is a test: the others are programs and what is shared.
collect_ignore_glob = ["[!tc]*.py", "stress/*"]

if STRICT:
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """The example of load_mnist needs MNIST, like the tests that ask for `mnist_dir`.

    Those that draw 70,000 digits or compile each operation by itself are slow.
    """
    slow = (".load_data", ".load_synthetic", ".augment", ".handwriting", ".train")
    for item in items:
        if item.name.endswith(slow):
            item.add_marker(pytest.mark.slow)
        if item.name == "jaxmnist.datasets.mnist.load_mnist":
            needs = "JAXMNIST_DATA_DIR" not in os.environ
            item.add_marker(pytest.mark.skipif(needs, reason="JAXMNIST_DATA_DIR names no MNIST"))


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory):
    """The tests share one cache, which is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXMNIST_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """The compiled programs of all tests together take gigabytes, so not beyond two of them."""
    yield
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 2_000_000:  # kB; bytes on macOS
        jax.clear_caches()


@pytest.fixture
def sigint():
    """Child processes heed SIGINT, even if these tests run behind `&`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.SIGINT
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A user who has no MNIST at all, nor a network; returns the (empty) home directory."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("JAXMNIST_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("JAXMNIST_DATA_DIR", "TFDS_DATA_DIR", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # Port 9 of this machine refuses connections, so the answer is "unreachable" on any machine.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return home


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The directory with the real MNIST files."""
    if "JAXMNIST_DATA_DIR" not in os.environ:
        pytest.skip("needs the real MNIST: set JAXMNIST_DATA_DIR to a directory with its files")
    return Path(os.environ["JAXMNIST_DATA_DIR"])


@pytest.fixture(scope="session")
def mnist(mnist_dir) -> tuple[Dataset, Dataset]:
    return load_mnist(mnist_dir)


@pytest.fixture
def toy() -> Dataset:
    """100 random images: one full batch of 64 and a short one of 36."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100, 28, 28), np.uint8)
    return Dataset(images, rng.integers(0, 10, 100, np.int32))


@functools.cache
def _blank_files() -> dict[str, bytes]:
    files = {}
    for name, shape in FILES.values():
        header = struct.pack(f">{1 + len(shape)}I", 8 << 8 | len(shape), *shape)
        files[f"{name}.gz"] = gzip.compress(header + bytes(math.prod(shape)), compresslevel=1)
    return files


@pytest.fixture
def blank_dir(tmp_path) -> Path:
    """The four official files, gzipped, all zeros; the test may damage them."""
    directory = tmp_path / "blank"
    directory.mkdir()
    for name, content in _blank_files().items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def few_digits(monkeypatch) -> tuple[Dataset, Dataset]:
    """`--dataset synthetic` and load_synthetic() are 1,000 and 500 digits for this test."""
    return use_few_digits(monkeypatch)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """A run of scripts/train.py on the few digits, 85 % of which it reads. Do not write to it."""
    out = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        use_few_digits(patch)
        options = "--dataset synthetic --optimizer adam --learning-rate 0.003 --epochs 5"
        assert run_script("train.py", *options.split(), "--out", out) == 0
    return out


@pytest.fixture
def script(capfd):
    """Runs a script with options as `python scripts/...` does: its exit code, stdout, stderr."""

    def call(name: str, *options: object) -> tuple[int, str, str]:
        capfd.readouterr()
        return (run_script(name, *options), *capfd.readouterr())

    return call
