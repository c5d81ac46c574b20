"""Read digits in pictures: photos, scans or drawings, of any size and colour."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _cli as cli

# isort: split
import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from _options import file_type, weights
from _output import printable

BAR = 40  # characters that a probability of 1 takes
CREATOR = "jaxmnist scripts/predict.py"  # a plot with this name in it may be made again


@dataclasses.dataclass(frozen=True)
class Options:
    """The options."""

    weights: Path = weights()
    images: tuple[Path, ...] = cli.option(
        help="Pictures of one digit each, dark on light or light on dark: PNG, JPEG, WebP, GIF, "
        "BMP, TIFF, PPM or, where Pillow has it, AVIF.",
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
    """Load the weights, read every picture, then predict; the first that cannot be read ends it."""
    import jax
    import numpy as np

    from jaxmnist.doubt import doubt
    from jaxmnist.files import check_output
    from jaxmnist.plots import probability_figure, save_figure
    from jaxmnist.predict import load_model, predict, read_image

    jax.config.update("jax_platforms", "cpu")  # less work than waking an accelerator
    if options.plot:
        import matplotlib.figure  # noqa: F401  (missed now rather than after the work)

        check_output("--plot", options.plot, CREATOR.encode())
    model, params = load_model(options.weights)
    with libraries_silenced():
        images = np.stack([read_image(path) for path in options.images])
    probabilities = np.asarray(predict(model.apply, params, images))
    doubts = [doubt(image, row) for image, row in zip(images, probabilities, strict=True)]
    if options.plot:
        names = [printable(path.name) for path in options.images]
        figure = probability_figure(images, probabilities, names)
        save_figure(figure, options.plot)
    if options.json:
        results = [
            {
                "image": str(path),
                "digit": int(row.argmax()),
                "probabilities": row.tolist(),
                "doubt": reason,
            }
            for path, row, reason in zip(options.images, probabilities, doubts, strict=True)
        ]
        print(json.dumps(results, indent=1, allow_nan=False))
        return
    blocks = can_print("█▏")
    for path, row, reason in zip(options.images, probabilities, doubts, strict=True):
        print(f"{printable(path)}: {row.argmax()}")
        if reason:
            print(f"  probably no single digit: {reason}")
        print("\n".join(bars(row, blocks)), flush=True)


@contextlib.contextmanager
def libraries_silenced() -> Iterator[None]:
    """Nothing is written to stderr by C code: libtiff does so about damaged files."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def bars(probabilities: Sequence[float], blocks: bool) -> list[str]:
    """A line for each class: its number, a bar, its probability."""
    lines = []
    for digit, probability in enumerate(probabilities):
        if blocks:
            whole, eighths = divmod(round(probability * BAR * 8), 8)
            bar = "█" * whole + " ▏▎▍▌▋▊▉"[eighths]
        else:
            bar = "#" * round(probability * BAR)
        lines.append(f"  {digit}  {bar:{BAR}} {probability:6.1%}")
    return lines


def can_print(text: str) -> bool:
    """Whether stdout's encoding has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
