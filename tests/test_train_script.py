"""scripts/train.py as a user meets it: what it prints, what it writes, what it refuses."""

import io
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmnist
from jaxmnist import MLP
from jaxmnist.runs import directory, machine, setup
from jaxmnist.runs.directory import read_run
from jaxmnist.torch_compat import TorchGenerator, init_params, loader_order
from jaxmnist.weights import to_safetensors
from tests.helpers import PATIENCE, TRAIN, ending, refused

FEW = ("--dataset", "synthetic", "--batch-size", 30)  # 34 steps an epoch


@pytest.mark.parametrize("seed", [pytest.param(n, marks=pytest.mark.slow) for n in range(5)])
def test_the_notebooks_run(script, mnist_dir, tmp_path, seed):
    code, stdout, _ = script("train.py", "--data-dir", mnist_dir, "--seed", seed, "--out", tmp_path)
    assert code == 0
    assert stdout.startswith(f"Data: MNIST from {mnist_dir}")
    records = read_run(tmp_path).records
    losses = [record["train_loss"] for record in records]
    assert losses == sorted(losses, reverse=True)
    assert abs(losses[-1] - 0.387) < 0.02
    assert 0.89 < records[-1]["test_accuracy"] < 0.91


def test_what_it_prints_and_keeps(script, few_digits, tmp_path, monkeypatch):
    """Also: the step is traced once, and the last training images are held out."""
    traced, make, out = [], setup.classifier_objective, tmp_path / "runs" / "one"

    def counting(apply_fn, *args, **more):
        return make(lambda *a: traced.append(a[1].shape) or apply_fn(*a), *args, **more)

    monkeypatch.setattr(setup, "classifier_objective", counting)
    options = "--epochs 2 --learning-rate 0.1 --momentum 0.5 --hidden 32 --loss nll --device cpu"
    more = ("--validation", 100, "--out", out)
    code, stdout, stderr = script("train.py", *FEW, *options.split(), *more)
    assert (code, stderr, traced) == (0, "", [(30, 784)])
    for word in ("784-32-10, 25,450 parameters", "Epoch 2/2", "2 x 30 steps"):
        assert word in stdout
    assert re.search(r"load \d.*, train \d.\d\d s, evaluate .*\n  [\d,]+ images per second", stdout)
    run = read_run(out)
    assert set(run.params["params"]) == {"linear_0", "linear_1"}
    chosen = {"loss": "nll", "momentum": 0.5, "hidden": [32], "learning_rate": 0.1}
    assert run.config["options"].items() >= chosen.items()
    assert run.config["identity"].items() >= chosen.items()
    held_out = jaxmnist.Dataset(*(values[900:] for values in few_digits[0]))
    cross_entropy = jaxmnist.classifier_metrics(MLP((32,)).apply)
    found = jaxmnist.evaluate(cross_entropy, run.params, held_out)
    np.testing.assert_allclose(found["loss"], run.records[-1]["validation_loss"], rtol=1e-5)


@pytest.mark.slow
def test_going_on_equals_never_having_stopped(script, few_digits, tmp_path):
    """It says that it goes on before old epochs; a run that is done compiles nothing."""
    options = (*FEW, "--augment", 1, "--optimizer", "adam", "--resume", "--out")
    assert script("train.py", *options, tmp_path / "whole", "--epochs", 3)[0] == 0
    runs = [script("train.py", *options, tmp_path / "parts", "--epochs", n) for n in (1, 3, 3)]
    said = [stdout for code, stdout, _ in runs if code == 0]
    lines = said[1].splitlines()
    assert lines[2].endswith("after epoch 1:")
    assert [line[:10] for line in lines[3:6]] == ["Epoch 1/3 ", "Epoch 2/3 ", "Epoch 3/3 "]
    assert "nothing left to train" in said[2]
    assert "compile" not in said[2]
    assert ending(tmp_path / "parts") == ending(tmp_path / "whole")
    fewer = script("train.py", *options, tmp_path / "parts", "--epochs", 2)
    refused(fewer, 2, "trained for 3 epochs, more than --epochs 2")


def test_starting_from_weights_and_what_makes_another_run(
    script, trained_run, few_digits, tmp_path
):
    weights, other = trained_run / "weights.safetensors", tmp_path / "other"
    other.write_bytes(to_safetensors(init_params(TorchGenerator(0))))
    out = tmp_path / "out"
    options = (*FEW, "--schedule", "cosine", "--resume", "--out", out, "--epochs")
    assert script("train.py", *options, 1, "--init", weights)[0] == 0
    assert read_run(out).losses[0, 0] < 1
    refused(script("train.py", *options, 1, "--init", other), 2, "another run", "init")
    refused(script("train.py", *options, 2), 2, "scheduled_epochs 1 there, 2 here")
    refused(script("train.py", *options, 1, "--seed", 1), 2, "another run (seed 0 there, 1 here)")
    assert script("train.py", *options, 1)[0] == 0  # the first weights need not be there any more
    wrong = script("train.py", *FEW, "--init", weights, "--hidden", 5)
    refused(wrong, 2, str(weights), "sizes", "--hidden")
    refused(script("train.py", *FEW, "--init", tmp_path / "none"), 1, str(tmp_path / "none"))


@pytest.mark.parametrize("order", ["modern", "legacy"])
def test_a_pytorch_seed_makes_weights_and_orders(script, few_digits, tmp_path, order):
    """The script does what the parts do that the oracle tests compare with PyTorch."""
    options = (*FEW, "--torch-seed", -7, "--torch-order", order, "--out", tmp_path, "--resume")
    for epochs in (1, 2):  # its stream goes on
        assert script("train.py", *options, "--epochs", epochs)[0] == 0
    generator, tx = TorchGenerator(-7), optax.sgd(0.003)
    state = jaxmnist.TrainState.create(init_params(generator), tx)
    step = jaxmnist.make_train_step(jaxmnist.classifier_objective(MLP().apply), tx)
    train_epoch = jax.jit(jaxmnist.make_train_epoch(step, 30))
    for losses in read_run(tmp_path).losses:
        seen = loader_order(generator, 1000, legacy=order == "legacy")
        state, metrics = train_epoch(state, few_digits[0], seen)
        np.testing.assert_allclose(losses, metrics["loss"], rtol=1e-6)


def test_no_mnist_means_synthetic_digits_loudly(script, few_digits, nowhere, tmp_path):
    code, stdout, stderr = script("train.py", "--epochs", 1)
    assert code == 0
    assert "WARNING: this is NOT MNIST" in stderr
    assert "WARNING: this is NOT MNIST" in stdout
    assert "the model is not kept; --out DIRECTORY keeps it" in stdout
    code, _, stderr = script("train.py", "--dataset", "mnist")
    assert code == 1
    assert "--data-dir or JAXMNIST_DATA_DIR" in stderr.splitlines()[-1]
    refused(script("train.py", "--data-dir", tmp_path / "no"), 1, str(tmp_path / "no"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--batch-size 1001", [2, "--batch-size 1001", "1,000"]),
        ("--validation 1000", [2, "--validation 1000", "1,000"]),
        ("--epochs 134217728", [2, "2**31 steps"]),  # of 16 steps each
        ("--hidden 2147483647 2147483647", [1, "GB of memory", "--hidden"]),
    ],
)
def test_what_cannot_be_trained(script, few_digits, tmp_path, options, words):
    options = ("--dataset", "synthetic", "--out", tmp_path / "out", *options.split())
    refused(script("train.py", *options), *words)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("library", ["jax", "numpy"])
def test_memory_runs_out_in_the_middle(script, few_digits, monkeypatch, library):
    ones = jnp.ones if library == "jax" else np.ones
    for free, what in ((800_000, "a model of this size needs"), (1_000_000, "a step of this size")):
        with monkeypatch.context() as patch:
            patch.setattr(machine, "free_memory", lambda devices, free=free: free)
            refused(script("train.py", *FEW), 1, what, "GB of memory", "--batch-size")
    monkeypatch.setattr(directory, "epoch_record", lambda *_: jax.device_get(ones(2**46)))
    refused(script("train.py", *FEW), 1, "out of memory", "llocat", "smaller")


@pytest.mark.parametrize("rate", ["1e20", "3e38"])
def test_divergence_is_named_and_nothing_of_it_is_kept(script, few_digits, tmp_path, rate):
    """In a loss of a step, or only in the weights."""
    options = ("--epochs", 2, "--batch-size", 1000, "--learning-rate", rate, "--out", tmp_path)
    refused(script("train.py", "--dataset", "synthetic", *options), 1, "diverged")
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.slow
def test_ctrl_c_ends_it_in_one_line(sigint, tmp_path):
    command = [sys.executable, TRAIN, "--dataset", "synthetic", "--epochs", "10000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--out", tmp_path], **pipes) as process:
        assert any(line.startswith("Epoch 2/") for line in process.stdout)  # 1 is kept
        process.send_signal(sigint)
        _, stderr = process.communicate(timeout=PATIENCE)
    said = [line for line in stderr.splitlines() if not line.startswith("Making 70,000")]
    assert (process.returncode, said) == (130, ["train.py: error: interrupted"])
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["epoch"] == 1


def test_a_bar_on_a_terminal(script, few_digits, monkeypatch):
    monkeypatch.setattr(sys, "stderr", shown := io.StringIO())
    monkeypatch.setattr(shown, "isatty", lambda: True, raising=False)
    assert script("train.py", *FEW, "--epochs", 2)[0] == 0
    assert "0/2 [" in shown.getvalue()
    assert "epoch/s]" in shown.getvalue()
