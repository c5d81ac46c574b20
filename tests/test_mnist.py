"""Where MNIST is looked for, what is refused, and the cache between."""

import gzip
import multiprocessing
import os
import shutil
import struct
import time

import numpy as np
import pytest

from jaxmnist import DataError, DataNotFoundError, cache, load_mnist
from jaxmnist.datasets import mnist as mnist_module
from jaxmnist.datasets.idx import read_idx
from jaxmnist.datasets.mnist import FILES, find_mnist

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


@pytest.fixture
def blank_is_official(monkeypatch, blank_dir, nowhere):
    """Makes the blank files pass for the official ones, to test the ways without the real ones."""
    arrays = {name: np.zeros(shape, np.uint8) for name, (_, shape) in FILES.items()}
    digest = mnist_module.hashlib.sha256()
    for array in arrays.values():
        digest.update(array)
    monkeypatch.setattr(mnist_module, "SHA256", digest.hexdigest())
    return blank_dir


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_the_real_thing(mnist):
    train, test = mnist
    assert (train.images.shape, train.images.dtype) == ((60_000, 28, 28), np.uint8)
    assert (test.images.shape, test.labels.dtype) == ((10_000, 28, 28), np.int32)
    # The first training images are known to be 5, 0, 4, 1, 9; the first test images 7, 2, 1, 0, 4.
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(train.labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    np.testing.assert_allclose(train.images.mean() / 255, 0.1307, atol=5e-5)
    np.testing.assert_allclose(train.images.std() / 255, 0.3081, atol=5e-5)


@pytest.mark.parametrize("layout", [".", "MNIST/raw", "mnist"])
@pytest.mark.parametrize("raw", [False, True], ids=["gzip", "raw"])
def test_layouts(blank_is_official, tmp_path, layout, raw):
    directory = tmp_path / "data" / layout
    directory.mkdir(parents=True)
    for path in blank_is_official.iterdir():
        if raw:
            (directory / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        else:
            shutil.copy(path, directory)
    found = find_mnist(tmp_path / "data")
    assert found.source == f"{directory} (IDX files)"
    assert len(found.train.labels) == 60_000
    found.train.images[0] = 1  # the arrays are the caller's


def test_order_of_places(blank_is_official, monkeypatch, nowhere):
    """An earlier place wins, and each is cached under its own files."""
    assert find_mnist(blank_is_official).source == f"{blank_is_official} (IDX files)"
    # What an earlier run cached is enough for a user who has nothing else
    assert find_mnist().source.endswith("(cache of an earlier run)")
    home = nowhere / ".pytorch" / "MNIST_data" / "MNIST" / "raw"
    shutil.copytree(blank_is_official, home)
    assert find_mnist().source == f"{home} (IDX files)"
    assert find_mnist().source == f"{home} (IDX files), cached"
    monkeypatch.setenv("JAXMNIST_DATA_DIR", str(blank_is_official))
    assert find_mnist().source == f"{blank_is_official} (IDX files)"
    assert find_mnist(home).source == f"{home} (IDX files)"
    train, test = load_mnist(home)
    assert (len(train.labels), len(test.labels)) == (60_000, 10_000)


def test_nowhere_is_one_named_error_soon(nowhere):
    start = time.monotonic()
    with pytest.raises(DataNotFoundError) as error:
        load_mnist()
    assert time.monotonic() - start < 5
    message = one_line(error)
    assert "JAXMNIST_DATA_DIR" in message
    assert "MNIST_data" in message
    assert list((nowhere.parent).rglob("*idx*")) == []


def test_missing_directory(tmp_path, nowhere):
    with pytest.raises(DataNotFoundError, match="nothing-here: no such directory"):
        load_mnist(tmp_path / "nothing-here")
    with pytest.raises(DataNotFoundError, match="holds none of MNIST"):
        load_mnist(tmp_path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)


def rewrite(path, change):
    data = bytearray(gzip.decompress(path.read_bytes()))
    change(data)
    path.write_bytes(gzip.compress(data, 1))


def poke(offset, value):
    def change(data):
        data[offset : offset + len(value)] = value

    return lambda path: rewrite(path, change)


DAMAGES = {
    "three of four": (TRAIN_LABELS, os.unlink, "train-labels-idx1-ubyte .* is missing"),
    "truncated": (TRAIN_IMAGES, truncate, "the file is damaged"),
    "one byte": (TRAIN_IMAGES, flip, "the file is damaged"),
    "no gzip": (TRAIN_LABELS, lambda p: p.write_bytes(b"hello"), "damaged .*gzip"),
    "empty": (TRAIN_LABELS, lambda p: p.write_bytes(b""), "too short"),
    "magic": (TRAIN_IMAGES, poke(0, struct.pack(">I", 2052)), "wrong magic number 2052.*2051"),
    "count": (TRAIN_IMAGES, poke(4, struct.pack(">I", 59_999)), "59999 x 28 x 28.*60000 x 28 x 28"),
    "huge": (TRAIN_IMAGES, poke(4, struct.pack(">I", 2**32 - 1)), "4294967295 x 28 x 28"),
    "short": (TRAIN_LABELS, lambda p: rewrite(p, lambda d: d.pop()), "holds 59,999 bytes"),
    "long": (TRAIN_LABELS, lambda p: rewrite(p, lambda d: d.append(0)), "holds more bytes"),
    "label": (TRAIN_LABELS, poke(8, b"\x0b"), "the label 11, over 9"),
    "other images": (TRAIN_IMAGES, poke(16, b"\x01"), "checksum differs"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_leaves_nothing(blank_is_official, damage, tmp_path):
    name, spoil, message = DAMAGES[damage]
    spoil(blank_is_official / name)
    with pytest.raises(DataError, match=message) as error:
        load_mnist(blank_is_official)
    assert str(blank_is_official) in one_line(error)
    assert not (tmp_path / "cache").exists()


def test_a_directory_in_a_files_place_is_named(blank_is_official):
    path = blank_is_official / TRAIN_LABELS
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte .* is missing"):
        load_mnist(blank_is_official)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_idx(path, (60_000,))


def test_damage_after_caching_is_seen(blank_is_official):
    load_mnist(blank_is_official)
    flip(blank_is_official / TRAIN_IMAGES)
    with pytest.raises(DataError, match="damaged"):
        load_mnist(blank_is_official)


def test_a_damaged_directory_is_never_passed_over(blank_is_official, nowhere):
    """Though the cache holds MNIST: the user has a broken copy and should know."""
    load_mnist(blank_is_official)
    home = nowhere / ".pytorch" / "MNIST_data"
    shutil.copytree(blank_is_official, home)
    truncate(home / TRAIN_IMAGES)
    with pytest.raises(DataError, match="damaged"):
        load_mnist()


def test_a_header_that_claims_billions_costs_nothing(tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(struct.pack(">4I", 2051, 2**32 - 1, 28, 28) + bytes(1000))
    start = time.monotonic()
    with pytest.raises(DataError, match="4294967295"):
        read_idx(path, (60_000, 28, 28))
    assert time.monotonic() - start < 0.5


@pytest.mark.parametrize("spoil", [truncate, flip, lambda p: p.write_bytes(b"x"), os.unlink])
def test_a_damaged_cache_is_repaired(blank_is_official, spoil):
    load_mnist(blank_is_official)
    (file,) = cache.cache_dir().glob("*.npz")
    spoil(file)
    assert find_mnist(blank_is_official).source.endswith("(IDX files)")
    assert find_mnist(blank_is_official).source.endswith("cached")


def test_another_array_in_the_cache_is_not_mnist(blank_is_official):
    load_mnist(blank_is_official)
    arrays = cache.load("mnist")
    arrays["train_labels"][0] = 1
    assert cache.store("mnist", arrays) is None
    assert find_mnist(blank_is_official).source.endswith("(IDX files)")


@pytest.mark.parametrize("kind", ["read-only", "a file"])
def test_a_cache_that_cannot_be_written_is_no_error(blank_is_official, monkeypatch, tmp_path, kind):
    place = tmp_path / "place"
    if kind == "a file":
        place.write_text("")
    else:
        place.mkdir()
        place.chmod(0o555)
        if os.access(place, os.W_OK):
            pytest.skip("this user (root) may write everywhere")
    monkeypatch.setenv("JAXMNIST_CACHE_DIR", str(place / "cache"))
    found = find_mnist(blank_is_official)
    assert len(found.train.labels) == 60_000
    assert str(place) in found.note


def _digest(directory, queue):
    train, _ = load_mnist(directory)
    queue.put(int(train.images.sum()) + len(train.labels))


def test_processes_starting_at_once_make_one_cache(mnist_dir, nowhere, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_digest, args=(mnist_dir, queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    sums = {queue.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join(60)
    assert len(sums) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["mnist.npz"]
