"""A long run holds no more at its end than at its beginning."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, TRAIN

COMMAND = [sys.executable, ROOT / "tests" / "long_run.py", TRAIN]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to see memory in")
@pytest.mark.parametrize("epochs", [200, pytest.param(2000, marks=pytest.mark.stress)])
def test_nothing_grows(tmp_path, epochs):
    options = ["--dataset", "synthetic", "--out", tmp_path / "out", "--epochs", str(epochs)]
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    told = [json.loads(line) for line in done.stdout.splitlines() if line[0:1] == "{"]
    assert len(told) == epochs
    before, after = told[9], told[10:]
    assert max(line["memory"] for line in after) < 1.05 * before["memory"]
    # One more while a checkpoint is being written, or two: the file and its directory.
    assert max(line["files"] for line in after) <= min(line["files"] for line in told) + 2
    assert [line["traced"] for line in told] == [1] * epochs
    kept = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert len(kept) == 3
    assert kept[-1] == f"checkpoint-{10 * epochs:08}.safetensors"
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == epochs
