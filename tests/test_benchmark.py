"""scripts/benchmark.py: its tables from given times, and that the peers do the job."""

import json
import os
import sys

import numpy as np
import pytest

from tests.helpers import ROOT, finish
from tests.test_cli import cli  # noqa: F401  (scripts/ is on the path)

import benchmark  # isort: skip

PEERS = {path.stem: path for path in (ROOT / "scripts" / "peers").glob("[!_]*.py")}
WORDS = """Epoch 1/2   Training loss: 0.435781   test loss: 0.393910   accuracy: 89.02%
Epoch 2/2   Training loss: 0.392068   test loss: 0.360493   accuracy: 89.96%

  load 0.57 s, compile 1.77 s, train 2.00 s, evaluate 0.07 s"""


def turns(whole, training):
    return [{"whole": a, "training": b} for a, b in zip(whole, training, strict=True)]


def test_the_table():
    result = {
        "ours": turns([2.0, 4.0, 3.0], [1.0, 2.0, 1.5]),
        "numpy": turns([3.0, 4.0, 6.0], [2.0, 3.0, 3.0]),
        "linen": turns([9.0], [9.0]) + 2 * [{"problem": "no such thing"}],
        "nnx": 3 * [{"problem": "no such thing"}],
    }
    rows = [line.strip("| ").split(" | ") for line in benchmark.table(result).splitlines()[2:]]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0][1:4] == ["3.00 (2.00 to 4.00)", "1.00 (1.00 to 1.00)", "1.50 (1.00 to 2.00)"]
    ratio = ["1.50 (1.00 to 2.00)", "3.00 (2.00 to 3.00)", "2.00 (1.50 to 2.00)"]
    assert cells[1][2:5] == ratio
    assert cells[2][2] == "4.50 (4.50 to 4.50)"  # of the turn in which both were timed
    assert not any(cells[3][1:])
    assert len(benchmark.chart(result).axes[0].patches) == 6


def test_the_growth():
    batch = {"batch": 1024}
    assert [benchmark.images(change) for change in ({"batch": 16}, batch)] == [60_000, 59_392]
    count = benchmark.images({"models": 4})
    result = {f"{point}, ours": [] for point in benchmark.GROWTH}
    result["4 models, ours"] = turns([9.0], [1e-6 * 4 * count])
    result["4 models, numpy"] = turns([9.0], [2e-6 * 4 * count])
    (row,) = [line for line in benchmark.growth_table(result).splitlines() if "| 4 models" in line]
    assert "| 1.00 (1.00 to 1.00) |" in row
    assert row.endswith(" 2.00 (2.00 to 2.00) |")


def test_a_program_is_run_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "data").mkdir()
    program = benchmark.Program("", str(tmp_path / "x.py"))
    code = "import json, os; assert 'OMP_NUM_THREADS' not in os.environ; LOSS = {}\n"
    code += "print('Note'); print(json.dumps({{'training': 1.0, 'loss': 9 / LOSS}}))"
    ends = {
        "9 / 0.39": {"loss": 0.39},
        "3": {"problem": "its loss is 3.0000"},
        "0": {"problem": "code 1: ZeroDivisionError: division by zero"},
    }
    for loss, expected in ends.items():
        (tmp_path / "x.py").write_text(code.format(loss))
        found = benchmark.run(tmp_path, program, {}, first=True)
        assert found.items() >= expected.items()
    assert benchmark.read(WORDS) == {"training": 2.0, "loss": 0.392068}


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.oracle) for name in PEERS if "torch" in name),
        *(pytest.param(name, marks=pytest.mark.slow) for name in PEERS if "torch" not in name),
    ],
)
def test_a_peer(tmp_path, name):
    """1,200 digits that are told apart by one bright row each."""
    if "equinox" in name:
        pytest.importorskip("equinox", reason="needs equinox")
    labels = np.arange(1200, dtype=np.int32) % 10
    images = np.zeros((1200, 28, 28), np.uint8)
    images[np.arange(1200), 2 * labels + 4] = 255
    data = {"images": images.reshape(-1, 784), "labels": labels}
    np.savez(tmp_path / "m.npz", **data, **{f"test_{k}": x[:50] for k, x in data.items()})
    changes = json.dumps({"epochs": 1, "batch": 4, "images": 1198})
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = finish([sys.executable, PEERS[name], tmp_path / "m.npz", changes], env=environment)
    result = json.loads(done.splitlines()[-1])
    assert result["training"] > 0
    assert result["loss"] < 2.25
    assert result["accuracy"] > 0.5
