"""Test a trained model on MNIST's test images or on your own labelled pictures."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _cli as cli

# isort: split
import csv
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

from _options import WARNING, SeededDataOptions, file_type, load, load_model, local_path, weights
from _options import wrong as usage_error
from _output import markdown, percent, printable


@dataclasses.dataclass(frozen=True)
class Options:
    """The options."""

    weights: Path = weights()
    json: bool = cli.option(False, "Print one JSON object instead of tables.")
    pictures: Path | None = cli.option(
        None,
        "Directory of your own pictures: with an index.csv (file, label and, if you like, kind), "
        "or in folders named 0 to 9.",
        local_path,
        metavar="DIR",
        also="photos",
    )
    plot: Path | None = cli.option(
        None, "File for a plot of the misread pictures.", file_type(".png", ".pdf", ".svg")
    )
    data: SeededDataOptions = SeededDataOptions()

    def __post_init__(self) -> None:
        if self.plot and not self.pictures:
            usage_error("--plot needs --pictures")


def main(options: Options) -> None:
    """Load, evaluate, print."""
    from jaxmnist.metrics import classification_metrics
    from jaxmnist.pictures.predict import evaluate_model
    from jaxmnist.runs.programs import find_device
    from jaxmnist.weights import layer_sizes

    find_device("cpu")  # less work than waking an accelerator
    params, synthetic = load_model(options.weights)
    if options.pictures:
        return evaluate_pictures(params, options.pictures, options)
    chosen = options.data
    if synthetic is False and chosen.dataset == "auto":  # MNIST's model is tested on nothing else
        chosen = dataclasses.replace(chosen, dataset="mnist")
    data = load(chosen, chosen.seed)
    found = evaluate_model(params, data.test)
    result = {
        "weights": str(options.weights),
        "layers": layer_sizes(params),
        "data": data.source,
        "images": len(data.test.labels),
        "loss": found.loss if math.isfinite(found.loss) else None,
        **classification_metrics(found.probabilities, data.test.labels),
    }
    print(json.dumps(result, allow_nan=False) if options.json else report(result))
    if data.missing and not options.json:
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


def evaluate_pictures(params: Any, directory: Path, options: Options) -> None:
    """The accuracy by kind of picture, and a sheet of those that are misread."""
    import numpy as np
    import tqdm
    from scipy.stats import binomtest

    from jaxmnist.pictures import Reader
    from jaxmnist.plots import contact_sheet, save_figure

    reader, right, wrong = Reader(params), dict[str, list[bool]](), list[tuple[Any, str]]()
    for path, label, kind in tqdm.tqdm(find_pictures(directory), leave=False, disable=None):
        reading = reader.read(path)
        for name in ("all", kind):
            right.setdefault(name, []).append(reading.digit == label)
        if reading.digit != label:
            said = "blank" if reading.digit is None else f"read as {reading.digit}"
            wrong.append((reading.image, f"{printable(path.name)[-16:]}\n{label}, {said}"))
    kinds = list[dict[str, Any]]()
    for kind, found in right.items():
        low, high = binomtest(sum(found), len(found)).proportion_ci(method="wilson")
        share = sum(found) / len(found)
        kinds.append({"kind": kind, "pictures": len(found), "accuracy": share,
                      "accuracy_interval": [low, high]})  # fmt: skip
    if options.plot:
        images, titles = np.array([image for image, _ in wrong]), [title for _, title in wrong]
        heading = (
            f"{len(wrong)} of {len(right['all'])} pictures are misread; as the model sees them"
        )
        save_figure(contact_sheet(images, titles, heading), options.plot)
    if options.json:
        return print(json.dumps({"weights": str(options.weights), "kinds": kinds}))
    rows = [["pictures", "n", "accuracy", "95 % interval"]]
    for k in kinds:
        low, high = k["accuracy_interval"]
        name = printable(k["kind"])
        rows.append([name, str(k["pictures"]), f"{k['accuracy']:.1%}", f"{low:.1%} to {high:.1%}"])
    print(markdown(rows))


def find_pictures(directory: Path) -> list[tuple[Path, int, str]]:
    """Each picture's path, digit and kind, from an index.csv or from folders named by digit."""
    from jaxmnist.errors import DataError

    index = directory / "index.csv"
    if not index.exists():
        files = [path for digit in range(10) for path in sorted((directory / str(digit)).glob("*"))]
        found = [(p, int(p.parent.name), "pictures") for p in files if not p.name.startswith(".")]
        if not found:
            raise DataError(f"{directory}: holds no index.csv and no pictures in folders 0 to 9")
        return found
    content = index.read_bytes()
    try:
        text = content.decode("utf-8-sig")  # Excel begins with a byte order mark
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace")  # or writes Windows' letters
    lines, found = text.splitlines(), []
    separator = max(";,\t", key="".join(lines[:1]).count)  # Excel's depends on the country
    try:
        rows = list(csv.DictReader(lines, delimiter=separator))
    except csv.Error as error:
        raise DataError(f"{index}: damaged: {error}") from error
    for row in rows:
        row = {str(name).strip().lower(): str(value or "").strip() for name, value in row.items()}
        path, label = directory / row.get("file", "."), row.get("label", "")
        if label not in list("0123456789") or not os.path.isfile(path):
            raise DataError(
                f"{index}: entry {len(found) + 1} names no file that is there, or no digit; the "
                "columns must be file, label and, if you like, kind"
            )
        found.append((path, int(label), row.get("kind") or "pictures"))
    if not found:
        raise DataError(f"{index}: names no pictures")
    return found


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
