"""scripts/notebook.py: it prints the notebook's numbers, and would say so if it did not."""

import ast
import builtins
import re
import shutil
import sys
import types

import jax
import pytest

from tests.helpers import ROOT, uninstall

NOTEBOOK = ROOT / "scripts" / "notebook.py"
COMPARED = [5, 6, 8, 10, 12, 15, 16, 17, 23, 25, 27, 27, 28, 29, 29, 29, 29, 29, 30]


def table(stdout: str) -> list[list[str]]:
    """The rows of the closing table: cell, what, notebook, jaxmnist, difference, verdict."""
    lines = [line for line in stdout.splitlines() if line.startswith("| ")]
    return [[field.strip() for field in line.strip("|").split(" | ")] for line in lines[2:]]


def cells() -> list[tuple[str, str]]:
    """Kind ("[markdown]" or "") and source of each cell, as editors and Jupytext split the file."""
    first, *parts = re.split(r"^# %% ?(.*)\n", NOTEBOOK.read_text(), flags=re.MULTILINE)
    assert first == ""
    return list(zip(parts[::2], parts[1::2], strict=True))


@pytest.fixture
def tampered(script, tmp_path):
    """Runs a copy of the notebook and its outputs with each given text replaced by another."""

    def call(replacements: dict[str, str], *options: object) -> tuple[int, str, str]:
        for name in ("notebook.py", "notebook_outputs.txt"):
            text = (NOTEBOOK.parent / name).read_text()
            for old in [old for old in replacements if text.count(old) == 1]:
                text = text.replace(old, replacements.pop(old))
            (tmp_path / name).write_text(text)
        assert not replacements
        for helper in NOTEBOOK.parent.glob("_*.py"):
            shutil.copy(helper, tmp_path)
        return script(tmp_path / "notebook.py", *options)

    return call


def test_every_number_is_the_notebooks(script, mnist_dir):
    code, stdout, stderr = script("notebook.py", "--data-dir", mnist_dir)
    assert (code, stderr) == (0, "")
    rows = table(stdout)
    assert [int(row[0]) for row in rows] == COMPARED
    for cell, _, notebook, ours, difference, verdict in rows:
        if cell == "29":
            assert abs(float(notebook) - float(ours)) < 2e-4
            assert verdict == "within 0.0002"
        else:
            assert (ours, difference, verdict) == (notebook, "0", "same")
    # Both are printed, the notebook's as it was and ours in the same form.
    assert "[10] notebook  tensor(2.2916, grad_fn=<NllLossBackward>)" in stdout
    assert "[10] jaxmnist  Array(2.2916)" in stdout
    assert stdout.count("[-0.0014, -0.0014, -0.0014,  ..., -0.0014, -0.0014, -0.0014]") == 1
    assert stdout.count("[-0.0014, -0.0014, -0.0014, ..., -0.0014, -0.0014, -0.0014]") == 1
    assert "integer_pow" in stdout


@pytest.mark.slow
def test_what_is_off_is_named(tampered, mnist_dir):
    replacements = {
        "tensor(2.2916": "tensor(2.2917",
        "0.0097, -0.0003, -0.0232": "0.0097, -0.0002, -0.0232",
        "Training loss: 0.38745840537204923": "Training loss: 0.38700000000000000",
        "tensor(6)": "tensor(6, 6)",
    }
    code, stdout, stderr = tampered(replacements, "--markdown", "--data-dir", mnist_dir)
    assert code == 1
    assert stderr == (
        "notebook.py: error: not what the notebook printed: cell 10 (cross-entropy), "
        "cell 28 (updated weights), cell 29 (loss of epoch 5), cell 30 (labels[0])\n"
    )
    assert all(line.startswith("| ") for line in stdout.splitlines())  # ready for the README
    off = [row for row in table(stdout) if row[-1] == "OFF"]
    assert [row[0] for row in off] == ["10", "28", "29", "30"]
    assert [row[4] for row in off[:2]] == ["1.0e-04", "1.0e-04"]


@pytest.mark.slow
def test_another_seed_prints_other_numbers(tampered, mnist_dir):
    code, stdout, stderr = tampered(
        {"TorchGenerator(165286645)": "TorchGenerator(165286646)"}, "--data-dir", mnist_dir
    )
    assert code == 1
    (line,) = stderr.splitlines()
    for cell in (10, 15, 16, 17, 23, 25, 27, 28, 29):
        assert f"cell {cell} (" in line
    same = {row[0] for row in table(stdout) if row[-1] == "same"}
    assert same - {"30"} == {"5", "6", "8", "12"}  # the shapes


@pytest.mark.slow
@pytest.mark.parametrize("figures", [False, True])
def test_it_runs_cell_by_cell_as_in_jupyter(mnist_dir, monkeypatch, figures):
    """Without matplotlib too; with it, a picture of a batch and of the losses is shown."""
    if figures:
        pytest.importorskip("matplotlib")
    else:
        uninstall(monkeypatch, "matplotlib")
    shown = []
    ipython = types.SimpleNamespace(Image=lambda content: content, display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setenv("JAXMNIST_DATA_DIR", str(mnist_dir))
    precision = jax.config.jax_default_matmul_precision
    namespace = {"__name__": "__main__"}
    try:
        for kind, source in cells():
            exec(compile(source, kind or "cell", "exec"), namespace)
    finally:
        jax.config.update("jax_default_matmul_precision", precision)
    rows = table(namespace["table"]())
    assert [int(row[0]) for row in rows] == COMPARED
    assert "OFF" not in {row[-1] for row in rows}
    assert [content[:4] for content in shown] == [b"\x89PNG"] * (2 if figures else 0)


def test_the_cells_are_the_notebooks_in_its_order():
    numbers = []
    for kind, source in cells():
        assert kind in ("", "[markdown]")  # a title beside the mark is not shown in Jupyter
        if kind == "[markdown]":
            assert all(line.startswith("#") for line in source.splitlines() if line)
        for match in re.finditer(
            r"^# ### Cells? (\d+)(?: (?:and|to) (\d+))?: ", source, re.MULTILINE
        ):
            first, last = int(match[1]), int(match[2] or match[1])
            numbers += range(first, last + 1)
    assert numbers == list(range(1, 31))


def test_pytorch_is_not_imported():
    nodes = list(ast.walk(ast.parse(NOTEBOOK.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert "jax" in names
    assert not any(name.split(".")[0] in ("torch", "torchvision") for name in names)


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [(["--data-dir", "nowhere-at-all"], 1, "nowhere-at-all"), (["--epochs", "6"], 2, "--epochs")],
)
def test_errors_are_one_line(script, options, code, word):
    got, _, stderr = script("notebook.py", *options)
    (line,) = stderr.splitlines()
    assert got == code
    assert line.startswith("notebook.py: error: ")
    assert word in line


def test_without_mnist_it_says_where_to_put_it(script, nowhere):
    code, stdout, stderr = script("notebook.py")
    (line,) = stderr.splitlines()
    assert (code, stdout) == (1, "")
    assert "--data-dir" in line
