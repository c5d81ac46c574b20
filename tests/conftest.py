"""What all tests share: run-time type checks, strict JAX, a private cache, data to test with."""

import gzip
import os
import runpy
import signal
import struct
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

# Shapes and types of every public function are checked while the tests run, and only then. As for
# mypy, an int is a float too (PEP 484's numeric tower).
jaxtyping.install_import_hook(
    "jaxmnist", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # as scripts/_cli.py does, which comes too late here

import jax  # noqa: E402

from jaxmnist.data import Dataset  # noqa: E402
from jaxmnist.datasets import synthetic  # noqa: E402
from jaxmnist.datasets.mnist import FILES, load_mnist  # noqa: E402
from tests.helpers import ROOT, optimized  # noqa: E402

# Not everything here is a test: the others are programs and what is shared.
collect_ignore_glob = ["[!tc]*.py", "stress/*"]

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Most of the time would go into XLA's optimisations of programs that run once. What runs in a
# process of its own, and the core's tests once more in .ci/run, is optimised as for a user.
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_modifyitems(items):
    """The example of load_mnist needs MNIST, like the tests that ask for `mnist_dir`."""
    for item in items:
        if item.name == "jaxmnist.datasets.mnist.load_mnist":
            needs = not os.environ.get("JAXMNIST_DATA_DIR")
            item.add_marker(pytest.mark.skipif(needs, reason="JAXMNIST_DATA_DIR names no MNIST"))


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory):
    """The tests share one cache, which is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXMNIST_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """The compiled programs of all tests together take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def sigint():
    """Child processes heed SIGINT and SIGHUP, even if these tests run behind `&` or nohup."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield signal.SIGINT
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A user who has no MNIST at all, nor a network; returns the (empty) home directory."""
    monkeypatch.delenv("JAXMNIST_DATA_DIR", raising=False)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("JAXMNIST_CACHE_DIR", str(tmp_path / "cache"))
    # Port 9 of this machine refuses connections, so the answer is "unreachable" on any machine.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The directory with the real MNIST files."""
    directory = os.environ.get("JAXMNIST_DATA_DIR")
    if not directory:
        pytest.skip("needs the real MNIST: set JAXMNIST_DATA_DIR to a directory with its files")
    return Path(directory)


@pytest.fixture(scope="session")
def mnist(mnist_dir) -> tuple[Dataset, Dataset]:
    return load_mnist(mnist_dir)


@pytest.fixture
def toy() -> Dataset:
    """100 random images: one full batch of 64 and a short one of 36."""
    rng = np.random.default_rng(0)
    return Dataset(
        rng.integers(0, 256, (100, 28, 28), np.uint8), rng.integers(0, 10, 100, np.int32)
    )


@pytest.fixture(scope="session")
def blank_files() -> dict[str, bytes]:
    """The four official files' names and format, gzipped, with nothing but zeros as data."""
    files = {}
    for name, shape in FILES.values():
        header = struct.pack(f">{1 + len(shape)}I", 8 << 8 | len(shape), *shape)
        files[f"{name}.gz"] = gzip.compress(header + bytes(int(np.prod(shape))), compresslevel=1)
    return files


@pytest.fixture
def blank_dir(tmp_path, blank_files) -> Path:
    """A directory with the blank files, to be damaged by the test."""
    directory = tmp_path / "blank"
    directory.mkdir()
    for name, content in blank_files.items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def few_digits(monkeypatch):
    """Drawn digits are few, and quickly made."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (1200, 28, 28), np.uint8), np.arange(1200) % 10
    data = Dataset(images, labels.astype(np.int32))
    parts = Dataset(*(x[:1000] for x in data)), Dataset(*(x[1000:] for x in data))
    monkeypatch.setattr(synthetic, "load_synthetic", lambda seed=0: parts)


@pytest.fixture
def script(monkeypatch, capfd):
    """Runs a script with options as `python scripts/...` does: its exit code, stdout, stderr."""

    def call(name: str, *options: object) -> tuple[int, str, str]:
        path = ROOT / "scripts" / name
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, options)])
        monkeypatch.setattr(sys, "path", sys.path[:])  # a script puts its directory first
        capfd.readouterr()
        precision = jax.config.jax_default_matmul_precision  # a script sets it for its process
        try:
            with optimized(), pytest.raises(SystemExit) as stop:
                runpy.run_path(str(path), run_name="__main__")
        finally:
            jax.config.update("jax_default_matmul_precision", precision)
            for helper in path.parent.glob("_*.py"):  # another directory's may be others
                sys.modules.pop(helper.stem, None)
        return (stop.value.code, *capfd.readouterr())

    return call
