"""Compiled programs are kept, and what is kept can neither break nor change a run."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT


def train(cache, *options) -> str:
    """The epochs' lines of a run in a process of its own."""
    command = [sys.executable, ROOT / "scripts" / "train.py", "--dataset", "synthetic"]
    done = subprocess.run(
        [*command, "--epochs", "1", *options],
        env={"JAXMNIST_CACHE_DIR": str(cache), "PATH": "/usr/bin", "HOME": str(cache)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return next(line for line in done.stdout.splitlines() if line.startswith("Training loss"))


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


def test_kept_programs_give_the_same_run_and_are_used(filled, cache):
    before = {path: path.stat().st_mtime_ns for path in entries(cache)}
    assert train(cache) == filled[2]
    assert {path: path.stat().st_mtime_ns for path in entries(cache)} == before


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


def test_the_oldest_are_removed_where_there_are_many(cache, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import _compile_cache

    for k, path in enumerate(entries(cache)):
        os.utime(path, (k, k))
    newest = entries(cache)[-3:]
    monkeypatch.setattr(_compile_cache, "KEPT", 3)
    with _compile_cache.compile_cache(cache):
        pass
    assert entries(cache) == newest
    assert all(path.with_name(f"{path.name}.sha256").exists() for path in newest)
    assert len(list(newest[0].parent.iterdir())) == 6


def test_processes_starting_at_once_do_not_disturb_one_another(filled, cache):
    for path in cache.glob("programs-*/*"):
        path.unlink()
    with ThreadPoolExecutor() as pool:
        lines = list(pool.map(lambda _: train(cache), range(4)))
    assert set(lines) == {filled[2]}


def test_a_directory_that_others_can_write_to_is_not_used(filled, cache):
    (place,) = cache.glob("programs-*")
    for path in place.iterdir():
        path.unlink()
    place.chmod(0o777)
    assert train(cache) == filled[2]
    assert entries(cache) == []


def test_it_can_be_turned_off(filled, cache):
    for path in cache.glob("programs-*/*"):
        path.unlink()
    assert train(cache, "--no-compile-cache") == filled[2]
    assert entries(cache) == []
