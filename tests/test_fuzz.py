"""Damaged files are refused in one line, or taken for what they say; and the fuzzer would tell."""

import os
import sys
import warnings

import pytest

from jaxmnist.errors import DataError
from tests.helpers import ROOT, finish
from tests.stress import fuzz


@pytest.mark.parametrize(
    "files",
    [pytest.param(120, marks=pytest.mark.slow), pytest.param(10_000, marks=pytest.mark.stress)],
)
def test_damaged_files(tmp_path, files):
    out = tmp_path / "failures"
    command = [sys.executable, "-m", "tests.stress.fuzz", "--out", out, "--files", files]
    rows = [row.strip("| ").split(" | ") for row in finish(command, cwd=ROOT).splitlines()[2:]]
    assert len(rows) == 6
    for _, *cells in rows:
        made, accepted, refused, failed = (int(cell.replace(",", "")) for cell in cells)
        assert (made, failed) == (files, 0)
        assert accepted > made / 100  # the files are not so bad that all of this is for nothing
        assert refused > made / 4
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("read", "verdict"),
    [
        (lambda path: path.read_bytes(), "accepted"),
        (lambda path: path.read_bytes()[1:], "accepted, but not as it is"),
        (lambda path: path.undefined, "AttributeError: "),
        (lambda path: warnings.warn("odd", stacklevel=1), "UserWarning: odd"),
        (lambda path: exec("raise error", {"error": DataError("two\nlines")}), "not one line: "),
        (lambda path: os.read(os.pipe()[0], 1), "TimeoutError: took"),
    ],
)
def test_a_bug_is_told(tmp_path, monkeypatch, read, verdict):
    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    (tmp_path / "file").write_bytes(b"bytes")
    kind = fuzz.Kind([], read, bytes.__eq__)
    assert fuzz.judge(kind, tmp_path / "file", b"bytes").startswith(verdict)
