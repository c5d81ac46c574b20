"""Compiled programs are kept, and what is kept can neither break nor change a run."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxmnist.runs import compile_cache
from tests import helpers


def train(cache, *options) -> str:
    """The line about the epoch of a run in a process of its own."""
    environment = {"JAXMNIST_CACHE_DIR": str(cache), "PATH": "/usr/bin", "HOME": str(cache)}
    options = ("--dataset", "synthetic", "--epochs", 1, *options)
    (line,) = helpers.epoch_lines(helpers.train(*options, env=environment))
    return line


def entries(cache):
    return sorted(cache.glob("programs-*/*-cache"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache that one run has filled, a copy of it, and what that run printed."""
    cache = tmp_path_factory.mktemp("filled")
    train(cache)  # draws the digits too, with programs that the next runs need not compile
    line = train(cache)
    assert len(entries(cache)) >= 4
    return cache, shutil.copytree(cache, tmp_path_factory.mktemp("backup") / "cache"), line


@pytest.fixture
def cache(filled):
    """That cache as it was filled; at its own path, since JAX's names of entries depend on it."""
    cache, backup, _ = filled
    shutil.rmtree(cache)
    return shutil.copytree(backup, cache)


@pytest.mark.slow
def test_kept_programs_give_the_same_run_and_are_used(filled, cache):
    before = {path: path.stat().st_mtime_ns for path in entries(cache)}
    assert train(cache) == filled[2]
    assert {path: path.stat().st_mtime_ns for path in entries(cache)} == before


@pytest.mark.slow
def test_damaged_foreign_and_unknown_entries_change_nothing(filled, cache):
    victims = entries(cache)
    foreign, good, unknown = sorted(victims, key=lambda path: path.stat().st_size)[-3:]
    for path in victims:
        path.write_bytes(path.read_bytes()[:-7] + b"damaged")
    shutil.copy(filled[1] / good.relative_to(cache), foreign)  # a good program, a wrong name
    shutil.copy(filled[1] / unknown.relative_to(cache), unknown)  # a good one without its checksum
    unknown.with_name(unknown.name + ".sha256").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in victims}
    assert train(cache) == filled[2]
    assert entries(cache) == victims
    stamps_then = {path: path.stat().st_mtime_ns for path in victims}
    assert all(stamps_then[path] > stamp for path, stamp in stamps.items())
    assert train(cache) == filled[2]  # now they are good again, under new checksums
    assert {path: path.stat().st_mtime_ns for path in victims} == stamps_then


@pytest.mark.slow
def test_the_oldest_are_removed_where_there_are_many(cache, monkeypatch):
    for k, path in enumerate(entries(cache)):
        os.utime(path, (k, k))
    newest = entries(cache)[-3:]
    monkeypatch.setattr(compile_cache, "KEPT", 3)
    with compile_cache.compile_cache(cache):
        pass
    assert entries(cache) == newest
    assert all(path.with_name(f"{path.name}.sha256").exists() for path in newest)
    assert len(list(newest[0].parent.iterdir())) == 6


@pytest.mark.stress
def test_processes_starting_at_once_do_not_disturb_one_another(filled, cache):
    for path in cache.glob("programs-*/*"):
        path.unlink()
    with ThreadPoolExecutor() as pool:
        lines = list(pool.map(lambda _: train(cache), range(4)))
    assert set(lines) == {filled[2]}


@pytest.mark.stress
def test_a_directory_that_others_can_write_to_is_not_used(filled, cache):
    (place,) = cache.glob("programs-*")
    for path in place.iterdir():
        path.unlink()
    place.chmod(0o777)
    assert train(cache) == filled[2]
    assert entries(cache) == []


@pytest.mark.skipif(os.name == "nt" or os.getuid() != 0, reason="only root can give away files")
@pytest.mark.parametrize("whose", ["another user's", "open to all", "a link to another user's"])
def test_every_directory_on_the_way_must_be_safe(tmp_path, whose):
    """Field case F31: who owns a parent could put another directory in a checked one's place."""
    parent = tmp_path / "parent"
    parent.mkdir()
    place = parent / "cache"
    if whose == "open to all":
        parent.chmod(0o777)
    else:
        os.chown(parent, 12345, 12345)
    if whose == "a link to another user's":
        place = tmp_path / "link"
        place.symlink_to(parent)
    assert compile_cache._private_directory(place / "programs") is None
    os.chown(parent, os.getuid(), os.getgid())
    parent.chmod(0o755)
    safe = compile_cache._private_directory(place / "programs")
    assert safe == (place / "programs").resolve()


def test_a_sticky_directory_on_the_way_is_safe(tmp_path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    assert compile_cache._private_directory(tmp_path / "tmp" / "mine") is not None


@pytest.mark.stress
def test_it_can_be_turned_off(filled, cache):
    for path in cache.glob("programs-*/*"):
        path.unlink()
    assert train(cache, "--no-compile-cache") == filled[2]
    assert entries(cache) == []
