"""Processes of a job: they agree before the first step, and each ends with its own code."""

import atexit
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.helpers import TRAIN, refused

JOB = ("--dataset", "synthetic", "--batch-size", 600, "--distributed", "--processes", 2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(port: int, number: int, *options: object, **environment: str) -> subprocess.Popen:
    command = (TRAIN, *JOB, "--coordinator", f"localhost:{port}", "--process-id", number, *options)
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def ends(*processes: subprocess.Popen) -> list[tuple[int, str, str]]:
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--learning-rate", 0.1),
        pytest.param("--seed", 1, marks=pytest.mark.stress),
        pytest.param("--hidden", 5, marks=pytest.mark.stress),
        pytest.param("--epochs", 9, marks=pytest.mark.stress),
    ],
)
def test_other_options_in_one_process(option, value):
    """Field case F10: nothing is trained, and each process names the option."""
    port = free_port()
    for result in ends(start(port, 0), start(port, 1, option, value)):
        refused(result, 2, f"different values of {option},")
        assert "Epoch" not in result[1]


@pytest.mark.stress
@pytest.mark.parametrize(
    "name", ["http_proxy", pytest.param("https_proxy", marks=pytest.mark.stress)]
)
def test_a_proxy_in_the_environment(name):
    """Field case F24: the coordinator is reached without it."""
    port, proxy = free_port(), {name: "http://127.0.0.1:9"}
    first, second = ends(*(start(port, n, "--epochs", 1, **proxy) for n in (0, 1)))
    assert (first[0], first[2]) == (0, "")
    assert second == (0, "", "")


def test_a_taken_port(script, monkeypatch):
    """Field case F24; and the process, in which no job has begun, ends as it would without."""
    monkeypatch.setattr(atexit, "register", lambda *_: pytest.fail("another exit code"))
    with socket.socket() as other:
        other.bind(("localhost", 0))
        other.listen()
        address = f"localhost:{other.getsockname()[1]}"
        result = script("train.py", *JOB, "--coordinator", address, "--process-id", 0)
    refused(result, 1, address, "in use")


@pytest.mark.stress
def test_two_processes_with_one_number():
    """Field case F24: the second is named, or else the time limit is."""
    port = free_port()
    first, *others = ends(*(start(port, n, "--timeout", 10) for n in (0, 1, 1)))
    for result in (first, *others):
        refused(result, 1, "--process-id", "--coordinator")
    assert [stdout for _, stdout, _ in others] == ["", ""]


@pytest.mark.parametrize(
    "address",
    ["localhost", "10.0.0.1", "http://localhost:1234", ":1234", "localhost:", "localhost:99999"],
)
def test_what_is_no_address(script, address):
    """Field case F23."""
    result = script("train.py", *JOB, "--coordinator", address, "--process-id", 0)
    refused(result, 2, address, "HOST:PORT")


def test_numbers_and_hosts_that_cannot_be(script):
    """Field case F23."""
    options = ("train.py", *JOB, "--coordinator", "host.invalid:1234", "--process-id")
    refused(script(*options, 2), 2, "--process-id 2", "--processes 2")
    refused(script(*options, 1), 1, "host.invalid:1234")
    refused(script(*options, 1, "--timeout", 10**12), 2, "--timeout")


@pytest.mark.stress
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=str)
def test_one_process_is_ended(sigint, tmp_path, victim, number):
    """Field case F33: nobody prints a stack, and each ends with the right code."""
    port = free_port()
    options = ("--epochs", 100_000, "--timeout", 10, "--out", tmp_path / "out")
    processes = [start(port, n, *options) for n in (0, 1)]
    assert any("Epoch 2" in line for line in processes[0].stdout)
    processes[victim].send_signal(number)
    results = ends(*processes)
    if number == signal.SIGKILL:
        refused(results[1 - victim], 1, "another process has failed or cannot be reached")
        return
    for code, _, stderr in results:
        assert code == 128 + number
        assert "stopped and saved after step" in stderr.splitlines()[-1]
        assert len(stderr.splitlines()) <= 2


@pytest.mark.stress
@pytest.mark.parametrize("victim", [0, 1])
def test_one_process_is_stopped(victim):
    """Field case F33: with SIGSTOP, as by a debugger; the others do not wait for ever."""
    port = free_port()
    processes = [start(port, n, "--epochs", 100_000, "--timeout", 10) for n in (0, 1)]
    assert any("Epoch 2" in line for line in processes[0].stdout)
    processes[victim].send_signal(signal.SIGSTOP)
    (other,) = ends(processes[1 - victim])
    processes[victim].send_signal(signal.SIGCONT)
    (stopped,) = ends(processes[victim])
    for result in (other, stopped):
        refused(result, 1, "another process has failed or cannot be reached")
