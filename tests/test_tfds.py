"""TFDS's prepared copies: found, read back in MNIST's own order, and refused when damaged."""

import contextlib
import gzip
import io
import os
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.core.hashing import Hasher
from tensorflow_datasets.proto import tf_example_pb2

from jaxmnist.datasets import tfds
from jaxmnist.datasets.download import FILES
from jaxmnist.datasets.tfds import find_prepared, read_prepared, stored_order
from jaxmnist.errors import DataError


def example_of(image: np.ndarray, label: int) -> bytes:
    """One example as TFDS makes it."""
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(png.getvalue())
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()


def tfrecord_of(image: np.ndarray, label: int) -> bytes:
    """One example as TFDS writes it, but for the CRCs, which are not read."""
    record = example_of(image, label)
    return struct.pack("<QI", len(record), 0) + record + bytes(4)


def small_copy(data_dir: Path, size: tuple[int, int] = (28, 28)) -> Path:
    """A copy as TFDS lays it out, but of two images in two shards in place of 60,000 in one."""
    directory = data_dir / "mnist" / "3.0.1"
    directory.mkdir(parents=True)
    for shard, label in enumerate([7, 9]):
        image = np.full(size, 100 + shard, np.uint8)
        path = directory / f"mnist-train.tfrecord-{shard:05}-of-00002"
        path.write_bytes(tfrecord_of(image, label))
    return directory


def test_importing_the_module_imports_no_heavy_library():
    heavy = ["tensorflow_datasets", "array_record", "PIL", "requests", "tqdm", "tensorflow"]
    program = f"import sys, jaxmnist.datasets.tfds; print(sorted(set({heavy}) & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("split", ["train", "test"])
def test_stored_order_sorts_by_the_hash_that_tfds_gives_its_keys(split):
    hasher = Hasher(split)
    order = stored_order(split, 1000)
    assert sorted(order) == list(range(1000))
    hashes = [hasher.hash_key(index) for index in order]
    assert hashes == sorted(hashes)


def test_find_prepared_is_none_where_tfds_prepared_nothing(tmp_path):
    assert find_prepared(tmp_path / "absent") is None
    for name in ("1.0.0", "incomplete.5A5A5A_3.0.1", "3.0.1.incomplete5A5A5A"):
        directory = tmp_path / "mnist" / name
        directory.mkdir(parents=True)
        (directory / "mnist-train.tfrecord-00000-of-00001").touch()
    (tmp_path / "mnist" / "3.0.1").mkdir()
    (tmp_path / "mnist" / "3.0.1" / "mnist-train.parquet-00000-of-00001").touch()
    (tmp_path / "fashion_mnist" / "3.0.1").mkdir(parents=True)
    assert find_prepared(tmp_path) is None


def test_find_prepared_looks_where_tfds_does(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    at_home = small_copy(tmp_path / "tensorflow_datasets")
    assert find_prepared() == at_home
    monkeypatch.setenv("TFDS_DATA_DIR", "~/elsewhere")
    assert find_prepared() is None
    assert find_prepared(small_copy(tmp_path / "given").parents[1]) is not None


def test_too_few_images_are_refused(tmp_path):
    directory = small_copy(tmp_path)
    with pytest.raises(DataError, match=r"3\.0\.1: has 2 of 60000 train images; delete"):
        read_prepared(directory)


def test_images_of_another_size_are_refused(tmp_path):
    directory = small_copy(tmp_path, size=(28, 29))
    with pytest.raises(DataError, match=r"00000-of-00002: damaged .*not a PNG of 28x28 grey"):
        read_prepared(directory)


def test_a_missing_shard_is_named(tmp_path):
    directory = small_copy(tmp_path)
    (directory / "mnist-train.tfrecord-00001-of-00002").unlink()
    with pytest.raises(DataError, match=r"3\.0\.1: has 1 of 2 train shards; delete"):
        read_prepared(directory)


@pytest.mark.parametrize("length", [0, 5, 40, -20, -1])
def test_a_truncated_shard_is_named(tmp_path, length):
    directory = small_copy(tmp_path)
    shard = directory / "mnist-train.tfrecord-00001-of-00002"
    shard.write_bytes(shard.read_bytes()[:length])
    with pytest.raises(DataError, match=f"{shard.name}: damaged") as caught:
        read_prepared(directory)
    assert "\n" not in str(caught.value)


def shard_of(tmp_path: Path, file_format: str) -> Path:
    directory = tmp_path / "mnist" / "3.0.1"
    directory.mkdir(parents=True)
    return directory / f"mnist-train.{file_format}-00000-of-00001"


def write_array_record(path: Path, records: list[bytes], options: str = "group_size:1") -> None:
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()


def test_a_named_directory_is_found_from_each_level(tmp_path):
    directory = small_copy(tmp_path)
    for place in (directory, directory.parent, tmp_path):
        assert find_prepared(place) == directory
    for shard in directory.iterdir():
        shard.unlink()
    assert find_prepared(directory) is None


@pytest.mark.parametrize("options", ["group_size:1", "group_size:300", "group_size:7,uncompressed"])
def test_the_size_of_an_array_record_is_read_from_its_chunks(tmp_path, options):
    """Also where a chunk crosses the headers that Riegeli puts at each 64 KiB."""
    path, rng = tmp_path / "it", np.random.default_rng(0)
    records = [rng.bytes(int(size)) for size in rng.integers(1, 3000, 300)] + [bytes(200_000)]
    write_array_record(path, records, options)
    size = sum(map(len, records))
    assert size < tfds._decoded_size(path) < 1.2 * size
    content = path.read_bytes()
    path.write_bytes(content[:50_000])
    with pytest.raises((ValueError, struct.error)):
        tfds._decoded_size(path)
    path.write_bytes(content[:72] + b"\xff" * 8 + content[80:])  # a chunk longer than any file
    with pytest.raises(ValueError, match="ends within a chunk"):
        tfds._decoded_size(path)


BLACK = np.zeros((28, 28), np.uint8)
BOMBS = {
    "a large image": ("tfrecord", lambda: [tfrecord_of(np.zeros((1500, 1500), np.uint8), 1)]),
    "an image in colour": ("tfrecord", lambda: [tfrecord_of(np.zeros((28, 28, 3), np.uint8), 1)]),
    "a longer record": ("tfrecord", lambda: [tfrecord_of(np.zeros((9000, 9000), np.uint8), 1)]),
    "a record that claims 2**63": ("tfrecord", lambda: [struct.pack("<QI", 2**63, 0) + bytes(99)]),
    "too many images": ("tfrecord", lambda: [tfrecord_of(BLACK, 1)] * 60_001),
    "one that decompresses": ("array_record", lambda: [bytes(300_000_000)]),
    "many that decompress": ("array_record", lambda: [bytes(10_000_000)] * 30),
    "too many records": ("array_record", lambda: [example_of(BLACK, 1)] * 60_001),
}


def peak_memory() -> int:
    """In kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_follows_the_size_of_the_file(tmp_path, bomb):
    file_format, records = BOMBS[bomb]
    shard = shard_of(tmp_path, file_format)
    if file_format == "tfrecord":
        shard.write_bytes(b"".join(records()))
    else:
        write_array_record(shard, records(), "group_size:1" if len(records()) < 99 else "")
    with contextlib.suppress(OSError):  # forget the peak that making the file took
        Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    with pytest.raises(DataError, match=f"{shard.name}: damaged") as caught:
        read_prepared(shard.parent)
    assert "\n" not in str(caught.value)
    assert peak_memory() - before < 100_000


@pytest.fixture(scope="module")
def files() -> Path:
    data_dir = os.environ.get("JAXMNIST_DATA_DIR")
    if not data_dir or not all(Path(data_dir, name).is_file() for name in FILES):
        pytest.skip("JAXMNIST_DATA_DIR names no directory with MNIST's four .gz files")
    return Path(data_dir)


@pytest.fixture(scope="module", params=[("tfrecord", 1), ("array_record", 3)], ids=lambda p: p[0])
def prepared(request, files, tmp_path_factory) -> Path:
    """What TFDS itself prepared, in the format it has by default and in the other one."""
    interpreter = os.environ.get("JAXMNIST_TF_PYTHON")
    if not interpreter:
        pytest.skip("JAXMNIST_TF_PYTHON names no Python with tensorflow and tensorflow-datasets")
    file_format, shards = request.param
    data_dir = tmp_path_factory.mktemp(file_format)
    script = Path(__file__).with_name("prepare_tfds.py")
    run = subprocess.run(
        [interpreter, script, files, data_dir, file_format, str(shards)],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    directory = find_prepared(data_dir)
    assert directory is not None
    return directory


@pytest.mark.oracle
def test_what_tfds_prepared_is_mnist_in_its_own_order(prepared, files):
    arrays = read_prepared(prepared)
    shapes = [(60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,)]
    names = ["train_images", "train_labels", "test_images", "test_labels"]
    assert list(arrays) == names
    for name, shape, file in zip(names, shapes, FILES, strict=True):
        with gzip.open(files / file) as stream:
            official = stream.read()[4 + 4 * len(shape) :]
        assert arrays[name].dtype == np.uint8
        assert arrays[name].shape == shape
        assert arrays[name].tobytes() == official


@pytest.mark.oracle
def test_what_tfds_prepared_is_refused_when_damaged(prepared, tmp_path):
    copy = tmp_path / "3.0.1"
    shutil.copytree(prepared, copy)
    shard = min(copy.glob("mnist-train.*-00000-of-*"))
    content = shard.read_bytes()
    half = len(content) // 2
    for damaged in (b"", content[:-1], content[:half], content[:half] + content[half + 100 :]):
        shard.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{shard.name}: damaged") as caught:
            read_prepared(copy)
        assert "\n" not in str(caught.value)
    shard.unlink()
    with pytest.raises(DataError, match=r"3\.0\.1: has \d of \d train shards; delete"):
        read_prepared(copy)
