"""A run that is done: its directory read back, its model looked at, its pictures drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxmnist.errors import UsageError
from jaxmnist.runs.logs import StepLog

if TYPE_CHECKING:
    import numpy as np

    from jaxmnist import Dataset

_SCORES = ("train_loss", "test_loss", "test_accuracy")
_MOST = 2**27  # steps that are read back: half a gigabyte of losses


class Run(NamedTuple):
    """What the directory of a run holds."""

    directory: Path
    config: dict[str, Any]
    records: list[dict[str, float | int]]  # what was measured after each epoch
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


def read(directory: Path) -> Run:
    """The run in this directory.

    Raises a UsageError where it is no run's, and a JaxmnistError where the run is not done or one
    of its files is damaged.
    """
    from jaxmnist import DataError, JaxmnistError
    from jaxmnist.torch_compat import layer_sizes, load_weights

    if not (directory / "config.json").is_file():
        what = "it has no config.json" if directory.is_dir() else "there is no such directory"
        raise UsageError(f"{directory}: no run of scripts/train.py --out: {what}")
    config = _read_config(directory / "config.json")
    records = _read_records(directory / "metrics.jsonl")
    weights = directory / "weights.safetensors"
    if len(records) < config["epochs"] or not weights.exists():
        raise JaxmnistError(
            f"{directory}: not done: {len(records)} of {config['epochs']} epochs are trained; wait "
            f"for it or, if it was stopped, go on with scripts/train.py --out {directory} --resume"
        )
    params = load_weights(weights)
    try:
        layer_sizes(params)
    except DataError as error:
        raise DataError(f"{weights}: {error}") from error
    return Run(directory, config, records, _read_losses(directory, records), params)


def _read_config(path: Path) -> dict[str, Any]:
    from jaxmnist import DataError

    kinds = {"dataset": str, "drawn_digits": bool, "seed": int, "epochs": int}
    try:
        config = json.loads(path.read_bytes())
        good = all(type(config[name]) is kind for name, kind in kinds.items())
        if good and 0 <= config["seed"] < 2**32 and config["epochs"] > 0:
            return config
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise DataError(f"{path}: damaged, or of another version of scripts/train.py")


def _read_records(path: Path) -> list[dict[str, float | int]]:
    from jaxmnist import DataError

    records: list[dict[str, float | int]] = []
    lines = path.read_bytes().splitlines() if path.exists() else []
    for epoch, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            good = record["epoch"] == epoch and all(math.isfinite(record[x]) for x in _SCORES)
            steps = (records or [record])[0]["step"]
            good = good and type(steps) is int and steps > 0 and record["step"] == epoch * steps
            good = good and 0 <= record["test_accuracy"] <= 1
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            good = False
        if not good:
            raise DataError(
                f"{path}: line {epoch} is damaged; with --resume scripts/train.py writes it anew"
            )
        records.append(record)
    return records


def _read_losses(directory: Path, records: list[dict[str, float | int]]) -> np.ndarray:
    import numpy as np

    epochs, steps = len(records), int(records[-1]["step"])
    log = StepLog(directory / "steps.jsonl")
    if steps > _MOST or next(log.read(), None) is None:
        return np.zeros((epochs, 0), np.float32)
    losses = np.full(steps, np.nan, np.float32)
    for step, loss in log.read():
        if step <= steps:
            losses[step - 1] = loss
    return losses.reshape(epochs, -1)


def draw(directory: Path, test: Dataset) -> list[str]:
    """Draw the pictures of the run into its directory; their names."""
    import numpy as np

    from jaxmnist import digit_plots, plots
    from jaxmnist.files import replacing
    from jaxmnist.predict import evaluate_model

    run = read(directory)
    seen = evaluate_model(run.params, test)
    images, labels = np.asarray(test.images), np.asarray(test.labels)
    worst = digit_plots.confident_mistakes(seen.probabilities, labels)
    figures = {
        "loss.png": plots.loss_curve(run.losses, run.records),
        "confusion.png": plots.confusion_matrix(seen.confusion),
        "mistakes.png": digit_plots.mistake_grid(
            images[worst], seen.probabilities[worst], labels[worst]
        ),
        "weights.png": digit_plots.weight_grid(run.params["params"]["linear_0"]["weight"]),
    }
    for name, figure in figures.items():
        with replacing(directory / name) as file:
            figure.savefig(file, format="png", dpi=150)
    return list(figures)
