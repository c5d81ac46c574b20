"""What all scripts have in common."""

import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from tests.helpers import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("[!_]*.py"))


def run(name: str, option: str) -> tuple[str, set[str]]:
    """What the script prints, and the packages that it imports."""
    command = [sys.executable, "-X", "importtime", ROOT / "scripts" / name, option]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_waits_for_no_large_package(name):
    printed, imported = run(name, "--help")
    assert "--help" in printed
    assert "re" in imported
    assert not imported & {"jax", "numpy", "scipy", "matplotlib", "tensorflow_datasets"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_version_is_the_packages(name):
    printed, imported = run(name, "--version")
    assert version("jaxmnist") in printed
    assert "jax" not in imported
