"""scripts/report.py makes a page that is right, that stands alone, and that no file can break."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from PIL import Image

from jaxmnist import Dataset
from jaxmnist.datasets import synthetic
from jaxmnist.torch_compat import TorchGenerator, init_params
from jaxmnist.weights import save_weights
from tests.helpers import uninstall

VOID = {"meta", "img", "br"}
HOSTILE = "<img src=x onerror=alert(1)>$x$ \"'&amp;"


@pytest.fixture
def test_set(monkeypatch):
    """Drawn digits, as far as these tests go: there are few of them, and quickly made."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (500, 28, 28), np.uint8), np.arange(500) % 10
    test = Dataset(images, labels.astype(np.int32))
    monkeypatch.setattr(synthetic, "load_synthetic", lambda seed=0, **_: (test, test))
    return test


@pytest.fixture
def make_run(tmp_path, test_set):
    """Makes what scripts/train.py leaves of a run on drawn digits, with any weights."""

    def make(name, seed=0, hidden=(7,), epochs=2, steps=5, weights=None, **options):
        directory = tmp_path / "runs" / name
        directory.mkdir(parents=True)
        config = {"epochs": epochs, "batch_size": 64, "dataset": "synthetic", "seed": seed}
        config |= {"hidden": hidden, "drawn_digits": False, "out": str(directory), "init": None}
        (directory / "config.json").write_text(json.dumps(config | options))
        records, lines = [], []
        for epoch in range(1, epochs + 1):
            scores = {"train_loss": 2 / epoch, "test_loss": 1 / epoch, "test_accuracy": 0.1}
            records.append(json.dumps({"epoch": epoch, "step": epoch * steps} | scores))
            lines += [
                f'{{"step": {(epoch - 1) * steps + k}, "loss": {2 / epoch}}}'
                for k in range(1, steps + 1)
            ]
        (directory / "metrics.jsonl").write_text("\n".join(records) + "\n")
        (directory / "steps.jsonl").write_text("\n".join(lines) + "\n")
        if weights is None:
            weights = init_params(TorchGenerator(0), (784, *hidden, 10))
        save_weights(directory / "weights.safetensors", weights)
        return directory

    return make


class Page(HTMLParser):
    """The page's elements as (tag, attributes, text), checked to be well nested."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements, self.open = [], []
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag):
        return [(attributes, " ".join(text.split())) for name, attributes, text in self.elements
                if name == tag]  # fmt: skip

    def rows(self):
        """Each row of each table as a list of its cells' texts."""
        rows = []
        for tag, attributes, text in self.elements:
            if tag == "tr":
                rows.append([])
            elif tag in ("td", "th"):
                rows[-1].append(" ".join(text.split()))
                assert tag == "td" or attributes["scope"] in ("row", "col")
        return rows


@pytest.fixture
def report(script, tmp_path):
    """Runs the script; gives the page and what was printed."""

    def call(*runs, **options):
        out = tmp_path / "report.html"
        more = [x for name, value in options.items() for x in (f"--{name}", value)]
        code, stdout, stderr = script("report.py", *runs, "--out", out, *more)
        assert (code, stderr) == (0, "")
        return Page(out), stdout

    return call


def refused(script, *options):
    code, _, stderr = script("report.py", *options)
    (line,) = stderr.splitlines()
    assert line.startswith("report.py: error: ")
    return code, line


def by_hand(params, images):
    """The probabilities, float64, by NumPy."""
    x = (images.reshape(len(images), -1) / 255 - 0.5) / 0.5
    layers = params["params"]
    for k in range(len(layers)):
        x = np.maximum(x, 0) if k else x
        x = x @ np.float64(layers[f"linear_{k}"]["weight"]).T + layers[f"linear_{k}"]["bias"]
    odds = np.exp(x - x.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def test_the_numbers_and_pictures_are_right(make_run, report, test_set):
    params = init_params(TorchGenerator(3), (784, 7, 10))
    page, stdout = report(make_run("first", weights=params))
    images, labels = test_set
    chances = by_hand(params, images)
    taken = chances.argmax(axis=1)
    right = int((taken == labels).sum())
    loss = -np.log(chances[np.arange(500), labels]).mean()

    rows = {row[0]: row[1:] for row in page.rows()}
    assert rows["test accuracy"] == [f"{right / 500:.2%}"]
    assert rows["mistakes"] == [f"{500 - right} of 500 images"]
    assert abs(float(rows["test loss (nats)"][0]) - loss) < 1e-4
    assert rows["training loss (nats), mean of the last epoch"] == ["1.0000"]
    assert rows["tested on"] == ["NOT MNIST: drawn digits, seed 0"]
    confusion = np.array([rows[str(digit)] for digit in range(10)], int)
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels, taken), 1)
    np.testing.assert_array_equal(confusion, expected)

    wrong = np.flatnonzero(taken != labels)
    wrong = wrong[np.argsort(-chances[wrong].max(axis=1))][:24]
    captions = [text for _, text in page.all("figcaption")]
    pictures = page.all("img")
    assert len(captions) == len(pictures) == 24
    for index, caption, (attributes, _) in zip(wrong, captions, pictures, strict=True):
        label = labels[index]
        assert attributes["alt"] == f"Test image {index}, a {label}"
        said, sure, true, unsure = re.fullmatch(
            r"said (\d): (?:> )?([\d.]+)% ?is (\d): (?:< )?([\d.]+)%", caption
        ).groups()
        assert (int(said), int(true)) == (taken[index], label)
        np.testing.assert_allclose(float(sure), 100 * chances[index].max(), atol=0.051)
        np.testing.assert_allclose(float(unsure), 100 * chances[index, label], atol=0.101)
        content = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
        with Image.open(io.BytesIO(content)) as picture:
            np.testing.assert_array_equal(255 - np.asarray(picture), images[index])
    assert "NOT MNIST" in page.all("strong")[0][1]
    assert "NOT MNIST" in stdout
    (claim,) = [text for _, text in page.all("p") if "Other weights" in text]
    assert f"a test accuracy of 10.00%, its weights.safetensors reach {right / 500:.2%}" in claim


def test_the_page_stands_alone_and_can_be_listened_to(make_run, report):
    page, _ = report(make_run("first"), make_run("second"))
    for _, attributes, _ in page.elements:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert attributes.get(name, "#").startswith(("data:image/png;base64,", "#")), name
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _, _ in page.elements}
    assert not re.search(r"url\((?!#)|@import", page.source)
    assert all(attributes["alt"] for attributes, _ in page.all("img"))
    drawings = page.all("svg")
    assert len(drawings) == 3  # the curves, and each one's weights
    labels = [attributes["aria-label"] for attributes, _ in drawings]
    assert len(set(labels)) == 3
    assert all(attributes["role"] == "img" for attributes, _ in drawings)
    ids = re.findall(r' id="([^"]*)"', page.source)
    assert len(ids) == len(set(ids))
    assert not re.search(
        "#000000|#ffffff", re.sub("<style>.*?</style>", "", page.source, count=1, flags=re.S)
    )
    for words in ("loss (nats)", "epochs", "test accuracy", "first", "second"):
        assert words in drawings[0][1]  # text is text
    assert page.all("html")[0][0]["lang"] == "en"
    assert [text for _, text in page.all("h1")] == ["Report on 2 runs"]
    assert all(text for _, text in page.all("caption"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_the_same_runs_make_the_same_page(make_run, report):
    run = make_run("first")
    pages = []
    for _ in range(2):
        pages.append(report(run)[0].source)  # the second time in the place of the first
    assert pages[0] == pages[1]


def test_differing_options_stand_out(make_run, report):
    first = make_run(
        "first", learning_rate=0.1, plots=True, environment={"versions": {"jax": "0.11"}}
    )
    environment = {"flags": {"jax_enable_x64": False}, "versions": {"jax": "0.10.1"}}
    second = make_run("second", learning_rate=0.2, plots=False, epochs=3, environment=environment)
    page, _ = report(first, second)
    loud = {cells[0]: cells[1:] for cells in page.rows() if cells[0].endswith(" (differs)")}
    assert loud == {
        "epochs (differs)": ["2", "3"],
        "learning_rate (differs)": ["0.1", "0.2"],
        "jax_enable_x64 (differs)": ["none", "false"],
        "jax (differs)": ["0.11", "0.10.1"],
    }
    rows = {row[0]: row[1:] for row in page.rows()}
    assert rows["plots"] == ["true", "false"]
    assert rows["init"] == ["none", "none"]
    marked = [attributes for attributes, _ in page.all("tr") if attributes.get("class")]
    assert marked == [{"class": "differs"}] * 4


def test_runs_of_different_test_sets(make_run, report, mnist_dir):
    options = {"dataset": "mnist", "seed": 0}
    runs = make_run("real", **options), make_run("drawn"), make_run("again", **options)
    page, stdout = report(*runs, **{"data-dir": mnist_dir})
    assert "real: test accuracy" in stdout
    assert stdout.count("on MNIST\n") == 2
    warnings = " ".join(text for attributes, text in page.all("p"))
    assert "NOT MNIST. drawn: trained and tested on digits that a program drew" in warnings
    assert "Tested on different images" in warnings
    assert "MNIST: real, again; drawn digits, seed 0: drawn." in warnings
    assert page.rows()[1][1:] == ["MNIST", "NOT MNIST: drawn digits, seed 0", "MNIST"]
    assert page.rows()[5][1] == page.rows()[5][3] != page.rows()[5][2]


def test_nothing_in_a_file_or_a_name_becomes_markup(make_run, report):
    hostile = HOSTILE.replace("/", "")
    run = make_run(hostile, source=f"</td><script>{HOSTILE}", **{HOSTILE: HOSTILE})
    page, _ = report(run, make_run("_second"), make_run("三"))
    assert len(page.all("img")) == 3 * 24
    assert not any("onerror" in attributes for _, attributes, _ in page.elements)
    assert page.all("script") == []
    assert hostile in page.rows()[0]
    assert [f"{HOSTILE} (differs)", HOSTILE, "none", "none"] in page.rows()
    curves = page.all("svg")[0][1]
    assert "_second" in curves
    assert "三" in curves
    assert "$x$" in curves


def test_runs_of_one_name_are_told_apart(make_run, report, tmp_path):
    make_run("a/run"), make_run("b/run")
    page, _ = report(tmp_path / "runs" / "a" / "run", tmp_path / "runs" / "b" / "run")
    assert page.rows()[0][1:] == [str(tmp_path / "runs" / x / "run") for x in "ab"]


def test_a_run_without_losses_of_steps(make_run, report):
    run = make_run("first")
    (run / "steps.jsonl").unlink()
    page, _ = report(run)
    assert "loss (nats)" in page.all("svg")[0][1]


def tree(directory):
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("file", "content", "code", "words"),
    [
        ("config.json", None, 2, ["no run", "no config.json"]),
        ("config.json", "{", 1, ["config.json: damaged"]),
        ("config.json", "[]", 1, ["config.json: damaged"]),
        ("config.json", "[" * 100_000, 1, ["config.json: damaged"]),
        ("config.json", '{"epochs": 2, "dataset": "x", "seed": 0}', 1, ["config.json: damaged"]),
        ("weights.safetensors", None, 1, ["not done: 2 of 2 epochs", "--resume"]),
        ("weights.safetensors", "x" * 100, 1, ["weights.safetensors: damaged"]),
        ("metrics.jsonl", None, 1, ["not done: 0 of 2 epochs", "--resume"]),
        ("metrics.jsonl", "{}\n", 1, ["metrics.jsonl: line 1 is damaged"]),
        ("metrics.jsonl", "\0\n", 1, ["metrics.jsonl: line 1 is damaged"]),
        ("steps.jsonl", '{"step": 1, "loss": 2.5}\n{"step": 1', 1, ["steps.jsonl: line 2"]),
    ],
)
def test_what_is_no_finished_run(script, make_run, tmp_path, file, content, code, words):
    run = make_run("first")
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content)
    before = tree(tmp_path)
    got, line = refused(script, run, "--out", tmp_path / "report.html")
    assert got == code
    assert str(run) in line
    for word in words:
        assert word in line
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        *({"step": 0}, {"step": 10**30}, {"epoch": 7}, {"test_loss": None}),
        *({"test_accuracy": 2}, {"train_loss": "1"}),
    ],
)
def test_damaged_metrics(script, make_run, tmp_path, change):
    run = make_run("first")
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text(f"{lines[0]}\n{json.dumps(json.loads(lines[1]) | change)}\n")
    code, line = refused(script, run, "--out", tmp_path / "report.html")
    assert code == 1
    assert f"{path}: line 2 is damaged" in line


def test_weights_of_another_model_or_a_run_that_goes_on(script, make_run, tmp_path):
    odd = make_run("odd", weights=init_params(TorchGenerator(0), (12, 7, 10)))
    code, line = refused(script, odd, "--out", tmp_path / "report.html")
    assert (code, "takes 12 numbers" in line) == (1, True)
    longer = make_run("longer")
    config = json.loads((longer / "config.json").read_text()) | {"epochs": 9}
    (longer / "config.json").write_text(json.dumps(config))
    code, line = refused(script, longer, "--out", tmp_path / "report.html")
    assert (code, "not done: 2 of 9 epochs" in line) == (1, True)


def test_wrong_usage(script, make_run, tmp_path):
    run, out = make_run("first"), tmp_path / "report.html"
    assert refused(script)[0] == 2
    code, line = refused(script, tmp_path / "nowhere")
    assert (code, "no such directory" in line) == (2, True)
    assert refused(script, run, run)[0] == 2
    code, line = refused(script, run, "--out", tmp_path / "none" / "x.html")
    assert (code, str(tmp_path / "none") in line) == (2, True)
    for precious in (out, tmp_path / "link.html"):  # nor is a link to such a file followed
        out.write_text("precious")
        precious.exists() or precious.symlink_to(out)
        code, line = refused(script, run, "--out", precious)
        assert (code, "already exists" in line) == (2, True)
        assert out.read_text() == "precious"


def test_without_matplotlib_the_extra_is_named(script, make_run, tmp_path, monkeypatch):
    for package in ("matplotlib", "jinja2"):
        with monkeypatch.context() as patch:
            uninstall(patch, package)
            code, line = refused(script, make_run(package), "--out", tmp_path / "report.html")
        assert code == 1
        assert line.startswith(f"report.py: error: this needs {package}: ")
        assert "[plots]'" in line
