"""Damaged files and odd options: each is refused in one line, or taken for what it says."""

import contextlib
import io
import re
import runpy
import subprocess
import sys

import hypothesis
import pytest
import tyro
from hypothesis import strategies as st

from tests.helpers import ROOT, TRAIN
from tests.stress.fuzz import TARGETS, make_case

COUNTS = ("--idx", 1000, "--weights", 400, "--checkpoints", 400, "--images", 400)


def fuzz(tmp_path, *options: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.stress.fuzz", "--out", tmp_path / "failures", *options]
    return subprocess.run(
        [*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def table(stdout: str) -> dict[str, list[int]]:
    """Files, accepted, refused and failed of each kind."""
    rows = [line.strip("| ").split(" | ") for line in stdout.splitlines()[2:]]
    return {kind: [int(cell.replace(",", "")) for cell in cells[:4]] for kind, *cells in rows}


@pytest.mark.slow
def test_damaged_files_in_short(tmp_path):
    done = fuzz(tmp_path, *COUNTS, "--seed", 1)
    assert (done.returncode, done.stderr) == (0, "")
    found = table(done.stdout)
    assert list(found) == ["idx", "weights", "checkpoints", "images"]
    for files, accepted, refused, failed in found.values():
        assert (accepted + refused, failed) == (files, 0)
        assert accepted > files / 100  # the files are not so bad that all of this is for nothing
        assert refused > files / 2
    assert list(tmp_path.iterdir()) == []


# Put into the processes that read: a library with a bug of each sort.
BUGS = """
import os, sys

if "--multiprocessing-fork" in sys.orig_argv:
    import types
    import jaxmnist.datasets.idx, jaxmnist.predict, jaxmnist.runs.checkpoint, jaxmnist.weights
    import numpy

    jaxmnist.datasets.idx.zlib = types.SimpleNamespace(error=KeyError)  # gzip's errors get through
    load_weights = jaxmnist.weights.load_weights
    jaxmnist.weights.load_weights = lambda path: (load_weights(path), os.abort())
    load = jaxmnist.runs.checkpoint.load

    def wrong(path, like):
        found = load(path, like)
        return found._replace(state=found.state._replace(step=numpy.int32(8)))

    jaxmnist.runs.checkpoint.load = wrong
    read_image = jaxmnist.predict.read_image
    jaxmnist.predict.read_image = lambda path: read_image(path) ^ (path.suffix == ".png")
"""


@pytest.mark.stress
def test_what_it_finds_is_kept_and_can_be_made_again(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BUGS)
    counts = ("--idx", 300, "--weights", 300, "--checkpoints", 300, "--images", 300)
    done = fuzz(tmp_path, *counts, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    found = table(done.stdout)
    assert all(failed > 0 for *_, failed in found.values())
    for words in ("idx, file", "error: Error -3", "exit code -6", "accepted, but not as it is"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    kinds = set()
    for path in (tmp_path / "failures").iterdir():
        kind, seed, n, _ = path.name.split("-")
        case = make_case(TARGETS[kind](), kind, int(seed), int(n))
        assert path.read_bytes() == case.content
        kinds.add(kind)
    assert kinds == set(found)


@pytest.mark.stress
def test_damaged_files(tmp_path):
    done = fuzz(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sum(files for files, *_ in table(done.stdout).values()) == 130_000


HUGE = ["9" * 400, "-" + "9" * 400, "9" * 5000, "1e999", "-1e-999", "1_000", "0x10", "\u0663"]
PLAIN = ["", " ", "-", "--", "-1", "0", "1", "2", "nan", "inf", "-inf", "None", "all", "True"]
VALUES = st.one_of(
    st.sampled_from([*HUGE, *PLAIN, "\n", "\x1b[31m", "\udcff", "a" * 10_000, "../..", "/", "*"]),
    st.integers().map(str),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="\0"), max_size=10),
)


def script_options(script) -> dict[str, list[str]]:
    """The options that `train.py --help` lists, each with the words that it can have."""
    script_help = script("train.py", "--help")[1]
    options = re.findall(r"--([a-z][a-z-]+)(?: \{([\w,]+)\})?", script_help)
    return {name: words.split(",") if words else [] for name, words in options}


@st.composite
def command_lines(draw: st.DrawFn, options: dict[str, list[str]]) -> list[str]:
    """A few options of the script, some with values that they can have, most with any."""
    arguments = []
    for name in draw(st.lists(st.sampled_from(sorted(options)), max_size=4)):
        arguments.append(f"--{draw(st.sampled_from(['', '', '', 'no-']))}{name}")
        values = st.sampled_from(options[name]) | VALUES if options[name] else VALUES
        arguments += draw(st.lists(values, max_size=2))
    return arguments


class AcceptedError(Exception):
    """The options were taken, and nothing more is done."""


def parse(arguments: list[str], encoding: str) -> tuple[int | None, str, str]:
    """The script's exit code, None if it would train; what it printed in this encoding."""
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding, "replace") for _ in range(2))
    cli = tyro.cli

    def stop_after(*args: object, **options: object) -> None:
        cli(*args, **options)
        raise AcceptedError

    code = None
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        contextlib.suppress(AcceptedError),
    ):
        patch.setattr(tyro, "cli", stop_after)
        patch.setattr(sys, "argv", [str(TRAIN), *arguments])
        patch.setattr(sys, "path", sys.path.copy())
        try:
            runpy.run_path(str(TRAIN), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    for stream in (stdout, stderr):
        stream.seek(0)
    return code, stdout.read(), stderr.read()


@pytest.mark.slow
def test_any_options_are_taken_or_refused_in_one_line(script):
    options = script_options(script)
    assert {"epochs", "hidden", "device", "out"} <= set(options)
    assert "tpu" in options["device"]

    @hypothesis.settings(max_examples=200, deadline=None, database=None, derandomize=True)
    @hypothesis.given(
        arguments=command_lines(options), encoding=st.sampled_from(["utf-8", "ascii"])
    )
    def check(arguments, encoding):
        code, stdout, stderr = parse(arguments, encoding)
        if code == 0:
            assert {"-h", "--help", "--version"} & set(arguments)
        elif code == 2:
            assert stdout == ""
            assert stderr.startswith("train.py: error: ")
            assert stderr.endswith("\n")
            assert "-----" not in stderr
            assert stderr[:-1].isprintable()
        else:
            assert (code, stdout, stderr) == (None, "", "")

    check()
