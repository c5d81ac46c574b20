"""scripts/train.py as a user meets it: what it prints, what it writes, what it refuses."""

import json
import os
import pty
import subprocess
import sys
import termios

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmnist.runs import run_logs
from tests.helpers import PATIENCE, TRAIN, epoch_lines, refused


@pytest.mark.parametrize(
    "seed", [0, *[pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5)]]
)
def test_the_notebooks_run(script, mnist_dir, tmp_path, seed):
    out = tmp_path / "runs" / "one"
    code, stdout, _ = script("train.py", "--data-dir", mnist_dir, "--seed", seed, "--out", out)
    assert code == 0
    lines = stdout.splitlines()
    assert lines[0].startswith(f"Data: MNIST from {mnist_dir}")
    losses = [float(line.split()[4]) for line in epoch_lines(stdout)]
    assert len(losses) == 5
    assert losses == sorted(losses, reverse=True)
    for word in ("load", "compile", "train", "evaluate", "images per second", "cpu", "938 steps"):
        assert word in stdout
    assert "WARNING" not in stdout

    config = json.loads((out / "config.json").read_text())
    assert (config["seed"], config["learning_rate"]) == (seed, 0.003)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5]
    assert abs(records[-1]["train_loss"] - losses[-1]) < 1e-6
    assert abs(records[-1]["train_loss"] - 0.387) < 0.02
    assert 0.89 < records[-1]["test_accuracy"] < 0.91
    assert sorted(path.name for path in out.parent.iterdir()) == ["one"]

    if seed == 0:  # the weights are those that were tested
        from jaxmnist import MLP, classifier_metrics, evaluate, load_mnist
        from jaxmnist.weights import load_weights

        params = load_weights(out / "weights.safetensors")
        scores = evaluate(classifier_metrics(MLP().apply), params, load_mnist(mnist_dir)[1])
        np.testing.assert_allclose(scores["accuracy"], records[-1]["test_accuracy"], atol=1e-6)


def test_options_reach_the_run(script, tmp_path):
    out = tmp_path / "out"
    options = "--epochs 1 --batch-size 100 --learning-rate 0.1 --momentum 0.5 --hidden 32"
    options += " --loss nll --device cpu --dataset synthetic"
    code, stdout, stderr = script("train.py", *options.split(), "--out", out)
    assert code == 0
    assert "600 steps" in stdout
    assert "WARNING" not in stdout + stderr  # they were asked for
    from jaxmnist.weights import load_weights

    params = load_weights(out / "weights.safetensors")["params"]
    assert params["linear_0"]["weight"].shape == (32, 784)
    assert sorted(params) == ["linear_0", "linear_1"]
    config = json.loads((out / "config.json").read_text())
    assert (config["loss"], config["momentum"], config["hidden"]) == ("nll", 0.5, [32])


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_optimizers(script, optimizer):
    import jax

    options = f"--dataset synthetic --epochs 1 --optimizer {optimizer} --learning-rate 0.001"
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # optax's Adam mixes int and float
    try:
        code, stdout, _ = script("train.py", *options.split())
    finally:
        jax.config.update("jax_numpy_dtype_promotion", "strict")
    assert code == 0
    assert float(stdout.split("test accuracy: ")[1].split("%")[0]) > 85


def test_the_step_is_traced_once_a_run(script, monkeypatch):
    from jaxmnist.runs import setup

    traced = []
    make = setup.classifier_objective

    def counting(apply_fn, *args, **kwargs):
        def counted(params, images):
            traced.append(images.shape)
            return apply_fn(params, images)

        return make(counted, *args, **kwargs)

    monkeypatch.setattr(setup, "classifier_objective", counting)
    code, _, _ = script("train.py", "--dataset", "synthetic", "--epochs", 3)
    assert code == 0
    assert traced == [(64, 784)]


def test_no_mnist_means_drawn_digits_loudly(script, nowhere):
    code, stdout, stderr = script("train.py", "--epochs", 1)
    assert code == 0
    assert "WARNING: this is NOT MNIST" in stderr
    assert "WARNING: this is NOT MNIST" in stdout.splitlines()[-1]
    assert "JAXMNIST_DATA_DIR" in stderr


def test_asked_for_mnist_never_falls_back(script, nowhere, tmp_path):
    refused(script("train.py", "--dataset", "mnist"), 1, "JAXMNIST_DATA_DIR", "--data-dir")
    refused(script("train.py", "--data-dir", tmp_path / "no"), 1, str(tmp_path / "no"))


def test_a_damaged_file_is_an_error_even_for_auto(script, nowhere, blank_dir):
    path = blank_dir / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    refused(script("train.py", "--data-dir", blank_dir), 1, str(path), "damaged")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--no-such-option 3", ["--no-such-option", "--help"]),
        ("--epochs 0", ["--epochs", "at least 1"]),
        ("--epochs many", ["--epochs", "many"]),
        ("--batch-size 0", ["--batch-size", "at least 1"]),
        ("--batch-size 60001 --dataset synthetic", ["--batch-size 60001", "60,000"]),
        ("--learning-rate -0.1", ["--learning-rate", "-0.1"]),
        ("--learning-rate nan", ["--learning-rate", "nan"]),
        ("--momentum 1", ["--momentum"]),
        ("--momentum 0.5 --optimizer adam", ["--momentum", "adam"]),
        ("--optimizer sgdd", ["--optimizer", "sgdd"]),
        ("--hidden 0", ["--hidden"]),
        ("--loss l2", ["--loss", "l2", "nll"]),
        ("--seed -1", ["--seed"]),
        ("--seed 4294967296", ["--seed"]),
        ("--dataset cifar", ["--dataset", "cifar"]),
        ("--dataset synthetic --data-dir /", ["--data-dir", "synthetic"]),
        ("--torch-order legacy", ["--torch-order", "--torch-seed"]),
        ("--torch-seed 18446744073709551616", ["--torch-seed"]),
        ("--device abacus", ["--device", "abacus"]),
        ("--epoch 3", ["--epoch", "did you mean --epochs?"]),
        ("--epochs=", ["--epochs", "empty"]),
        ("--hidden 18446744073709551616", ["--hidden", "below 2,147,483,648"]),
        ("--epochs 2147483648", ["--epochs", "2,147,483,648"]),
        ("--validation 60000 --dataset synthetic", ["--validation 60000", "60,000"]),
        ("--weight-decay 0.1", ["--weight-decay", "AdamW"]),
        ("--distributed --coordinator localhost --processes 2 --process-id 0", ["HOST:PORT"]),
    ],
)
def test_wrong_usage(script, tmp_path, options, words):
    refused(script("train.py", *options.split(), "--out", tmp_path / "out"), 2, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket/run", "", "bad\udcff"])
def test_no_directory_of_this_machine(script, path):
    """Field cases F26, F37 and F40."""
    refused(script("train.py", "--dataset", "synthetic", "--out", path), 2, "--out")


def test_sizes_that_fit_no_memory(script, tmp_path):
    """One line that says how much is needed and how much there is, before anything is trained."""
    options = ("--dataset", "synthetic", "--out", tmp_path / "out")
    for hidden in ((1_000_000_000,), (2**31 - 1, 2**31 - 1)):
        refused(script("train.py", *options, "--hidden", *hidden), 1, "GB of memory", "--hidden")
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_fits_no_memory(script, few_digits, monkeypatch):
    """A further member: what XLA's program takes, which grows with the batch."""
    from jaxmnist import machine

    monkeypatch.setattr(machine, "free_memory", lambda devices: 2_000_000)
    result = script("train.py", "--dataset", "synthetic", "--batch-size", 1000, "--hidden", 1000)
    refused(result, 1, "GB of memory", "--batch-size")


@pytest.mark.parametrize("library", ["jax", "numpy"])
def test_memory_runs_out_in_the_middle(script, few_digits, monkeypatch, library):
    """A further member: what no check before the training can know."""

    def exhaust(*_):
        np.ones(2**46, np.uint8) if library == "numpy" else jax.device_get(jnp.ones(2**46))

    monkeypatch.setattr(run_logs, "epoch_record", exhaust)
    result = script("train.py", "--dataset", "synthetic", "--batch-size", 100)
    refused(result, 1, "out of memory", "llocat", "smaller")


def test_validation_is_held_out(script, tmp_path, few_digits):
    """The last training images are not trained on, and evaluated after each epoch."""
    out = tmp_path / "out"
    options = ("--dataset", "synthetic", "--batch-size", 30, "--epochs", 2, "--validation", 100)
    code, stdout, _ = script("train.py", *options, "--out", out)
    assert code == 0
    assert "of 30 steps" in stdout  # of the 900 images that are left
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for record, line in zip(records, epoch_lines(stdout), strict=True):
        assert f"validation loss: {record['validation_loss']:.6f}" in line
        assert f"validation accuracy: {record['validation_accuracy']:.2%}" in line

    from jaxmnist import MLP, Dataset, classifier_metrics, evaluate
    from jaxmnist.datasets import synthetic
    from jaxmnist.weights import load_weights

    held_out = Dataset(*(x[900:] for x in synthetic.load_synthetic(0)[0]))
    params = load_weights(out / "weights.safetensors")
    found = evaluate(classifier_metrics(MLP().apply), params, held_out)
    np.testing.assert_allclose(found["loss"], records[-1]["validation_loss"], rtol=1e-5)


def test_without_a_directory_it_says_that_the_model_is_not_kept(script, few_digits):
    code, stdout, _ = script("train.py", "--dataset", "synthetic", "--epochs", 1)
    assert code == 0
    assert stdout.splitlines()[-1].endswith("the model is not kept; --out DIRECTORY keeps it")
    assert stdout.count("109,386 parameters") == 1


def test_unavailable_device(script):
    refused(script("train.py", "--dataset", "synthetic", "--device", "tpu"), 1, "--device tpu")


def test_divergence_is_named_and_leaves_nothing(script, tmp_path):
    options = ["--dataset", "synthetic", "--learning-rate", "1e6"]
    result = script("train.py", *options, "--out", tmp_path / "out")
    refused(result, 1, "loss of step", "learning rate")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", ["1e8", "1e20"])
def test_nothing_that_is_not_finite_is_done(script, tmp_path, few_digits, rate):
    """Field case F29: here the loss of each step is finite, and the test's is not."""
    options = ("--dataset", "synthetic", "--epochs", 2, "--batch-size", 1000)
    out = tmp_path / "out"
    result = script("train.py", *options, "--learning-rate", rate, "--out", out)
    refused(result, 1, "diverged", "learning rate")
    assert not (out / "weights.safetensors").exists()
    for path in out.glob("*.jsonl"):
        assert "nan" not in path.read_text().lower()


def test_weights_that_are_not_finite_are_not_saved(script, tmp_path, few_digits):
    """A further member: the step's loss is finite, and its update is not."""
    options = ("--dataset", "synthetic", "--epochs", 1, "--batch-size", 1000, "--hidden", 1000)
    options += ("--checkpoint-unit", "steps", "--learning-rate", "3e38", "--momentum", 0.99)
    refused(script("train.py", *options, "--out", tmp_path / "out"), 1, "diverged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["steps.jsonl", "metrics.jsonl", "config.json", "tensorboard"])
def test_links_in_a_directory_lead_nowhere(script, tmp_path, few_digits, name):
    """Field case F31: what a prepared directory links to is not written to."""
    options = ("--dataset", "synthetic", "--batch-size", 1000, "--tensorboard", "--resume")
    out, victim = tmp_path / "out", tmp_path / "victim"
    assert script("train.py", *options, "--epochs", 1, "--out", out)[0] == 0
    if name == "tensorboard":
        (out / name).rename(victim)
    else:
        (out / name).unlink()
        victim.write_text("precious")
    before = sorted(victim.iterdir()) if victim.is_dir() else victim.read_text()
    (out / name).symlink_to(victim)
    result = script("train.py", *options, "--epochs", 2, "--out", out)
    assert before == (sorted(victim.iterdir()) if victim.is_dir() else victim.read_text())
    if result[0]:
        refused(result, 1, name, "is a link")


@pytest.mark.slow
def test_epochs_are_not_planned_ahead(tmp_path):
    """Field case F36: two thousand million epochs take no more memory than two."""
    command = [sys.executable, TRAIN, "--dataset", "synthetic", "--batch-size", "60000"]
    with subprocess.Popen(
        [*map(str, command), "--epochs", "2147483647"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert any("Epoch 2/2147483647" in line for line in process.stdout)
        process.kill()


def test_out_is_never_overwritten(script, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("")
    refused(script("train.py", "--out", tmp_path / "out"), 2, str(tmp_path / "out"), "holds no run")
    (tmp_path / "file").write_text("")
    refused(script("train.py", "--out", tmp_path / "file" / "x"), 1, str(tmp_path / "file" / "x"))


def test_ctrl_c_ends_it_in_one_line(sigint):
    with subprocess.Popen(
        [sys.executable, TRAIN, "--dataset", "synthetic", "--epochs", "10000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        lines = iter(process.stdout.readline, "")
        assert any("Training loss: " in line for line in lines), process.stderr.read()
        process.send_signal(sigint)
        _, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (130, "train.py: error: interrupted\n")


def test_a_bar_on_a_terminal():
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    command = [sys.executable, TRAIN, "--dataset", "synthetic", "--epochs", "2"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=terminal)
    os.close(terminal)
    shown = os.read(master, 100_000).decode()
    os.close(master)
    assert "0/2 [" in shown
    assert "epoch/s]" in shown


def test_not_installed_is_one_line():
    done = subprocess.run([sys.executable, "-S", TRAIN], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("is not installed for this Python; see Install in README.md\n")


def test_ctrl_c_while_jax_is_imported(sigint):
    with subprocess.Popen(
        [sys.executable, "-v", TRAIN, "--dataset", "synthetic"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        assert any("import 'jax." in line for line in process.stderr)  # -v tells what is imported
        process.send_signal(sigint)
        stderr = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130
    assert "train.py: error: interrupted" in stderr
    assert "Traceback" not in stderr


def test_a_closed_pipe_is_no_crash():
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    options = "--dataset synthetic --epochs 20"
    done = subprocess.run(
        f"{sys.executable} {TRAIN} {options} | head -1",
        shell=True,
        capture_output=True,
        text=True,
        env=environment,
        timeout=PATIENCE,
    )
    assert done.stdout.startswith("Data: ")
    assert done.stderr == ""


@pytest.mark.parametrize("order", ["modern", "legacy"])
def test_a_pytorch_seed_makes_weights_and_orders(script, tmp_path, order):
    """The script does what the parts do that the oracle tests compare with PyTorch."""
    import jax
    import jax.numpy as jnp
    import optax

    from jaxmnist import MLP, TrainState, classifier_objective, make_train_epoch, make_train_step
    from jaxmnist.datasets.synthetic import load_synthetic
    from jaxmnist.torch_compat import TorchGenerator, init_params, loader_order

    options = f"--dataset synthetic --epochs 2 --torch-seed -7 --torch-order {order}".split()
    code, _, _ = script("train.py", *options, "--out", tmp_path / "out")
    assert code == 0
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()

    train, _ = load_synthetic()
    generator, tx = TorchGenerator(-7), optax.sgd(0.003)
    params = init_params(generator)
    state = TrainState(jnp.int32(0), params, tx.init(params))
    train_epoch = jax.jit(make_train_epoch(make_train_step(classifier_objective(MLP().apply), tx)))
    for line in lines:
        seen = loader_order(generator, 60_000, legacy=order == "legacy")
        state, metrics = train_epoch(state, train, seen)
        mean = np.float64(metrics["loss"]).mean()
        np.testing.assert_allclose(json.loads(line)["train_loss"], mean, rtol=1e-6)


@pytest.mark.slow
def test_starting_from_weights(script, tmp_path):
    options = ["--dataset", "synthetic", "--epochs", "1"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert script("train.py", *options, "--out", first)[0] == 0
    weights = first / "weights.safetensors"
    assert script("train.py", *options, "--init", weights, "--out", second)[0] == 0
    losses = [
        json.loads((out / "metrics.jsonl").read_text())["train_loss"] for out in (first, second)
    ]
    assert losses[1] < 0.7 * losses[0]

    refused(
        script("train.py", *options, "--init", weights, "--hidden", 5), 1, str(weights), "sizes"
    )
    refused(script("train.py", *options, "--init", tmp_path / "none"), 1, str(tmp_path / "none"))
    weights.write_bytes(weights.read_bytes()[:-1])
    refused(script("train.py", *options, "--init", weights), 1, str(weights))


def test_the_same_seed_gives_the_same_bits(script, tmp_path):
    """Also in another process, and with programs that an earlier run compiled."""
    options = ["--dataset", "synthetic", "--epochs", "1", "--seed", "0"]
    assert script("train.py", *options, "--out", tmp_path / "here")[0] == 0
    command = [sys.executable, TRAIN, *options, "--out", tmp_path / "there"]
    subprocess.run(command, check=True, capture_output=True)
    for name in ("weights.safetensors", "metrics.jsonl"):
        here, there = ((tmp_path / place / name).read_bytes() for place in ("here", "there"))
        assert here == there
