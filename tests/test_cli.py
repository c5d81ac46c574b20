"""scripts/_cli.py and _options.py: options in, an exit code and at most one line of error out."""

import contextlib
import errno
import operator
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal
from unittest import mock

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxmnist.errors import DataError, UsageError
from tests.helpers import ROOT, TRAIN, refused

before = signal.getsignal(signal.SIGINT)
sys.path.append(str(ROOT / "scripts"))
import _cli as cli  # noqa: E402
import _options as o  # noqa: E402

signal.signal(signal.SIGINT, before)
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("[!_]*.py"))


class Options(cli.Options):
    training: o.TrainingOptions
    model: o.ModelOptions
    optimizer: o.OptimizerOptions
    images: tuple[Path, ...] = cli.option(metavar="IMAGE")
    share: float = cli.option(0.5, o.at_least(-1, 2))
    """100 % of
    %s."""
    json: bool = False
    devices: int | Literal["all"] | None = cli.option(None, o.at_least(1))
    out: Path | None = cli.option(None, o.file_type(".csv"), also="output")
    recipe: Literal["usual", "big"] = "usual"


def parse(words) -> Options:
    words = ["run", *(words.split(" ") if isinstance(words, str) else words)]
    return cli.parse(words, Options, "About.", {"big": {"hidden": (8,), "share": 1.0}})


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        ("--hidden 512 256", "model.hidden", (512, 256)),
        ("--hidden=512,256", "model.hidden", (512, 256)),
        ("--hidden", "model.hidden", ()),
        ("--learning_rate 0.5", "optimizer.learning_rate", 0.5),
        ("--share -1e-3", "share", -0.001),
        ("--devices all", "devices", "all"),
        ("a --json b", "images", (Path("run"), Path("a"), Path("b"))),
        ("--json -- -a", "images", (Path("run"), Path("-a"))),
        ("--recipe big --hidden 9", "model.hidden", (9,)),
    ],
)
def test_spellings(words, name, expected):
    assert operator.attrgetter(name)(parse(words)) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--lr 0.1", "--lr is not an option; did you mean --learning-rate?"),
        ("--lerning_rate=0.1", "did you mean --learning-rate?"),
        ("--batch 32", "did you mean --batch-size?"),
        ("-outptu x", "did you mean --out?"),
        ("--epochs two", "--epochs must be a whole number, not two"),
        ("--epochs 0", "--epochs must be at least 1 and below 2,147,483,648, not 0"),
        ("--epochs", "--epochs: expected one argument"),
        ("--hidden 128,-64", "--hidden must be at least 1"),
        ("--optimizer nope", "--optimizer must be sgd or adam or adamw, not nope"),
        ("--devices some", "--devices must be all or a whole number, not some"),
        ("--learning-rate nan", "--learning-rate must be at least 0, not nan"),
        ("--share=", "--share must be a number, not empty"),
        ("--out gs://bucket/x.csv", "--out must be a path on this machine"),
        ("--out x.txt", "--out must be a file whose name ends in .csv, not x.txt"),
        ("--out a\x1b[31m", r"not a\x1b[31m"),
    ],
)
def test_wrong_words(words, said, capfd):
    with pytest.raises(SystemExit) as stop:
        parse(words)
    refused((stop.value.code, *capfd.readouterr()), 2, said, "(see --help)")


def test_what_is_missing_or_excluded(script):
    refused(script("evaluate.py", "--json"), 2, "arguments are required: RUN")
    refused(script("train.py", "epochs=5"), 2, "epochs is not an option; did you mean --epochs?")
    refused(script("train.py", "--optimizer", "adam", "--momentum", 0.9), 2, "--momentum is SGD's")
    refused(script("train.py", "--weight-decay", 0.1), 2, "--weight-decay is AdamW's")
    refused(script("train.py", "--data-dir", "/", "--dataset", "synthetic"), 2, "--data-dir")
    refused(script("train.py", "--resume"), 2, "need an --out")
    refused(script("train.py", "--process-id", 0), 2, "need --distributed and one another")
    refused(script("train.py", "--torch-order", "legacy"), 2, "need a --torch-seed")


VALUES = st.one_of(
    st.sampled_from(["9" * 5000, "1e999", "1_000", "0x10", "", " ", "-", "--", "-1", "-inf"]),
    st.sampled_from(["all", "\n", "\x1b[31m", "\udcff", "a" * 10_000, "/", "--help", "-h", "a=b"]),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="\0"), max_size=10),
)
NAMES = [cli.flag(field.name) for _, field in cli.walk(Options)]


@hypothesis.given(st.lists(st.sampled_from([*NAMES, "--no-json"]) | VALUES, max_size=6))
@hypothesis.settings(max_examples=100, deadline=None, database=None, derandomize=True)
def test_any_words_are_taken_or_refused_in_one_line(words):
    quiet, ended = contextlib.redirect_stdout(None), contextlib.suppress(UsageError, SystemExit)
    with mock.patch.object(os, "write") as write, quiet, ended:
        parse(words)
    for line in (call.args[1].decode() for call in write.mock_calls):
        assert line.endswith(" (see --help)\n")
        assert line[:-1].isprintable()


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("columns", [80, 40, 5])
def test_help(script, name, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, shown, stderr = script(name, "--help")
    assert (code, stderr, shown[:7]) == (0, "", "usage: ")
    assert max(map(len, shown.splitlines())) <= max(columns, 40)


def test_help_shows_the_recipes_defaults_and_percent_signs(capfd):
    with pytest.raises(SystemExit, match="0"):
        parse("--recipe big --help")
    shown = capfd.readouterr().out
    for line in ("100 % of %s. (default: 1.0)", "Training:\n  --epochs N"):
        assert line in shown
    assert "Width of each hidden layer. (default: 8)" in shown


def test_help_waits_for_no_large_package():
    command = [sys.executable, "-X", "importtime", TRAIN, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.split()[-1] for line in done.stderr.splitlines()}
    assert imported & {"argparse", "jax", "numpy", "scipy"} == {"argparse"}


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("no\x1bsense\nhere"), 1, r"no\x1bsense here"),
        (UsageError("not so"), 2, "not so"),
        (OSError(errno.ENOSPC, "No space left", "x/y"), 1, "x/y: No space left"),
        (MemoryError(), 1, "out of memory; a smaller model or batch needs less"),
        (RuntimeError("RESOURCE_EXHAUSTED: allocating 9 bytes"), 1, "allocating 9 bytes"),
        (RuntimeError("INTERNAL: Out of memory allocating 9 bytes"), 1, "out of memory; a smaller"),
        (DataError("Unknown backend"), 1, "error: Unknown backend"),
        (RuntimeError("Unable to initialize backend 'gpu'"), 1, "JAX_...: Unable to initialize"),
        (RuntimeError("Disallowed host-to-device transfer"), 1, "JAX_...: Disallowed"),
        (ModuleNotFoundError("", name="matplotlib"), 1, "-m pip install -e"),
    ],
)
def test_what_a_user_can_cause_is_one_line(monkeypatch, capfd, error, code, line):
    monkeypatch.setattr(sys, "argv", ["x.py", "run"])
    with pytest.raises(SystemExit) as stop:
        cli.run(mock.Mock(side_effect=error), Options, "About.")
    refused((stop.value.code, *capfd.readouterr()), code, line)


def test_our_own_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py", "run"])
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda options: 1 // 0, Options, "About.")


# A script whose work is to print, without JAX, which takes a second to import.
PRINTS = f"""
import dataclasses, os, signal, sys, types
sys.path[:0] = [{str(ROOT / "scripts")!r}, {str(ROOT)!r}]
sys.modules["jax"] = sys.modules["jaxmnist"] = types.SimpleNamespace(config=None)
import _cli as cli

os.environ.get("INTERRUPT") == "imports" and signal.raise_signal(signal.SIGINT)
def main(options):
    os.environ.get("INTERRUPT") and signal.raise_signal(signal.SIGINT)
    print("Zo\u00eb \u2713 " * 10_000, open(os.devnull).fileno())
class Options(cli.Options):
    epochs: int = 1

cli.run(main, Options, "About.")
"""


def run_prints(tmp_path, shell="", **environment):
    (tmp_path / "x.py").write_text(PRINTS)
    command = f"set -o pipefail; {sys.executable} {tmp_path}/x.py {shell}"
    environment = os.environ | {"PYTHONUNBUFFERED": ""} | environment
    return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("shell", "environment", "code", "expected"),
    [
        ("", {}, 0, ""),
        ("<&- >&- 2>&-", {}, 0, ""),
        ("", {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, 0, ""),
        ("--epochs é", {"PYTHONIOENCODING": "ascii"}, 2, r"not \xe9"),
        ("| head -c1", {}, 1, ""),
        (">/dev/full", {}, 1, "No space left on device"),
        ("--epochs x 2>/dev/full", {}, 2, ""),
    ],
)
def test_streams(tmp_path, shell, environment, code, expected):
    done = run_prints(tmp_path, shell, **environment)
    assert done.returncode == code
    assert expected in done.stderr
    assert done.stderr.count("\n") == bool(expected)
    if not (shell or environment):
        assert done.stdout.endswith("✓  3\n")  # no file has the number of a standard stream


def test_a_terminal():
    terminal, end = pty.openpty()
    command = [sys.executable, TRAIN, "--epochs", "x"]
    assert subprocess.call(command, stdin=end, stdout=end, stderr=end) == 2
    error = b"train.py: error: --epochs must be a whole number, not x (see --help)\r\n"
    assert os.read(terminal, 1000) == error
    os.close(end)
    os.close(terminal)


@pytest.mark.parametrize("place", ["imports", "work"])
def test_ctrl_c(tmp_path, sigint, place):
    done = run_prints(tmp_path, INTERRUPT=place)
    assert (done.returncode, done.stderr) == (130, "x.py: error: interrupted\n")
