"""What all scripts have in common."""

import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from tests.helpers import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("[!_]*.py"))
LARGE = {"jax", "numpy", "scipy", "matplotlib", "optuna", "tensorflow_datasets"}


@pytest.mark.parametrize(
    ("name", "option", "word"),
    [*((name, "--help", "--help") for name in SCRIPTS), ("train.py", "--version", "jaxmnist")],
)
def test_help_waits_for_no_large_package(name, option, word):
    command = [sys.executable, "-X", "importtime", ROOT / "scripts" / name, option]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (version(word) if option == "--version" else word) in done.stdout
    imported = set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))
    assert "re" in imported
    assert not imported & LARGE
