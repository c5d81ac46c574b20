"""The synthetic digits: the same for the same seed, with ink like MNIST's."""

import contextlib
import hashlib

import jax
import numpy as np
import pytest

from jaxmnist.datasets import synthetic
from jaxmnist.datasets.synthetic import add_synthetic, draw_digits, load_synthetic

KEYS = jax.random.split(jax.random.key(0), 2)
LABELS_SHA256 = "8b6b02ae95c04287da9fd5f62db90e6ba6fdfcb51b38303b42637cede3ef0583"  # of seed 0
LABELS = np.arange(30, dtype=np.int32) % 10

# Of the first images of KEYS[0]: the sum of the pixels, each times its place modulo 97. Another
# version of JAX or machine moves a pixel by one grey level, here and there.
SUMS = [1180312, 432087, 956700, 1444793, 1542425, 1842744, 1283365, 966350, 1310015, 1117842]
SUMS += [1431058, 335902, 1931608, 1122094, 1271541, 1833686, 880040, 1131607, 1545505, 865957]
SUMS += [1483131, 504784, 1604614, 1272171, 1552151, 1157399, 1668388, 720408, 1357737, 953530]
ADDED = SUMS[:20]
ADDED[9], ADDED[11], ADDED[19] = 1271218, 607739, 858044


@pytest.fixture(scope="module")
def made():
    """Both datasets of seed 0."""
    return load_synthetic(0)


def assert_sums(images, expected):
    assert (images.shape[1:], images.dtype) == ((28, 28), np.uint8)
    sums = np.asarray(images, int).reshape(-1, 784) @ (np.arange(784) % 97)
    np.testing.assert_allclose(sums, expected, rtol=0, atol=300)


@pytest.mark.slow
def test_the_images_of_a_key_under_jit_and_vmap():
    images = jax.jit(jax.vmap(draw_digits, (0, None)))(KEYS[::-1], LABELS)
    assert_sums(images[1], SUMS)
    assert np.mean(images[0] == images[1]) < 0.9


@pytest.mark.slow
def test_later_labels_and_chunks_change_nothing_and_added_images_are_others(monkeypatch):
    monkeypatch.setattr(synthetic, "_CHUNK", 10)
    assert_sums(draw_digits(KEYS[0], LABELS[:20], added=True), ADDED)


@pytest.mark.slow
def test_seed_0(made):
    """Labels are shuffled by integer arithmetic, so they are equal on every machine."""
    labels = np.concatenate([dataset.labels for dataset in made])
    assert hashlib.sha256(labels).hexdigest() == LABELS_SHA256
    images = {image.tobytes() for dataset in made for image in dataset.images}
    assert len(images) == 70_000  # each of its own writer
    for dataset, n in zip(made, (6000, 1000), strict=True):
        assert dataset.images.shape == (10 * n, 28, 28)
        np.testing.assert_array_equal(np.bincount(dataset.labels), np.full(10, n))


@pytest.mark.slow
def test_they_look_like_mnists(made):
    images, labels = made[1].images.astype(np.float32) / 255, made[1].labels
    assert images.mean() == pytest.approx(0.1307, abs=0.006)  # MNIST's own mean and deviation
    assert images.std() == pytest.approx(0.3081, abs=0.015)
    # MNIST's mean ink of each class, from the 0, the most, to the 1, the least.
    mnist = [0.173, 0.076, 0.149, 0.142, 0.121, 0.129, 0.137, 0.115, 0.150, 0.123]
    ink = [images[labels == digit].mean() for digit in range(10)]
    np.testing.assert_allclose(ink, mnist, atol=0.02)
    assert images.max(axis=(1, 2)).min() > 0.5  # no writer's pen is too faint to read


def test_the_cache_is_used_where_it_is_this_seeds(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMNIST_CACHE_DIR", str(tmp_path))
    seeds, lines = [], []

    def draw_all(seed):
        seeds.append(seed)
        values = np.full(70_000, seed % 251, np.int32)
        return {"images": values.astype(np.uint8)[:, None, None], "labels": values}

    monkeypatch.setattr(synthetic, "_draw_all", draw_all)
    for _ in range(2):
        train_set, test_set = load_synthetic(3, say=lines.append)
    assert lines == ["Making 70,000 synthetic digits: takes about 10 s, once"]
    assert train_set.images[0, 0, 0] == 3
    assert (len(train_set.labels), len(test_set.images)) == (60_000, 10_000)
    (tmp_path / "synthetic-v3-3.npz").rename(tmp_path / "synthetic-v3-4.npz")
    assert load_synthetic(4)[1].labels[0] == 4
    monkeypatch.setattr(jax, "__version__", "0.0.0")  # another version rounds in its own way
    load_synthetic(4)
    assert seeds == [3, 4, 4]
    assert add_synthetic(test_set, 0) is test_set
    images, labels = add_synthetic(test_set, 10_001)  # of another seed's training images
    assert labels[9_999:10_002].tolist() == [3] + 2 * [(2**32 - 1) % 251]
    assert images.shape == (20_001, 1, 1)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(OverflowError):
        load_synthetic(seed)


def test_flags_change_nothing(monkeypatch):
    """Neither the key, nor random numbers from it, nor a product."""

    def draw(key, *, added):
        x = jax.random.normal(key, (9, 9))
        return synthetic._matmul(x, x), jax.numpy.full(3, added)

    monkeypatch.setattr(synthetic, "_draw", jax.jit(draw, static_argnames="added"))
    images, labels = synthetic._draw_all(7).values()
    x = np.float64(jax.random.normal(jax.random.key(7), (9, 9)))
    np.testing.assert_allclose(images, x @ x, rtol=1e-5)
    assert synthetic._draw_all(2**32 - 1)["labels"].all()
    assert not labels.any()
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.threefry_partitionable(False))
        stack.enter_context(jax.default_prng_impl("rbg"))
        stack.enter_context(jax.enable_x64(True))
        stack.enter_context(jax.default_matmul_precision("bfloat16"))
        stack.enter_context(jax.disable_jit(True))
        stack.callback(jax.config.update, "jax_random_seed_offset", 0)
        jax.config.update("jax_random_seed_offset", 5)
        np.testing.assert_equal(synthetic._draw_all(7), {"images": images, "labels": labels})
