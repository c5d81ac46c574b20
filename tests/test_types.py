"""Linters and type checkers: of the project, and of the examples as a user's own files."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.documents import COOKBOOK, DOCUMENTS, read_chapters, write_example
from tests.helpers import ROOT

pytestmark = pytest.mark.oracle

# Other libraries' missing py.typed and exports are not for the user to repair. The cookbook's
# functions have no annotations, as in research code, and their bodies are checked all the same.
CONFIG = """
[mypy]
strict = true
[mypy-equinox.*,optax.*,torch.*]
follow_untyped_imports = true
implicit_reexport = true
[mypy-cookbook.*]
disallow_untyped_defs = false
disallow_untyped_calls = false
"""


def check(cwd, tool, *options):
    pytest.importorskip(tool)
    command = [sys.executable, "-m", tool, *options]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", ["ruff format --check", "ruff check", "mypy"])
def test_the_project_is_clean(command):
    check(ROOT, *command.split())


@pytest.fixture
def user(tmp_path):
    """A directory elsewhere with each document's examples, and each chapter's, as a file."""
    for document in (name for name in DOCUMENTS if name != COOKBOOK):
        path = tmp_path / f"{document.partition('/')[0].removesuffix('.md').lower()}_examples.py"
        if not write_example(document, path):
            path.unlink()
    start, chapters = read_chapters()
    (tmp_path / "cookbook").mkdir()
    (tmp_path / "cookbook" / "__init__.py").touch()
    for number, blocks in enumerate(filter(None, chapters.values()), 1):
        path = tmp_path / "cookbook" / f"chapter_{number}.py"
        path.write_text("\n\n".join([start, *blocks]))
    (tmp_path / "mypy.ini").write_text(CONFIG)
    for package in ("equinox", "grain"):  # a package that is not installed may have any name
        if not find_spec(package):
            stub = "from typing import Any\ndef __getattr__(name: str) -> Any: ...\n"
            (tmp_path / f"{package}.pyi").write_text(stub)
    return tmp_path


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_the_examples_are_typed(user, checker):
    option = "--python-executable" if checker == "mypy" else "--pythonpath"
    files = sorted(str(path.relative_to(user)) for path in user.rglob("*.py"))
    check(user, checker, option, sys.executable, *files)
