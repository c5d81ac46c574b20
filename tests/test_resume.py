"""A run that is stopped, killed or damaged goes on as if nothing had happened, or says why not."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers import PATIENCE, QUICK, TRAIN, ending, epoch_lines, refused, train
from tests.stress import crash


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What three epochs end in that nobody disturbs, and what they print."""
    out = tmp_path_factory.mktemp("whole") / "out"
    options = ("--epochs", 3, "--checkpoint-unit", "steps", "--checkpoint-every", 50)
    stdout = train(*QUICK, *options, "--out", out)
    return ending(out), epoch_lines(stdout)


STEPS = ("--checkpoint-unit", "steps", "--checkpoint-every", 50)


def test_going_on_equals_never_having_stopped(script, tmp_path, whole):
    out = tmp_path / "out"
    for epochs in (1, 2):
        assert (
            script("train.py", *QUICK, *STEPS, "--epochs", epochs, "--out", out, "--resume")[0] == 0
        )
    # as if it had been killed in the middle of the second epoch
    names = sorted(path.name for path in out.glob("checkpoint-*"))
    assert names == [f"checkpoint-{step:08}.safetensors" for step in (170, 220, 240)]
    (out / names[2]).unlink()
    (out / "weights.safetensors").unlink()
    code, stdout, stderr = script(
        "train.py", *QUICK, *STEPS, "--epochs", 3, "--out", out, "--resume"
    )
    assert (code, stderr) == (0, "")
    assert "after step 220" in stdout
    assert (ending(out), epoch_lines(stdout)) == whole


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, signal.SIGUSR1)),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_signal_saves_and_says_how_to_go_on(script, tmp_path, whole, sigint, number):
    """Field cases F22 and F28: the same signal once more within a second is the same request."""
    out = tmp_path / "out"
    options = [*map(str, (*QUICK, *STEPS, "--out", out, "--resume"))]
    process = subprocess.Popen(
        [sys.executable, TRAIN, *options, "--epochs", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("Data: ")
    assert process.stdout.readline().startswith("Model: ")
    assert "Training loss: " in process.stdout.readline()
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert "stopping as soon as it is saved" in stderr
    assert "saved after step" in stderr.splitlines()[-1]
    assert "--resume continues" in stderr.splitlines()[-1]
    done = int(stderr.split("after step ")[1].split(";")[0].replace(",", ""))
    assert (out / f"checkpoint-{done:08}.safetensors").exists()
    assert done % 120 in (0, 50, 100)
    if done <= 360:  # a slow machine stops it in time to compare
        result, stdout, _ = script("train.py", *options, "--epochs", 3)
        assert result == 0
        assert (ending(out), epoch_lines(stdout)) == whole


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tmp_path, sigint):
    slow = ("--dataset", "synthetic", "--hidden", "512", "--epochs", "1000")  # a second a piece
    process = subprocess.Popen(
        [sys.executable, TRAIN, *slow, "--out", tmp_path / "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert "a second signal stops at once" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)  # the same once more would be the same request
    assert process.wait(PATIENCE) == 143
    assert "saved" not in process.stderr.read()
    process.stdout.close()
    process.stderr.close()


def test_another_run_is_never_overwritten(script, tmp_path):
    out = tmp_path / "out"
    options = (*QUICK, "--epochs", 1, "--out", out)
    assert script("train.py", *options)[0] == 0
    before = ending(out)
    refused(script("train.py", *options), 2, str(out), "this run already", "--resume")
    other = (*options, "--resume", "--learning-rate", 0.01, "--hidden", 32)
    words = ("learning_rate 0.003 there, 0.01 here", "hidden [128, 64] there, [32] here")
    refused(script("train.py", *other), 2, str(out), *words)
    assert ending(out) == before
    # a longer run is the same run; and going on with one that is done changes nothing
    code, stdout, _ = script("train.py", *options, "--resume")
    assert code == 0
    assert "nothing left to train" in stdout
    assert ending(out) == before


def test_a_directory_of_something_else_is_refused(script, tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    refused(script("train.py", *QUICK, "--out", tmp_path), 2, str(tmp_path), "holds no run")
    refused(script("train.py", *QUICK, "--out", tmp_path / "thesis.tex"), 2, "not a directory")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_two_processes_on_one_directory(script, tmp_path):
    from jaxmnist.runs.lock import lock

    with lock(tmp_path / "out"):
        result = script("train.py", *QUICK, "--out", tmp_path / "out")
    refused(result, 1, "another process is training", str(os.getpid()))


def test_a_damaged_checkpoint_is_named_and_skipped(script, tmp_path, whole):
    out = tmp_path / "out"
    options = (*QUICK, *STEPS, "--out", out, "--resume")
    assert script("train.py", *options, "--epochs", 2)[0] == 0
    newest = out / "checkpoint-00000240.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 4
    newest.write_bytes(content)
    code, stdout, stderr = script("train.py", *options, "--epochs", 3)
    assert code == 0
    (line,) = stderr.splitlines()
    assert line.startswith(f"Warning: skipped a checkpoint: {newest}: damaged")
    assert "after step 220" in stdout
    assert (ending(out), epoch_lines(stdout)) == whole
    for path in out.glob("checkpoint-*"):
        path.write_bytes(path.read_bytes()[:1000])
    refused(script("train.py", *options, "--epochs", 4), 1, str(out), "no good checkpoint")
    (out / "config.json").write_text("{")
    refused(script("train.py", *options, "--epochs", 4), 1, str(out / "config.json"), "damaged")


@pytest.mark.slow
def test_pytorchs_stream_goes_on_where_it_was(script, tmp_path):
    options = (*QUICK, "--torch-seed", 7, "--resume")
    outs = tmp_path / "whole", tmp_path / "parts"
    assert script("train.py", *options, "--epochs", 3, "--out", outs[0])[0] == 0
    for epochs in (1, 3):
        assert script("train.py", *options, "--epochs", epochs, "--out", outs[1])[0] == 0
    assert ending(outs[0]) == ending(outs[1])


@pytest.mark.slow
def test_going_on_with_other_devices(script, tmp_path, whole):
    """Equal to rounding; the devices do not make it another run."""
    out = tmp_path / "out"
    options = [*map(str, (*QUICK, *STEPS, "--out", out, "--resume"))]
    assert script("train.py", *options, "--epochs", 2)[0] == 0
    done = subprocess.run(
        [sys.executable, TRAIN, *options, "--epochs", "3", "--devices", "2"],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    got, expected = (
        [json.loads(line)["train_loss"] for line in text.splitlines()]
        for text in (ending(out)[1], whole[0][1])
    )
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_what_fails_before_the_first_checkpoint_leaves_nothing(script, tmp_path):
    out = tmp_path / "out"
    result = script("train.py", *QUICK, "--learning-rate", 1e30, "--out", out)
    refused(result, 1, "diverged")
    assert os.listdir(tmp_path) == []


@pytest.mark.stress
def test_killed_runs(capsys):
    crash.main(random_kills=3, writing_kills=5, dataset="synthetic")  # exits where they differ
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[-1] for row in rows] == ["3 |", "5 |"]
    assert rows[1][2] == "5"  # all were killed while they wrote
