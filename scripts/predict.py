"""Read digits in pictures: photos, scans or drawings, of any size and colour."""

import sys

sys.path.insert(0, __file__.rpartition("/")[0])
import _cli as cli

# isort: split
import io
import json
from pathlib import Path
from typing import Any

from _options import file_type, load_model

DOUBTS = {None: "", "uncertain": "; uncertain", "no_digit": "; probably no single digit"}


class Options(cli.Options):
    """The options."""

    weights: Path = cli.option(metavar="RUN")
    """A run of scripts/train.py --out, or a weights file."""
    images: tuple[Path, ...] = cli.option(metavar="IMAGE")
    """Pictures of one digit each, dark on light or light on dark: PNG, JPEG, WebP, GIF, BMP, TIFF,
    PPM or, where Pillow has it, AVIF; - reads one from stdin."""
    json: bool = False
    """Print one JSON array, an object an image, instead of bars."""
    plot: Path | None = cli.option(None, file_type(".png", ".pdf", ".svg"))
    """File for a plot of each image as the model sees it, beside its probabilities."""


def main(options: Options) -> None:
    """Read picture by picture; the exit code is 1 if one cannot be read or is blank."""
    import numpy as np

    from jaxmnist.pictures import Reader
    from jaxmnist.plots import probability_figure, save_figure

    reader = Reader(load_model(options.weights)[0])
    pairs = [read(reader, path) for path in options.images]
    results, good = [result for result, _ in pairs], [pair for pair in pairs if pair[1] is not None]
    if options.plot and good:
        names = [cli.printable(Path(result["image"]).name) for result, _ in good]
        chances = np.array([result["probabilities"] for result, _ in good])
        images = np.stack([image for _, image in good])
        save_figure(probability_figure(images, chances, names), options.plot)
    if options.json:
        print(json.dumps(results, indent=1, allow_nan=False))
    else:
        print("\n".join(map(describe, results)))
    sys.exit(int(len(good) < len(results)))


def read(reader: Any, path: Path) -> tuple[dict[str, Any], Any]:
    """What is said of a picture, `error` if there is no digit, and what the model was given."""
    from jaxmnist.errors import DataError

    names = ("digit", "probabilities", "doubt", "why", "error")
    found: dict[str, Any] = {"image": str(path), **dict.fromkeys(names)}
    try:
        source = io.BytesIO(sys.stdin.buffer.read()) if str(path) == "-" else path
        digit, chances, doubt, why, image = reader.read(source)
    except (DataError, OSError) as error:
        text = str(getattr(error, "strerror", error))
        return found | {"error": text.removeprefix(f"{path}: ")}, None
    if digit is None:
        return found | {"doubt": doubt, "error": why}, None
    told = {"digit": digit, "probabilities": chances.tolist(), "doubt": doubt, "why": why}
    return found | told, image


def describe(result: dict[str, Any]) -> str:
    """Lines for a reader: one and, for each digit, a bar."""
    name, digit, why = cli.printable(result["image"]), result["digit"], result["why"]
    if digit is None:
        return f"{name}: {cli.printable(result['error'])}"
    lines = [f"{name}: {digit}{DOUBTS[result['doubt']]}" + (f": {why}" if why else "")]
    for number, chance in enumerate(result["probabilities"]):
        lines.append(f"  {number}  {'█' * round(40 * chance):40} {chance:6.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
