"""scripts/sweep.py: its models are train.py's, its results survive, and it says what is best."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
import time

import pytest

from tests.helpers import ROOT, SWEEP, TRAIN, finish, refused

# 60,000 drawn digits in 60 steps an epoch, with a model that is quick to compile.
QUICK = ("--dataset", "synthetic", "--batch-size", "1000", "--hidden", "8", "--epochs", "2")


def two_devices(**more):
    """The environment of a process with two devices; the tests' cache is in it only by now."""
    return {**os.environ, "JAX_NUM_CPU_DEVICES": "2", **more}


def sweep(*options, **more):
    return finish([sys.executable, SWEEP, *options], env=two_devices(), **more)


def start(*options, **more):
    command = [sys.executable, SWEEP, *options]
    return subprocess.Popen(
        [*map(str, command)],
        env=two_devices(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def wait_for(path, size):
    """Until the file has so many bytes."""
    while not (path.exists() and path.stat().st_size >= size):
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A sweep of six models and two programs, one of which diverges: options, bytes, output."""
    out = tmp_path_factory.mktemp("sweep") / "whole.csv"
    options = [*QUICK, "--grid", "learning_rate=0.03,0.1,1e38", "momentum=0,0.9", "--seeds", 1]
    stdout = sweep(*options, "--out", out)
    return options, out.read_bytes(), stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "grid", "fixed"),
    [
        (2, ["learning_rate=0.1,0.03", "momentum=0,0.95"], ["--dataset", "mnist"]),
        pytest.param(
            1,
            ["warmup=0.2,0.1", "augment=0.3,1"],
            ["--learning-rate", "0.1", "--schedule", "cosine"],
            marks=pytest.mark.stress,
        ),
        pytest.param(
            1,
            ["weight_decay=0.1,", "learning_rate=0.01,0.001"],
            ["--optimizer", "adamw"],
            marks=pytest.mark.stress,
        ),
        pytest.param(
            1,
            ["optimizer=sgd,adam", "hidden=;16,8", "loss=cross_entropy,nll"],
            [],
            marks=pytest.mark.stress,
        ),
        pytest.param(
            1,
            ["batch_size=1000,700", "epochs=1,3"],
            ["--learning-rate", "0.1"],
            marks=pytest.mark.stress,
        ),
    ],
)
def test_models_are_those_of_train_py(tmp_path, request, seeds, grid, fixed):
    """To the bit, for one model on each of two devices; the first and the last of each sweep.

    Both with the same environment: XLA rounds otherwise where it has a single thread.
    """
    if "mnist" in fixed:  # drawn digits are always those of seed 0
        request.getfixturevalue("mnist_dir")
    out, names = tmp_path / "out.csv", [spec.split("=")[0] for spec in grid]
    usual = {"--dataset": "synthetic", "--batch_size": "1000", "--hidden": "8", "--epochs": "2"}
    usual = [word for name, value in usual.items() if name[2:] not in names
             for word in (name.replace("_", "-"), value)]  # fmt: skip
    usual += ["--validation", "500", *fixed]
    sweep("--grid", *grid, "--seeds", seeds, *usual, "--out", out)
    rows = read(out)
    for model in {rows[0]["model"], rows[-1]["model"]}:
        mine = [row for row in rows if row["model"] == model]
        options = ["--seed", mine[0]["seed"], "--out", tmp_path / model]
        for name in names:
            texts = [text for text in mine[0][name].split(",") if text]
            if texts or name == "hidden":
                options += [f"--{name.replace('_', '-')}", *texts]
        finish([sys.executable, TRAIN, *usual, *options], env=two_devices())
        lines = (tmp_path / model / "metrics.jsonl").read_text().splitlines()
        for row, record in zip(mine, map(json.loads, lines), strict=True):
            for name in ("train_loss", "validation_loss", "validation_accuracy", "test_loss"):
                assert float(row[name]) == record[name], (model, name)


def test_it_says_what_is_best(undisturbed):
    _, content, stdout = undisturbed
    lines = stdout.splitlines()
    assert "Models: 6 = 6 settings x 1 seeds; programs: 2; to train: 6" in lines
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert rows[0][:4] == ["", "learning rate", "momentum", "test accuracy"]
    assert [row[-1] for row in rows[2:]] == ["0 of 1"] * 4 + ["1 of 1"] * 2
    accuracies = [float(row[3].rstrip("%")) for row in rows[2:6]]
    assert accuracies == sorted(accuracies, reverse=True)
    (best,) = (line for line in lines if line.startswith("The best: "))
    trained = finish([sys.executable, TRAIN, *best.split()[3:]], env=two_devices())
    assert float(re.findall(r"test accuracy: ([\d.]+)%", trained)[-1]) == accuracies[0]
    assert b"nan" not in content
    assert b"inf" not in content


@pytest.mark.slow
@pytest.mark.parametrize("share", [0, 0.5])
def test_killed_and_resumed_it_is_the_same(undisturbed, tmp_path, share):
    options, content, _ = undisturbed
    out, head = tmp_path / "out.csv", content.index(b"\n0,")
    with start(*options, "--out", out, "--resume") as process:
        wait_for(out, head + share * (len(content) - head))
        process.kill()
    assert len(out.read_bytes()) < len(content)
    stdout = sweep(*options, "--out", out, "--resume")
    assert out.read_bytes() == content
    assert "to train: 6" not in stdout or share == 0


@pytest.mark.slow
def test_ctrl_c_ends_after_the_chunk(undisturbed, tmp_path, sigint):
    options, content, _ = undisturbed
    out = tmp_path / "out.csv"
    with start(*options, "--out", out) as process:
        wait_for(out, content.index(b"\n1,"))
        process.send_signal(sigint)
        _, stderr = process.communicate()
    assert process.returncode == 130
    *_, last = stderr.splitlines()
    assert "error: stopped after" in last
    assert "of 6 models; --resume continues" in last
    sweep(*options, "--out", out, "--resume")
    assert out.read_bytes() == content


@pytest.mark.stress
def test_parts_are_joined_by_the_last_one(undisturbed, tmp_path):
    options, content, _ = undisturbed
    out = tmp_path / "out.csv"
    first = sweep(*options, "--out", out, "--part", "2/2")
    assert "this part: 3; to train: 3" in first
    assert "Other parts are not finished" in first
    assert not out.exists()
    second = sweep(*options, "--out", out, "--part", "1/2")
    assert "The best: " in second
    assert out.read_bytes() == content
    parts = [tmp_path / f"out.part-{i}-of-2.csv" for i in (1, 2)]
    merged = tmp_path / "merged.csv"
    assert "The best: " in sweep("--merge", *parts, "--out", merged)
    assert merged.read_bytes() == content


@pytest.mark.stress
def test_processes_share_the_models_and_outlive_each_other(undisturbed, tmp_path):
    """One of two is killed as soon as it trains; the other ends, and resumed all is as it was."""
    options, content, _ = undisturbed
    out = tmp_path / "out.csv"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def job(i):
        address = ("--distributed", "--coordinator", f"localhost:{port}", "--processes", "2")
        return start(
            *options, "--out", out, "--resume", *address, "--process-id", i, "--timeout", 300
        )

    parts = [tmp_path / f"out.part-{i}-of-2.csv" for i in (1, 2)]
    with job(0) as one, job(1) as other:
        wait_for(parts[0], 1)
        one.kill()
        stdout, stderr = other.communicate()
        assert other.returncode == 0, stderr
        assert stdout.splitlines() == [
            f"Other parts are not finished; the one that ends last joins them into {out}"
        ]
    assert not out.exists()
    with job(0) as one, job(1) as other:
        printed = one.communicate()[0] + other.communicate()[0]
        assert (one.returncode, other.returncode) == (0, 0)
    assert out.read_bytes() == content
    assert "The best: " in printed
    assert "Gloo" not in printed


@pytest.mark.parametrize(
    ("options", "named"),
    [(["--grid", "hidden=8"], "--grid"), (["--batch-size", "500"], "--batch-size")],
)
def test_processes_agree_before_they_train(tmp_path, options, named):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    job = ["--distributed", "--coordinator", f"localhost:{port}", "--processes", "2"]
    common = [*QUICK[:2], "--grid", "learning_rate=0.1", "--out", tmp_path / "x.csv", *job]
    jobs = [
        start(*common, "--timeout", 300, "--process-id", i, *(options if i else [])) for i in (0, 1)
    ]
    for process in jobs:
        _, stderr = process.communicate()
        (line,) = stderr.splitlines()
        assert process.returncode == 2, line
        assert f"different values of {named}" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_halving(tmp_path):
    out = tmp_path / "out.csv"
    options = [*QUICK[:-1], "4", "--sample", "8", "learning_rate=log:1e-3:1", "--halving", "2"]
    stdout = sweep(*options, "--out", out, "--top", "8", "--plot", tmp_path / "plot.png")
    assert "settings for epochs: 8 for 1, 4 for 2, 2 for 4" in stdout
    epochs = [sum(row["model"] == str(model) for row in read(out)) for model in range(8)]
    assert sorted(epochs) == [1] * 4 + [2] * 2 + [4] * 2
    table = [line.split("|") for line in stdout.splitlines() if line.startswith("| ")][2:]
    assert [row[3].strip() for row in table] == ["4"] * 2 + ["2"] * 2 + ["1"] * 4
    content = out.read_bytes()
    for share in (0.5, 0.8):
        out.write_bytes(content[: int(len(content) * share)])
        (tmp_path / "plot.png").unlink()
        again = sweep(
            *options, "--out", out, "--top", "8", "--plot", tmp_path / "plot.png", "--resume"
        )
        assert out.read_bytes() == content
        assert [row for row in again.splitlines() if row[:1] == "|"] == [
            row for row in stdout.splitlines() if row[:1] == "|"
        ]


@pytest.mark.slow
def test_random_search_with_a_plot_per_option(tmp_path):
    pytest.importorskip("matplotlib")
    options = ["--sample", 6, "learning_rate=log:0.01:1", "momentum=0.1:0.9", "--validation", 1000]
    stdout = sweep(*QUICK, *options, "--plot", tmp_path / "plot.svg", "--top", 2)
    assert "programs: 1" in stdout
    assert "Ranked by validation accuracy\n" in stdout
    assert "and 4 more settings" in stdout
    assert "<svg" in (tmp_path / "plot.svg").read_text()


@pytest.mark.slow
def test_an_encoding_without_our_characters(undisturbed, tmp_path):
    options = [*QUICK, "--grid", "learning_rate=0.1", "--seeds", "2", "--out", tmp_path / "out.csv"]
    stdout = finish([sys.executable, SWEEP, *options], env=two_devices(PYTHONIOENCODING="ascii"))
    assert "\\xb1" in stdout
    assert len(read(tmp_path / "out.csv")) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", ["--grid", "--sample", "--merge"]),
        ("--grid", ["--grid"]),
        ("--grid learning_rate=", ["learning_rate="]),
        ("--grid learning_rate=-0.1", ["--learning-rate", "-0.1"]),
        ("--grid learning_rate=0.1,nan", ["--learning-rate", "nan"]),
        ("--grid learning_rate=0.1,1e-1", ["1e-1 is given twice"]),
        ("--grid learning_rat=0.1", ["learning_rat is not an option", "mean learning_rate"]),
        ("--grid out=1", ["out is not an option that can be swept"]),
        ("--grid seed=1", ["seed is not an option that can be swept"]),
        ("--grid validation=1,2", ["validation cannot be swept"]),
        ("--grid momentum=1", ["--momentum", "[0, 1)"]),
        ("--grid momentum=0.5 optimizer=adam", ["--momentum", "adam"]),
        ("--grid momentum=0.5 --momentum 0.5", ["momentum is swept"]),
        ("--grid hidden=0", ["--hidden"]),
        ("--grid epochs=0", ["--epochs", "at least 1"]),
        ("--grid epochs=2147483648", ["--epochs", "2**31"]),
        ("--grid learning_rate=0.1 --epochs 2147483648", ["--epochs", "2**31"]),
        ("--grid learning_rate=0.1 --seeds 0", ["--seeds", "at least 1"]),
        ("--grid learning_rate=0.1 --seeds 10000000000", ["10,000,000,000", "1,000,000 models"]),
        ("--grid learning_rate=0.1 --out x.parquet", ["--out", ".csv"]),
        ("--grid learning_rate=0.1 --plot x.csv", ["--plot", ".png"]),
        ("--grid learning_rate=0.1 --out /no/such/directory/x.csv", ["/no/such/directory"]),
        ("--grid learning_rate=0.1 --resume", ["--resume", "--out"]),
        ("--grid learning_rate=0.1 --part 1/2", ["--part", "--out"]),
        ("--grid learning_rate=0.1 --out x.csv --part 3/2", ["--part 3/2"]),
        ("--grid learning_rate=0.1 --out x.csv --part 0/2", ["--part 0/2"]),
        ("--grid learning_rate=0.1 --out x.csv --part one", ["--part one"]),
        ("--grid learning_rate=0.1 --halving 3", ["--halving 3", "at least 3 settings"]),
        ("--grid learning_rate=0.1,1 --halving 1", ["--halving", "at least 2"]),
        ("--grid epochs=2,4 --halving 2", ["epochs cannot be swept with --halving"]),
        ("--grid learning_rate=0.1 --out x.csv --halving 2 --part 1/2", ["--halving", "--part"]),
        ("--grid learning_rate=0.1 --distributed", ["--distributed", "--out"]),
        ("--recipe accurate --grid momentum=0.5", ["--momentum", "adamw"]),
        ("--recipe accurate --grid hidden=8 --hidden 8", ["hidden is swept"]),
        ("--sample 0 learning_rate=0:1", ["how many settings"]),
        ("--sample 9 optimizer=sgd,adam", ["only 2 different"]),
        ("--dataset synthetic --grid batch_size=60001", ["--batch-size 60001", "60,000"]),
        ("--dataset synthetic --grid epochs=1 --validation 60000", ["--validation 60000"]),
    ],
)  # fmt: skip
def test_wrong_usage(script, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    refused(script("sweep.py", *options.split()), 2, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_file_can_have(script, tmp_path):
    options = ["--grid", "learning_rate=0.1", *QUICK, "--out", tmp_path / f"{'x' * 300}.csv"]
    refused(script("sweep.py", *options), 1, "File name too long")


def test_a_model_that_fits_no_memory(script):
    options = [*QUICK[:4], "--epochs", 1, "--grid", "hidden=8;900000,900000", "--device", "cpu"]
    refused(script("sweep.py", *options), 1, "hidden=900000,900000", "GB")


def test_a_file_is_never_overwritten(script, undisturbed, tmp_path):
    options = ["--grid", "learning_rate=0.1", *QUICK]
    for option, name, code in (("--out", "x.csv", 1), ("--plot", "x.png", 2)):
        (tmp_path / name).write_text("precious")
        refused(script("sweep.py", *options, option, tmp_path / name), code, name)
        assert (tmp_path / name).read_text() == "precious"
    out = ("--out", tmp_path / "x.csv")
    refused(script("sweep.py", *options, *out, "--resume"), 1, "no results")
    (tmp_path / "x.csv").write_bytes(undisturbed[1])
    for more in ([], ["--resume"]):
        refused(script("sweep.py", *options, *out, *more), 2, "another sweep", "settings")
    assert (tmp_path / "x.csv").read_bytes() == undisturbed[1]


def test_a_finished_sweep_can_be_run_again(script, undisturbed, tmp_path):
    options, content, _ = undisturbed
    out, plot = tmp_path / "out.csv", tmp_path / "plot.png"
    out.write_bytes(content)
    for _ in range(2):  # the plot is its own, and may be made again
        code, stdout, stderr = script("sweep.py", *options, "--out", out, "--plot", plot)
        assert (code, stderr) == (0, "")
        assert "to train: 0" in stdout
        assert "The best: " in stdout
    assert out.read_bytes() == content
    out.write_bytes(content[:-20])
    refused(script("sweep.py", *options, "--out", out), 2, "--resume continues")
    assert out.read_bytes() == content[:-20]


def test_a_missing_matplotlib_shows_before_training(script, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = script("sweep.py", "--grid", "learning_rate=0.1", "--plot", tmp_path / "x.png")
    refused(result, 1, "matplotlib", "[plots]")


def test_help_starts_no_jax():
    code = "import sys, runpy; sys.argv = ['sweep.py', '--help']"
    code += f"\ntry: runpy.run_path({str(SWEEP)!r}, run_name='__main__')"
    code += "\nexcept SystemExit as stop: assert stop.code == 0 and 'jax' not in sys.modules"
    assert "--seeds" in finish([sys.executable, "-c", code])


@pytest.mark.stress
def test_kills_at_random_moments():
    kills = ["--alone", 2, "--two", 1, "--four", 1, "--dataset", "synthetic"]
    table = finish([sys.executable, "-m", "tests.stress.sweeps", *kills], cwd=ROOT)
    assert [line.split("|")[2].strip() for line in table.splitlines()[2:]] == ["2", "1", "1"]
