"""Where MNIST is looked for, what is refused, and the cache between."""

import contextlib
import gzip
import hashlib
import inspect
import math
import multiprocessing
import os
import pwd
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from jaxmnist.datasets import cache, load_data, load_mnist
from jaxmnist.datasets import mnist as mnist_module
from jaxmnist.datasets.idx import find_idx, read_idx
from jaxmnist.datasets.mnist import FILES, find_mnist
from jaxmnist.errors import DataError, DataNotFoundError, UsageError
from tests.helpers import PATIENCE

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
SPECS = {name: (shape, "uint8") for name, (_, shape) in FILES.items()}
BLANK_SHA256 = hashlib.sha256(
    bytes(sum(math.prod(shape) for shape, _ in SPECS.values()))
).hexdigest()


@pytest.fixture
def blank_is_official(monkeypatch, blank_dir, nowhere):
    """Makes the blank files pass for the official ones, to test the ways without the real ones."""
    monkeypatch.setattr(mnist_module, "SHA256", BLANK_SHA256)
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


def dotted(name: str) -> str:
    return name.replace("-idx", ".idx")


LAYOUTS = {  # what a file is called below the directory that is named
    "as published": lambda name: name,
    "torchvision's": lambda name: f"MNIST/raw/{name}",
    "torchvision's, from MNIST": lambda name: f"raw/{name}",
    "mnist": lambda name: f"mnist/{name}",
    "an unpacked archive": lambda name: f"archive/{name}",
    "a dot": dotted,
    "underscores": lambda name: name.replace("-", "_"),
    "capitals": str.upper,
    "each in a folder": lambda name: f"{name}/{name}",
    "each in a folder without .gz": lambda name: f"{name.removesuffix('.gz')}/{name}",
    "each in a folder, a dot": lambda name: f"{name}/{dotted(name)}",
    "below MNIST, a dot": lambda name: f"MNIST/{dotted(name)}",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("raw", [False, True], ids=["gzip", "raw"])
def test_layouts(blank_is_official, tmp_path, layout, raw):
    for path in blank_is_official.iterdir():
        name = LAYOUTS[layout](path.stem if raw else path.name)
        place = tmp_path / "data" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        place.write_bytes(gzip.decompress(content) if raw else content)
    found = find_mnist(tmp_path / "data")
    assert found.source.endswith(" (IDX files)")
    assert len(found.train.labels) == 60_000
    found.train.images[0] = 1  # the arrays are the caller's


def test_what_a_file_holds_counts_and_not_its_suffix(blank_is_official):
    """Some browsers unpack a download and leave it its name; a user may rename without packing."""
    for name in (TRAIN_IMAGES, TRAIN_LABELS):
        path = blank_is_official / name
        path.write_bytes(gzip.decompress(path.read_bytes()))
    (blank_is_official / "t10k-labels-idx1-ubyte.gz").rename(
        blank_is_official / "t10k-labels-idx1-ubyte"
    )
    assert len(find_mnist(blank_is_official).test.labels) == 10_000


def test_the_official_name_is_taken_where_there_are_two(blank_is_official):
    """As in a popular archive, which has each file twice; an empty folder is no file."""
    (blank_is_official / "train-images-idx3-ubyte").mkdir()
    for path in list(blank_is_official.glob("*.gz")):
        shutil.copy(path, path.with_name(dotted(path.name)))
    assert {path.name for path in find_idx(blank_is_official).values()} == {
        f"{name}.gz" for name, _ in FILES.values()
    }


def test_keras_file(blank_is_official, tmp_path):
    names = ("x_train", "y_train", "x_test", "y_test")
    arrays = {
        name: np.zeros(shape, np.uint8)
        for name, (shape, _) in zip(names, SPECS.values(), strict=True)
    }
    np.savez_compressed(tmp_path / "mnist.npz", **arrays)
    found = find_mnist(tmp_path)
    assert found.source == str(tmp_path / "mnist.npz")
    assert len(found.test.labels) == 10_000
    np.savez_compressed(tmp_path / "mnist.npz", **arrays | {"y_test": np.zeros(9999, np.uint8)})
    with pytest.raises(DataError, match=r"mnist\.npz: .*y_test is uint8\[9999\]") as error:
        load_mnist(tmp_path)
    one_line(error)


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


def test_nowhere_is_one_named_error(nowhere):
    with pytest.raises(DataNotFoundError) as error:
        load_mnist()
    message = one_line(error)
    assert "JAXMNIST_DATA_DIR" in message
    assert "MNIST_data" in message
    assert list((nowhere.parent).rglob("*idx*")) == []


def test_missing_directory(tmp_path, nowhere, monkeypatch):
    with pytest.raises(DataNotFoundError, match="nothing-here: no such directory"):
        load_mnist(tmp_path / "nothing-here")
    with pytest.raises(DataNotFoundError, match="~nosuchuser/x: no such directory"):
        load_mnist("~nosuchuser/x")
    (tmp_path / "file").touch()
    with pytest.raises(DataNotFoundError, match="file: is a file, not a directory"):
        load_mnist(tmp_path / "file")
    with pytest.raises(UsageError, match="name of the data directory is empty"):
        load_mnist("")
    monkeypatch.setenv("JAXMNIST_DATA_DIR", "~nosuchuser/x")
    with pytest.raises(DataNotFoundError, match="~nosuchuser/x: no such directory"):
        load_data("auto")  # it was named, so nothing takes its place


def test_what_was_found_is_named(blank_is_official, tmp_path):
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    with pytest.raises(DataNotFoundError, match=r"none of MNIST's files.*found: nothing$"):
        load_mnist(empty)
    other.mkdir()
    for name in ("mnist_train.csv", "training.pt", *map(str, range(9))):
        (other / name).touch()
    with pytest.raises(DataNotFoundError, match=r"found: 0, 1, 2, 3, 4, 5, 6, 7 and 3 more$"):
        load_mnist(other)
    (blank_is_official / TRAIN_IMAGES).unlink()
    with pytest.raises(
        DataError, match=f"train-images-idx3-ubyte .* missing .*; found: {TRAIN_LABELS}"
    ):
        load_mnist(blank_is_official)


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
    "no gzip": (TRAIN_LABELS, lambda p: p.write_bytes(b"hello"), "too short"),
    "text": (TRAIN_LABELS, lambda p: p.write_bytes(b"<html>Log in</html>"), "wrong magic number"),
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


@contextlib.contextmanager
def at_most(size):
    """No more than this many bytes of memory are in use at once for what is done within."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def test_a_header_that_claims_billions_costs_nothing(tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(struct.pack(">4I", 2051, 2**32 - 1, 28, 28) + bytes(1000))
    with pytest.raises(DataError, match="4294967295"), at_most(10_000_000):
        read_idx(path, (60_000, 28, 28))


@pytest.mark.parametrize("spoil", [truncate, flip, lambda p: p.write_bytes(b"x"), os.unlink])
def test_a_damaged_cache_is_repaired(blank_is_official, spoil):
    load_mnist(blank_is_official)
    (file,) = cache.cache_dir().glob("*.npz")
    spoil(file)
    assert find_mnist(blank_is_official).source.endswith("(IDX files)")
    assert find_mnist(blank_is_official).source.endswith("cached")


def test_another_array_in_the_cache_is_not_mnist(blank_is_official):
    load_mnist(blank_is_official)
    arrays = cache.load("mnist", SPECS)
    arrays["train_labels"][0] = 1
    assert cache.store("mnist", arrays, "") is None
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


@pytest.mark.slow
def test_processes_starting_at_once_make_one_cache(mnist_dir, nowhere, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_digest, args=(mnist_dir, queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    sums = {queue.get(timeout=PATIENCE) for _ in workers}
    for worker in workers:
        worker.join(60)
    assert len(sums) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["mnist.npz"]


def entry(header: str, size: int) -> bytes:
    """An array in NumPy's format, of zeros."""
    start = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n"
    return start + bytes(size)


def claims(shape: str, size: int, dtype: str = "|u1") -> bytes:
    return entry(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}", size)


CRAFTED = {
    "a name without .npy": ("x", claims("(2, 2)", 4)),
    "a name that is no array's": ("y.npy", claims("(2, 2)", 4)),
    "another shape": ("x.npy", claims("(4,)", 4)),
    "a huge shape": ("x.npy", claims("(70000, 70000)", 4)),
    "a huge dtype": ("x.npy", claims("(2, 2)", 4, "|V999999999")),
    "much more data": ("x.npy", claims("(2, 2)", 300_000_000)),
    "less data": ("x.npy", claims("(2, 2)", 3)),
    "objects": ("x.npy", claims("(2, 2)", 4, "|O")),
    "many names": ("x.npy", claims("(2, 2)", 4)),
    "no header": ("x.npy", bytes(4)),
    "no Python": ("x.npy", entry("[" * 5000, 4)),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_cache_is_not_believed_and_takes_no_memory(tmp_path, monkeypatch, case):
    monkeypatch.setenv("JAXMNIST_CACHE_DIR", str(tmp_path))
    specs = {"x": ((2, 2), "uint8")}
    assert cache.store("it", {"x": np.ones((2, 2), np.uint8)}, "tests") is None
    np.testing.assert_array_equal(cache.load("it", specs, "tests")["x"], np.ones((2, 2)))
    assert cache.load("it", specs) is not None
    assert cache.load("it", specs, "tests of another version") is None
    name, content = CRAFTED[case]
    with zipfile.ZipFile(tmp_path / "it.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        for number in range(20_000 if case == "many names" else 0):
            archive.writestr(f"{number}.npy", b"")
    del content
    with at_most(5_000_000):
        assert cache.load("it", specs) is None


@pytest.fixture
def ordinary_user():
    """A command's first words that take root's right to read everything."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root may read everything, and there is no setpriv")
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


FIND = f"""
import sys
from jaxmnist import JaxmnistError
from jaxmnist.datasets import mnist
mnist.SHA256 = "{BLANK_SHA256}"
try:
    print(mnist.find_mnist(*sys.argv[1:]).source)
except JaxmnistError as error:
    print(type(error).__name__, error)
"""
CLOSED = {
    "the home directory": lambda home, data: home.parent / "home",
    "the notebook's directory": lambda home, data: home / ".pytorch",
    "a folder in it": lambda home, data: home / ".pytorch" / "MNIST_data" / "MNIST" / "raw",
    "a file in it": lambda home, data: (
        home / ".pytorch" / "MNIST_data" / "MNIST" / "raw" / TRAIN_LABELS
    ),
    "TFDS's directory": lambda home, data: home / "tensorflow_datasets",
    "TFDS's mnist": lambda home, data: home / "tensorflow_datasets" / "mnist",
    "a shard": lambda home, data: (
        home / "tensorflow_datasets/mnist/3.0.1/mnist-train.tfrecord-00000-of-00001"
    ),
}


@pytest.mark.parametrize("closed", CLOSED)
def test_a_place_that_may_not_be_read_holds_nothing(
    blank_is_official, nowhere, ordinary_user, closed
):
    load_mnist(blank_is_official)  # into the cache, the last of the places
    place = CLOSED[closed](nowhere, blank_is_official)
    if "pytorch" in str(place):
        shutil.copytree(blank_is_official, nowhere / ".pytorch" / "MNIST_data" / "MNIST" / "raw")
    if place.name.startswith("mnist-"):
        place.parent.mkdir(parents=True)
        place.touch()
    elif not place.exists():
        place.mkdir(parents=True)
    place.chmod(0)
    try:
        command = [*ordinary_user, sys.executable, "-c", FIND]
        done = subprocess.run(command, capture_output=True, text=True)
    finally:
        place.chmod(0o700)
    assert done.stdout.endswith("(cache of an earlier run)\n")
    assert done.stderr == ""


@pytest.mark.parametrize("closed", [".", "MNIST", TRAIN_LABELS, "tfds"])
def test_a_named_place_that_may_not_be_read_is_an_error(blank_dir, nowhere, ordinary_user, closed):
    place = blank_dir / closed
    if closed in ("MNIST", "tfds"):
        for path in blank_dir.glob("*.gz"):
            path.unlink()
        place = blank_dir / ("mnist" if closed == "tfds" else closed)
        place.mkdir()
    place.chmod(0)
    try:
        command = [*ordinary_user, sys.executable, "-c", FIND, blank_dir]
        done = subprocess.run(command, capture_output=True, text=True)
    finally:
        place.chmod(0o700)
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"DataError {place}")
    assert line.endswith(": cannot be read: Permission denied")


def test_a_folder_that_may_be_entered_but_not_listed_is_read(blank_dir, nowhere, ordinary_user):
    blank_dir.chmod(0o100)
    try:
        command = [*ordinary_user, sys.executable, "-c", FIND, blank_dir]
        done = subprocess.run(command, capture_output=True, text=True)
    finally:
        blank_dir.chmod(0o700)
    assert (done.stdout, done.stderr) == (f"{blank_dir} (IDX files)\n", "")


def test_other_places_that_cannot_be_looked_into(blank_is_official, nowhere, tmp_path, monkeypatch):
    load_mnist(blank_is_official)
    (nowhere / ".pytorch").symlink_to(nowhere / ".pytorch")
    (nowhere / "tensorflow_datasets").symlink_to(nowhere / "tensorflow_datasets")
    assert find_mnist().source.endswith("(cache of an earlier run)")
    for name, reason in ((nowhere / ".pytorch", "symbolic links"), ("x" * 300, "too long")):
        with pytest.raises(DataError, match=f"cannot be read: .*{reason}") as error:
            load_mnist(name)
        one_line(error)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert find_mnist().source.endswith("(cache of an earlier run)")


def test_a_user_without_a_home(blank_is_official, monkeypatch, tmp_path):
    """As in a container that is run as a user whom its files do not know."""

    def getpwuid(_):
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    monkeypatch.chdir(tmp_path)
    load_mnist(blank_is_official)
    assert find_mnist().source.endswith("(cache of an earlier run)")
    for name in ("JAXMNIST_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    found = find_mnist(blank_is_official)
    assert "no home directory is known; name a directory with JAXMNIST_CACHE_DIR" in found.note
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blank", "cache", "home"]


def test_load_data(blank_is_official, monkeypatch):
    data = load_data("mnist", blank_is_official)
    assert data.source == f"MNIST from {blank_is_official} (IDX files)"
    assert (data.note, data.drawn, data.missing) == (None, False, None)
    assert len(data.test.labels) == 10_000
    with pytest.raises(UsageError, match="a data directory is for MNIST"):
        load_data("synthetic", blank_is_official)
    with pytest.raises(ValueError, match="'fashion'"):
        inspect.unwrap(load_data)("fashion")  # without the tests' check of types


@pytest.mark.slow
def test_load_data_without_mnist(nowhere, capfd):
    with pytest.raises(DataNotFoundError, match="cannot be downloaded"):
        load_data("mnist")
    data = load_data("auto", seed=1)
    assert data.drawn
    assert data.source == "drawn digits, seed 1: not MNIST"
    assert "cannot be downloaded" in data.missing
    assert "\n" not in data.missing
    asked = load_data("synthetic", seed=1)
    np.testing.assert_array_equal(asked.train.images, data.train.images)
    assert (asked.drawn, asked.missing) == (True, None)
    assert capfd.readouterr() == ("", "")
