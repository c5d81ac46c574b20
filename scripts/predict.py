"""Read digits in pictures: photos, scans or drawings, of any size and colour."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _cli as cli

# isort: split
import contextlib
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _options import file_type, load_model, weights
from _output import printable

BAR = 40  # characters that a probability of 1 takes


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
    if options.plot:
        import matplotlib.figure  # noqa: F401  (missed now rather than after the work)
    reader = Reader(load_model(options.weights)[0])
    results = [read(reader, path) for path in options.images]
    good = [result for result in results if result["digit"] is not None]
    if options.plot and good:
        images, chances = (np.stack([r[k] for r in good]) for k in ("seen", "probabilities"))
        names = [printable(Path(result["image"]).name) for result in good]
        save_figure(probability_figure(images, chances, names), options.plot)
    if options.json:
        shown = [{k: v for k, v in result.items() if k != "seen"} for result in results]
        print(json.dumps(shown, indent=1, allow_nan=False))
    else:
        print("\n".join(map(describe, results)))
    sys.exit(int(len(good) < len(results)))


def read(reader: Any, path: Path) -> dict[str, Any]:
    """What is said of one picture; `error` says why it cannot be read."""
    from jaxmnist.errors import DataError

    found = {"image": str(path), "digit": None, "probabilities": None, "doubt": None, "why": None}
    try:
        with silenced():  # libtiff itself writes about damaged files
            source = io.BytesIO(sys.stdin.buffer.read()) if str(path) == "-" else path
            digit, chances, doubt, why, image = reader.read(source)
    except (DataError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return found | {"error": str(reason).removeprefix(f"{path}: ")}
    found |= {"digit": digit, "doubt": doubt, "why": why, "error": None, "seen": image}
    return found | {"probabilities": chances.tolist() if digit is not None else None}


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """C code writes nothing to stderr."""
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def describe(result: dict[str, Any]) -> str:
    """The result for a reader: a line and, for each digit, a bar."""
    name, doubt = printable(result["image"]), result["doubt"]
    if result["digit"] is None:
        return f"{name}: {printable(result['error'] or result['why'])}"
    words = {"uncertain": "; uncertain: ", "no_digit": "; probably no single digit: "}
    lines = [f"{name}: {result['digit']}{words[doubt] + result['why'] if doubt else ''}"]
    for digit, chance in enumerate(result["probabilities"]):
        whole, eighths = divmod(round(chance * BAR * 8), 8)
        bar = "█" * whole + " ▏▎▍▌▋▊▉"[eighths]
        lines.append(f"  {digit}  {bar:{BAR}} {chance:6.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
