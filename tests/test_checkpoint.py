"""Checkpoints: bit for bit what was saved, or refused; and none is lost, however a save ends."""

import errno
import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmnist import TrainState, checkpoint
from jaxmnist.errors import CheckpointError
from jaxmnist.files import atomic_write


def small(step: int = 7, width: int = 3) -> TrainState:
    """A state of every kind of leaf, in a file of 2 KB."""
    rng = np.random.default_rng(step)
    kernel = rng.normal(size=(2, width)).astype(np.float32)
    bias = jnp.array([np.nan, -0.0, np.inf], jnp.bfloat16)
    opt_state = (optax.EmptyState(), {"count": np.int32(step)}, np.zeros((0, 2), np.uint8), None)
    kinds = [np.bool_(True), np.float16(1), np.int64(-1), np.arange(6.0).reshape(2, 3)[:, ::2]]
    params = {"kernel": kernel, "bias": bias, "kinds": kinds}
    return TrainState(np.int32(step), params, opt_state, key=jax.random.key(step))


def on_host(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.array(jax.random.key_data(leaf) if is_key else leaf)


def assert_same(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(*(map(on_host, jax.tree.leaves(x)) for x in (found, expected)), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def refused(path, like, *words: str) -> None:
    """One line that names the file and has the words in this order."""
    with pytest.raises(CheckpointError, match=".*".join([f"^{path}: ", *words])) as info:
        checkpoint.load(path, like)
    assert "\n" not in str(info.value)


def fail_with(code: int) -> mock.Mock:
    return mock.Mock(side_effect=OSError(code, os.strerror(code)))


def test_everything_comes_back(tmp_path):
    config = {"hidden": (128, 64), "name": 'Zoë "sha256"', "deep": {"rate": 1e-300, "none": None}}
    config["zeros"] = "0" * 64  # as long as a checksum
    path = checkpoint.save(tmp_path, small(), config=config)
    assert path.name == "checkpoint-00000007.safetensors"
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), small(1))
    for like in (small(1), shapes):
        found = checkpoint.load(path, like)
        assert_same(found.state, small())
        assert found.config == config | {"hidden": [128, 64]}
    found.state.params["kernel"][0] = 1  # its arrays can be written to


@pytest.mark.parametrize("tree", [{}, (), {"a": optax.EmptyState()}, jnp.zeros(2)], ids=str)
def test_any_pytree(tmp_path, tree):
    path = checkpoint.save(tmp_path, tree, step=0)
    assert_same(checkpoint.load(path, tree).state, tree)
    assert_same(checkpoint.restore(tmp_path, tree)[0].state, tree)


def test_without_a_state_to_compare_with_it_gives_the_leaves_by_name(tmp_path):
    tree = {"w": [np.ones(2, ">f4"), jax.random.key(3)]}  # the bytes in either order
    leaves = checkpoint.load(checkpoint.save(tmp_path, tree, step=0)).state
    expected = {"state['w'][0]": np.ones(2, np.float32), "state['w'][1]": jax.random.key(3)}
    assert_same(leaves, expected)


def test_what_cannot_be_saved_is_an_error_before_anything_is_written(tmp_path):
    for state, config in ((small(), {"out": tmp_path}), (np.array(["text"]), {})):
        with pytest.raises(TypeError):
            checkpoint.save(tmp_path, state, step=1, config=config)
    assert os.listdir(tmp_path) == []


def test_no_damage_goes_unseen(tmp_path):
    path = checkpoint.save(tmp_path, small(), config={"epochs": 5})
    content, like = path.read_bytes(), small(1)
    rng = np.random.default_rng(0)
    for at in range(0, len(content), 3):
        changed = bytearray(content)
        changed[at] ^= rng.integers(1, 256)
        for damaged in (changed, content[:at]):
            path.write_bytes(damaged)
            refused(path, like, "damaged", "remove it to continue from an earlier one")
    for other in (content + b"\0", content * 2, bytes(len(content)), b"", b"\x80\x04pickle"):
        path.write_bytes(other)
        refused(path, like, "damaged")
    for other in (tmp_path / "none", tmp_path):
        with pytest.raises(OSError, match=f": '{other}'$"):
            checkpoint.load(other, like)


def test_another_model_is_refused_and_the_leaf_is_named(tmp_path):
    path = checkpoint.save(tmp_path, small())
    state = small()
    others = {
        "'kernel'": small(width=4),
        "'bias'": state._replace(params=state.params | {"bias": np.zeros(3, np.float32)}),
        "'more'": state._replace(params=state.params | {"more": np.zeros(1)}),
        "'count'": state._replace(opt_state=()),
        "state.key": state._replace(key=jax.random.key(0, impl="rbg")),
    }
    for name, like in others.items():
        refused(path, like, "another model or optimizer", name, "there", "here")
    with pytest.raises(CheckpointError, match="another model"):
        checkpoint.restore(tmp_path, like)


def test_the_newest_whole_one_is_restored_and_three_stay(tmp_path):
    assert checkpoint.restore(tmp_path / "none", small()) == (None, [])
    for step in (900, 99_999_999, 100_000_000, 3):
        checkpoint.save(tmp_path, small(step))
    (tmp_path / "checkpoint-1.safetensors").write_text("not of this name")
    steps, _ = zip(*checkpoint.list_checkpoints(tmp_path), strict=True)
    assert steps == (3, 900, 99_999_999, 100_000_000)  # saved last, step 3 removes no later one
    checkpoint.save(tmp_path, small(10**8 + 1))
    paths = [path for _, path in checkpoint.list_checkpoints(tmp_path)]
    assert [path.name[11:-12] for path in paths] == ["99999999", "100000000", "100000001"]
    paths[-1].write_bytes(paths[-1].read_bytes()[:-1])
    found, (line,) = checkpoint.restore(tmp_path, small())
    assert_same(found.state, small(100_000_000))
    assert line.startswith(f"{paths[-1]}: damaged")
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"{tmp_path} has no good checkpoint; "):
        checkpoint.restore(tmp_path, small())


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_save_names_the_file_and_leaves_what_was_there(tmp_path, monkeypatch, call, code):
    before = checkpoint.save(tmp_path, small(1)).read_bytes()
    monkeypatch.setattr(os, call, fail_with(code))
    for step in (1, 2):
        path = tmp_path / f"checkpoint-0000000{step}.safetensors"
        with pytest.raises(OSError, match=f"^{path}: cannot be written: {os.strerror(code)}$"):
            checkpoint.save(tmp_path, small(step))
    assert os.listdir(tmp_path) == ["checkpoint-00000001.safetensors"]
    assert (tmp_path / "checkpoint-00000001.safetensors").read_bytes() == before


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda n: (calls.append(os.fstat(n).st_ino), fsync(n)))
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), replace(*a)))
    path = checkpoint.save(tmp_path, small())
    assert calls == [path.stat().st_ino, "replace", tmp_path.stat().st_ino]
    with atomic_write(tmp_path / "log"):  # which does not wait for the disk
        calls.clear()
    assert calls == ["replace"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_file_systems_that_cannot_flush(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "fsync", fail_with(code))
    assert_same(checkpoint.load(checkpoint.save(tmp_path, small()), small()).state, small())


def test_an_atomic_write_is_whole_or_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
    for error in (ValueError, KeyboardInterrupt):
        (half := atomic_write(path)).__enter__().write(b"half")
        assert not half.__exit__(error, error(), None)  # the error goes on
    with pytest.raises(OSError, match=f"^{tmp_path}/no/file: cannot be written: No such file"):
        atomic_write(tmp_path / "no" / "file").__enter__()
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]
