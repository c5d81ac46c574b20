"""Many devices train as one does; test_distributed.py has many processes."""

import json
import os
import socket
import subprocess
import sys

import jax
import jaxtyping
import numpy as np
import pytest

from jaxmnist import JaxmnistError, epoch_order, make_train_epoch, make_train_step, parallel
from jaxmnist.errors import UsageError
from jaxmnist.training import norms
from tests.helpers import PATIENCE, ROOT
from tests.mesh_worker import EPOCHS, OBJECTIVES, RUNS, SEED, TX, dataset
from tests.mesh_worker import start as start_state

WORKER = ("-m", "tests.mesh_worker")


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, list]]:
    """What one device gives, by the gathering epoch that needs no mesh."""
    data, result = dataset(), {}
    for name, (objective, batch_size, _) in RUNS.items():
        step = make_train_step(OBJECTIVES[objective], TX, log=norms)
        train_epoch = jax.jit(make_train_epoch(step, batch_size))
        state, run = start_state(objective), []
        for epoch in range(EPOCHS):
            state, metrics = train_epoch(state, data, epoch_order(jax.random.key(SEED), epoch, 900))
            run.append(metrics["loss"])
        assert np.mean(run[-1]) < 0.7 * np.mean(run[0])  # it learns
        result[name] = {"losses": run, "norms": metrics["param_norm"]}
    return result


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def run_together(*commands: list, **environment: str) -> list[tuple[int, str, str]]:
    """Run Python programs at once: the exit code, stdout and stderr of each."""
    options = {"cwd": ROOT, "env": os.environ | environment, "text": True}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    words = [[sys.executable, *map(str, command)] for command in commands]
    started = [subprocess.Popen(command, **options) for command in words]
    try:
        ends = [process.communicate(timeout=PATIENCE) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(p.returncode, *end) for p, end in zip(started, ends, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [4, pytest.param(8, marks=pytest.mark.stress)])
def test_devices_equal_one(expected, devices):
    """Data parallel, and with the parameters sharded too."""
    ((code, stdout, stderr),) = run_together(WORKER, JAX_NUM_CPU_DEVICES=str(devices))
    assert code == 0, stderr
    told = json.loads(stdout.splitlines()[-1])
    assert told["devices"] == devices
    assert set(told["runs"]) == set(expected)
    for name, run in told["runs"].items():
        assert run["traces"] == 1
        np.testing.assert_allclose(run["losses"], expected[name]["losses"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(run["norms"], expected[name]["norms"], rtol=1e-5)
        # With FSDP a device holds its part of what it can divide, and of nothing else more.
        parts = [
            size // devices if name.startswith("fsdp") and size % devices == 0 else size
            for size in run["sizes"]
        ]
        assert run["held"] == parts
        assert max(run["sizes"]) == 784 * 32


@pytest.mark.slow
def test_on_a_mesh_with_explicit_axes():
    """JAX's default mesh: evaluation and the gathering epoch, wherever their arrays lie."""
    (end,) = run_together(["-m", "tests.explicit_mesh"], JAX_NUM_CPU_DEVICES="4")
    assert end[0] == 0, end


def test_the_batches_of_an_epoch():
    """Of any pytree; what fills the last batch is its own last row."""
    data = {"x": np.arange(10.0, dtype=np.float32), "pair": (np.arange(20).reshape(10, 2),)}
    batches = parallel.shard_epoch(data, np.arange(10)[::-1], 4, parallel.make_mesh(1))
    assert jax.tree.structure(batches.arrays) == jax.tree.structure(data)
    assert batches.count == 10
    np.testing.assert_array_equal(batches.arrays["x"], [[9, 8, 7, 6], [5, 4, 3, 2], [1, 0, 0, 0]])
    assert batches.arrays["pair"][0].shape == (3, 4, 2)


@pytest.mark.parametrize("index", [-1, 900])
def test_an_order_that_reaches_outside(index):
    with pytest.raises(ValueError, match=r"order reaches from .* outside 0\.\.899"):
        parallel.shard_epoch(dataset(), np.array([0, index]), 2, parallel.make_mesh(1))


@pytest.mark.parametrize(("batch_size", "take"), [(100, "96 or 104"), (7, "8")])
def test_devices_that_do_not_divide_the_batch(batch_size, take, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # of a mesh without devices
    mesh = jax.sharding.AbstractMesh((8,), ("data",))
    with pytest.raises(UsageError, match=f"8 devices cannot share a batch of .*: take {take}$"):
        parallel.shard_epoch(dataset(), np.arange(8), batch_size, mesh)


def test_more_devices_than_there_are():
    with pytest.raises(JaxmnistError, match=r"99 devices are asked for, but JAX finds 1 \(cpu;"):
        parallel.make_mesh(99)
