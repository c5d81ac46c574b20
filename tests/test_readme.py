"""What the READMEs say is so: every command block and every example runs as it stands, in order."""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.documents import COOKBOOK, DOCUMENTS, Block, read_blocks, write_example
from tests.helpers import ROOT, finish

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Stands in for the interpreter outside of the virtual environment.
PYTHON3 = """#!/bin/sh
if [ "$*" = "-m venv .venv" ]; then exit; fi
exec .venv/bin/python "$@"
"""
PROGRAM = '#!/bin/sh\nexec "{}" "$@"\n'


def make_executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path) -> Path:
    """A fresh directory with all files, as a clone has them."""
    clone = tmp_path / "jaxmnist"
    clone.mkdir()
    for name in ("jaxmnist", "scripts", "tests", ".github"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, clone)
    return clone


def run(block: Block, clone: Path, environment: dict[str, str]) -> None:
    """Run a block of commands."""
    added, began = block.words if block.kind == "tested with" else "", time.perf_counter()
    command = ["bash", "-euc", f"{block.text.rstrip()} {added}"]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    print(f"{block.place}: {time.perf_counter() - began:.1f} s")  # pytest -s shows it
    assert done.returncode == 0, f"{block.place}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, f"{block.place}: {done.stderr}"


def run_documents(clone: Path, environment: dict[str, str], mnist_dir: Path) -> None:
    environment = {**os.environ, "JAXMNIST_DATA_DIR": str(mnist_dir.resolve()), **environment}
    environment["PYTEST_ADDOPTS"] = "tests/test_canary.py"  # not all tests within a test
    done: set[str] = set()
    for block in (block for document in DOCUMENTS for block in read_blocks(document)):
        commands = {command.strip() for command in re.split("&&|\n", block.text.strip())}
        if block.language == "sh" and block.kind != "not run" and not commands <= done:
            run(block, clone, environment)
            done |= commands


@pytest.mark.slow
def test_the_commands_run(clone, tmp_path, mnist_dir):
    """In this environment, without the time that installing takes."""
    make_executable(clone / ".venv/bin/python", PROGRAM.format(sys.executable))
    make_executable(clone / ".venv/bin/pip", "#!/bin/sh\n")
    make_executable(tmp_path / "bin/python3", PYTHON3)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    run_documents(clone, {"PATH": path, "PYTHONPATH": str(clone)}, mnist_dir)


@pytest.mark.stress
def test_the_commands_run_from_nothing(clone, tmp_path, mnist_dir):
    """With everything installed as the commands say."""
    make_executable(tmp_path / "bin/python3", PROGRAM.format(sys._base_executable))
    run_documents(clone, {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}, mnist_dir)


# test_cookbook.py runs those of the cookbook, on fewer images.
@pytest.mark.slow
@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != COOKBOOK])
def test_the_examples_run(tmp_path, document, mnist_dir, trained_run):
    """As one program, in a directory of its own with a run, without a warning."""
    shutil.copytree(trained_run, tmp_path / "runs/first")
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    program = tmp_path / "example.py"
    if write_example(document, program):
        environment = {**os.environ, "JAXMNIST_DATA_DIR": str(mnist_dir.resolve())}
        environment.pop("PYTHONPATH", None)
        finish([sys.executable, "-W", "error", program], cwd=tmp_path, env=environment)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_links_and_files_are_of_known_kinds(document):
    for block in read_blocks(document):
        assert block.language in ("sh", "python", "text"), block.place
        for arguments in re.findall(r"pip install (.*?)(?:&&|$)", block.text, re.MULTILINE):
            assert "-e " in arguments, f"{block.place}: edits would be ignored"
            names = re.findall(r"\[(.*?)\]", arguments)
            assert set(",".join(names).split(",")) <= {*EXTRAS, ""}, block.place
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / document).read_text()):
        assert "://" in target or folder.joinpath(target).exists(), f"{document}: {target}"
    there = {path.name for path in ROOT.glob("*/**/*.py")}
    named = re.findall(r"`([\w/.]+\.py)`", (ROOT / document).read_text())
    assert {Path(name).name for name in named} <= there
