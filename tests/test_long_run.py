"""A long run holds no more at its end than at its beginning."""

import io
import os
import sys
from pathlib import Path

import jax
import pytest

STATM = Path("/proc/self/statm")


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="no /proc to see memory in")
@pytest.mark.parametrize("epochs", [200, pytest.param(2000, marks=pytest.mark.stress)])
def test_nothing_grows(script, few_digits, tmp_path, monkeypatch, epochs):
    """Memory in pages, open files, and programs compiled, as each epoch's line is printed."""
    told, compiled = [], []

    class Told(io.TextIOWrapper):
        def write(self, text):
            if text.startswith("Epoch "):
                pages = int(STATM.read_text().split()[1])
                told.append((pages, len(os.listdir("/proc/self/fd")), len(compiled)))

    def listen(event, seconds, **options):
        if "backend_compile" in event:
            compiled.append(event)

    monkeypatch.setattr(sys, "stdout", Told(io.BytesIO()))
    jax.monitoring.register_event_duration_secs_listener(listen)
    done = script("train.py", "--dataset", "synthetic", "--out", tmp_path, "--epochs", epochs)
    assert done == (0, "", "")
    assert len(told) == epochs
    (pages, files, programs), *after = told[9:]
    assert programs
    assert max(line[0] for line in after) < 1.05 * pages
    # One more while a checkpoint is being written, or two: the file and its directory.
    assert max(line[1] for line in after) <= files + 2
    assert {line[2] for line in after} == {programs}
