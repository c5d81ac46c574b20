"""Many devices and many processes train as one does."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest
from conftest import ROOT
from mesh_worker import BATCHES, EPOCHS, dataset, losses
from test_resume import told

from jaxmnist import (
    MLP,
    JaxmnistError,
    epoch_order,
    init_state,
    make_train_epoch,
    make_train_step,
    parallel,
)

WORKER = ROOT / "tests" / "mesh_worker.py"
TRAIN = ROOT / "scripts" / "train.py"


@pytest.fixture(scope="module")
def expected() -> dict[int, np.ndarray]:
    """The losses of one device, by the gathering epoch that needs no mesh."""
    data, key = dataset(), jax.random.key(0)
    model, tx = MLP((32,)), optax.sgd(0.05, momentum=0.9)
    result = {}
    for batch_size in BATCHES:
        train_epoch = jax.jit(make_train_epoch(make_train_step(model.apply, tx), batch_size))
        state, result[batch_size] = init_state(key, model, tx), []
        for epoch in range(EPOCHS):
            state, metrics = train_epoch(state, data, epoch_order(key, epoch, len(data.labels)))
            result[batch_size].append(metrics["loss"])
        assert np.mean(result[batch_size][-1]) < 0.7 * np.mean(result[batch_size][0])  # it learns
    return result


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(*command: object, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def finish(*processes: subprocess.Popen, timeout: float = 300) -> list[tuple[int, str, str]]:
    try:
        ended = [(*process.communicate(timeout=timeout), process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, stdout, stderr) for stdout, stderr, process in ended]


def check(expected, stdout: str, devices: int) -> None:
    told = json.loads(stdout.splitlines()[-1])
    assert told["devices"] == devices
    for batch_size in BATCHES:
        got, traces = told["losses"][str(batch_size)]
        assert traces == 1
        np.testing.assert_allclose(got, expected[batch_size], rtol=0, atol=1e-5)


def test_one_device_is_a_mesh_too(expected):
    for batch_size in BATCHES:
        got, traces = losses(batch_size)
        assert traces == 1
        np.testing.assert_allclose(got, expected[batch_size], rtol=0, atol=1e-6)


def test_eight_devices_equal_one(expected):
    ((code, stdout, stderr),) = finish(start(WORKER, JAX_NUM_CPU_DEVICES="8"))
    assert code == 0, stderr
    check(expected, stdout, 8)
    refused = json.loads(stdout.splitlines()[-1])["refused"]
    assert refused.startswith("a batch of 4 cannot be shared out over 8 devices")


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_equal_one(expected, processes):
    port = free_port()
    workers = [start(WORKER, port, processes, number) for number in range(processes)]
    for code, stdout, stderr in finish(*workers):
        assert code == 0, stderr
        check(expected, stdout, processes)


def test_a_process_loads_only_its_share():
    """What is asked of the data is what this process's devices need, filling included."""
    data, mesh = dataset(), parallel.make_mesh(1)
    batches, where = parallel.share_epoch(data, np.arange(130), 64, mesh)
    assert batches.images.shape == (3, 64, 28, 28)
    assert where.sum(axis=1).tolist() == [64, 64, 2]
    np.testing.assert_array_equal(batches.labels.reshape(-1)[:130], data.labels[:130])
    batches, where = parallel.share_epoch(data, np.arange(128), 64, mesh)
    assert where is None  # nothing is filled up, so the loss need not take `where`
    assert batches.labels.shape == (2, 64)


@pytest.mark.parametrize("index", [-1, 900])
def test_an_order_that_reaches_outside(index):
    with pytest.raises(ValueError, match=r"outside the dataset's 0\.\.899"):
        parallel.share_epoch(dataset(), np.array([0, index]), 2, parallel.make_mesh(1))


def test_more_devices_than_there_are():
    with pytest.raises(JaxmnistError, match=r"99 devices are asked for, but JAX finds 1 \(cpu\)"):
        parallel.make_mesh(99)


def test_a_batch_smaller_than_the_mesh():
    options = ("--dataset", "synthetic", "--devices", 3, "--batch-size", 2)
    ((code, _, stderr),) = finish(start(TRAIN, *options, JAX_NUM_CPU_DEVICES="3"))
    assert code == 2
    assert stderr == "train.py: error: --batch-size 2 is below the 3 devices\n"


def together(*options: object, numbers: tuple[int, ...] = (0, 1)) -> list[subprocess.Popen]:
    """Those of two processes of scripts/train.py that have these numbers."""
    common = (TRAIN, "--dataset", "synthetic", "--batch-size", 600, "--distributed", *options)
    rendezvous = ("--coordinator", f"localhost:{free_port()}", "--processes", 2)
    return [start(*common, *rendezvous, "--process-id", number) for number in numbers]


def numbers(stdout: str) -> np.ndarray:
    """The epochs' training loss, test loss and test accuracy in percent."""
    return np.array([re.findall(r"[\d.]+", line) for line in told(stdout)], float)


def assert_close(stdout: str, alone: str) -> None:
    """Equal but for rounding, which may move a digit across the border between two classes."""
    assert numbers(stdout).shape == numbers(alone).shape == (2, 3)
    assert (abs(numbers(stdout) - numbers(alone)) < [1e-5, 1e-5, 0.025]).all()


@pytest.mark.slow
def test_train_script_on_devices_and_processes(script, tmp_path):
    options = ("--epochs", 2)
    _, alone, _ = script("train.py", "--dataset", "synthetic", "--batch-size", 600, *options)
    out = tmp_path / "out"
    first, second = finish(*together(*options, "--out", out))
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert_close(first[1], alone)
    assert second[1] == ""
    assert (out / "weights.safetensors").exists()
    devices = start(
        *(TRAIN, "--dataset", "synthetic", "--batch-size", 600, *options, "--devices", "all"),
        JAX_NUM_CPU_DEVICES="3",
    )
    ((code, stdout, stderr),) = finish(devices)
    assert code == 0, stderr
    assert_close(stdout, alone)
    assert "3 devices" in stdout


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_worker_dies_the_others_end(victim):
    processes = together("--epochs", 100_000)
    survivor = processes[1 - victim]
    first_line = processes[0].stdout.readline()
    assert first_line.startswith("Data: "), first_line
    for line in processes[0].stdout:
        if line.startswith("Training loss: "):
            break
    processes[victim].send_signal(signal.SIGKILL)
    started = time.monotonic()
    ((code, _, stderr),) = finish(survivor, timeout=60)
    processes[victim].communicate()
    assert time.monotonic() - started < 60
    assert code != 0
    assert "another process has failed" in stderr or "another task died" in stderr


@pytest.mark.slow
@pytest.mark.parametrize("present", [0, 1])
def test_a_worker_that_never_arrives(present):
    ((code, stdout, stderr),) = finish(*together("--timeout", 10, numbers=(present,)), timeout=60)
    assert code == 1
    assert stdout == ""
    assert "the other processes did not come within 10 s" in stderr
