"""Whatever fails while a run reads and writes, nothing is lost, and a line says what it was."""

import errno
import hashlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from test_resume import QUICK, ending, told
from test_train_script import refused

from jaxmnist.datasets import cache, checkpoint_file

OPTIONS = (*QUICK, "--resume", "--epochs", 3)


@pytest.fixture(scope="module")
def faults():
    """scripts/_faults.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        yield importlib.import_module("_faults")


@pytest.fixture
def run(script, tmp_path):
    """A run of three epochs into `out`, with more options: its exit code, stdout, stderr."""

    def call(*more: object) -> tuple[int, str, str]:
        return script("train.py", *OPTIONS, "--out", tmp_path / "out", *more)

    return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the run ends in that nobody disturbs, and what it prints."""
    out = tmp_path_factory.mktemp("whole") / "out"
    command = [sys.executable, ROOT / "scripts" / "train.py", *OPTIONS, "--out", out]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    return ending(out), told(done.stdout)


def assert_ends_right(result, out, whole) -> None:
    code, stdout, stderr = result
    assert (code, stderr) == (0, "")
    assert (ending(out), told(stdout)) == whole


def test_checkpoints_that_cannot_be_written_end_no_training(run, tmp_path, faults, whole):
    out = tmp_path / "out"
    with faults.injected(faults.Fault("write", f"{out}/checkpoint-*", errno.ENOSPC, skip=1)):
        code, stdout, stderr = run()
    assert code == 1
    assert told(stdout) == whole[1]  # it has trained to the end
    warning, error = stderr.splitlines()
    assert warning == (
        f"Warning: training goes on, but {out}/checkpoint-00000240.safetensors: "
        "cannot be written: No space left on device"
    )
    assert error == (
        f"train.py: error: {out}/checkpoint-00000360.safetensors: "
        "cannot be written: No space left on device"
    )
    (good,) = out.glob("checkpoint-*")
    checkpoint_file.read(good)
    assert_ends_right(run(), out, whole)


def test_a_full_disk_is_told_once_for_each_file(run, tmp_path, faults, whole):
    out = tmp_path / "out"
    with faults.injected(faults.Fault("write", f"{out}/*", errno.ENOSPC, skip=2)):
        code, stdout, stderr = run()
    assert code == 1
    assert told(stdout) == whole[1]
    *warnings, error = stderr.splitlines()
    names = [re.findall(rf"{out}/([a-z]+)", line)[0] for line in warnings]
    assert {"metrics", "checkpoint"} <= set(names)
    assert len(set(names)) == len(names)
    for line in (*warnings, error):
        assert line.endswith(": cannot be written: No space left on device")
    assert "weights.safetensors" in error
    assert (out / "config.json").exists()  # nothing is removed of a run that could not be saved
    assert_ends_right(run(), out, whole)


def test_a_line_of_metrics_that_cannot_be_written_is_written_later(
    run, tmp_path, faults, whole, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import _output

    add, lines = _output.Output.add, []

    def reading(self, record):
        add(self, record)
        lines.append((out / "metrics.jsonl").read_text().count("\n"))

    monkeypatch.setattr(_output.Output, "add", reading)
    path = f"{out}/metrics.jsonl"
    with faults.injected(faults.Fault("write", path, errno.EIO, count=1)):
        code, stdout, stderr = run()
    assert code == 0
    assert (
        stderr == f"Warning: training goes on, but {path}: cannot be written: Input/output error\n"
    )
    assert lines[1:] == [2, 3]
    assert (ending(out), told(stdout)) == whole


@pytest.mark.parametrize(("call", "code"), [("write", errno.EIO), ("os.replace", errno.EACCES)])
def test_weights_that_cannot_be_written_are_an_error(run, tmp_path, faults, whole, call, code):
    out = tmp_path / "out"
    with faults.injected(faults.Fault(call, f"{out}/weights*", code)):
        refused(run(), 1, f"{out}/weights.safetensors: cannot be written: {os.strerror(code)}")
    assert not (out / "weights.safetensors").exists()
    result = run()
    assert "nothing was left to train" in result[1]
    assert_ends_right(result, out, whole)


def test_a_directory_that_somebody_removes(run, tmp_path, faults, whole):
    out = tmp_path / "out"
    gone = faults.Fault("os.replace", f"{out}/checkpoint-*", lambda _: shutil.rmtree(out), 1, 1)
    with faults.injected(gone):
        code, stdout, stderr = run()
    assert (code, told(stdout)) == (1, whole[1])
    assert all(re.search(": cannot be .*: No such file", line) for line in stderr.splitlines())
    assert (out / "weights.safetensors").exists()
    assert_ends_right(run(), out, whole)


def test_what_cannot_be_saved_is_not_said_to_be(run, tmp_path, faults, whole):
    """SIGTERM asks for a checkpoint that there is no space for."""
    out = tmp_path / "out"
    stop = faults.Fault(
        "open", f"{out}/metrics.jsonl", lambda _: os.kill(os.getpid(), signal.SIGTERM), count=1
    )
    full = faults.Fault("write", f"{out}/checkpoint-*", errno.ENOSPC)
    with faults.injected(stop, full):
        code, stdout, stderr = run()
    assert code == 1
    assert told(stdout) == whole[1][:1]
    assert "checkpoint-00000120.safetensors: cannot be written" in stderr.splitlines()[-1]
    assert "saved after" not in stderr
    assert_ends_right(run(), out, whole)


def test_what_others_put_there_stays(run, tmp_path, faults):
    """The first start of a run that comes to nothing clears up after itself, and no more."""
    out = tmp_path / "out"
    note = faults.Fault("os.replace", f"{out}/config*", lambda _: (out / "my notes").touch())
    with faults.injected(note):
        refused(run("--learning-rate", 1e30), 1, "diverged")
    assert os.listdir(out) == ["my notes"]


def test_a_process_killed_before_its_first_checkpoint_blocks_nothing(run, tmp_path, whole):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json.0123abcd.tmp").write_text("{")
    assert_ends_right(run(), out, whole)
    assert not list(out.glob("*.tmp"))


def test_signals_and_short_reads_disturb_nothing(run, tmp_path, faults, whole):
    with faults.interrupted(), faults.injected(faults.Fault("read", "*", faults.SHORT)):
        assert_ends_right(run("--no-compile-cache"), tmp_path / "out", whole)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, 0])
def test_reading_mnist(script, mnist_dir, tmp_path, monkeypatch, faults, code):
    """Read right or not at all, also in short pieces; and what is cached is right."""
    monkeypatch.setenv("JAXMNIST_CACHE_DIR", str(tmp_path))
    fault = faults.Fault("open" if code == errno.EACCES else "read", f"{mnist_dir}/t10k*", code)
    with faults.injected(fault):
        result = script("train.py", "--data-dir", mnist_dir, "--epochs", 1, "--batch-size", 60_000)
    if code:
        refused(result, 1, f"{mnist_dir}/t10k", f"cannot be read: {os.strerror(code)}")
        assert cache.load("mnist") is None
    else:
        assert result[0] == 0
        assert cache.load("mnist") is not None
    assert fault.happened()


@pytest.mark.slow
def test_everything_that_can_fail(script):
    code, stdout, _ = script("faults.py", "--dataset", "synthetic")
    assert code == 0
    rows = [line.strip("| ").split(" | ") for line in stdout.splitlines()[2:]]
    assert len(rows) > 25
    assert {row[-1] for row in rows} == {"nothing"}


@pytest.mark.slow
def test_twenty_processes_starting_at_once_make_one_cache(mnist_dir, tmp_path):
    place = tmp_path / "cache"
    environment = {**os.environ, "JAXMNIST_CACHE_DIR": str(place)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL")  # the script's own must do
    command = [sys.executable, ROOT / "scripts" / "train.py", "--data-dir", mnist_dir]

    def start() -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, "--epochs", "1"], env=environment, **pipes)

    def finish(process: subprocess.Popen) -> str:
        stdout, stderr = process.communicate(timeout=500)
        assert (process.returncode, stderr) == (0, "")
        return stdout

    printed = [told(finish(process)) for process in [start() for _ in range(20)]]
    assert len(printed[0]) == 1
    assert all(lines == printed[0] for lines in printed)
    assert sorted(re.sub("-.*", "", path.name) for path in place.iterdir()) == [
        "mnist.npz",
        "programs",
    ]
    entries = {path: path.read_bytes() for path in place.glob("programs-*/*-cache")}
    assert len(entries) >= 4
    files = {*entries, *(path.with_name(f"{path.name}.sha256") for path in entries)}
    assert set(place.glob("programs-*/*")) == files
    for path, content in entries.items():
        digest = hashlib.sha256(path.name.encode() + content).hexdigest()
        assert path.with_name(f"{path.name}.sha256").read_text() == digest

    stdout = finish(start())
    assert told(stdout) == printed[0]
    assert stdout.splitlines()[0].endswith(", cached")  # so it is whole: its checksum is MNIST's
    assert {path: path.read_bytes() for path in entries} == entries
