"""scripts/report.py makes a page that is right, that stands alone, and that no name can break."""

import html
import json
import re
import shutil

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from jaxmnist import MLP, preprocess
from jaxmnist.metrics import confusion_matrix
from jaxmnist.runs import directory
from jaxmnist.weights import load_weights
from tests.helpers import refused

pytestmark = pytest.mark.usefixtures("few_digits")


def table_rows(page):
    """The texts of the cells of each row."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return [[" ".join(html.unescape(cell).split()) for cell in row] for row in cells]


def test_the_numbers_of_a_run(script, trained_run, few_digits, tmp_path):
    out = tmp_path / "new" / "report.html"
    code, stdout, stderr = script("report.py", trained_run, "--out", out)
    assert (code, stderr) == (0, "")
    page, (images, labels) = out.read_text(encoding="utf-8"), few_digits[1]
    params = load_weights(trained_run)
    logits = MLP((128, 64)).apply(params, preprocess(images))
    confusion = confusion_matrix(labels, np.asarray(logits).argmax(axis=1), 10)
    accuracy = f"{confusion.trace() / 500:.2%}"
    assert f"test accuracy {accuracy} on synthetic digits" in stdout
    last = json.loads((trained_run / "metrics.jsonl").read_text().splitlines()[-1])
    expected = [
        ["test accuracy", accuracy],
        ["mistakes", str(500 - confusion.trace())],
        ["test loss (nats)", f"{last['test_loss']:.4f}"],
        ["5", f"{last['test_loss']:.4f} {last['test_accuracy']:.2%}"],
        *([str(digit), *(str(n or "") for n in row)] for digit, row in enumerate(confusion)),
    ]
    assert [row for row in expected if row not in table_rows(page)] == []
    assert "NOT MNIST" in page
    # It stands alone.
    other_files = r"<(script|link|iframe)|src=\"(?!data:image/png)|url\(|@import"
    assert not re.search(rf"{other_files}|<img(?![^>]* alt=\"\w)", page)


@pytest.mark.slow
def test_runs_that_differ(script, trained_run, tmp_path, monkeypatch):
    hostile = tmp_path / "<script>alert(1)<&$x$"
    paths = [hostile, tmp_path / "a" / "run", tmp_path / "b" / "run"]
    for path in paths:
        shutil.copytree(trained_run, path)
    read_run = directory.read_run

    def read(path):
        run = read_run(path)
        if path == hostile:
            run.config["identity"]["learning_rate"] = "<b>"
        return run

    monkeypatch.setattr(directory, "read_run", read)
    out = tmp_path / "report.html"
    assert script("report.py", *paths, "--out", out)[0] == 0
    page = out.read_text(encoding="utf-8")
    rows = {row[0]: row[1:] for row in table_rows(page)}
    assert rows[""] == [str(path) for path in paths]
    assert rows["learning_rate"][0] == "<b>"
    assert "<script" not in page
    assert "<b>" not in page
    assert "Report on 3 runs" in page
    assert "that differ" in page
    max(hostile.glob("checkpoint-*")).unlink()
    assert script("report.py", hostile, "--out", out)[0] == 0
    assert "Not finished" in out.read_text(encoding="utf-8")


def test_what_is_refused(script, trained_run, tmp_path):
    refused(script("report.py", tmp_path), 2, str(tmp_path))
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "report.html"
    refused(script("report.py", trained_run, "--out", out), 1, str(tmp_path / "file"))
