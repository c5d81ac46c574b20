"""A run that is done: its directory read back, its model evaluated, its pictures drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmnist.data import Dataset
from jaxmnist.errors import DataError, JaxmnistError, UsageError
from jaxmnist.files import open_regular
from jaxmnist.plots import run_figures, save_figure
from jaxmnist.predict import evaluate_model
from jaxmnist.runs.logs import StepLog
from jaxmnist.weights import layer_sizes, load_weights

_MEASURED = ("train_loss", "test_loss", "test_accuracy")
_MOST = 2**27  # steps that are read back: half a gigabyte of losses


class Run(NamedTuple):
    """What the directory of a run holds."""

    directory: Path
    config: dict[str, Any]
    records: list[dict[str, float]]  # what was measured after each epoch
    losses: np.ndarray  # float32 [epochs, steps], NaN where not known; [epochs, 0] if none is
    params: Any

    @property
    def drawn(self) -> bool:
        """Whether it was trained and tested on drawn digits instead of MNIST."""
        return self.config["dataset"] == "synthetic" or bool(self.config["drawn_digits"])

    @property
    def test_set(self) -> str:
        """What it was tested on."""
        return f"drawn digits, seed {self.config['seed']}" if self.drawn else "MNIST"


def read_run(directory: Path) -> Run:
    """The run in this directory.

    Raises a UsageError where it is no run's, and a JaxmnistError where the run is not done or one
    of its files is damaged.
    """
    if not (directory / "config.json").is_file():
        what = "it has no config.json" if directory.is_dir() else "there is no such directory"
        raise UsageError(f"{directory}: no run of scripts/train.py --out: {what}")
    config = _read_config(directory / "config.json")
    records = _read_records(directory / "metrics.jsonl")
    weights = directory / "weights.safetensors"
    if len(records) < config["epochs"] or not weights.exists():
        raise JaxmnistError(
            f"{directory}: not done: {len(records)} of {config['epochs']} epochs are trained; "
            f"wait, or if it was stopped, continue with scripts/train.py --out {directory} --resume"
        )
    params = load_weights(weights)
    try:
        layer_sizes(params)
    except DataError as error:
        raise DataError(f"{weights}: {error}") from error
    return Run(directory, config, records, _read_losses(directory, records), params)


def draw_run(directory: Path, test: Dataset) -> list[str]:
    """Draw the pictures of the run into its directory; their names."""
    run = read_run(directory)
    result = evaluate_model(run.params, test)
    images, labels = np.asarray(test.images), np.asarray(test.labels)
    figures = run_figures(run.records, run.losses, run.params, images, labels, result.probabilities)
    for name, figure in figures.items():
        save_figure(figure, directory / name)
    return list(figures)


def _read_config(path: Path) -> dict[str, Any]:
    kinds = {"dataset": str, "drawn_digits": bool, "seed": int, "epochs": int}

    def is_good(found: Any) -> bool:
        good = all(type(found[name]) is kind for name, kind in kinds.items())
        return good and 0 <= found["seed"] < 2**32 and found["epochs"] > 0

    with open_regular(path) as file:
        config = _parse(file.read(), is_good)
    if config is None:
        raise DataError(f"{path}: damaged, or of another version of scripts/train.py")
    return config


def _read_records(path: Path) -> list[dict[str, float]]:
    records: list[dict[str, float]] = []
    lines = path.read_bytes().splitlines() if path.exists() else []

    def is_good(record: Any) -> bool:
        steps = (records or [record])[0]["step"]
        return (
            record["epoch"] == epoch
            and all(math.isfinite(record[name]) for name in _MEASURED)
            and type(steps) is int
            and steps > 0
            and record["step"] == epoch * steps
            and 0 <= record["test_accuracy"] <= 1
        )

    for epoch, line in enumerate(lines, 1):
        record = _parse(line, is_good)
        if record is None:
            raise DataError(
                f"{path}: line {epoch} is damaged; scripts/train.py --resume writes it again"
            )
        records.append(record)
    return records


def _parse(text: bytes, is_good: Callable[[Any], bool]) -> Any:
    """What is in the JSON if `is_good` finds it to be what we write; None if not."""
    try:
        found = json.loads(text)
        return found if is_good(found) else None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _read_losses(directory: Path, records: list[dict[str, float]]) -> np.ndarray:
    epochs, steps = len(records), int(records[-1]["step"])
    log = StepLog(directory / "steps.jsonl")
    if steps > _MOST or next(log.read(), None) is None:
        return np.zeros((epochs, 0), np.float32)
    losses = np.full(steps, np.nan, np.float32)
    for step, loss in log.read():
        if step <= steps:
            losses[step - 1] = loss
    return losses.reshape(epochs, -1)
