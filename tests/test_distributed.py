"""scripts/train.py --distributed: several processes train as one, or say what differs."""

import numpy as np
import pytest

from jaxmnist.runs.directory import read_run
from tests.test_parallel import free_port, run_together

pytestmark = pytest.mark.slow
# Of tests.stress.injection, which trains on few digits: nothing is injected.
OPTIONS = ("kill", 0, "--dataset", "synthetic", "--batch-size", 50, "--momentum", 0.9, "--resume")


def run(out, *options, processes=2, differing=()):
    """Run so many processes to their end: the exit code, stdout and stderr of each."""
    job = ("--distributed", "--coordinator", f"localhost:{free_port()}", "--processes", processes)
    commands = []
    for n in range(processes):
        words = ["-m", "tests.stress.injection", *OPTIONS, "--out", out, *options]
        words += [*job, "--process-id", n] if processes > 1 else []
        commands.append([*words, *(differing if n else ())])
    return run_together(*commands)


def test_two_processes_train_and_go_on_as_one(tmp_path):
    assert run(tmp_path / "one", "--epochs", 2, processes=1)[0][0] == 0
    for epochs in (1, 2):
        (code, stdout, said), (other, silent, _) = run(tmp_path / "two", "--epochs", epochs)
        assert (code, other, "Epoch" in silent) == (0, 0, False), said
        assert f"Epoch {epochs}/{epochs}" in stdout
        assert "on 2 x cpu" in stdout
    one, two = (read_run(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose(one.losses, two.losses, rtol=0, atol=1e-5)


def test_different_options_are_named(tmp_path):
    ends = run(tmp_path / "out", "--timeout", 10, differing=("--learning-rate", 0.5))
    assert all(code != 0 for code, *_ in ends)
    assert "another process has other options: learning_rate" in ends[0][2] + ends[1][2]
    assert not (tmp_path / "out" / "config.json").exists()
