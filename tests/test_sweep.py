"""Sweeps: each member is the run that it is alone; nothing is lost in chunks, means or files."""

import csv
import os
import subprocess
import sys
from unittest.mock import Mock

import jax
import numpy as np
import optax
import pytest
from conftest import ROOT

from jaxmnist import (
    MLP,
    JaxmnistError,
    cross_entropy,
    epoch_order,
    evaluate,
    init_state,
    make_train_epoch,
    make_train_step,
    train,
)
from jaxmnist.sweep import (
    Members,
    compile_sweep,
    free_memory,
    grid,
    over_seeds,
    run_sweep,
    sweep_figure,
)

SWEEP = ROOT / "scripts" / "sweep.py"
MODEL = MLP(())  # one layer: quick to compile


def alone(seeds, rate, dataset):
    """Two epochs, of each seed, by the functions that a program of one's own calls."""
    tx = optax.sgd(rate)
    init = jax.jit(lambda seed: init_state(jax.random.key(seed), MODEL, tx))
    train_epoch = jax.jit(make_train_epoch(make_train_step(MODEL.apply, tx)))
    for seed in seeds:
        state, results = init(seed), []
        for epoch in range(2):
            order = epoch_order(jax.random.key(seed), epoch, len(dataset.labels))
            state, metrics = train_epoch(state, dataset, order)
            scores = evaluate(MODEL.apply, state.params, dataset)
            results.append((metrics["loss"], scores["loss"], scores["accuracy"]))
        yield jax.tree.map(lambda *epochs: np.stack(epochs), *results)


def test_a_grid_has_every_setting_with_every_seed():
    seeds, rates = grid([0.5, 0.25], range(3))
    assert seeds.tolist() == [0, 1, 2, 0, 1, 2]
    assert rates.tolist() == [0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert (seeds.dtype, rates.dtype) == (np.uint32, np.float32)


@pytest.mark.parametrize("width", [1, 2])
def test_a_member_is_the_run_that_it_is_alone(toy, width):
    """Also beside one that diverges, and in a last call that is filled up; one trace for all."""
    traces, trained = [], []

    def loss_fn(logits, labels, **kwargs):
        traces.append(len(logits))
        return cross_entropy(logits, labels, **kwargs)

    def run(key, rate, data):
        tx = optax.sgd(rate)
        _, metrics = train(key, data, MODEL, tx, epochs=2, loss_fn=loss_fn, test=data)
        return metrics["loss"], metrics["test_loss"], metrics["test_accuracy"]

    seeds = np.array([0, 7, 2**32 - 1, 0, 7], np.uint32)
    members = Members(seeds, np.repeat(np.float32([0.1, 3e38]), (3, 2)))
    sweep = compile_sweep(run, members, toy, devices=jax.devices()[:1], width=width)
    results = run_sweep(sweep, trained.append)
    assert traces == [64, 100]  # the step, which fills up its short batch, and the evaluation
    assert (sweep.at_once, trained) == (width, [1] * 5 if width == 1 else [2, 2, 1])
    assert results[0].shape == (5, 2, 2)
    for i, expected in enumerate(alone(seeds[:3], 0.1, toy)):
        for got, values in zip(results, expected, strict=True):
            np.testing.assert_allclose(got[i], values, rtol=1e-6)
    assert not np.isfinite(results[0][3:]).all(axis=(1, 2)).any()


def noise(key, setting, data):
    """A run that is quick to compile and takes memory: 4 kB a member."""
    return setting["a"] * jax.random.uniform(key, (1000,)) + setting["b"].sum() + data


@pytest.fixture
def noises():
    """Ten members, and what they give one by one."""
    settings = {"a": np.arange(10.0), "b": np.ones((10, 2), np.float32)}  # a is of NumPy's float64
    expected = [
        a * np.asarray(jax.random.uniform(jax.random.key(i), (1000,))) + 2
        for i, a in enumerate(settings["a"])
    ]
    return Members(np.arange(10, dtype=np.uint32), settings), expected


@pytest.mark.parametrize(("width", "at_once"), [(None, 1), (3, 3), (4, 4), (6, 5), (10, 10)])
def test_calls_share_the_members_out_evenly(noises, width, at_once):
    members, expected = noises
    data = np.zeros((), np.float32)
    sweep = compile_sweep(noise, members, data, devices=jax.devices("cpu")[:1], width=width)
    assert sweep.at_once == at_once
    np.testing.assert_allclose(run_sweep(sweep), expected, rtol=1e-6)


def test_as_many_at_once_as_memory_lets(noises):
    members, expected = noises
    options = {"devices": jax.devices("cpu")[:1], "width": 10}
    data = np.zeros((), np.float32)
    whole = compile_sweep(noise, members, data, **options)
    assert 40_000 < whole.memory < 400_000
    free = whole.memory * 2 // 3
    part = compile_sweep(noise, members, data, free=free, **options)
    assert 1 < part.at_once < 10
    assert part.memory <= free
    np.testing.assert_allclose(run_sweep(part), expected, rtol=1e-6)
    words = "one model on each of 1 devices .* choose a smaller"
    with pytest.raises(JaxmnistError, match=words):
        compile_sweep(noise, members, data, free=4000, **options)


def test_free_memory():
    (cpu,) = jax.devices("cpu")[:1]
    one, four = free_memory([cpu]), free_memory([cpu] * 4)
    assert 2**20 < four <= one // 2 < 2**50
    stats = [{"bytes_limit": 100, "bytes_in_use": 30}, {"bytes_limit": 100, "bytes_in_use": 40}]
    gpus = [Mock(spec=jax.Device, platform="gpu", memory_stats=Mock(return_value=s)) for s in stats]
    assert free_memory(gpus) == 60
    assert free_memory([Mock(spec=jax.Device, platform="tpu", memory_stats=dict)]) is None


@pytest.mark.parametrize(
    "members",
    [
        Members(np.zeros(0, np.uint32), np.zeros(0, np.float32)),
        Members(np.zeros(2, np.uint32), np.zeros(3, np.float32)),
        Members(np.zeros(2, np.uint32), {"rate": np.zeros(2), "momentum": np.zeros(1)}),
    ],
)
def test_members_that_do_not_fit_together(members):
    with pytest.raises(ValueError, match="a seed and a setting for each"):
        compile_sweep(noise, members, np.zeros((), np.float32))


def test_means_leave_out_what_diverged():
    inf = np.inf
    values = np.array([[[1.0, 9], [3, 11], [inf, np.nan]], [[5, 5], [inf, 1], [1, inf]]])
    diverged = np.array([[False, False, True], [False, True, True]])
    mean, deviation = over_seeds(values, diverged)
    np.testing.assert_array_equal(mean, [[2, 10], [5, 5]])
    # Two values 2 apart: 1 from their mean, and a sum of squares of 2 by one degree of freedom.
    np.testing.assert_allclose(deviation, [[2**0.5] * 2, [np.nan] * 2])
    mean, deviation = over_seeds(values, np.ones((2, 3), bool))
    assert np.isnan([mean, deviation]).all()


def test_the_plot_shows_means_and_bands():
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    scores = {
        name: rng.uniform(0.5, 0.9, (3, 4, 2))
        for name in ("train_loss", "test_loss", "test_accuracy")
    }
    diverged = np.zeros((3, 4), bool)
    diverged[1, 2] = diverged[2] = True
    figure = sweep_figure(scores, diverged, ["a", "b", "c"])
    figure.draw_without_rendering()
    for axes, values in zip(figure.axes, scores.values(), strict=True):
        kept = values[1][[0, 1, 3]]
        np.testing.assert_allclose(axes.lines[1].get_xydata().T, [[1, 2], kept.mean(axis=0)])
        bottom = kept.mean(axis=0) - kept.std(axis=0, ddof=1)
        band = [c for c in axes.collections if type(c).__name__.endswith("PolyCollection")][1]
        assert {*zip([1, 2], bottom, strict=True)} <= {*map(tuple, band.get_paths()[0].vertices)}
        assert (axes.get_xlabel(), bool(axes.get_ylabel())) == ("epochs", True)
        assert len({tuple(line.get_color()) for line in axes.lines}) == 3
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["a", "b (1 of 4 diverged)", "c (4 of 4 diverged)"]
    sweep_figure(scores, np.ones((3, 4), bool), ["a", "b", "c"]).draw_without_rendering()


def test_the_script_trains_what_train_py_trains(script, tmp_path):
    """Three models on two devices; one diverges, which neither stops nor spoils the others."""
    out, plot = tmp_path / "out.csv", tmp_path / "plot.png"
    options = ["--dataset", "synthetic", "--epochs", "1", "--seeds", "1", "--out", out]
    done = subprocess.run(
        [sys.executable, SWEEP, *options, "--plot", plot, "--lr", "0.003", "1e6", "0.03"],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
    )
    assert done.returncode == 0, done.stderr
    assert "models: 3, epochs: 1, steps an epoch: 938" in done.stdout
    assert "2 at once on 2 x cpu" in done.stdout
    assert done.stderr == ""
    assert plot.read_bytes().startswith(b"\x89PNG")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["learning_rate"] for row in rows] == ["0.003", "1000000.0", "0.03"]
    assert {(row["seed"], row["epoch"]) for row in rows} == {("0", "1")}
    assert [row["diverged"] for row in rows] == ["0", "1", "0"]
    lines = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [line[5].strip() for line in lines[2:]] == ["0 of 1", "1 of 1", "0 of 1"]
    options = ["--dataset", "synthetic", "--epochs", 1, "--learning-rate", 0.03]
    _, stdout, _ = script("train.py", *options)
    (line,) = (line for line in stdout.splitlines() if line.startswith("Training loss"))
    train_loss, test_loss, accuracy = (line.split()[i] for i in (2, 5, 8))
    assert abs(float(rows[2]["train_loss"]) - float(train_loss)) < 1e-6
    assert abs(float(rows[2]["test_loss"]) - float(test_loss)) < 1e-6
    assert f"{float(rows[2]['test_accuracy']):.2%}" == accuracy
    expected = [f"{float(train_loss):.4f}", f"{float(test_loss):.4f}", accuracy]
    assert [cell.strip() for cell in lines[-1][2:5]] == expected


@pytest.fixture
def refused(script, tmp_path):
    def call(options, code, *words):
        before = sorted(tmp_path.iterdir())
        got, stdout, stderr = script("sweep.py", *options)
        (line,) = stderr.splitlines()
        assert line.startswith("sweep.py: error: ")
        for word in words:
            assert word in line
        assert (got, stdout) == (code, "")
        assert sorted(tmp_path.iterdir()) == before

    return call


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", ["--lr"]),
        ("--lr", ["--lr", "at least one"]),
        ("--lr -0.1", ["--lr", "-0.1"]),
        ("--lr 0.1 nan", ["--lr", "nan"]),
        ("--lr 0.1 1e-1", ["--lr", "twice"]),
        ("--lr 0.1 --seeds 0", ["--seeds", "at least 1"]),
        ("--lr 0.1 --epochs 0", ["--epochs", "at least 1"]),
        ("--lr 0.1 --momentum 1", ["--momentum"]),
        ("--lr 0.1 --momentum 0.5 --optimizer adam", ["--momentum", "adam"]),
        ("--lr 0.1 --hidden 0", ["--hidden"]),
        ("--lr 0.1 --out x.parquet", ["--out", ".csv"]),
        ("--lr 0.1 --plot x.csv", ["--plot", ".png"]),
        ("--lr 0.1 --out /no/such/directory/x.csv", ["/no/such/directory"]),
        ("--lr 0.1 --batch-size 60001 --dataset synthetic", ["--batch-size 60001", "60,000"]),
    ],
)
def test_wrong_usage(refused, options, words):
    refused(options.split(), 2, *words)


def test_a_file_is_never_overwritten(refused, tmp_path):
    for option, name in (("--out", "x.csv"), ("--plot", "x.png")):
        (tmp_path / name).write_text("precious")
        refused(["--lr", 0.1, option, tmp_path / name], 2, option, name)
        assert (tmp_path / name).read_text() == "precious"


def test_a_missing_matplotlib_shows_before_training(refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    options = ["--lr", 0.1, "--plot", tmp_path / "x.png"]
    refused(options, 1, "pip install 'jaxmnist[plots]'")


def test_help_starts_no_jax():
    code = (
        f"import sys, runpy; sys.argv = ['sweep.py', '--help']; sys.path[0] = {str(SWEEP.parent)!r}"
    )
    code += f"\ntry: runpy.run_path({str(SWEEP)!r}, run_name='__main__')"
    code += "\nexcept SystemExit as stop: assert stop.code == 0 and 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--seeds" in done.stdout
