"""scripts/notebook.py: it prints the notebook's numbers, and would say so if it did not."""

import json
import re
import shutil
import sys

import pytest

from tests.helpers import ROOT, finish, refused

NOTEBOOK = ROOT / "scripts" / "notebook.py"
OUTPUTS = NOTEBOOK.with_name("notebook_outputs.txt")
COMPARED = [5, 6, 8, 10, 12, 15, 16, 17, 23, 25, 27, 27, 28, 29, 29, 29, 29, 29, 30]
SMALL = """# %% [markdown]
# Two cells

# %%
import numpy as np
from _notebook import compare, table

compare(10, "cross-entropy", np.float32({}))
compare(16, "x = randn(2, 2)", np.array([[1.2447, 1.7893], [0.8041, {}]]))
compare(29, "loss of epoch 5", "Training loss: {}", within=2e-4)
compare(30, "labels[0]", ({}))

# %%
table()
"""


def assert_the_notebooks(text: str):
    """The closing table: cell, what, notebook, jaxmnist, difference, verdict."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[field.strip() for field in line.strip("|").split(" | ")] for line in lines[2:]]
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
    monkeypatch.delenv("JAXMNIST_DATA_DIR", raising=False)  # --data-dir sets it for the process


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A directory with copies of the notebook's helpers and outputs."""
    for helper in (OUTPUTS, *NOTEBOOK.parent.glob("_*.py")):
        shutil.copy(helper, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_number_is_the_notebooks(script, mnist_dir):
    code, stdout, stderr = script("notebook.py", "--data-dir", mnist_dir)
    assert (code, stderr) == (0, "")
    assert_the_notebooks(stdout)
    # Both are printed, the notebook's as it was and ours in the same form.
    assert "[10] notebook  tensor(2.2916, grad_fn=<NllLossBackward>)" in stdout
    assert "[10] jaxmnist  Array(2.2916)" in stdout
    assert "[-0.0014, -0.0014, -0.0014,  ..., -0.0014, -0.0014, -0.0014]" in stdout
    assert "[-0.0014, -0.0014, -0.0014, ..., -0.0014, -0.0014, -0.0014]" in stdout
    assert "integer_pow" in stdout


def test_what_is_off_is_named(script, beside):
    (beside / "notebook.py").write_text(SMALL.format(2.2917, 0.1501, 0.3877, "6, 6"))
    code, stdout, stderr = script(beside / "notebook.py", "--ipynb")
    assert (code, stderr) == (
        1,
        "notebook.py: error: not what the notebook printed: cell 10 (cross-entropy), "
        "cell 16 (x = randn(2, 2)), cell 29 (loss of epoch 5), cell 30 (labels[0])\n",
    )
    assert stdout.count("OFF") == 4
    assert not (beside / "notebook.ipynb").exists()


@pytest.mark.oracle
def test_jupyter_runs_it(beside):
    pytest.importorskip("nbclient", reason="needs nbclient")
    (beside / "notebook.py").write_text(SMALL.format(2.29162, 0.15, 0.3876, 6))
    finish([sys.executable, beside / "notebook.py", "--ipynb"])
    title, first, last = json.loads((beside / "notebook.ipynb").read_text())["cells"]
    assert title["source"] == "Two cells"
    assert first["outputs"][0]["text"].endswith("[30] jaxmnist  6\n")
    assert last["outputs"][0]["data"]["text/markdown"].endswith("| same          |")


def test_the_kept_ipynb_is_that_of_the_source():
    """If not: scripts/notebook.py --ipynb"""
    first, *parts = re.split(r"^# %% ?(.*)\n", NOTEBOOK.read_text(), flags=re.MULTILINE)
    assert (first, set(parts[::2])) == ("", {"", "[markdown]"})
    kept = json.loads(NOTEBOOK.with_suffix(".ipynb").read_text())["cells"]
    for cell, kind, source in zip(kept, parts[::2], parts[1::2], strict=True):
        assert cell["cell_type"] == ("markdown" if kind else "code")
        source = re.sub("^# ?", "", source, flags=re.MULTILINE) if kind else source
        assert "".join(cell["source"]) == source.strip()
    data = [output.get("data", {}) for cell in kept for output in cell.get("outputs", [])]
    assert sum("image/png" in bundle for bundle in data) == 2
    assert_the_notebooks(data[-1]["text/markdown"])


def test_the_cells_are_the_notebooks_in_its_order():
    text = NOTEBOOK.read_text()
    titles = re.findall(r"^# ### Cells? (\d+)(?: (?:and|to) (\d+))?: ", text, re.MULTILINE)
    numbers = [n for a, b in titles for n in range(int(a), int(b or a) + 1)]
    assert numbers == list(range(1, 31))
    assert not re.search(r"^(import|from) torch", text, re.MULTILINE)


@pytest.mark.usefixtures("nowhere")
def test_errors_are_one_line(script):
    refused(script("notebook.py"), 1, "--data-dir")
    refused(script("notebook.py", "--data-dir", "nowhere-at-all"), 1, "nowhere-at-all")
    refused(script("notebook.py", "--epochs", "6"), 2, "--epochs")
