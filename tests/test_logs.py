"""What a run logs is read back bit for bit, whatever has stopped or kept it from being written."""

import contextlib
import json
import resource

import numpy as np
import pytest

from jaxmnist import DataError
from jaxmnist.runs.logs import EventLog, StepLog
from tests.helpers import uninstall


@contextlib.contextmanager
def files_limited_to(size):
    """As on a disk that gets full: the operating system writes a part, and then no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def losses():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 500, np.uint32).view(np.float32)
    few = np.array([0, 1, 2.3025851, 1e-45, 3.4e38, 16777216, 0.1], np.float32)
    return np.concatenate([few, bits[np.isfinite(bits)]])


def test_every_bit_comes_back(tmp_path, losses):
    log = StepLog(tmp_path / "steps.jsonl")
    assert list(log.read()) == []
    log.add(1, losses[:100])
    log.add(101, losses[100:])
    steps, values = zip(*log.read(), strict=True)
    assert steps == tuple(range(1, len(losses) + 1))
    np.testing.assert_array_equal(
        np.array(values, np.float32).view(np.uint32), losses.view(np.uint32)
    )
    lines = (tmp_path / "steps.jsonl").read_text().splitlines()
    assert lines[2] == '{"step": 3, "loss": 2.3025851}'  # no more digits than it takes
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == list(steps)


def test_cut_back_and_appended_to_it_is_what_it_was(tmp_path, losses):
    path = tmp_path / "steps.jsonl"
    StepLog(path).add(1, losses)
    whole = path.read_bytes()
    for done in (0, 1, 250, len(losses)):
        for rest in (b"", b'{"step": 900, "lo', b"\0\0\0\n", whole):
            path.write_bytes(whole + rest)
            log = StepLog(path)
            assert log.cut(done) == 0
            log.add(done + 1, losses[done:])
            assert path.read_bytes() == whole


def test_what_is_missing_is_counted(tmp_path, losses):
    path = tmp_path / "steps.jsonl"
    log = StepLog(path)
    assert log.cut(40) == 40
    assert not path.exists()
    log.add(1, losses[:50])
    content = bytearray(path.read_bytes())
    content[content.index(b'"step": 31,')] = 0
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"steps\.jsonl: line 31 is damaged"):
        list(log.read())
    assert log.cut(50) == 20
    log.add(51, losses[50:60])
    assert [step for step, _ in log.read()] == [*range(1, 31), *range(51, 61)]
    assert StepLog(path).cut(55) == 20


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 1, "loss": 2.5}',
        b'{"step": 0, "loss": 2.5}\n',
        b'{"step": 3, "loss": NaN}\n',
        b'{"step": 3, "loss": "2"}\n',
        b'{"step": 1e3, "loss": 2}\n',
        b"[" * 5000 + b"\n",
        b"\n",
        b"9" * 5000,
    ],
)
def test_damaged_lines(tmp_path, line):
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.5}\n' + line)
    with pytest.raises(DataError, match="line 3 is damaged"):
        list(StepLog(path).read())


def test_a_full_disk_loses_no_line(tmp_path, losses):
    path = tmp_path / "steps.jsonl"
    log = StepLog(path)
    log.add(1, losses[:20])
    size = path.stat().st_size
    for first in (20, 30):
        with files_limited_to(size + 100), pytest.raises(OSError, match="too large"):
            log.add(first + 1, losses[first : first + 10])
    assert size < path.stat().st_size  # a part of it is there
    log.add(41, losses[40:50])
    again = StepLog(tmp_path / "again")
    again.add(1, losses[:50])
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


def scalars(directory):
    """What TensorBoard reads: the steps and values of each tag."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(directory), {accumulator.SCALARS: 0})
    events.Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    return {tag: [(e.step, e.value) for e in values] for tag, values in found.items()}


def points(directory):
    """How many scalars there are in all files, for readers that do not know of a new start."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    files = directory.glob("*tfevents*")
    events = [event for path in files for event in loader.EventFileLoader(str(path)).Load()]
    return sum(len(event.summary.value) for event in events)


RECORDS = [
    {"step": 10, "train_loss": 2.0, "test_loss": 1.5, "test_accuracy": 0.5},
    {"step": 20, "train_loss": 1.0, "test_loss": 0.75, "test_accuracy": 0.75},
]


def test_tensorboard_reads_every_point_once(tmp_path):
    pytest.importorskip("tensorboard")
    losses = np.linspace(2.3, 0.4, 30, dtype=np.float32)
    entries = list(zip(range(1, 31), losses.tolist(), strict=True))
    (tmp_path / "notes.txt").write_text("the user's")
    for again in range(3):  # begun, gone on from step 20, and from step 25 after a kill
        log = EventLog(tmp_path)
        done = (0, 20, 25)[again]
        log.rebuild(iter(entries[:done]), RECORDS[: done // 10])
        for first in range(done, 30, 5):
            log.add(first + 1, losses[first : first + 5])
            if first in (5, 15):
                log.add_record(RECORDS[first // 10])
        assert log.is_whole()
        log.close()
        found = scalars(tmp_path)
        assert found.pop("train/step_loss") == entries
        assert found == {
            "train/loss": [(10, 2.0), (20, 1.0)],
            "test/loss": [(10, 1.5), (20, 0.75)],
            "test/accuracy": [(10, 0.5), (20, 0.75)],
        }
        assert points(tmp_path) == 36
        if again == 1:
            (path,) = tmp_path.glob("*tfevents*")
            path.write_bytes(path.read_bytes()[:-7])  # as a kill leaves it
    log.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_events_that_could_not_be_written_are_written_again(tmp_path):
    pytest.importorskip("tensorboard")
    losses = np.linspace(2.3, 0.4, 300, dtype=np.float32)
    entries = list(zip(range(1, 301), losses.tolist(), strict=True))
    log = EventLog(tmp_path)
    log.rebuild(iter([]), [])
    with files_limited_to(1000), pytest.raises(OSError, match="too large"):
        log.add(1, losses[:100])
    log.add(101, losses[100:200])  # behind a half-written one nothing can be read
    assert not log.is_whole()
    log.rebuild(iter(entries[:200]), [])
    log.add(201, losses[200:])
    assert log.is_whole()
    log.close()
    assert scalars(tmp_path) == {"train/step_loss": entries}


# 34 steps an epoch, in pieces for which the tests' common cache keeps the programs
QUICK = ("--dataset", "synthetic", "--batch-size", 30)
QUICK += ("--checkpoint-unit", "steps", "--checkpoint-every", 20)
PICTURES = {"loss.png", "confusion.png", "mistakes.png", "weights.png"}


@pytest.mark.slow
def test_a_resumed_run_has_logged_what_an_undisturbed_one_has(
    script, tmp_path, few_digits, monkeypatch
):
    pytest.importorskip("tensorboard")
    from jaxmnist.runs import checkpoint

    def save(writer, state, **more):  # each of them: a quick run leaves some of its own out
        checkpoint.save(writer._directory, state, **more)

    monkeypatch.setattr(checkpoint.Writer, "save", save)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = (*QUICK, "--resume", "--tensorboard")
    assert script("train.py", *options, "--epochs", 3, "--out", whole)[0] == 0
    options = (*options, "--out", parts)
    assert script("train.py", *options, "--epochs", 2)[0] == 0
    # as if it had been killed while it logged the second piece of the second epoch
    (parts / "weights.safetensors").unlink()
    (parts / "checkpoint-00000068.safetensors").unlink()
    steps, (events,) = parts / "steps.jsonl", (parts / "tensorboard").iterdir()
    steps.write_bytes(steps.read_bytes()[:-100])
    events.write_bytes(events.read_bytes()[:-400])
    code, stdout, stderr = script("train.py", *options, "--epochs", 3)
    assert (code, stderr) == (0, "")
    assert "after step 54" in stdout
    names = ("steps.jsonl", "metrics.jsonl", "weights.safetensors")
    assert all((parts / name).read_bytes() == (whole / name).read_bytes() for name in names)

    found = scalars(parts / "tensorboard")
    assert found == scalars(whole / "tensorboard")
    assert points(parts / "tensorboard") == 3 * 34 + 3 * 3
    entries = [(step, np.float32(loss)) for step, loss in StepLog(steps).read()]
    assert found["train/step_loss"] == entries
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert found["test/accuracy"] == [(r["step"], np.float32(r["test_accuracy"])) for r in records]
    assert [r["step"] for r in records] == [34, 68, 102]
    mean = np.mean([loss for step, loss in StepLog(steps).read() if step > 68])
    np.testing.assert_allclose(records[-1]["train_loss"], mean, rtol=1e-6)


def test_lost_losses_are_told(script, tmp_path, few_digits):
    out = tmp_path / "out"
    assert script("train.py", *QUICK, "--epochs", 1, "--out", out)[0] == 0
    steps = out / "steps.jsonl"
    steps.write_bytes(steps.read_bytes().replace(b'"step": 31', b'"step": ??'))
    code, _, stderr = script("train.py", *QUICK, "--epochs", 1, "--out", out, "--resume")
    expected = f"Warning: {steps}: the losses of 4 steps are missing; plots leave them out\n"
    assert (code, stderr) == (0, expected)
    assert [step for step, _ in StepLog(steps).read()] == [*range(1, 31)]


def test_pictures_of_a_run(script, tmp_path, few_digits):
    pytest.importorskip("matplotlib")
    from PIL import Image

    out = tmp_path / "out"
    code, stdout, _ = script("train.py", *QUICK, "--epochs", 1, "--plots", "--out", out)
    assert code == 0
    assert "draw " in stdout
    assert {path.name for path in out.glob("*.png")} == PICTURES
    for name in PICTURES:
        with Image.open(out / name) as image:
            assert image.getpixel((0, 0))[:3] == (255, 255, 255)  # is read on light and on dark


@pytest.mark.parametrize(
    ("option", "package"), [("--plots", "matplotlib"), ("--tensorboard", "tensorboard")]
)
def test_optional_packages(script, tmp_path, monkeypatch, few_digits, option, package):
    """Missed before anything is done, and only where they are asked for."""
    uninstall(monkeypatch, "matplotlib", "tensorboard")
    options = (*QUICK, "--epochs", 1, "--out", tmp_path / "out")
    code, stdout, stderr = script("train.py", *options, option)
    extra = {"matplotlib": "plots"}.get(package, package)
    assert (code, stdout) == (1, "")
    assert stderr.startswith(f"train.py: error: this needs {package}: ")
    assert stderr.endswith(f"[{extra}]'\n")  # a command to be pasted
    assert "/pip install -e '" in stderr
    assert list(tmp_path.iterdir()) == []
    if option == "--plots":
        assert script("train.py", *options)[0] == 0


@pytest.mark.parametrize("option", ["--plots", "--tensorboard"])
def test_they_need_a_directory(script, option):
    code, _, stderr = script("train.py", option)
    assert (code, len(stderr.splitlines())) == (2, 1)
    assert "need an --out" in stderr


def test_a_run_that_fails_leaves_no_log(script, tmp_path, few_digits):
    pytest.importorskip("tensorboard")
    options = (*QUICK, "--tensorboard", "--out", tmp_path / "out", "--learning-rate", "1e30")
    assert script("train.py", *options)[0] == 1
    assert list(tmp_path.iterdir()) == []
