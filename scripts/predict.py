"""Read digits in pictures: photos, scans or drawings, of any size and colour."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from _cli import run

BAR = 40  # characters that a probability of 1 takes
PLOTS = (".png", ".pdf", ".svg")


@dataclasses.dataclass(frozen=True)
class Config:
    """The options. A picture shows one digit, dark on light or light on dark."""

    weights: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="WEIGHTS")]
    """A weights file, or the directory that scripts/train.py --out wrote."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE...")]
    """Pictures: PNG, JPEG, WebP, GIF, BMP, TIFF, PPM or, where Pillow has it, AVIF."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON array, an object an image, instead of bars."""
    plot: Path | None = None
    """Draw each image as the model sees it beside its probabilities: a .png, .pdf or .svg file."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is loaded."""
        if not self.images:
            raise ValueError("name at least one image")
        if self.plot and self.plot.suffix.lower() not in PLOTS:
            raise ValueError(f"--plot {self.plot}: the name must end in {', '.join(PLOTS)}")


def main(config: Config) -> None:
    """Load the weights, read every picture, then predict; the first that cannot be read ends it."""
    import jax
    import numpy as np

    from jaxmnist.predict import load_model, predict, read_image

    jax.config.update("jax_platforms", "cpu")  # less work than waking an accelerator
    check_plot(config)
    model, params = load_model(config.weights)
    images = np.stack([read_image(path) for path in config.images])
    table = np.asarray(predict(model.apply, params, images))
    if config.plot:
        draw(config.plot, images, table, config.images)
    if config.json:
        results = [
            {"image": str(path), "digit": int(row.argmax()), "probabilities": row.tolist()}
            for path, row in zip(config.images, table, strict=True)
        ]
        print(json.dumps(results, indent=1))
        return
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure:
        reconfigure(errors="backslashreplace")  # a file's name may hold anything
    blocks = can_print("█▏")
    for path, row in zip(config.images, table, strict=True):
        print(f"{path}: {row.argmax()}")
        print("\n".join(bars(row, blocks)), flush=True)


def check_plot(config: Config) -> None:
    """Refuse a plot without matplotlib, or in the place of what is read."""
    from jaxmnist.errors import UsageError

    if not config.plot:
        return
    import matplotlib.figure  # noqa: F401

    if config.plot.exists() and any(
        path.exists() and path.samefile(config.plot) for path in (config.weights, *config.images)
    ):
        raise UsageError(f"--plot {config.plot}: would overwrite what is to be read")


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


def draw(plot: Path, images: Any, probabilities: Any, paths: Sequence[Path]) -> None:
    """Write the figure; the file appears whole or not at all."""
    from jaxmnist.files import replacing
    from jaxmnist.predict import probability_figure

    names = [path.name.encode(errors="replace").decode() for path in paths]
    figure = probability_figure(images, probabilities, names)
    with warnings.catch_warnings(), replacing(plot) as file:
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # names in any script
        figure.savefig(file, format=plot.suffix[1:].lower(), dpi=150, transparent=True)


if __name__ == "__main__":
    run(main, Config, __doc__)
