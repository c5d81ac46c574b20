"""Test a trained model: loss, accuracy, precision and recall, calibration, confusion matrix."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from _cli import run
from _report import grid

from jaxmnist.runs.programs import WARNING, load


@dataclasses.dataclass(frozen=True)
class Config:
    """The options."""

    weights: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="WEIGHTS")]
    """A weights file, or the directory that scripts/train.py --out wrote."""
    dataset: Literal["auto", "mnist", "synthetic"] = "auto"
    """MNIST, or drawn digits; auto is MNIST or, where that cannot be had, drawn digits."""
    data_dir: Path | None = None
    """Directory with MNIST's four IDX files; JAXMNIST_DATA_DIR does the same."""
    seed: int = 0
    """Of the drawn digits: the seed that the training had."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object instead of tables."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is loaded."""
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be at least 0 and below 2**32, not {self.seed}")


def main(config: Config) -> None:
    """Load, evaluate, print."""
    import jax

    from jaxmnist.predict import load_model

    jax.config.update("jax_platforms", "cpu")  # less work than waking an accelerator
    model, params = load_model(config.weights)
    data, drawn = load(config)
    result = {
        "weights": str(config.weights),
        "layers": [784, *model.hidden, model.classes],
        "data": data.source,
        "images": len(data.test.labels),
        **measure(model, params, data.test),
    }
    print(json.dumps(result) if config.json else report(result))
    if drawn and not config.json:
        print(f"\n{WARNING}")


def measure(model: Any, params: Any, test: Any) -> dict[str, Any]:
    """Everything that is measured, as JSON knows it: lists, and None for shares of nothing."""
    import jax

    from jaxmnist import evaluate
    from jaxmnist.metrics import calibration, precision_recall, wilson_interval
    from jaxmnist.predict import predict

    # The loss of a model with a log-softmax head is the same: log-softmax leaves it as it is.
    scores = jax.device_get(jax.jit(lambda p, d: evaluate(model.apply, p, d))(params, test))
    confusion = scores["confusion"]
    precision, recall = precision_recall(confusion)
    bins = calibration(predict(model.apply, params, test.images), test.labels)
    edges = [k / len(bins.counts) for k in range(len(bins.counts) + 1)]
    return {
        "loss": float(scores["loss"]),
        "accuracy": float(scores["accuracy"]),
        "accuracy_interval": wilson_interval(int(confusion.trace()), int(confusion.sum())),
        "precision": listed(precision),
        "recall": listed(recall),
        "ece": bins.ece,
        "calibration": [
            dict(zip(("over", "up_to", "images", "confidence", "accuracy"), row, strict=True))
            for row in zip(
                edges[:-1],
                edges[1:],
                bins.counts.tolist(),
                listed(bins.confidence),
                listed(bins.accuracy),
                strict=True,
            )
        ],
        "confusion": confusion.tolist(),
    }


def listed(values: Any) -> list[float | None]:
    """The numbers; JSON has no NaN."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def report(result: dict[str, Any]) -> str:
    """The result, to be read."""
    low, high = result["accuracy_interval"]
    counts = result["confusion"]
    digits = [["digit", "images", "precision", "recall"]]
    for digit, row in enumerate(counts):
        shares = (share(result[name][digit]) for name in ("precision", "recall"))
        digits.append([str(digit), str(sum(row)), *shares])
    bins = [["probability", "images", "mean", "right"]]
    for row in result["calibration"]:
        if row["images"]:
            span = f"{row['over']:.1%} to {row['up_to']:.1%}"
            means = (share(row[name]) for name in ("confidence", "accuracy"))
            bins.append([span, str(row["images"]), *means])
    width = max(4, *(len(str(count)) for row in counts for count in row)) + 1
    matrix = ["".join(f"{cell:>{width}}" for cell in ("", *range(len(counts))))]
    for digit, row in enumerate(counts):
        matrix.append("".join(f"{cell:>{width}}" for cell in (digit, *(n or "." for n in row))))
    return "\n".join(
        [
            f"Weights: {result['weights']} ({'-'.join(map(str, result['layers']))})",
            f"Data: {result['data']}, {result['images']:,} test images",
            f"Test loss: {result['loss']:.6f}",
            f"Test accuracy: {result['accuracy']:.2%}   95% interval: {low:.2%} to {high:.2%}",
            "",
            *grid(digits),
            "",
            f"Expected calibration error: {result['ece']:.2%}. The largest probability, and how",
            "often its digit was right:",
            "",
            *grid(bins),
            "",
            "Confusion: a row is a true digit, a column what it was taken for.",
            "",
            *matrix,
        ]
    )


def share(value: float | None) -> str:
    """A table's cell."""
    return "" if value is None else f"{value:.1%}"


if __name__ == "__main__":
    run(main, Config, __doc__)
