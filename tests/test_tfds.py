"""TFDS's prepared copies: found, read back in MNIST's own order, and refused when damaged."""

import io
import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from jaxmnist.datasets import tfds
from jaxmnist.datasets.tfds import data_dir, find_prepared, read_prepared, stored_order
from jaxmnist.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 28, 28), np.uint8)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """MNIST has 6 images to train with and 3 to test with."""
    monkeypatch.setattr(tfds, "_SPLITS", {"train": 6, "test": 3})


def example_of(image: np.ndarray, label: int) -> bytes:
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(png.getvalue())
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()


def write(path: Path, records: list[bytes]) -> None:
    """As TFDS does, but for the CRCs of a TFRecord file, which are not read."""
    if "tfrecord" in path.name:
        path.write_bytes(b"".join(struct.pack("<QI", len(r), 0) + r + bytes(4) for r in records))
        return
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


@pytest.fixture(params=["tfrecord", "array_record"])
def prepared(request, tmp_path):
    """A copy as TFDS lays it out: its own order, two shards of the first split."""
    directory = tmp_path / "mnist" / "3.0.1"
    directory.mkdir(parents=True)
    for split, first, shards in (("train", 0, 2), ("test", 6, 1)):
        order = stored_order(split, tfds._SPLITS[split])
        for shard, part in enumerate(np.array_split(order, shards)):
            path = directory / f"mnist-{split}.{request.param}-{shard:05}-of-{shards:05}"
            write(path, [example_of(IMAGES[first + i], first + i) for i in part])
    return directory


@pytest.mark.parametrize("split", ["train", "test"])
def test_stored_order_sorts_by_the_hash_that_tfds_gives_its_keys(split):
    from tensorflow_datasets.core.hashing import Hasher

    assert stored_order(split, 1000) == sorted(range(1000), key=Hasher(split).hash_key)


def test_a_copy_is_found_from_each_level_and_read_in_mnists_order(prepared, tmp_path):
    for place in (prepared, prepared.parent, tmp_path):
        assert find_prepared(place) == prepared
    expected = {"train_images": IMAGES[:6], "train_labels": np.arange(6)}
    expected |= {"test_images": IMAGES[6:], "test_labels": np.arange(6, 9)}
    np.testing.assert_equal(read_prepared(prepared), expected)


def test_what_is_no_prepared_copy(tmp_path, monkeypatch):
    for name in ("incomplete.5A5A5A_3.0.1", "3.0.1.incomplete5A5A5A", "2.0.0", "3.0.1"):
        (tmp_path / "mnist" / name).mkdir(parents=True)
        kind = "parquet" if name == "3.0.1" else "tfrecord"
        (tmp_path / "mnist" / name / f"mnist-train.{kind}-00000-of-00001").touch()
    assert find_prepared(tmp_path) is None
    assert find_prepared(tmp_path / "absent") is None
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert data_dir() == Path.home() / "tensorflow_datasets"
    monkeypatch.setenv("TFDS_DATA_DIR", "~/elsewhere")
    assert data_dir() == Path.home() / "elsewhere"


def test_damage_is_named(prepared):
    shard = sorted(prepared.iterdir())[-1]
    content = shard.read_bytes()
    half = len(content) // 2
    for bad in (content[:half], content[:half] + content[half + 100 :], content[:5]):
        shard.write_bytes(bad)
        with pytest.raises(DataError, match=r"3\.0\.1: train is damaged \(.*; delete"):
            read_prepared(prepared)
    for shape in ((28, 28, 3), (28, 29)):
        write(shard, [example_of(np.zeros(shape, np.uint8), 1)])
        with pytest.raises(DataError, match=r"3\.0\.1: train is damaged \(.*a PNG of 28x28 grey"):
            read_prepared(prepared)
    shard.unlink()
    with pytest.raises(DataError, match=r"3\.0\.1: train is damaged \(.* is shorter"):
        read_prepared(prepared)


@pytest.mark.oracle
@pytest.mark.parametrize(("file_format", "shards"), [("tfrecord", 1), ("array_record", 3)])
def test_what_tfds_prepared_is_mnist(mnist_dir, mnist, tmp_path, monkeypatch, file_format, shards):
    interpreter = os.environ.get("JAXMNIST_TF_PYTHON")
    if not interpreter:
        pytest.skip("JAXMNIST_TF_PYTHON names no Python with tensorflow and tensorflow-datasets")
    monkeypatch.undo()
    script = Path(__file__).with_name("prepare_tfds.py")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = [interpreter, script, mnist_dir, tmp_path, file_format, str(shards)]
    subprocess.run(command, check=True)
    arrays = read_prepared(find_prepared(tmp_path))
    for name, dataset in zip(("train", "test"), mnist, strict=True):
        np.testing.assert_array_equal(arrays[f"{name}_images"], dataset.images)
        np.testing.assert_array_equal(arrays[f"{name}_labels"], dataset.labels)
