"""scripts/notebook.py: it prints the notebook's numbers, and would say so if it did not."""

import json
import re
import shutil

import pytest

from tests.helpers import ROOT, refused

NOTEBOOK = ROOT / "scripts" / "notebook.py"
COMPARED = [5, 6, 8, 10, 12, 15, 16, 17, 23, 25, 27, 27, 28, 29, 29, 29, 29, 29, 30]


def table(text: str) -> list[list[str]]:
    """The rows of the closing table: cell, what, notebook, jaxmnist, difference, verdict."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[field.strip() for field in line.strip("|").split(" | ")] for line in lines[2:]]


def cells() -> list[tuple[str, str]]:
    """Kind ("[markdown]" or "") and source of each cell, as editors and Jupytext split the file."""
    first, *parts = re.split(r"^# %% ?(.*)\n", NOTEBOOK.read_text(), flags=re.MULTILINE)
    assert first == ""
    return list(zip(parts[::2], parts[1::2], strict=True))


def assert_the_notebooks(rows):
    assert [int(row[0]) for row in rows] == COMPARED
    for cell, _, notebook, ours, difference, verdict in rows:
        if cell == "29":
            assert abs(float(notebook) - float(ours)) < 2e-4
            assert verdict == "within 0.0002"
        else:
            assert (ours, difference, verdict) == (notebook, "0", "same")


@pytest.fixture(autouse=True)
def _beside_its_helpers(monkeypatch):
    """As Python and Jupyter do, the tests look for `_notebook` in the notebook's directory."""
    monkeypatch.syspath_prepend(NOTEBOOK.parent)


@pytest.fixture
def tampered(script, tmp_path, monkeypatch):
    """Runs a copy of the notebook and its outputs with each given text replaced by another."""

    def call(replacements: dict[str, str], *options: object) -> tuple[int, str, str]:
        for path in (NOTEBOOK, NOTEBOOK.with_name("notebook_outputs.txt")):
            text = path.read_text()
            for old in [old for old in replacements if text.count(old) == 1]:
                text = text.replace(old, replacements.pop(old))
            (tmp_path / path.name).write_text(text)
        assert not replacements
        for helper in NOTEBOOK.parent.glob("_*.py"):
            shutil.copy(helper, tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        return script(tmp_path / "notebook.py", *options)

    return call


@pytest.mark.slow
def test_every_number_is_the_notebooks(script, mnist_dir):
    code, stdout, stderr = script("notebook.py", "--data-dir", mnist_dir)
    assert (code, stderr) == (0, "")
    assert_the_notebooks(table(stdout))
    # Both are printed, the notebook's as it was and ours in the same form.
    assert "[10] notebook  tensor(2.2916, grad_fn=<NllLossBackward>)" in stdout
    assert "[10] jaxmnist  Array(2.2916)" in stdout
    assert "[-0.0014, -0.0014, -0.0014,  ..., -0.0014, -0.0014, -0.0014]" in stdout
    assert "[-0.0014, -0.0014, -0.0014, ..., -0.0014, -0.0014, -0.0014]" in stdout
    assert "integer_pow" in stdout


@pytest.mark.slow
def test_what_is_off_is_named(tampered, mnist_dir, tmp_path):
    replacements = {
        "tensor(2.2916": "tensor(2.2917",
        "0.0097, -0.0003, -0.0232": "0.0097, -0.0002, -0.0232",
        "Training loss: 0.38745840537204923": "Training loss: 0.38700000000000000",
        "tensor(6)": "tensor(6, 6)",
    }
    code, _, stderr = tampered(replacements, "--ipynb", "--data-dir", mnist_dir)
    assert (code, stderr) == (
        1,
        "notebook.py: error: not what the notebook printed: cell 10 (cross-entropy), "
        "cell 28 (updated weights), cell 29 (loss of epoch 5), cell 30 (labels[0])\n",
    )
    assert not (tmp_path / "notebook.ipynb").exists()


@pytest.mark.slow
def test_the_ipynb_has_the_cells_and_outputs_of_the_source(tampered, mnist_dir, tmp_path):
    code, stdout, _ = tampered({}, "--ipynb", "--data-dir", mnist_dir)
    assert (code, stdout) == (0, f"Wrote {tmp_path / 'notebook.ipynb'}\n")
    places = tmp_path, NOTEBOOK.parent
    made, kept = (json.loads((place / "notebook.ipynb").read_text())["cells"] for place in places)
    for one, other in zip(made, kept, strict=True):
        kinds = [
            [sorted(output.get("data", ())) for output in cell.pop("outputs", ())]
            for cell in (one, other)
        ]
        assert kinds[0] == kinds[1]
        assert one == other


def test_the_kept_ipynb_is_that_of_the_source():
    """If not: scripts/notebook.py --ipynb"""
    kept = json.loads(NOTEBOOK.with_suffix(".ipynb").read_text())["cells"]
    sources = [re.sub("^# ?", "", x, flags=re.M) if kind else x for kind, x in cells()]
    assert [cell["source"] for cell in kept] == [source.strip() for source in sources]
    assert [cell["cell_type"] == "markdown" for cell in kept] == [bool(kind) for kind, _ in cells()]
    data = [output.get("data", {}) for cell in kept for output in cell.get("outputs", [])]
    assert sum("image/png" in bundle for bundle in data) == 2
    assert_the_notebooks(table(data[-1]["text/markdown"]))


def test_the_cells_are_the_notebooks_in_its_order():
    assert {kind for kind, _ in cells()} == {"", "[markdown]"}  # Jupyter shows no other title
    text = NOTEBOOK.read_text()
    titles = re.findall(r"^# ### Cells? (\d+)(?: (?:and|to) (\d+))?: ", text, re.MULTILINE)
    numbers = [n for a, b in titles for n in range(int(a), int(b or a) + 1)]
    assert numbers == list(range(1, 31))
    assert not re.search(r"^(import|from) torch", text, re.MULTILINE)


@pytest.mark.usefixtures("nowhere")
def test_errors_are_one_line(script):
    refused(script("notebook.py", "--data-dir", "nowhere-at-all"), 1, "nowhere-at-all")
    refused(script("notebook.py", "--epochs", "6"), 2, "--epochs")
    refused(script("notebook.py"), 1, "--data-dir")
