"""Damaged files and odd options: each is refused in one line, or taken for what it says."""

import contextlib
import dataclasses
import io
import subprocess
import sys
import typing

import hypothesis
import pytest
from conftest import ROOT
from hypothesis import strategies as st

FUZZ = ROOT / "scripts" / "fuzz.py"


def fuzz(tmp_path, *options: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, FUZZ, "--out", tmp_path / "failures", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def of_each(count: int) -> list[object]:
    return ["--weights", count, "--checkpoints", count, "--images", count]


def table(stdout: str) -> dict[str, list[int]]:
    """Files, accepted, refused and failed of each kind."""
    rows = [line.strip("| ").split(" | ") for line in stdout.splitlines()[2:]]
    return {kind: [int(cell.replace(",", "")) for cell in cells[:4]] for kind, *cells in rows}


def test_damaged_files_in_short(tmp_path):
    done = fuzz(tmp_path, "--idx", 1000, *of_each(400), "--seed", 1)
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
    import jaxmnist.runs.checkpoint, jaxmnist.datasets.idx, jaxmnist.predict, jaxmnist.torch_compat, numpy

    jaxmnist.datasets.idx.zlib = types.SimpleNamespace(error=KeyError)  # errors of gzip's data get through
    load_weights = jaxmnist.torch_compat.load_weights
    jaxmnist.torch_compat.load_weights = lambda path: (load_weights(path), os.abort())
    load = jaxmnist.runs.checkpoint.load

    def wrong(path, like):
        found = load(path, like)
        return found._replace(state=found.state._replace(step=numpy.int32(8)))

    jaxmnist.runs.checkpoint.load = wrong
    read_image = jaxmnist.predict.read_image
    jaxmnist.predict.read_image = lambda path: read_image(path) ^ (path.suffix == ".png")
"""


def test_what_it_finds_is_kept_and_can_be_made_again(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(BUGS)
    done = fuzz(tmp_path, "--idx", 300, *of_each(300), PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    found = table(done.stdout)
    assert all(failed > 0 for *_, failed in found.values())
    for words in ("idx, file", "error: Error -3", "exit code -6", "accepted, but not as it is"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    kinds = set()
    monkeypatch.syspath_prepend(FUZZ.parent)
    import fuzz as module

    for path in (tmp_path / "failures").iterdir():
        kind, seed, n, _ = path.name.split("-")
        case = module.make_target(kind).make(module.rng_for(kind, int(seed), int(n)))
        assert path.read_bytes() == case.content
        kinds.add(kind)
    assert kinds == set(found)


def test_its_own_options(script):
    code, _, stderr = script("fuzz.py", "--idx", -1)
    assert code == 2
    assert stderr.endswith(
        "error: Error parsing Config: --idx must be at least 0, not -1 (see --help)\n"
    )


@pytest.fixture(scope="module")
def cli():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        import _cli
        import train

        yield _cli, train.Config


HUGE = ["9" * 400, "-" + "9" * 400, "9" * 5000, "1e999", "-1e-999", "1_000", "0x10", "\u0663"]
PLAIN = ["", " ", "-", "--", "-1", "0", "1", "2", "nan", "inf", "-inf", "None", "all", "True"]
VALUES = st.one_of(
    st.sampled_from([*HUGE, *PLAIN, "\n", "\x1b[31m", "\udcff", "a" * 10_000, "../..", "/", "*"]),
    st.integers().map(str),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="\0"), max_size=10),
)


@st.composite
def options(draw: st.DrawFn, config_type: type) -> list[str]:
    """A few options of the script, some with values that they can have, most with any."""
    arguments = []
    for field in draw(st.lists(st.sampled_from(dataclasses.fields(config_type)), max_size=4)):
        hint = typing.get_type_hints(config_type)[field.name]
        option = field.name.replace("_", "-")
        arguments.append(f"--{draw(st.sampled_from(['', '', '', 'no-']))}{option}")
        known = [v for v in typing.get_args(hint) if isinstance(v, str)] or [str(field.default)]
        arguments += draw(st.lists(st.sampled_from(known) | VALUES, max_size=2))
    return arguments


def parse(cli, arguments: list[str], encoding: str) -> tuple[object, str, str]:
    """The config or the exit code, and what was printed on a terminal of this encoding."""
    _cli, config_type = cli
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding, "replace") for _ in range(2))
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        patch.setattr(sys, "argv", ["train.py", *arguments])
        try:
            result = _cli._parse(config_type, "")
        except SystemExit as stop:
            result = stop.code
    for stream in (stdout, stderr):
        stream.seek(0)
    return result, stdout.read(), stderr.read()


@hypothesis.settings(max_examples=200, deadline=None, database=None, derandomize=True)
@hypothesis.given(data=st.data(), encoding=st.sampled_from(["utf-8", "ascii"]))
def test_any_options_are_taken_or_refused_in_one_line(cli, data, encoding):
    arguments = data.draw(options(cli[1]))
    result, stdout, stderr = parse(cli, arguments, encoding)
    if result == 0:
        assert {"-h", "--help"} & set(arguments)
    elif result == 2:
        assert stdout == ""
        assert stderr.startswith("train.py: error: ")
        assert stderr.endswith(" (see --help)\n")
        assert "-----" not in stderr
        assert stderr[:-1].isprintable()
    else:
        assert isinstance(result, cli[1])
        assert stdout == stderr == ""
