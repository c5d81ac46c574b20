"""Test a trained model on MNIST's test images or on your own labelled pictures."""

import sys

sys.path.insert(0, __file__.rpartition("/")[0])
import _cli as cli

# isort: split
import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from _options import DataOptions, at_least, file_type, load, load_model


class Options(cli.Options):
    """The options."""

    data: DataOptions
    weights: Path = cli.option(metavar="RUN")
    """A run of scripts/train.py --out, or a weights file."""
    json: bool = False
    """Print one JSON object instead of tables."""
    pictures: Path | None = cli.option(None, metavar="DIR", also="photos")
    """Directory of your own pictures: with an index.csv (file, label and, if you like, kind), or in
    folders named 0 to 9."""
    plot: Path | None = cli.option(None, file_type(".png", ".pdf", ".svg"))
    """File for a plot of the misread pictures."""
    seed: int = cli.option(0, at_least(0, 2**32))
    """Seed of synthetic digits, that of the training."""

    def __post_init__(self) -> None:
        if self.plot and not self.pictures:
            raise ValueError("--plot needs --pictures")


def main(options: Options) -> None:
    """Load, evaluate, print."""
    from jaxmnist.metrics import classification_metrics
    from jaxmnist.pictures.predict import log_probabilities
    from jaxmnist.weights import layer_sizes

    params, synthetic = load_model(options.weights)
    if options.pictures:
        return evaluate_pictures(params, options.pictures, options)
    data = load(options.data, options.seed, mnist_only=synthetic is False)
    result = {
        "weights": str(options.weights),
        "layers": layer_sizes(params),
        "data": data.source,
        "images": len(data.test.labels),
        **classification_metrics(log_probabilities(params, data.test.images), data.test.labels),
    }
    print(json.dumps(result, allow_nan=False) if options.json else report(result))


def report(result: dict[str, Any]) -> str:
    """The result, to be read."""
    loss = "not finite" if result["loss"] is None else f"{result['loss']:.6f}"
    digits = [["digit", "images", "precision", "recall"]]
    confusion = [["digit", *"0123456789"]]
    for k, row in enumerate(result["confusion"]):
        shares = result["precision"][k], result["recall"][k]
        cells = ["" if share is None else f"{share:.1%}" for share in shares]
        digits.append([str(k), str(sum(row)), *cells])
        confusion.append([str(k), *(str(count or "") for count in row)])
    return f"""Weights: {cli.printable(result["weights"])} ({"-".join(map(str, result["layers"]))})
Data: {result["data"]}, {result["images"]:,} test images
Test loss: {loss}
Test accuracy: {result["accuracy"]:.2%}   95% interval: {interval(result, 2)}

{cli.markdown(digits)}

Confusion matrix: a row is a true digit, a column the predicted one.

{cli.markdown(confusion)}"""


def interval(result: dict[str, Any], digits: int) -> str:
    """The 95 % interval of an accuracy."""
    return " to ".join(f"{end:.{digits}%}" for end in result["accuracy_interval"])


def evaluate_pictures(params: Any, directory: Path, options: Options) -> None:
    """The accuracy by kind of picture, and a sheet of those that are misread."""
    import tqdm

    from jaxmnist.metrics import accuracy_interval
    from jaxmnist.pictures import Reader
    from jaxmnist.plots import contact_sheet, save_figure

    reader, right = Reader(params), defaultdict[str, list[bool]](list)
    wrong: list[tuple[Any, str]] = []
    for path, label, kind in tqdm.tqdm(find_pictures(directory), leave=False, disable=None):
        reading = reader.read(path)
        for name in ("all", kind):
            right[name].append(reading.digit == label)
        if reading.digit != label:
            said = "blank" if reading.digit is None else f"read as {reading.digit}"
            wrong.append((reading.image, f"{cli.printable(path.name)[-16:]}\n{label}, {said}"))
    if options.plot:
        heading = f"{len(wrong)} of {len(right['all'])} pictures misread, as the model sees them"
        save_figure(contact_sheet(wrong, heading), options.plot)
    kinds = list[dict[str, Any]]()
    rows = [["pictures", "n", "accuracy", "95% interval"]]
    for kind, found in right.items():
        n, share = len(found), sum(found) / len(found)
        told = {"kind": kind, "pictures": n, "accuracy": share}
        kinds.append(told | {"accuracy_interval": accuracy_interval(sum(found), n)})
        rows.append([cli.printable(kind), str(n), f"{share:.1%}", interval(kinds[-1], 1)])
    told = {"weights": str(options.weights), "kinds": kinds}
    print(json.dumps(told) if options.json else cli.markdown(rows))


def find_pictures(directory: Path) -> list[tuple[Path, int, str]]:
    """Each picture's path, digit and kind, from an index.csv or from folders named by digit."""
    from jaxmnist.errors import DataError

    index, found = directory / "index.csv", list[tuple[Path, int, str]]()
    if index.exists():
        rows = read_index(index)
    else:
        files = [path.relative_to(directory) for path in sorted(directory.glob("[0-9]/[!.]*"))]
        rows = [{"file": str(path), "label": path.parent.name} for path in files]
    for row in rows:
        path, label = directory / row.get("file", "."), row.get("label", "")
        if label not in list("0123456789") or not path.is_file():
            problem = f"entry {len(found) + 1} names no file that is there, or no digit"
            columns = "the columns must be file, label and, if you like, kind"
            raise DataError(f"{index}: {problem}; {columns}")
        found.append((path, int(label), row.get("kind") or "pictures"))
    if not found:
        raise DataError(f"{directory}: no pictures in an index.csv or in folders named 0 to 9")
    return found


def read_index(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, also of one that Excel wrote."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")  # Excel begins with a byte order mark
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace")  # or writes Windows' letters
    lines = text.splitlines()
    separator = max(";,\t", key="".join(lines[:1]).count)  # Excel's depends on the country
    csv.field_size_limit(2**31 - 1)  # a quote that is never closed is no error of csv's
    rows = csv.DictReader(lines, delimiter=separator)
    return [{str(k).strip().lower(): str(v or "").strip() for k, v in row.items()} for row in rows]


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
