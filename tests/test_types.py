"""The examples as a user's own files, checked by the type checkers as strictly as they can."""

import subprocess
import sys

import pytest

from tests.documents import DOCUMENTS, write_example

# Other libraries' missing py.typed is not for the user to repair.
CONFIG = """
[mypy]
strict = true
[mypy-equinox.*,optax.*,torch.*]
follow_untyped_imports = true
"""


# The cookbook's chapters are programs of their own, without annotations as research code is.
CHECKED = [name for name in DOCUMENTS if name != "jaxmnist/README.md"]


@pytest.fixture
def user(tmp_path):
    """A directory elsewhere with the examples of each document as a file."""
    for document in CHECKED:
        path = tmp_path / f"{document.partition('/')[0].removesuffix('.md').lower()}_examples.py"
        if not write_example(document, path):
            path.unlink()
    (tmp_path / "mypy.ini").write_text(CONFIG)
    return tmp_path


@pytest.mark.oracle
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_type_checker_finds_nothing(user, checker):
    pytest.importorskip(checker)
    option = "--python-executable" if checker == "mypy" else "--pythonpath"
    files = sorted(path.name for path in user.glob("*.py"))
    command = [sys.executable, "-m", checker, option, sys.executable, *files]
    done = subprocess.run(command, cwd=user, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
