"""Where MNIST is looked for, what is refused, and the cache between."""

import hashlib
import inspect
import shutil

import numpy as np
import pytest

from jaxmnist.datasets import cache, load_data, load_mnist
from jaxmnist.datasets import mnist as mnist_module
from jaxmnist.datasets.idx import FILES
from jaxmnist.errors import DataError, DataNotFoundError

BLANK = {name: np.zeros(shape, np.uint8) for name, (_, shape) in FILES.items()}
BLANK_SHA256 = hashlib.sha256(
    b"".join(f"uint8 {array.shape}".encode() + array.tobytes() for array in BLANK.values())
).hexdigest()


@pytest.fixture
def blank_is_official(monkeypatch, blank_dir, nowhere):
    """Makes the blank files pass for the official ones, to test the ways without the real ones."""
    monkeypatch.setattr(mnist_module, "SHA256", BLANK_SHA256)
    return blank_dir


def source(*args) -> str:
    data = load_data("mnist", *args)
    assert not data.synthetic
    return data.source


def test_the_real_thing(mnist):
    train, test = mnist
    assert (train.images.shape, train.images.dtype) == ((60_000, 28, 28), np.uint8)
    assert (test.images.shape, test.labels.dtype) == ((10_000, 28, 28), np.int32)
    # The first training images are known to be 5, 0, 4, 1, 9; the first test images 7, 2, 1, 0, 4.
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    np.testing.assert_allclose(train.images.mean() / 255, 0.1307, atol=5e-5)
    np.testing.assert_allclose(train.images.std() / 255, 0.3081, atol=5e-5)


def test_keras_file_in_a_directory_or_named_itself(blank_is_official, tmp_path):
    path, named = tmp_path / "mnist.npz", tmp_path / "named.npz"
    keys = "x_train", "y_train", "x_test", "y_test"
    np.savez_compressed(path, **dict(zip(keys, BLANK.values(), strict=True)))
    assert source(tmp_path) == source(path).removesuffix(", cached") == f"MNIST from {path}"
    path.rename(named)
    assert source(named) == f"MNIST from {named}"
    named.write_bytes(named.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"named\.npz: not Keras's mnist\.npz, or damaged"):
        load_mnist(named)
    np.savez_compressed(named, **dict(zip(keys, reversed(BLANK.values()), strict=True)))
    with pytest.raises(DataError, match=r"named\.npz: checksum differs from MNIST's"):
        load_mnist(named)


def test_order_of_places(blank_is_official, monkeypatch, nowhere):
    """An earlier place wins, and each is cached under its own files."""
    assert source(blank_is_official) == f"MNIST from {blank_is_official} (IDX files)"
    # What an earlier run cached is enough for a user who has nothing else.
    assert source().endswith("(cache of an earlier run)")
    with monkeypatch.context() as patch:  # a place that cannot be read is passed over
        patch.setattr(mnist_module, "NOTEBOOK_DIR", "x" * 300)
        assert source().endswith("(cache of an earlier run)")
    home = nowhere / ".pytorch" / "MNIST_data" / "MNIST" / "raw"
    shutil.copytree(blank_is_official, home)
    assert source() == f"MNIST from {home} (IDX files)"
    assert source() == f"MNIST from {home} (IDX files), cached"
    monkeypatch.setenv("JAXMNIST_DATA_DIR", str(blank_is_official))
    assert source() == f"MNIST from {blank_is_official} (IDX files)"
    load_mnist(home)[0].images[0] = 1  # the arrays are the caller's


def test_without_mnist(nowhere, monkeypatch, capfd):
    monkeypatch.setattr(mnist_module.synthetic, "load_synthetic", lambda seed, say: ("a", "b"))
    with pytest.raises(DataNotFoundError, match=r"^MNIST cannot be downloaded \(Proxy"):
        load_mnist()
    lines = []
    data = load_data("auto", say=lines.append)
    assert (data.synthetic, data.source) == (True, "synthetic digits, seed 0: not MNIST")
    warning = "WARNING: this is NOT MNIST but synthetic digits: MNIST cannot be downloaded (Proxy"
    assert lines[-1].startswith(warning)
    assert max(map(len, lines)) < 160
    assert load_data("synthetic").synthetic
    assert capfd.readouterr() == ("", "")


def test_nothing_takes_the_place_of_a_directory_that_is_named(tmp_path, nowhere, monkeypatch):
    for name in (tmp_path / "nothing-here", "~nosuchuser/x"):
        with pytest.raises(DataNotFoundError, match=f"^{name}: no such directory; "):
            load_data("auto", name)
    with pytest.raises(OSError, match=r"File name too long"):
        load_data("auto", "x" * 300)
    monkeypatch.setenv("JAXMNIST_DATA_DIR", "~nosuchuser/x")
    with pytest.raises(DataNotFoundError, match=r"^~nosuchuser/x: no such directory; "):
        load_data("auto")
    with pytest.raises(ValueError, match="'fashion'"):
        inspect.unwrap(load_data)("fashion")  # without the tests' check of types


def test_other_images_are_refused_and_not_cached(blank_dir, nowhere):
    with pytest.raises(DataError, match=rf"^{blank_dir} \(IDX files\): checksum differs"):
        load_mnist(blank_dir)
    assert not cache.cache_dir().exists()


def test_a_damaged_directory_is_never_passed_over(blank_is_official, nowhere):
    """Though the cache holds MNIST: the user has a broken copy and should know."""
    load_mnist(blank_is_official)
    home = nowhere / ".pytorch" / "MNIST_data"
    shutil.copytree(blank_is_official, home)
    for directory, args in ((home, ()), (blank_is_official, (blank_is_official,))):
        path = directory / "train-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(DataError, match=f"{path}: the file is damaged"):
            load_mnist(*args)


def test_a_damaged_cache_is_made_again(blank_is_official):
    load_mnist(blank_is_official)
    arrays = cache.load("mnist", FILES)
    made_from = np.load(cache.cache_dir() / "mnist.npz")["made_from"].tobytes().decode()
    arrays["train_labels"][0] = 1
    assert cache.store("mnist", arrays, made_from) is None
    assert not source(blank_is_official).endswith("cached")
    assert source(blank_is_official).endswith("cached")


def test_a_cache_that_cannot_be_written_is_told(blank_is_official, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXMNIST_CACHE_DIR", str(tmp_path / "file" / "cache"))
    lines = []
    load_data("mnist", blank_is_official, say=lines.append)
    (line,) = lines
    assert line.startswith(f"Note: MNIST is not cached, every start reads it again: {tmp_path}/f")
    assert line.endswith(": Not a directory; JAXMNIST_CACHE_DIR names another place")
