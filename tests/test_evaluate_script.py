"""scripts/evaluate.py: on a test set, and on a user's own labelled pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxmnist.metrics import accuracy_interval
from jaxmnist.runs import directory
from tests.helpers import refused
from tests.test_predict import drawn, four


def test_a_test_set(script, trained_run, few_digits):
    code, stdout, _ = script("evaluate.py", trained_run, "--dataset", "synthetic", "--json")
    told = json.loads(stdout)
    confusion = np.array(told["confusion"])
    share = confusion.trace() / 500
    assert (code, confusion.sum(), told["images"]) == (0, 500, len(few_digits[1].labels))
    assert told["accuracy"] == pytest.approx(share)
    low, high = told["accuracy_interval"]
    assert [low, high] == accuracy_interval(int(confusion.trace()), 500)
    _, stdout, _ = script("evaluate.py", trained_run, "--dataset", "synthetic")
    assert f"Test accuracy: {share:.2%}   95% interval: {low:.2%} to {high:.2%}" in stdout


def test_mnists_model_is_not_tested_on_synthetic_digits(script, trained_run, nowhere, monkeypatch):
    run = directory.read_run(trained_run)
    run.config["identity"]["data"] = "MNIST"
    monkeypatch.setattr(directory, "read_run", lambda path: run)
    code, stdout, stderr = script("evaluate.py", trained_run)
    assert (code, stdout) == (1, "")
    assert "MNIST" in stderr.splitlines()[-1]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    for digit in "04":
        (folder / digit).mkdir(parents=True)
    drawn(four).save(folder / "4" / "a.png")
    Image.new("L", (200, 200), 255).save(folder / "0" / "blank.png")
    return folder


ROWS = "file{0}label{0}kind\n4/a.png{0}4{0}Füller\n0/blank.png{0}0{0}nothing\n"
INDEXES = {"folders": None, "plain": ROWS.format(",").encode(),
           "Excel": ROWS.format(";").encode("utf-8-sig"),
           "older Excel": ROWS.format(";").encode("cp1252")}  # fmt: skip


@pytest.mark.parametrize("name", INDEXES)
def test_own_pictures(script, trained_run, folder, name):
    if INDEXES[name]:
        (folder / "index.csv").write_bytes(INDEXES[name])
    plot = folder / "misread.png"
    code, stdout, stderr = script(
        "evaluate.py", trained_run, "--pictures", folder, "--plot", plot, "--json"
    )
    assert (code, stderr) == (0, "")
    kinds = {row["kind"]: (row["pictures"], row["accuracy"]) for row in json.loads(stdout)["kinds"]}
    expected = (
        {"pictures": (2, 0.5)} if name == "folders" else {"Füller": (1, 1), "nothing": (1, 0)}
    )
    assert kinds == {"all": (2, 0.5)} | expected
    assert plot.stat().st_size > 5000
    _, stdout, _ = script("evaluate.py", trained_run, "--pictures", folder)
    assert "50.0%" in stdout


BEGIN = b"file,label\n"


@pytest.mark.parametrize(
    "content",
    [b"", BEGIN, b"%sno.png,1\n" % BEGIN, b"a,b\n1,2\n", BEGIN + b"9" * 200_000, BEGIN + b"\x8d"],
)
def test_an_index_that_cannot_be_used(script, trained_run, folder, content):
    (folder / "index.csv").write_bytes(content)
    refused(script("evaluate.py", trained_run, "--pictures", folder), 1, "index.csv")
