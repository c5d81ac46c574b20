"""scripts/report.py makes a page that is right, that stands alone, and that no name can break."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from jaxmnist import MLP, preprocess
from jaxmnist.metrics import confusion_matrix
from jaxmnist.weights import load_weights
from tests.helpers import refused

pytestmark = pytest.mark.usefixtures("few_digits")


class Page(HTMLParser):
    """The texts of the elements by tag, and of each table row its cells', checked to be nested."""

    def __init__(self, path):
        super().__init__()
        self.texts, self.open, self.attributes = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []
        self.rows = {row[0]: row[1:] for row in self.table_rows()}

    def handle_starttag(self, tag, attributes):
        self.texts.append([tag, ""])
        self.attributes.append((tag, dict(attributes)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(self.texts[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[1] += data

    def all(self, tag):
        return [" ".join(text.split()) for name, text in self.texts if name == tag]

    def table_rows(self):
        rows = []
        for tag, text in self.texts:
            if tag == "tr":
                rows.append([])
            elif tag in ("td", "th"):
                rows[-1].append(" ".join(text.split()))
        return rows


def test_the_numbers_of_a_run(script, trained_run, few_digits, tmp_path):
    out = tmp_path / "new" / "report.html"
    code, stdout, stderr = script("report.py", trained_run, "--out", out)
    assert (code, stderr) == (0, "")
    page, (images, labels) = Page(out), few_digits[1]
    params = load_weights(trained_run)
    hidden = [len(layer["bias"]) for layer in params["params"].values()][:-1]
    predictions = np.asarray(MLP(hidden).apply(params, preprocess(images))).argmax(axis=1)
    right = int((predictions == labels).sum())
    assert page.rows["test accuracy"] == [f"{right / 500:.2%}"]
    assert f"test accuracy {right / 500:.2%} on synthetic digits" in stdout
    assert page.rows["mistakes"] == [str(500 - right)]
    last = json.loads((trained_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert page.rows["test loss (nats)"] == [f"{last['test_loss']:.4f}"]
    assert ["5", f"{last['test_loss']:.4f} {last['test_accuracy']:.2%}"] in page.table_rows()
    confusion = confusion_matrix(labels, predictions, 10)
    for digit, counts in enumerate(confusion.tolist()):
        assert [str(digit), *(str(n or "") for n in counts)] in page.table_rows()
    assert any("NOT MNIST" in text for text in page.all("p"))
    for tag, attributes in page.attributes:  # it stands alone
        assert tag not in ("script", "link", "iframe")
        assert attributes.get("src", "data:image/png").startswith("data:image/png")
        assert tag != "img" or attributes["alt"]
    assert not re.search(r"url\(|@import", out.read_text())


def test_runs_that_differ(script, trained_run, tmp_path):
    hostile = tmp_path / "<script>alert(1)<&$x$"
    for path in (hostile, tmp_path / "a" / "run", tmp_path / "b" / "run"):
        shutil.copytree(trained_run, path)
    config = json.loads((hostile / "config.json").read_text())
    config["identity"]["learning_rate"] = "<b>"
    (hostile / "config.json").write_text(json.dumps(config))
    out = tmp_path / "report.html"
    paths = hostile, *(tmp_path / name / "run" for name in "ab")
    assert script("report.py", *paths, "--out", out)[0] == 0
    page = Page(out)
    names = page.table_rows()[0][1:]
    assert names == [hostile.name, *(str(path) for path in paths[1:])]
    assert page.rows["learning_rate"][0] == "<b>"
    assert "Report on 3 runs" in page.all("h1")
    assert any("that differ" in text for text in page.all("caption"))
    assert not {"script", "b"} & {tag for tag, _ in page.attributes}
    metrics = (hostile / "metrics.jsonl").read_text().splitlines()[:3]
    (hostile / "metrics.jsonl").write_text("\n".join(metrics) + "\n")
    assert script("report.py", hostile, "--out", out)[0] == 0
    notes = " ".join(Page(out).all("p"))
    assert "Not finished" in notes
    assert "Other weights" in notes


def test_what_is_refused(script, trained_run, tmp_path):
    refused(script("report.py", tmp_path), 2, str(tmp_path))
    refused(script("report.py"), 2, "RUN")
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "report.html"
    refused(script("report.py", trained_run, "--out", out), 1, str(tmp_path / "file"))
