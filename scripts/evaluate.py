"""Test a trained model: loss, accuracy, precision and recall, calibration, confusion matrix."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _cli as cli

# isort: split
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from _options import WARNING, SeededDataOptions, load, weights
from _output import markdown, percent, printable


@dataclasses.dataclass(frozen=True)
class Options:
    """The options."""

    weights: Path = weights()
    json: bool = cli.option(False, "Print one JSON object instead of tables.")
    data: SeededDataOptions = SeededDataOptions()


def main(options: Options) -> None:
    """Load, evaluate, print."""
    import jax

    from jaxmnist.metrics import classification_metrics
    from jaxmnist.predict import evaluate_model, load_model

    jax.config.update("jax_platforms", "cpu")  # less work than waking an accelerator
    model, params = load_model(options.weights)
    data = load(options.data, options.data.seed)
    # The loss of a model with a log-softmax head is the same: log-softmax leaves it as it is.
    found = evaluate_model(params, data.test)
    result = {
        "weights": str(options.weights),
        "layers": [784, *model.hidden, model.classes],
        "data": data.source,
        "images": len(data.test.labels),
        "loss": found.loss if math.isfinite(found.loss) else None,
        **classification_metrics(found.probabilities, data.test.labels),
    }
    if options.json:
        print(json.dumps(result, allow_nan=False))
        return
    print(report(result))
    if data.missing:
        print(f"\n{WARNING}")


def report(result: dict[str, Any]) -> str:
    """The result, to be read."""
    low, high = result["accuracy_interval"]
    counts = result["confusion"]
    digits = [["digit", "images", "precision", "recall"]]
    for digit, row in enumerate(counts):
        shares = (percent(result[name][digit]) for name in ("precision", "recall"))
        digits.append([str(digit), str(sum(row)), *shares])
    bins = [["probability", "images", "mean", "right"]]
    for row in result["calibration"]:
        if row["images"]:
            means = (percent(row[name]) for name in ("confidence", "accuracy"))
            bins.append([f"{row['over']:.1%} to {row['up_to']:.1%}", str(row["images"]), *means])
    matrix = [["digit", *map(str, range(len(counts)))]]
    matrix += [[str(k), *(str(n or ".") for n in row)] for k, row in enumerate(counts)]
    loss = "not finite" if result["loss"] is None else f"{result['loss']:.6f}"
    return f"""Weights: {printable(result["weights"])} ({"-".join(map(str, result["layers"]))})
Data: {result["data"]}, {result["images"]:,} test images
Test loss: {loss}
Test accuracy: {result["accuracy"]:.2%}   95% interval: {low:.2%} to {high:.2%}

{markdown(digits)}

Expected calibration error: {percent(result["ece"], 2)}. The largest probability, and how
often its digit was right:

{markdown(bins)}

Confusion matrix: a row is a true digit, a column the predicted one.

{markdown(matrix)}"""


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
