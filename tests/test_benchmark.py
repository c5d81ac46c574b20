"""scripts/benchmark.py: its tables from given times, and that the peers do the job."""

import numpy as np
import pytest

from jaxmnist import JaxmnistError
from tests.helpers import ROOT
from tests.test_cli import cli  # noqa: F401  (scripts/ is on the path)

import benchmark  # isort: skip


def mark(peer):
    """Those of other libraries than our own dependencies run with the oracles."""
    return pytest.mark.oracle if "torch" in peer or "equinox" in peer else pytest.mark.slow


PEERS = {path.stem: path for path in (ROOT / "scripts" / "peers").glob("[!_]*.py")}
WORDS = """Epoch 1/2   Training loss: 0.435781   test loss: 0.393910   accuracy: 89.02%
Epoch 2/2   Training loss: {}   test loss: 0.360493   accuracy: 89.96%

  load 0.57 s, compile 1.77 s, train 2.00 s, evaluate 0.07 s"""


def turns(whole, training):
    return [{"whole": a, "training": b} for a, b in zip(whole, training, strict=True)]


def cells(table):
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_table():
    result = {
        "ours": turns([2.0, 4.0, 3.0], [1.0, 2.0, 1.5]),
        "numpy": turns([3.0, 4.0, 6.0], [2.0, 3.0, 3.0]),
    }
    ours, numpy = cells(benchmark.table(result))
    assert ours[1:4] == ["3.00 (2.00 to 4.00)", "1.00 (1.00 to 1.00)", "1.50 (1.00 to 2.00)"]
    ratio = ["1.50 (1.00 to 2.00)", "3.00 (2.00 to 3.00)", "2.00 (1.50 to 2.00)"]
    assert numpy[2:5] == ratio
    assert len(benchmark.chart(result).axes[0].patches) == 4


def test_the_growth():
    count = 4 * benchmark.GROWTH["4 models"]["images"]
    result = {"4 models": {"ours": turns([9], [1e-6 * count]), "numpy": turns([9], [2e-6 * count])}}
    (row,) = cells(benchmark.growth_table(result))
    assert row == ["4 models", "1.00 (1.00 to 1.00)", "2.00 (2.00 to 2.00)"]


def test_a_program_is_run_and_checked(tmp_path):
    program = benchmark.Program("", str(tmp_path / "x.py"))
    (tmp_path / "x.py").write_text(f"print({WORDS!r}.format(0.392068))")
    found = benchmark.run(program, tmp_path, {})
    assert found.items() >= {"training": 2.0, "loss": 0.392068}.items()
    for loss, error in {"3": "a loss of 3.0000", "1 / 0": "code 1: ZeroDivisionError"}.items():
        (tmp_path / "x.py").write_text(f"print({WORDS!r}.format({loss}))")
        with pytest.raises(JaxmnistError, match=f"x.py ended with {error}"):
            benchmark.run(program, tmp_path, {})


@pytest.mark.parametrize("name", [pytest.param(n, marks=mark(n)) for n in PEERS])
def test_a_peer(tmp_path, monkeypatch, name):
    """1,200 digits that are told apart by one bright row each."""
    if "equinox" in name:
        pytest.importorskip("equinox", reason="needs equinox")
    labels = np.arange(1200, dtype=np.int32) % 10
    images = np.zeros((1200, 28, 28), np.uint8)
    images[np.arange(1200), 2 * labels + 4] = 255
    np.savez(tmp_path / "mnist.npz", images=images.reshape(-1, 784), labels=labels)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # more would wait for each other on a busy machine
    program = benchmark.Program("", str(PEERS[name]))
    found = benchmark.run(program, tmp_path / "mnist.npz", {"batch": 4, "images": 1198})
    assert 0 < found["training"] < found["whole"]
    assert 2.0 < found["loss"] < 2.2
