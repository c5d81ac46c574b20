"""A run goes on as itself or not at all: what makes it another run is compared, and named."""

import json
import shutil

import jax
import pytest

from jaxmnist.runs import identity
from tests.helpers import ending, refused

# 34 steps an epoch, on the 1,000 images of `few_digits`
QUICK = ("--dataset", "synthetic", "--batch-size", 30)
# What scripts/train.py wrote before it knew of validation, weight decay and environments.
EARLIER = {
    **{"epochs": 5, "batch_size": 64, "learning_rate": 0.003, "momentum": 0.0, "optimizer": "sgd"},
    **{"hidden": [128, 64], "loss": "cross_entropy", "seed": 0, "dataset": "auto"},
    **{"data_dir": None, "device": "auto", "devices": 1, "torch_seed": None},
    **{"torch_order": "modern", "init": None, "out": "runs/first", "drawn_digits": False},
}
DEFAULT = EARLIER | {
    **{"validation": 0, "weight_decay": None, "init_sha256": None},
    **{"schedule": "constant", "warmup": 0.0, "augment": 0.0, "synthetic_digits": 0},
    "environment": {"flags": dict(identity._FLAGS), "versions": {"jax": "0.10.1"}},
}


def flags(**changed):
    return {"environment": {"flags": identity._FLAGS | changed, "versions": {}}}


@pytest.mark.parametrize(
    "changed",
    [
        *({"epochs": 9}, {"data_dir": "/elsewhere"}, {"device": "gpu"}, {"devices": 8}),
        *({"out": "other"}, {"dataset": "mnist"}, {"environment": None}),
    ],
    ids=str,
)
def test_what_changes_no_number_makes_no_other_run(changed):
    assert identity.differences(DEFAULT, DEFAULT | changed) == []
    assert identity.differences(EARLIER, DEFAULT | changed) == []


@pytest.mark.parametrize(
    "changed",
    [
        *({"batch_size": 32}, {"learning_rate": 0.1}, {"momentum": 0.9}, {"optimizer": "adam"}),
        *({"hidden": [5]}, {"loss": "nll"}, {"seed": 1}, {"torch_seed": 0}, {"validation": 10}),
        *({"torch_order": "legacy"}, {"weight_decay": 0.1}, {"init": "weights.safetensors"}),
        *({"schedule": "cosine"}, {"warmup": 0.1}, {"augment": 1.0}, {"synthetic_digits": 9}),
        {"dataset": "synthetic"},
        {"drawn_digits": True},
        flags(jax_threefry_partitionable=False),
        flags(jax_default_prng_impl="rbg"),
        flags(jax_random_seed_offset=7),
        flags(jax_enable_x64=True),
        flags(jax_default_matmul_precision="default"),
    ],
    ids=str,
)
def test_what_changes_numbers_makes_another_run_and_is_named(changed):
    for there in (DEFAULT, EARLIER):
        found = identity.differences(there, DEFAULT | changed)
        names = changed.get("environment", {}).get("flags") or changed
        known = {**DEFAULT, **identity._FLAGS}
        (name,) = [name for name in names if names[name] != known[name]]
        name = {"dataset": "data", "drawn_digits": "data"}.get(name, name)
        assert any(phrase.startswith(f"{name} ") for phrase in found), found


def test_other_added_digits_make_another_run():
    here = DEFAULT | {"synthetic_digits": 9, "added_digits": 2}
    assert identity.differences(here, here) == []
    earlier = DEFAULT | {"synthetic_digits": 9}  # it did not record which
    assert identity.differences(earlier, here) == ["added_digits 1 there, 2 here"]
    assert identity.differences(DEFAULT, DEFAULT | {"added_digits": 2}) == []


def test_every_option_is_in_the_identity_or_known_to_change_no_number(script, tmp_path, few_digits):
    """A new option of scripts/train.py has to be put to one side."""
    assert script("train.py", *QUICK, "--epochs", 1, "--out", tmp_path / "out")[0] == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    free = {"epochs", "dataset", "data_dir", "device", "devices", "compile_cache", "source"}
    free |= {"distributed", "coordinator", "processes", "process_id", "timeout", "plots"}
    free |= {"out", "resume", "checkpoint_every", "checkpoint_unit", "keep", "tensorboard"}
    free |= {
        "recipe",
        "drawn_digits",
        "init",
        "init_sha256",
        "environment",
    }  # compared in another form
    assert set(config) == free | (set(identity.identity(config)) & set(config))
    assert not free & set(identity.identity(config))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("jax_threefry_partitionable", False),
        ("jax_random_seed_offset", 3),
        ("jax_default_prng_impl", "rbg"),
    ],
)
def test_jax_flags_that_change_random_numbers(script, tmp_path, few_digits, flag, value):
    """Field case F9."""
    options = (*QUICK, "--out", tmp_path / "out", "--resume")
    assert script("train.py", *options, "--epochs", 1)[0] == 0
    before, changed = ending(tmp_path / "out"), getattr(jax.config, flag)
    jax.config.update(flag, value)
    try:
        result = script("train.py", *options, "--epochs", 2)
    finally:
        jax.config.update(flag, changed)
    refused(result, 2, "another run", f"{flag} {changed} there, {value} here")
    assert ending(tmp_path / "out") == before


def test_other_versions_are_told_and_no_reason_to_stop(script, tmp_path, few_digits):
    out = tmp_path / "out"
    options = (*QUICK, "--out", out, "--resume")
    assert script("train.py", *options, "--epochs", 1)[0] == 0
    config = json.loads((out / "config.json").read_text())
    config["environment"]["versions"]["optax"] = "0.0.1"
    (out / "config.json").write_text(json.dumps(config))
    code, _, stderr = script("train.py", *options, "--epochs", 2)
    assert code == 0
    assert "optax 0.0.1 there, " in stderr


def test_a_run_goes_on_without_the_weights_that_it_started_from(script, tmp_path, few_digits):
    """Field case F21: all that counts is in the checkpoint; but other weights are another run."""
    first, second, out = (tmp_path / name for name in ("first", "second", "out"))
    assert script("train.py", *QUICK, "--epochs", 1, "--out", first)[0] == 0
    assert script("train.py", *QUICK, "--epochs", 1, "--seed", 1, "--out", second)[0] == 0
    weights, moved = first / "weights.safetensors", tmp_path / "moved.safetensors"
    options = (*QUICK, "--out", out, "--resume", "--epochs")
    assert script("train.py", *options, 1, "--init", weights)[0] == 0
    other = second / "weights.safetensors"
    refused(script("train.py", *options, 2, "--init", other), 2, "another run", "init")
    weights.rename(moved)
    for epochs, init in ((2, ("--init", moved)), (3, ("--init", weights)), (4, ())):
        code, stdout, stderr = script("train.py", *options, epochs, *init)
        assert (code, stderr) == (0, "")
        assert f"after step {34 * (epochs - 1)}" in stdout


def test_a_run_of_an_older_version_goes_on(script, tmp_path, few_digits):
    """Field case F21: keys that config.json did not have are what they were before they existed."""
    out = tmp_path / "out"
    options = (*QUICK, "--out", out, "--resume")
    assert script("train.py", *options, "--epochs", 1)[0] == 0
    config = json.loads((out / "config.json").read_text())
    for name in ("validation", "weight_decay", "init_sha256", "environment"):
        del config[name]
    (out / "config.json").write_text(json.dumps(config))
    code, stdout, stderr = script("train.py", *options, "--epochs", 2)
    assert (code, stderr) == (0, "")
    assert "after step 34" in stdout


def test_a_checkpoint_of_another_run_is_not_gone_on_with(script, tmp_path, few_digits):
    """Field case F30: of the same shapes, copied into the directory."""
    outs = tmp_path / "a", tmp_path / "b"
    for seed, out in enumerate(outs):
        assert script("train.py", *QUICK, "--epochs", 1, "--seed", seed, "--out", out)[0] == 0
    shutil.copy(outs[1] / "checkpoint-00000034.safetensors", outs[0])
    result = script("train.py", *QUICK, "--epochs", 2, "--out", outs[0], "--resume")
    refused(result, 2, "another run", "seed 1 there, 0 here")


def test_fewer_epochs_than_there_are_is_refused(script, tmp_path, few_digits):
    """Field case F30: or the weights of three epochs would be told to be those of two."""
    options = (*QUICK, "--out", tmp_path / "out", "--resume", "--epochs")
    assert script("train.py", *options, 3)[0] == 0
    before = ending(tmp_path / "out")
    refused(script("train.py", *options, 2), 2, "3 epochs", "--epochs 2")
    assert ending(tmp_path / "out") == before


def test_a_lost_config_is_in_every_checkpoint(script, tmp_path, few_digits):
    """Field case F30."""
    out = tmp_path / "out"
    options = (*QUICK, "--out", out, "--resume", "--epochs")
    assert script("train.py", *options, 1)[0] == 0
    (out / "config.json").unlink()
    refused(script("train.py", *options, 2, "--seed", 5), 2, "another run", "seed 0 there, 5 here")
    code, stdout, _ = script("train.py", *options, 2)
    assert code == 0
    assert "after step 34" in stdout
    (out / "config.json").write_text("[" * 100_000)  # F38: nested too deep
    refused(script("train.py", *options, 3), 1, "config.json", "damaged")


def test_with_a_schedule_the_number_of_epochs_is_part_of_the_run():
    assert identity.differences(DEFAULT | {"epochs": 5}, DEFAULT | {"epochs": 6}) == []
    falling = DEFAULT | {"schedule": "cosine"}
    (phrase,) = identity.differences(falling | {"epochs": 5}, falling | {"epochs": 6})
    assert phrase.startswith("scheduled_epochs ")
