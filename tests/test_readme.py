"""What the READMEs say is so: every command block and every example runs as it stands, in order."""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.documents import COOKBOOK, DOCUMENTS, Block, commands, read_blocks, write_example
from tests.helpers import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Stands in for the interpreter outside of the virtual environment.
PYTHON3 = """#!/bin/sh
if [ "$*" = "-m venv .venv" ]; then exit; fi
exec .venv/bin/python "$@"
"""


def make_executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path) -> Path:
    """A fresh directory with all files, as a clone has them, and two photos."""
    clone = tmp_path / "jaxmnist"
    ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis")

    def junk(folder, names):
        return ignored(folder, names) | ({"runs"} if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, clone, ignore=junk)
    ink = np.full((280, 280), 230, np.uint8)
    ink[40:240, 130:150] = 20
    for name in ("photo.jpg", "scan.png"):
        Image.fromarray(ink).save(clone / name)
    return clone


@pytest.fixture
def installed(clone, tmp_path, mnist_dir) -> dict[str, str]:
    """Set up as the commands would, without the time that installing takes; the environment."""
    make_executable(clone / ".venv/bin/python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    make_executable(clone / ".venv/bin/pip", "#!/bin/sh\n")
    make_executable(tmp_path / "bin/python3", PYTHON3)
    return {
        **os.environ,
        "JAXMNIST_DATA_DIR": str(mnist_dir.resolve()),
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(clone),
        "PYTEST_ADDOPTS": "tests/test_canary.py",  # not all tests within a test
    }


def run(block: Block, clone: Path, environment: dict[str, str]) -> None:
    script, began = f"{block.text.rstrip()} {block.added}", time.perf_counter()
    done = subprocess.run(
        ["bash", "-euc", script], cwd=clone, env=environment, capture_output=True, text=True
    )
    print(f"{block.place}: {time.perf_counter() - began:.1f} s")  # pytest -s shows it
    assert done.returncode == 0, f"{block.place}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, f"{block.place}: {done.stderr}"


@pytest.mark.slow
def test_the_commands_of_the_first_page_run_and_run_again(clone, installed):
    for block in commands("README.md"):
        run(block, clone, installed)
        if "pip install" not in block.text:
            run(block, clone, installed)


@pytest.mark.stress
def test_all_commands_run_from_nothing(clone, tmp_path, mnist_dir):
    """With everything installed as the commands say; but the tests are not run by one of them."""
    make_executable(tmp_path / "bin/python3", f'#!/bin/sh\nexec "{sys._base_executable}" "$@"\n')
    environment = {**os.environ, "JAXMNIST_DATA_DIR": str(mnist_dir.resolve())}
    environment |= {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "PYTEST_ADDOPTS": "tests/test_canary.py",
    }
    for document in DOCUMENTS:
        for block in commands(document):
            run(block, clone, environment)


# test_cookbook.py runs those of the cookbook, on fewer images.
@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != COOKBOOK])
def test_the_examples_run(tmp_path, document, mnist_dir):
    """As one program, in a directory of its own, without a warning."""
    program = tmp_path / "example.py"
    if write_example(document, program):
        environment = {**os.environ, "JAXMNIST_DATA_DIR": str(mnist_dir.resolve())}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [sys.executable, "-W", "error", program],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_are_of_known_kinds(document):
    for block in read_blocks(document):
        assert block.language in ("sh", "python", "text"), block.place
        if block.language == "sh":
            for arguments in re.findall(r"pip install (.*?)(?:&&|$)", block.text, re.MULTILINE):
                assert "-e " in arguments, f"{block.place}: edits would be ignored"
                names = re.findall(r"\[(.*?)\]", arguments)
                assert set(",".join(names).split(",")) <= {*EXTRAS, ""}, block.place


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / document).parent.joinpath(target).exists(), f"{document}: {target}"


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize("folder", ["jaxmnist", "scripts"])
def test_every_module_and_script_has_its_line(folder):
    text = (ROOT / folder / "README.md").read_text()
    for path in (ROOT / folder).rglob("[!_]*.py"):
        name = path.relative_to(ROOT / folder).as_posix()
        assert re.search(rf"`(?:{folder}/)?{re.escape(name)}`|`{path.name}`", text), name


def test_every_public_name_is_documented():
    import jaxmnist

    for name in jaxmnist.__all__:
        assert getattr(jaxmnist, name).__doc__, name
