"""scripts/sweep.py: its models are train.py's, and what it prints and writes is right."""

import csv
import itertools
import json
import re
import shlex

import pytest

pytest.importorskip("optuna")

from tests.helpers import refused

# With a model that is quick to compile.
QUICK = ("--dataset", "synthetic", "--batch-size", 100, "--hidden", "8", "--epochs", 2)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("search", "options"),
    [
        ("--grid learning_rate=0.1,0.03 momentum=0,0.95", ""),
        ("--grid warmup=0.2,0.1 augment=0.3,1", "--schedule cosine --learning-rate 0.1"),
        ("--grid weight_decay=0.1,0 epochs=1,2", "--optimizer adamw"),
        ("--sample 3 optimizer=sgd,adam hidden=;16,8 loss=cross_entropy,nll", ""),
        ("--sample 2 learning_rate=log:1e-3:1 --sampler tpe", ""),
    ],
)
def test_models_are_those_of_train_py(script, few_digits, tmp_path, search, options):
    """To the bit, the first and the last of each search; the validation split ranks."""
    names = re.findall(r"(\w+)=", search)
    usual = [pair for pair in zip(QUICK[::2], QUICK[1::2], strict=True) if pair[0][2:] not in names]
    given = [*itertools.chain(*usual), "--validation", 250, *options.split()]
    code, stdout, stderr = script("sweep.py", *search.split(), *given, "--out", tmp_path / "x.csv")
    assert (code, stderr) == (0, "")
    assert "| validation accuracy |" in stdout
    rows = rows_of(tmp_path / "x.csv")
    for i, last in enumerate((rows[0], rows[-1])):
        setting = {name: last[name] for name in names}
        mine = [row for row in rows if setting.items() <= row.items()]
        words = [(f"--{name.replace('_', '-')}", value) for name, value in setting.items()]
        out = tmp_path / str(i)
        assert script("train.py", *given, *itertools.chain(*words), "--out", out)[0] == 0
        lines = (out / "metrics.jsonl").read_text().splitlines()
        for row, record in zip(mine, map(json.loads, lines), strict=True):
            for name in ("train_loss", "validation_loss", "validation_accuracy", "test_loss"):
                assert float(row[name]) == record[name], (setting, name)


@pytest.mark.slow
def test_it_says_what_is_best_and_goes_on(script, few_digits, tmp_path):
    given = [*QUICK, "--study", tmp_path / "study.log", "--plot", tmp_path / "plots", "--top", 2]
    grid = ["--grid", "learning_rate=1e38,0.03,0.1", "momentum=0,0.9"]
    code, stdout, stderr = script("sweep.py", *grid, *given)
    assert (code, stderr) == (0, "")
    lines = stdout.splitlines()
    assert "Models: 6 settings x 1 seeds, 0 are trained" in lines
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert table[0] == ["", "learning rate", "momentum", "test accuracy", "test loss", "diverged"]
    assert [row[0] for row in table[2:]] == ["1", "2"]
    assert "and 4 more (--top)" in lines
    assert table[2][5] == "0 of 1"
    assert max(len(line) for line in lines if line[:1] == "|") <= 79
    best = next(line for line in lines if line.startswith("The best: scripts/train.py "))
    trained = script("train.py", *shlex.split(best)[3:])[1]
    assert re.findall(r"accuracy: ([\d.]+%)", trained)[-1] == table[2][3]
    grid[1] += ",0.01"
    code, stdout, _ = script("sweep.py", *grid, *given, "--seeds", 2)
    assert "Models: 8 settings x 2 seeds, 6 are trained" in stdout
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {"optimization_history.png", "slice.png"}
    refused(script("sweep.py", *grid, *given, "--validation", 9), 2, "validation 0 there, 9 here")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--grid learning_rate=", ["--learning-rate", "empty"]),
        ("--grid learning_rate=-0.1", ["--learning-rate", "-0.1"]),
        ("--grid validation=1,2", ["validation cannot be searched"]),
        ("--recipe accurate --grid momentum=0.5", ["--momentum", "adamw"]),
        ("--dataset synthetic --grid batch_size=10,1001", ["--batch-size 1001", "1,000"]),
        ("--dataset synthetic --grid epochs=1 --validation 1000", ["--validation 1000"]),
    ],
)
def test_wrong_usage_is_one_line(script, few_digits, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    refused(script("sweep.py", *options.split()), 2, *words)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_shows_before_training(script, few_digits, tmp_path):
    (tmp_path / "file").write_text("")
    for option, name in (("--out", "x.csv"), ("--plot", "x"), ("--study", "x")):
        path = tmp_path / "file" / name
        refused(script("sweep.py", *QUICK, "--grid", "epochs=9", option, path), 1, "file")


@pytest.mark.slow
def test_a_model_that_fits_no_memory_is_one_line(script, few_digits):
    options = [*QUICK[:4], "--grid", "hidden=900000,900000;8", "--device", "cpu"]
    refused(script("sweep.py", *options), 1, "one model", "GB")
