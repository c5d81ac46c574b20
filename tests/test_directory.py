"""A run's directory: one run at a time, the same run or none, and exactly its rows."""

import dataclasses
import errno
import fcntl
import itertools
import json
import os
import shutil
import struct
from functools import partial
from unittest import mock

import jax
import numpy as np
import optax
import pytest

from jaxmnist import TrainState, checkpoint
from jaxmnist.errors import CheckpointError, NonFiniteLossError, UsageError
from jaxmnist.runs import directory
from jaxmnist.runs.directory import describe_epoch, epoch_record, open_run, read_run
from jaxmnist.torch_compat import TorchGenerator, init_params
from jaxmnist.weights import load_weights

STEPS = 4


neutral = partial(dataclasses.field, metadata={"changes_run": False})


@dataclasses.dataclass(frozen=True)
class Rates:
    rate: float = 0.1
    device: str = neutral(default="cpu")


@dataclasses.dataclass(frozen=True)
class Sizes:
    hidden: tuple[int, ...] = (5,)
    epochs: int = neutral(default=3)


OPTIONS = (Rates(), Sizes())


def state_after(epoch: int) -> TrainState:
    state = TrainState.create(init_params(TorchGenerator(epoch), (784, 5, 10)), optax.sgd(0.1, 0.9))
    return state._replace(step=np.int32(epoch * STEPS))


def losses_of(epoch: int) -> np.ndarray:
    return np.random.default_rng(epoch).random(STEPS, np.float32)


def train(path, epochs=3, *, resume=False, options=OPTIONS, **more) -> list[str]:
    """Something like a run, of which an epoch follows from its number; what it warns of."""
    warnings: list[str] = []
    with open_run(path, warn=warnings.append, **more) as run:
        config = directory.make_config(options, data="MNIST")
        state = run.begin(config, state_after(0), resume=resume)
        done = int(state.step) // STEPS if state else 0
        assert len(run.records) == done
        for epoch in range(done + 1, epochs + 1):
            tests = {"test": {"loss": np.float32(1 / epoch), "accuracy": np.float32(0.5)}}
            record = epoch_record(epoch, losses_of(epoch), tests)
            run.save(state_after(epoch), record, losses_of(epoch))
    return warnings


def contents(path) -> dict[str, bytes]:
    files = (file for file in path.iterdir() if file.is_file() and file.name != ".lock")
    return {file.name: file.read_bytes() for file in files}


def points(path) -> list[tuple]:
    """What is in TensorBoard's files, each a sequence of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in (path / "tensorboard").iterdir():
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            found += [(event.step, v.tag, np.float32(v.simple_value)) for v in event.summary.value]
            assert event.wall_time > 1e9
    return sorted(found)


def test_the_files_of_a_run(tmp_path):
    out = tmp_path / "runs" / "one"
    assert train(out, tensorboard=True) == []
    run = read_run(out)
    assert run.config["options"] == {"rate": 0.1, "device": "cpu", "hidden": [5], "epochs": 3}
    assert [(row["epoch"], row["step"]) for row in run.records] == [(1, 4), (2, 8), (3, 12)]
    assert run.records[1]["train_loss"] == float(losses_of(2).mean(dtype="float64"))
    np.testing.assert_array_equal(run.losses, [losses_of(epoch) for epoch in (1, 2, 3)])
    jax.tree.map(np.testing.assert_array_equal, run.params, state_after(3).params)
    assert run.finished
    steps = [(s, "train/step_loss", x) for s, x in enumerate(run.losses.reshape(-1), 1)]
    for name in ("train_loss", "test_loss", "test_accuracy"):
        tag = name.replace("_", "/")
        steps += [(row["step"], tag, np.float32(row[name])) for row in run.records]
    assert points(out) == sorted(steps)
    # The other files hold the same, and every digit.
    config = json.loads((out / "config.json").read_text())
    metrics, rows = (
        [json.loads(row) for row in (out / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "steps.jsonl")
    )
    assert (config | {"records": metrics}, metrics) == (run.config, run.records)
    found = [(row["step"], np.float32(row["loss"])) for row in rows]
    assert found == list(enumerate(run.losses.reshape(-1), 1))
    jax.tree.map(np.testing.assert_array_equal, load_weights(out), run.params)


def at_call(patch, name, when, act) -> None:
    """Let `act` happen before a function of the directory is called for the `when`-th time."""
    module = checkpoint if name == "checkpoint.save" else directory
    name, calls = name.removeprefix("checkpoint."), itertools.count(1)
    whole = getattr(module, name)

    def call(*args, **more):
        if next(calls) == when:
            act()
        return whole(*args, **more)

    patch.setattr(module, name, call)


# What a process can die in while it saves an epoch, and how often three epochs call it.
DEATHS = {"atomic_write": 12, "_write_events": 3, "checkpoint.save": 3}


@pytest.mark.parametrize("call", DEATHS)
def test_a_run_that_dies_while_it_saves_ends_in_the_same_files(tmp_path, monkeypatch, call):
    train(tmp_path / "whole", tensorboard=True)
    for when in range(1, DEATHS[call] + 1):
        out = tmp_path / f"out {when}"
        with monkeypatch.context() as patch:
            at_call(patch, call, when, mock.Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                train(out, tensorboard=True)
        (out / "config.json.01234567.tmp").touch()  # of a kill in the middle of a write
        train(out, resume=True, tensorboard=True)
        assert contents(out) == contents(tmp_path / "whole")
        assert points(out) == points(tmp_path / "whole")


def test_another_run_is_refused_and_the_difference_named(tmp_path):
    train(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="holds this run already; --resume continues it"):
        train(tmp_path)
    other = (Rates(rate=0.2), Sizes((5, 6)))
    line = r"another run .rate 0.1 there, 0.2 here, hidden \[5\] there, \[5, 6\] here.; name"
    for resume in (True, False):
        with pytest.raises(UsageError, match=line):
            train(tmp_path, options=other, resume=resume)
    assert contents(tmp_path) == before
    assert train(tmp_path, options=(Rates(device="gpu"), Sizes(epochs=9)), resume=True) == []
    for path in tmp_path.glob("checkpoint-*"):
        path.unlink()
    with pytest.raises(UsageError, match="holds no run"):
        train(tmp_path, resume=True)


def identity(**more):
    return directory.make_config(OPTIONS, **more)["identity"]


def test_jaxs_flags_the_data_and_the_first_weights_are_part_of_the_identity():
    config = identity(data="MNIST", init="abc")
    assert config["jax_enable_x64"] is False
    jax.config.update("jax_random_seed_offset", 7)
    other = identity(data="synthetic digits", init="abc")
    jax.config.update("jax_random_seed_offset", 0)
    line = "data MNIST there, synthetic digits here, jax_random_seed_offset 0 there, 7 here"
    assert directory.differences(config, other) == line
    # The checkpoint holds the first weights: who goes on need not name them, nor others.
    assert directory.differences(config, identity(data="MNIST")) == ""
    assert directory.differences({**config, "init": "x"}, config) == "init x there, abc here"


def test_other_versions_are_told(tmp_path, monkeypatch):
    train(tmp_path, 1)
    monkeypatch.setattr(optax, "__version__", "0.0.1")
    (line,) = train(tmp_path, resume=True)
    assert line.startswith("other versions, so the last digits may differ: optax ")


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(UsageError, match="holds no run"):
        train(tmp_path)
    for path in ("thesis.tex", "thesis.tex/out"):
        with pytest.raises(OSError, match=f": '{tmp_path / path}'"):
            train(tmp_path / path)
    assert contents(tmp_path) == {"thesis.tex": b"important"}


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(tmp_path):
    train(tmp_path)
    before, newest = contents(tmp_path), tmp_path / "checkpoint-00000012.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    (line,) = train(tmp_path, resume=True)
    assert line.startswith(f"skipped a checkpoint: {newest}: damaged")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("call", DEATHS)
def test_a_directory_that_is_removed_ends_the_run(tmp_path, monkeypatch, call):
    """Also one that somebody makes again: earlier rows would be missing."""
    at_call(monkeypatch, call, 2, lambda: shutil.rmtree(tmp_path))
    with pytest.raises(OSError, match=f"^{tmp_path}/.*: cannot be written: No such file"):
        train(tmp_path, tensorboard=True)


def test_one_run_at_a_time(tmp_path):
    """The lock is the open file's, so a second one is refused within a process too."""
    refused = pytest.raises(CheckpointError, match=f"^{tmp_path}: another process trains into it")
    with open_run(tmp_path, warn=print), refused:
        train(tmp_path)
    train(tmp_path)


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """It is told, and nothing that a killed process leaves behind refuses the next one."""
    error = OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    monkeypatch.setattr(fcntl, "flock", mock.Mock(side_effect=error))
    with open_run(tmp_path, warn=print):
        (line,) = train(tmp_path)
    assert line.startswith(f"{tmp_path} cannot be locked (Function not implemented): ")


def test_reading_a_run(tmp_path):
    """Of the newest checkpoint alone: nothing else is read, and an older one is not taken.

    The other files follow from it, and are written again.
    """
    with pytest.raises(UsageError, match="there is no such directory"):
        read_run(tmp_path / "none")
    for _ in range(2):
        with pytest.raises(UsageError, match="no epoch that is done"):
            read_run(tmp_path)
        checkpoint.save(tmp_path, {}, step=1)  # of something else
    train(tmp_path / "run", 2)
    before = contents(tmp_path / "run")
    for name in ("config.json", "metrics.jsonl", "steps.jsonl", "weights.safetensors"):
        (tmp_path / "run" / name).write_text("[" * 100_000)
    run = read_run(tmp_path / "run")
    assert (run.finished, len(run.records), run.losses.shape) == (False, 2, (2, STEPS))
    assert train(tmp_path / "run", 2, resume=True) == []
    assert contents(tmp_path / "run") == before
    (tmp_path / "run" / "checkpoint-00000008.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"00000008\.safetensors: no checkpoint"):
        read_run(tmp_path / "run")


def test_the_line_of_an_epoch_fits_a_terminal():
    """The one without a validation set is the example of `describe_epoch`."""
    tests = {name: {"loss": 99.9999, "accuracy": 0.99994} for name in ("validation", "test")}
    record = epoch_record(80, np.float32([99.9999]), tests)
    line = "Epoch 80/80  Loss: 99.9999  validation: 99.9999 99.99%  test: 99.9999 99.99%"
    assert describe_epoch(record, 80) == line


def test_a_test_loss_that_is_not_finite():
    with pytest.raises(NonFiniteLossError, match="the test loss after epoch 3 is nan"):
        epoch_record(3, np.ones(2, np.float32), {"test": {"loss": np.nan, "accuracy": 0.1}})
