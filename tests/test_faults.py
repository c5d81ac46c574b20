"""Whatever fails while a run reads and writes, nothing is lost, and a line says what it was."""

import errno
import hashlib
import os
import re
import subprocess
import sys

import pytest

from jaxmnist.datasets import load_data
from tests.helpers import QUICK, TRAIN, ending, epoch_lines, refused, train
from tests.stress import faults
from tests.stress.fault_cases import CASES
from tests.stress.injection import Fault, injected

OPTIONS = (*QUICK, "--resume", "--epochs", 3, "--keep", 2, "--out", "out")
# Of each kind of fault one, the rest are slow.
QUICK_CASES = [
    case
    for case in CASES
    if (case.what, case.fault())
    in {
        ("checkpoints after one", "ENOSPC in write"),
        ("a checkpoint", "SIGTERM, ENOSPC in write"),
        ("the directory", "it is removed"),
        ("metrics, one line", "ENOSPC in write"),
        ("weights", "EIO in write"),
        ("everything after the start", "ENOSPC in write"),
        ("everything", "EINTR: a signal each ms"),
    }
    and case.kind == "save"
]


@pytest.fixture
def run(script, tmp_path, monkeypatch):
    """A run of three epochs into `out`, with more options: its exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    return lambda *more: script("train.py", *OPTIONS, *more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run that nobody disturbs ends in, and what it prints."""
    place = tmp_path_factory.mktemp("whole")
    stdout = train(*OPTIONS, cwd=place)
    return ending(place / "out"), epoch_lines(stdout)


@pytest.mark.slow
@pytest.mark.parametrize("case", QUICK_CASES, ids=lambda case: f"{case.what}: {case.fault()}")
def test_nothing_is_lost(run, tmp_path, whole, case):
    out = tmp_path / "out"
    with case.happening():
        code, stdout, stderr = run()
    assert not list(faults.misses(case, code, stderr))
    assert not list(out.glob("*.tmp"))
    if code == 0:
        assert (ending(out), epoch_lines(stdout)) == whole
    elif "SIGTERM" not in case.fault():
        assert epoch_lines(stdout) == whole[1]  # it has trained to the end
    code, stdout, stderr = run()
    assert (code, stderr) == (0, "")
    assert (ending(out), epoch_lines(stdout)) == whole


@pytest.mark.slow
def test_what_others_put_there_stays(run, tmp_path):
    """A first start that comes to nothing removes its own files, and no more."""
    out = tmp_path / "out"
    note = Fault("os.replace", "out/config*", lambda _: (out / "my notes").touch())
    with injected(note):
        refused(run("--learning-rate", 1e30), 1, "diverged")
    assert os.listdir(out) == ["my notes"]


@pytest.mark.slow
def test_a_process_killed_before_its_first_checkpoint_blocks_nothing(run, tmp_path, whole):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json.0123abcd.tmp").write_text("{")
    code, stdout, stderr = run()
    assert (code, stderr) == (0, "")
    assert (ending(out), epoch_lines(stdout)) == whole
    assert not list(out.glob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, 0])
def test_reading_mnist(script, mnist_dir, tmp_path, monkeypatch, code):
    """Read right or not at all, also by short reads; and what is cached is right."""
    monkeypatch.setenv("JAXMNIST_CACHE_DIR", str(tmp_path))
    fault = Fault("open" if code == errno.EACCES else "read", f"{mnist_dir}/t10k*", code)
    with injected(fault):
        result = script("train.py", "--data-dir", mnist_dir, "--epochs", 1, "--batch-size", 60_000)
    if code:
        refused(result, 1, f"{mnist_dir}", f"cannot be read: {os.strerror(code)}")
        assert not (tmp_path / "mnist.npz").exists()
    else:
        assert result[0] == 0
        assert load_data("mnist", mnist_dir).source.endswith(", cached")
    assert fault.happened()


@pytest.mark.stress
def test_everything_that_can_fail(capsys):
    faults.main(dataset="synthetic")  # exits where anything goes wrong
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) > 25
    assert {row[-1] for row in rows} == {"nothing"}


@pytest.mark.stress
def test_twenty_processes_starting_at_once_make_one_cache(mnist_dir, tmp_path):
    place = tmp_path / "cache"
    environment = {**os.environ, "JAXMNIST_CACHE_DIR": str(place)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL")  # the script's own must do
    command = [sys.executable, TRAIN, "--data-dir", mnist_dir, "--epochs", "1"]

    def start() -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment, **pipes)

    def finish(process: subprocess.Popen) -> str:
        stdout, stderr = process.communicate()
        assert (process.returncode, stderr) == (0, "")
        return stdout

    printed = [epoch_lines(finish(process)) for process in [start() for _ in range(20)]]
    assert len(printed[0]) == 1
    assert all(lines == printed[0] for lines in printed)
    names = sorted(re.sub("-.*", "", path.name) for path in place.iterdir())
    assert names == ["mnist.npz", "programs"]
    entries = {path: path.read_bytes() for path in place.glob("programs-*/*-cache")}
    assert len(entries) >= 4
    files = {*entries, *(path.with_name(f"{path.name}.sha256") for path in entries)}
    assert set(place.glob("programs-*/*")) == files
    for path, content in entries.items():
        digest = hashlib.sha256(path.name.encode() + content).hexdigest()
        assert path.with_name(f"{path.name}.sha256").read_text() == digest

    stdout = finish(start())
    assert epoch_lines(stdout) == printed[0]
    assert stdout.splitlines()[0].endswith(", cached")  # so it is whole: its checksum is MNIST's
    assert {path: path.read_bytes() for path in entries} == entries
