"""The cache: what is stored is found again, and anything else is not there."""

import os
import zipfile

import numpy as np
import pytest

from jaxmnist.datasets import cache

KEYS = ("x", "y")
ARRAYS = {"x": np.arange(400, dtype=np.uint8), "y": np.arange(3, dtype=np.int32)}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMNIST_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_stored_is_found_again(place):
    assert cache.load("it", KEYS) is None
    assert cache.store("it", ARRAYS, "a") is None
    for found in (cache.load("it", KEYS, "a"), cache.load("it", KEYS)):
        np.testing.assert_equal(found, ARRAYS)
    assert cache.load("it", KEYS, "b") is None
    assert os.listdir(place) == ["it.npz"]
    assert place.stat().st_mode & 0o777 == 0o700  # this user's alone


def test_other_files_are_refused(place):
    place.mkdir()
    np.savez_compressed(place / "bomb.npz", x=np.zeros(56_000_001, np.uint8))
    np.savez(place / "code.npz", x=np.array([print]))
    with zipfile.ZipFile(place / "text.npz", "w") as file:
        file.writestr("x.npy", b"no array")
    told = {"bomb": "larger than MNIST", "code": "allow_pickle", "text": "an entry is no array"}
    for name, words in told.items():
        with pytest.raises(ValueError, match=words):
            cache.read_npz(place / f"{name}.npz", ["x"])


def test_where_nothing_can_be_stored_the_reason_is_told(monkeypatch):
    for name in ("JAXMNIST_CACHE_DIR", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user without a home
    assert cache.store("it", ARRAYS, "a").startswith(f"{os.devnull}/no-home: ")
