"""Checkpoints: bit for bit what was saved, or refused; and none is lost, however a process ends."""

import contextlib
import errno
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import threading
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmnist import MLP, Dataset, TrainState, classifier_objective, init_state
from jaxmnist import make_train_step as make_step
from jaxmnist.errors import CheckpointError
from jaxmnist.files import atomic_write, open_regular
from jaxmnist.runs import checkpoint, checkpoint_file
from jaxmnist.runs.lock import lock
from tests.helpers import PATIENCE


def small(step: int = 7, width: int = 3) -> TrainState:
    """A state of every kind of leaf, in a file of 1 KB."""
    rng = np.random.default_rng(step)
    kernel = rng.normal(size=(2, width)).astype(np.float32)
    bias = jnp.array([np.nan, -0.0, np.inf], jnp.bfloat16)
    opt_state = (optax.EmptyState(), {"count": np.int32(step)}, np.zeros((0, 2), np.uint8), None)
    return TrainState(np.int32(step), {"kernel": kernel, "bias": bias}, opt_state)


def shapes_of(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), state)


def on_host(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.array(jax.random.key_data(leaf) if is_key else leaf)


def assert_same(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    leaves = (map(on_host, jax.tree.leaves(tree)) for tree in (found, expected))
    for a, b in zip(*leaves, strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def refused(path, like: TrainState, *words: str) -> None:
    """One line that names the file, holds the words and says what to do."""
    with pytest.raises(CheckpointError) as info:
        checkpoint.load(path, like)
    message = str(info.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    for word in words:
        assert word in message


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.01),
    "schedule": optax.chain(optax.clip(1.0), optax.adamw(optax.cosine_decay_schedule(0.1, 9))),
    "multi_steps": optax.MultiSteps(optax.adam(0.01), every_k_schedule=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path, toy, name):
    """Saved in the background while the next step already reuses the state's memory."""
    model, tx = MLP((5,)), OPTIMIZERS[name]
    step = jax.jit(make_step(classifier_objective(model.apply), tx), donate_argnums=0)
    batch = Dataset(toy.images[:64], toy.labels[:64])
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # optax mixes int and float
    try:
        state = init_state(model, tx, jax.random.key(0))
        like = jax.eval_shape(lambda: init_state(model, tx, jax.random.key(0)))
        with checkpoint.Writer(tmp_path, keep=9) as writer:
            for _ in range(4):
                state, _ = step(state, batch)
            writer.save(state, config={}, arrays={"losses": np.arange(3.0)})
            before = jax.tree.map(on_host, state)
            for _ in range(4):
                state, _ = step(state, batch)
        assert writer.problem is None
        restored, skipped = checkpoint.restore(tmp_path, like)
        assert skipped == []
        assert_same(restored.state, before)
        resumed = restored.state
        for _ in range(4):
            resumed, _ = step(resumed, batch)
    finally:
        jax.config.update("jax_numpy_dtype_promotion", "strict")
    assert_same(resumed, state)


def test_everything_comes_back(tmp_path):
    config = {"hidden": (128, 64), "name": 'Zoë "sha256"', "deep": {"rate": 1e-300, "none": None}}
    arrays = {"losses": np.array([0.1, np.nan]), "order": np.arange(6).reshape(2, 3)[:, ::2]}
    path = checkpoint.save(tmp_path / "new" / "run", small(), config=config, arrays=arrays)
    assert path.name == "checkpoint-00000007.safetensors"
    for like in (small(1), shapes_of(small(1))):
        found = checkpoint.load(path, like)
        assert_same(found.state, small())
        assert found.config == json.loads(json.dumps(config))
        assert {name: x.tolist() for name, x in found.arrays.items()} == {
            "losses": [0.1, pytest.approx(np.nan, nan_ok=True)],
            "order": [[0, 2], [3, 5]],
        }
    found.arrays["losses"][0] = 1  # they can be written to
    once = path.read_bytes()
    checkpoint.save(path.parent, small(), config=config, arrays=arrays)
    assert path.read_bytes() == once


def test_what_no_checkpoint_can_hold_is_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, small(), config={"out": tmp_path})
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, small()._replace(params=np.array(["text"])), config={})
    with pytest.raises(TypeError, match="has no step"):
        checkpoint.save(tmp_path, {"w": np.ones(2)})
    for make in (checkpoint.Writer, lambda d, keep: checkpoint.save(d, small(), config={}, keep=0)):
        with pytest.raises(ValueError, match="keep must be at least 1, not 0"):
            make(tmp_path, keep=0)
    assert list(tmp_path.iterdir()) == []


def test_no_damage_goes_unseen(tmp_path):
    path = checkpoint.save(tmp_path, small(), config={"epochs": 5}, arrays={"losses": np.ones(2)})
    content, like = path.read_bytes(), small(1)
    rng = np.random.default_rng(0)
    for at in range(len(content)):
        path.write_bytes(content[:at])
        refused(path, like, "damaged")
        changed = bytearray(content)
        changed[at] ^= rng.integers(1, 256)
        path.write_bytes(changed)
        refused(path, like, "damaged")
        changed[at] = content[at] ^ 1 << rng.integers(8)
        path.write_bytes(changed)
        refused(path, like, "damaged")
    for grown in (content + b"\0", content + bytes(4096), bytes(len(content)), content * 2):
        path.write_bytes(grown)
        refused(path, like, "damaged", "remove it")
    path.write_bytes(content)
    assert_same(checkpoint.load(path, like).state, small())


def test_what_is_no_checkpoint(tmp_path):
    from jaxmnist.weights import save_weights

    path = tmp_path / "checkpoint-00000001.safetensors"
    refused(path, small(), "No such file")
    layer = {"weight": np.zeros((3, 2), np.float32), "bias": np.zeros(3, np.float32)}
    save_weights(path, {"params": {"linear_0": layer}})
    refused(path, small(), "no checkpoint")
    path.unlink()
    path.mkdir()
    refused(path, small(), "Is a directory")


def seal(content: bytes) -> bytes:
    """A changed checkpoint, but with a right checksum."""
    digest = checkpoint_file._DIGEST.search(content)[1]
    zeroed = content.replace(digest, checkpoint_file._NO_DIGEST, 1)
    return zeroed.replace(
        checkpoint_file._NO_DIGEST, checkpoint_file.hashlib.sha256(zeroed).hexdigest().encode(), 1
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"F32"', b'"F99"', ["no checkpoint"]),
        (b"[2,3]", b"[2,4]", ["no checkpoint"]),
        (b"config", b"sonfig", ["no checkpoint"]),
        (b'config\\": {}', b'config\\": []', ["no checkpoint"]),  # found by scripts/fuzz.py
        (b'format\\": 1', b'format\\": 2', ["its format is 2", "reads 1"]),
        (b"kernel", b"kennel", ["state.params['kernel']\" is not there, float32[2, 3] here"]),
        (b"opt_state[1]", b"opt_state[7]", ["opt_state[1]['count']\" is not there", "int32[]"]),
    ],
)
def test_what_another_program_has_sealed_is_not_trusted_either(tmp_path, old, new, words):
    path = checkpoint.save(tmp_path, small(), config={})
    content = path.read_bytes()
    assert seal(content) == content
    assert content.count(old) == 1
    path.write_bytes(seal(content.replace(old, new)))
    refused(path, small(), *words)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (small(width=4), ["['kernel']\" is float32[2, 3] there, float32[2, 4] here", "options"]),
        (small()._replace(step=np.int64(0)), ["'state.step' is int32[] there, int64[] here"]),
        (
            small()._replace(opt_state=()),
            ["state.opt_state[1]['count']\" is int32[] there, not"],
        ),
        (small()._replace(opt_state={"mu": np.ones(2)}), ["['mu']\" is not there, float64[2]"]),
    ],
)
def test_another_model_is_named(tmp_path, other, words):
    path = checkpoint.save(tmp_path, small(), config={})
    refused(path, other, "another model", *words)


def test_claimed_gigabytes_cost_nothing(tmp_path):
    path = checkpoint.save(tmp_path, small(), config={})
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["state.step"].update(shape=[2**40], data_offsets=[0, 2**42])
    lying = json.dumps(header, separators=(",", ":")).encode()
    for start in (2**62, 10**8 + 1, length + 2**33):
        path.write_bytes(start.to_bytes(8, "little") + content[8:])
        tracemalloc.start()
        refused(path, small(), "damaged")
        path.write_bytes(len(lying).to_bytes(8, "little") + lying + content[8 + length :])
        refused(path, small(), "damaged")
        with path.open("r+b") as file:
            file.write(content)
            file.truncate(2**33)  # 8 GB of zeros that take no place on the disk
        refused(path, small(), "damaged")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000


def names(directory) -> list[str]:
    return sorted(path.name.removesuffix(".safetensors") for path in directory.iterdir())


def test_the_newest_are_kept(tmp_path):
    for step in (9, 10, 100_000_000, 11, 12):
        checkpoint.save(tmp_path, small(step), config={}, keep=2)
    # The one of a later step is not in the past of this run, and not for this run to remove.
    assert names(tmp_path) == [f"checkpoint-{step}" for step in ("00000011", "00000012", 10**8)]
    restored, _ = checkpoint.restore(tmp_path, small())
    assert restored.state.step == 100_000_000
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.save(tmp_path, small(200_000_000), config={}, keep=1)
    assert names(tmp_path) == ["checkpoint-200000000", "notes.txt"]


def test_the_newest_good_one_is_restored_and_each_bad_one_named(tmp_path):
    for step in range(1, 6):
        checkpoint.save(tmp_path, small(step), config={}, keep=9)
    paths = sorted(tmp_path.iterdir())
    paths[4].write_bytes(paths[4].read_bytes()[:-1])
    checkpoint.save(tmp_path, small(4, width=8), config={}, keep=9)
    paths[2].unlink()
    paths[2].symlink_to(tmp_path / "gone")
    restored, skipped = checkpoint.restore(tmp_path, small())
    assert_same(restored.state, small(2))
    assert [line.split(": ")[0] for line in skipped] == [str(paths[i]) for i in (4, 3, 2)]
    for line, word in zip(skipped, ["damaged", "another model", "No such file"], strict=True):
        assert word in line

    for path in paths[:2]:
        path.unlink()
    with pytest.raises(CheckpointError, match=rf"^{tmp_path} has no good checkpoint; {paths[4]}: "):
        checkpoint.restore(tmp_path, small())


def test_no_checkpoint_is_no_error_but_an_unreadable_directory_is(tmp_path):
    for directory in (tmp_path, tmp_path / "none"):
        assert checkpoint.restore(directory, small()) == (None, [])
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file: cannot be read: Not a directory"):
        checkpoint.restore(tmp_path / "file", small())
    for make in (checkpoint.Writer, lambda path: checkpoint.save(path, small(), config={})):
        with pytest.raises(CheckpointError, match="file: cannot be made: File exists"):
            make(tmp_path / "file")


@contextlib.contextmanager
def failing(function: str, code: int):
    """The disk refuses: really for write, whose limit is 100 bytes here, else by way of `os`."""
    if function == "write":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return

    def fail(*args):
        raise OSError(code, os.strerror(code))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, function, fail)
        yield


FAILURES = [("write", errno.EFBIG)]
FAILURES += [("fsync", code) for code in (errno.ENOSPC, errno.EIO)]
FAILURES += [("replace", code) for code in (errno.EACCES, errno.EROFS, errno.ENOSPC)]


@pytest.mark.parametrize(("function", "code"), FAILURES)
def test_a_failed_write_leaves_the_last_good_one(tmp_path, function, code):
    last = checkpoint.save(tmp_path, small(1), config={})
    with failing(function, code), pytest.raises(CheckpointError) as info:
        checkpoint.save(tmp_path, small(2), config={}, keep=1)
    assert str(info.value) == (
        f"{tmp_path / 'checkpoint-00000002.safetensors'}: cannot be written: {os.strerror(code)}"
    )
    assert list(tmp_path.iterdir()) == [last]
    assert_same(checkpoint.load(last, small()).state, small(1))

    with checkpoint.Writer(tmp_path) as writer, failing(function, code):
        writer.save(small(2), config={})
        writer._thread.submit(int).result()  # after it in the thread
        assert writer.problem == str(info.value)
    assert list(tmp_path.iterdir()) == [last]
    with checkpoint.Writer(tmp_path) as writer:
        with failing(function, code):
            writer.save(small(2), config={})
            writer._thread.submit(int).result()
        writer.save(small(3), config={})
    assert writer.problem is None
    assert checkpoint.restore(tmp_path, small())[0].state.step == 3


def test_the_directory_vanishes(tmp_path):
    with checkpoint.Writer(tmp_path / "run") as writer:
        shutil.rmtree(tmp_path / "run")
        writer.save(small(), config={})
    assert "No such file" in writer.problem
    assert list(tmp_path.iterdir()) == []


def test_a_slow_disk_delays_neither_training_nor_the_newest(tmp_path, monkeypatch):
    started, go, written = threading.Event(), threading.Event(), []
    write = checkpoint._write

    def slow(directory, step, content, keep):
        started.set()
        assert go.wait(PATIENCE)
        written.append(step)
        return write(directory, step, content, keep)

    monkeypatch.setattr(checkpoint, "_write", slow)
    with checkpoint.Writer(tmp_path) as writer:
        state = small(1)
        writer.save(state, config={})
        state.params["kernel"][:] = 0  # it was copied
        assert started.wait(PATIENCE)
        for step in (2, 3, 4):
            writer.save(small(step), config={})
        assert written == []
        go.set()
    assert written == [1, 4]
    first = tmp_path / "checkpoint-00000001.safetensors"
    assert_same(checkpoint.load(first, small()).state, small(1))


def test_an_error_in_training_still_saves_what_was_to_be_saved(tmp_path):
    def train():
        with checkpoint.Writer(tmp_path) as writer:
            writer.save(small(), config={})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert names(tmp_path) == ["checkpoint-00000007"]


def test_a_failed_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def interrupted():
        with atomic_write(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"new", [path])


def test_one_process_a_directory(tmp_path, monkeypatch):
    directory = tmp_path / "run"
    directory.mkdir()
    for name in ("checkpoint-00000003.safetensors.0a1b2c3d.tmp", "a.json.01234567.tmp", "mine.tmp"):
        (directory / name).write_text("half")
    with lock(directory):
        assert sorted(os.listdir(directory)) == [".lock", ".lock.pid", "mine.tmp"]
        with pytest.raises(CheckpointError) as info, lock(directory):
            pass
        message = f"another process is training into {directory} (pid {os.getpid()}); wait for it"
        assert str(info.value).startswith(message)
    with lock(directory):
        pass
    assert sorted(os.listdir(directory)) == [".lock", "mine.tmp"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, 524])
def test_a_file_system_without_locks(tmp_path, monkeypatch, code):
    """Field case F3: it goes without, and says so."""
    import fcntl

    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock(tmp_path) as note:
        assert note is None or "make sure that no other process trains into it" in note
        assert note is not None or code == errno.ENOSYS  # filelock has a substitute then
    assert not (tmp_path / ".lock.pid").exists()


def test_a_lock_that_may_not_be_written_is_an_error(tmp_path, monkeypatch):
    import filelock

    def refuse(self, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(CheckpointError, match="cannot be locked: Read-only"):
        lock(tmp_path).__enter__()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
@pytest.mark.parametrize("of", ["directory", "file"])
def test_a_file_system_that_cannot_flush(tmp_path, monkeypatch, code, of):
    """Field case F1: what is written is good, and old checkpoints are removed as ever."""
    flush = os.fsync

    def refuse(number):
        if (of == "directory") == stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(code, os.strerror(code))
        flush(number)

    monkeypatch.setattr(os, "fsync", refuse)
    for step in range(1, 5):
        checkpoint.save(tmp_path, small(step), keep=3)
    assert names(tmp_path) == [f"checkpoint-{step:08}" for step in (2, 3, 4)]
    assert checkpoint.restore(tmp_path, small())[0].state.step == 4


def test_a_directory_that_may_not_be_opened_is_not_flushed(tmp_path, monkeypatch):
    """A further member of F1: a drop box, which one may write into and not list."""
    opened = os.open

    def refuse(path, flags, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with atomic_write(tmp_path / "x", durable=True) as file:
        file.write(b"new")
    assert (tmp_path / "x").read_bytes() == b"new"


@pytest.mark.parametrize("name", [".lock", ".lock.pid"])
def test_a_lock_leads_nowhere_else(tmp_path, name):
    """Field case F31: a link in a prepared directory has no other file written to."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / name).symlink_to(victim)
    with contextlib.suppress(CheckpointError), lock(directory):
        assert victim.read_text() == "precious"
    assert victim.read_text() == "precious"


def test_open_regular_opens_files_only(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("link", "is a link"), ("pipe", "is no regular file"), ("none", "No such")):
        with pytest.raises(OSError, match=words), open_regular(tmp_path / name):
            pass
    with pytest.raises(OSError, match="is no regular file"), open_regular(tmp_path / "pipe", "r+b"):
        pass
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"x"


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_any_pytree_with_typed_keys(tmp_path, impl):
    key = jax.random.key(3, impl=impl)
    count = np.arange(3, dtype=np.int32)
    state = {"keys": jax.random.split(key, 3), "key": key, "list": [np.float32(1), (count,)]}
    path = checkpoint.save(tmp_path, state, step=11)
    assert path.name == "checkpoint-00000011.safetensors"
    like = jax.eval_shape(lambda: state)
    for shapes in (state, like):
        found = checkpoint.load(path, shapes).state
        assert_same(found, state)
        assert jax.random.key_impl(found["key"]) == impl
        np.testing.assert_array_equal(
            jax.random.bits(found["keys"][1], 9), jax.random.bits(state["keys"][1], 9)
        )
    other = jax.random.key(0, impl="rbg" if impl != "rbg" else "unsafe_rbg")
    refused(path, like | {"key": other}, "another model", "['key']", "key<")
    refused(path, like | {"key": np.zeros(2, np.uint32)}, "another model", "key<")


KILLED = """
import os, random, signal, sys, time
from pathlib import Path

import numpy as np
from jaxmnist import TrainState
from jaxmnist.runs import checkpoint
from jaxmnist.runs.lock import lock
from tests.helpers import PATIENCE
from jaxmnist.errors import CheckpointError

directory = Path(sys.argv[1])


def state(step):
    return TrainState(np.int32(step), {"w": np.full(100_000, step, np.float32)}, ())


def work(step, background):
    with lock(directory), checkpoint.Writer(directory) as writer:
        os.write(1, b"x")
        while True:
            step += 1
            if background:
                writer.save(state(step), config={"step": step})
            else:
                checkpoint.save(directory, state(step), config={"step": step})


rng, last, half = random.Random(0), 0, 0
reader, writer = os.pipe()
for n in range(200):
    if n >= 20 and half:
        break
    pid = os.fork()
    if not pid:
        os.dup2(writer, 1)
        work(last, n % 2)
    os.read(reader, 1)
    time.sleep(rng.random() / 10)
    try:
        lock(directory).__enter__()
    except CheckpointError as error:
        assert f"(pid {pid})" in str(error), error
    else:
        raise AssertionError("a second process got the lock")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    half += any(path.suffix == ".tmp" for path in directory.iterdir())
    found, skipped = checkpoint.restore(directory, state(0))
    assert skipped == [], skipped
    if found:
        step = int(found.state.step)
        assert step >= last and found.config == {"step": step}
        assert (found.state.params["w"] == step).all()
        last = step
    assert len(list(directory.glob("*.tmp"))) <= 1
print(last, half)
"""


def test_a_killed_process_loses_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, tmp_path],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    last, half = map(int, done.stdout.split())
    assert last > 5
    assert half > 0  # some were killed in the middle of a write
