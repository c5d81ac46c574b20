"""Read digits in pictures: photos, scans or drawings, of any size and colour."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _cli as cli

# isort: split
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

from _options import file_type, load_model, weights
from _output import printable

BAR = 40  # characters that a probability of 1 takes
DOUBTS = {None: "", "uncertain": "; uncertain", "no_digit": "; probably no single digit"}


@dataclasses.dataclass(frozen=True)
class Options:
    """The options."""

    weights: Path = weights()
    images: tuple[Path, ...] = cli.option(
        help="Pictures of one digit each, dark on light or light on dark: PNG, JPEG, WebP, GIF, "
        "BMP, TIFF, PPM or, where Pillow has it, AVIF; - reads one from stdin.",
        metavar="IMAGE",
        positional=True,
    )
    json: bool = cli.option(False, "Print one JSON array, an object an image, instead of bars.")
    plot: Path | None = cli.option(
        None,
        "File for a plot of each image as the model sees it, beside its probabilities.",
        file_type(".png", ".pdf", ".svg"),
    )


def main(options: Options) -> None:
    """Read picture by picture; the exit code is 1 if one cannot be read or is blank."""
    import numpy as np

    from jaxmnist.pictures import Reader
    from jaxmnist.plots import probability_figure, save_figure
    from jaxmnist.runs.programs import find_device

    find_device("cpu")  # less work than waking an accelerator
    reader = Reader(load_model(options.weights)[0])
    results = [read(reader, path) for path in options.images]
    good = [result for result in results if result["digit"] is not None]
    images = [result.pop("seen") for result in good]
    if options.plot and good:
        chances = np.array([result["probabilities"] for result in good])
        names = [printable(Path(result["image"]).name) for result in good]
        save_figure(probability_figure(np.stack(images), chances, names), options.plot)
    if options.json:
        print(json.dumps(results, indent=1, allow_nan=False))
    for result in () if options.json else results:
        print("\n".join(describe(**result)))
    sys.exit(int(len(good) < len(results)))


def read(reader: Any, path: Path) -> dict[str, Any]:
    """What is said of one picture; `error` says why there is no digit."""
    from jaxmnist.errors import DataError

    found: dict[str, Any] = {"image": str(path), "digit": None, "probabilities": None}
    found |= {"doubt": None, "why": None, "error": None}
    try:
        with cli.silenced():  # libtiff itself writes about damaged files
            source = io.BytesIO(sys.stdin.buffer.read()) if str(path) == "-" else path
            digit, chances, doubt, why, image = reader.read(source)
    except (DataError, OSError) as error:
        text = str(getattr(error, "strerror", error))
        return found | {"error": text.removeprefix(f"{path}: ")}
    if digit is None:
        return found | {"doubt": doubt, "error": why}
    found |= {"digit": digit, "probabilities": chances.tolist(), "doubt": doubt, "why": why}
    return found | {"seen": image}


def describe(
    image: str,
    digit: int | None,
    probabilities: Any,
    doubt: Any,
    why: str | None,
    error: str | None,
) -> list[str]:
    """Lines for a reader: one and, for each digit, a bar."""
    if digit is None:
        return [f"{printable(image)}: {printable(error)}"]
    lines = [f"{printable(image)}: {digit}{DOUBTS[doubt]}" + (f": {why}" if why else "")]
    for number, chance in enumerate(probabilities):
        whole, eighths = divmod(round(chance * BAR * 8), 8)
        lines.append(f"  {number}  {'█' * whole + ' ▏▎▍▌▋▊▉'[eighths]:{BAR}} {chance:6.1%}")
    return lines


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
