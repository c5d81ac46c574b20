"""The drawn digits: the same for the same seed, like MNIST's to look at, and about as hard."""

import hashlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmnist.data import Dataset
from jaxmnist.datasets import cache, synthetic
from jaxmnist.datasets.synthetic import draw_digits, load_synthetic
from jaxmnist.evaluation import classifier_metrics, evaluate
from jaxmnist.model import MLP
from jaxmnist.objective import classifier_objective
from jaxmnist.training import init_state, make_train_step, train

LABELS_SHA256 = "8b6b02ae95c04287da9fd5f62db90e6ba6fdfcb51b38303b42637cede3ef0583"
LABELS = np.arange(30, dtype=np.int32) % 10
KEYS = jax.random.split(jax.random.key(0), 2)
draw = jax.jit(draw_digits)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def drawn(cache_dir):
    """Both datasets of seed 0, drawn once for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXMNIST_CACHE_DIR", str(cache_dir))
        return load_synthetic(0)


@pytest.fixture(scope="module")
def test_set(drawn):
    """The test images as floats in [0, 1], and their labels."""
    return drawn[1].images.astype(np.float32) / 255, drawn[1].labels


def same(a, b):
    """Equal up to the one grey level that another program's rounding may make."""
    a, b = np.asarray(a, int), np.asarray(b, int)
    return a.shape == b.shape and np.abs(a - b).max() <= 1


def test_the_key_makes_the_pixels():
    images = draw(KEYS[0], LABELS)
    assert images.shape == (30, 28, 28)
    assert images.dtype == jnp.uint8
    np.testing.assert_array_equal(images, draw(KEYS[0], LABELS))
    others = np.asarray(draw(KEYS[1], LABELS))
    assert np.all(np.any(images != others, axis=(1, 2)))


@pytest.mark.slow
def test_jit_the_chunks_and_later_labels_change_nothing(monkeypatch):
    images = draw(KEYS[0], LABELS)
    monkeypatch.setattr(synthetic, "_CHUNK", 10)
    assert same(images[:20], draw_digits(KEYS[0], LABELS[:20]))
    assert draw_digits(KEYS[0], LABELS[:0]).shape == (0, 28, 28)


def test_vmap_over_keys():
    images = jax.jit(jax.vmap(draw_digits, (0, None)))(KEYS, LABELS)
    assert same(images[0], draw(KEYS[0], LABELS))
    assert same(images[1], draw(KEYS[1], LABELS))


def test_every_image_is_of_its_own_writer(drawn):
    images = np.concatenate([drawn[0].images, drawn[1].images]).reshape(70_000, -1)
    assert len({image.tobytes() for image in images}) == 70_000


def test_sizes_and_balance(drawn):
    for dataset, n in zip(drawn, (60_000, 10_000), strict=True):
        assert dataset.images.shape == (n, 28, 28)
        assert dataset.images.dtype == np.uint8
        assert dataset.labels.dtype == np.int32
        np.testing.assert_array_equal(np.bincount(dataset.labels), np.full(10, n // 10))
        assert len(set(dataset.labels[:40].tolist())) > 5  # shuffled, and not by class
        assert not np.array_equal(dataset.labels[:10], dataset.labels[10:20])


def test_ink_is_like_mnists(test_set):
    images, labels = test_set
    assert images.mean() == pytest.approx(0.1307, abs=0.006)  # MNIST's own mean and deviation
    assert images.std() == pytest.approx(0.3081, abs=0.015)
    # MNIST's mean ink of each class, from the 0, the most, to the 1, the least.
    mnist = [0.173, 0.076, 0.149, 0.142, 0.121, 0.129, 0.137, 0.115, 0.150, 0.123]
    ink = [images[labels == digit].mean() for digit in range(10)]
    np.testing.assert_allclose(ink, mnist, atol=0.02)
    assert images.max(axis=(1, 2)).min() > 0.5  # no writer's pen is too faint to read
    assert np.mean(images == 0) > 0.75  # and the paper is black (MNIST: 0.81)


def test_digits_lie_in_the_frame_as_in_mnist(test_set):
    images, _ = test_set
    border = np.ones((28, 28), bool)
    border[1:-1, 1:-1] = False
    assert images[:, border].max() < 0.05
    # MNIST's centre of mass, pixels counted from 0: 14.0 with a deviation of 0.29.
    ink, pixel = images.sum(axis=(1, 2)), np.arange(28)
    for axis in (1, 2):
        centre = images.sum(axis=axis) @ pixel / ink
        assert centre.mean() == pytest.approx(14, abs=0.1)
        assert centre.std() < 0.6
    # The longer side of a digit's box: 20.
    lines = [(images > 0.5).any(axis=axis) for axis in (1, 2)]
    size = np.max([28 - line[:, ::-1].argmax(1) - line.argmax(1) for line in lines], axis=0)
    assert np.mean(np.abs(size - 20) <= 1) > 0.95
    assert np.all(np.abs(size - 20) <= 4)


def has_hole(images):
    """Whether the paper falls apart: some of it cannot be reached from the image's corner."""
    paper = images < 0.5
    reached = np.zeros_like(paper)
    reached[:, 0, 0] = True
    while True:
        grown = reached.copy()
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown[:, :, 1:] |= reached[:, :, :-1]
        grown[:, :, :-1] |= reached[:, :, 1:]
        grown &= paper
        if np.array_equal(grown, reached):
            return np.any(paper & ~reached, axis=(1, 2))
        reached = grown


def test_styles_differ_and_are_legible(test_set):
    images, labels = test_set
    holes = [has_hole(images[labels == digit]).mean() for digit in range(10)]
    assert min(holes[0], holes[6], holes[8], holes[9]) > 0.8  # MNIST: 0.86, 0.82, 0.97, 0.79
    assert max(holes[1], holes[3], holes[5], holes[7]) < 0.15  # at most 0.05
    assert 0.1 < holes[2] < 0.5  # without a loop and with one, 0.37
    assert 0.1 < holes[4] < 0.5  # open and closed, 0.10

    def widest_row(digit, rows):
        return (images[labels == digit, rows] > 0.5).sum(axis=2).max(axis=1)

    foot, bar = widest_row(1, slice(20, 26)), widest_row(7, slice(13, 19))
    for with_it, without in ((foot >= 8, foot <= 4), (bar >= 8, bar <= 4)):
        assert with_it.mean() > 0.05
        assert without.mean() > 0.4


@pytest.mark.stress
def test_as_hard_as_mnist(drawn):
    """The notebook's recipe, 5 epochs: on MNIST a loss of 0.38 and an accuracy of 0.90."""
    train_set, test_set = (Dataset(*map(jnp.asarray, dataset)) for dataset in drawn)
    model, tx = MLP(), optax.sgd(0.003)
    key = jax.random.key(0)
    train_step = make_train_step(classifier_objective(model.apply), tx)
    state, metrics = train(train_step, init_state(model, tx, key), train_set, key, epochs=5)
    assert 0.3 < metrics["loss"][-1].mean() < 0.5
    accuracy = evaluate(classifier_metrics(model.apply), state.params, test_set)["accuracy"]
    assert 0.86 < accuracy < 0.94


def test_the_cache_is_used(drawn, cache_dir, monkeypatch):
    monkeypatch.setenv("JAXMNIST_CACHE_DIR", str(cache_dir))
    monkeypatch.setattr(synthetic, "_draw_all", lambda seed: pytest.fail("drawn again"))
    for cached, fresh in zip(load_synthetic(0), drawn, strict=True):
        np.testing.assert_array_equal(cached.images, fresh.images)
        np.testing.assert_array_equal(cached.labels, fresh.labels)
        assert cached.images.dtype == np.uint8
        assert cached.labels.dtype == np.int32


@pytest.mark.parametrize(
    "damage",
    [
        "flipped bit",
        "shape",
        "dtype",
        "names",
        "another seed",
        "another JAX",
        "version 1",
        "not writable",
    ],
)
def test_without_a_good_cache_it_draws(damage, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMNIST_CACHE_DIR", str(tmp_path))
    images, labels = np.zeros((70_000, 28, 28), np.uint8), np.arange(70_000, dtype=np.int32) % 10
    seeds = []

    def draw_all(seed):
        seeds.append(seed)
        return {"images": images + 1, "labels": labels}

    monkeypatch.setattr(synthetic, "_draw_all", draw_all)
    name, file = "synthetic-v3-3", tmp_path / "synthetic-v3-3.npz"
    made_from = f"drawn digits 3, seed 3, JAX {jax.__version__}"
    cache.store(name, {"images": images, "labels": labels}, made_from)
    assert load_synthetic(3)[0].images[0, 0, 0] == 0  # undamaged, it is believed
    if damage == "flipped bit":
        content = bytearray(file.read_bytes())
        content[30_000_000] ^= 1
        file.write_bytes(content)
    elif damage == "another seed":
        other = made_from.replace("seed 3", "seed 4")
        cache.store(name, {"images": images, "labels": labels}, other)
    elif damage == "another JAX":
        cache.store(name, {"images": images, "labels": labels}, f"{made_from}.1")
    elif damage == "version 1":  # it did not say what it was made with
        np.savez(file, images=images, labels=labels)
    elif damage == "not writable":
        file.unlink()
        tmp_path.joinpath("file").touch()
        monkeypatch.setenv("JAXMNIST_CACHE_DIR", str(tmp_path / "file"))
    else:
        wrong = {
            "shape": {"images": images[1:], "labels": labels[1:]},
            "dtype": {"images": images, "labels": labels.astype(np.int64)},
            "names": {"images": images, "digits": labels},
        }
        cache.store(name, wrong[damage], made_from)
    for dataset in load_synthetic(3):
        assert dataset.images.min() == 1
    assert seeds == [3]
    load_synthetic(3)  # and what it drew is kept where it can be
    assert len(seeds) == 1 + (damage == "not writable")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=f"from 0 to 4294967295, not {seed}"):
        load_synthetic(seed)


def test_the_labels_of_a_seed_are_those_of_every_version(drawn):
    """They are shuffled by integer arithmetic, so they are equal on every machine."""
    labels = np.concatenate([dataset.labels for dataset in drawn]).astype("<i4")
    assert hashlib.sha256(labels).hexdigest() == LABELS_SHA256


@pytest.mark.slow
def test_flags_change_nothing(drawn, tmp_path):
    """Whatever the environment tells JAX and XLA: random numbers, types, precision, compiler."""
    flags = {
        "JAX_THREEFRY_PARTITIONABLE": "0",
        "JAX_RANDOM_SEED_OFFSET": "5",
        "JAX_DEFAULT_PRNG_IMPL": "rbg",
        "JAX_ENABLE_CUSTOM_PRNG": "1",
        "JAX_LEGACY_PRNG_KEY": "error",
        "JAX_ENABLE_X64": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
        "JAX_DISABLE_JIT": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_OPTIMIZATION_LEVEL": "O0",
        "JAX_TRANSFER_GUARD": "disallow",
        "JAX_DEBUG_NANS": "1",
        "JAX_NUM_CPU_DEVICES": "2",
        "XLA_FLAGS": "--xla_cpu_enable_fast_math=true --xla_backend_optimization_level=0",
        "JAXMNIST_CACHE_DIR": str(tmp_path),
    }
    program = "from jaxmnist.datasets import load_synthetic; load_synthetic(0)"
    subprocess.run([sys.executable, "-c", program], env=os.environ | flags, check=True)
    (entry,) = tmp_path.iterdir()
    with np.load(entry) as arrays:
        for name, parts in zip(("images", "labels"), zip(*drawn, strict=True), strict=True):
            np.testing.assert_array_equal(arrays[name], np.concatenate(parts))


@pytest.mark.slow
def test_a_default_device_changes_nothing(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMNIST_CACHE_DIR", str(tmp_path))
    with jax.default_device(jax.devices()[-1]), jax.default_matmul_precision("bfloat16"):
        train, _ = load_synthetic(0)
    np.testing.assert_array_equal(train.images, drawn[0].images)
