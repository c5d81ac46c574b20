"""How accurate a model stays on test images that come as pictures of other kinds.

Each image becomes a picture file: enlarged, inverted, shifted, coloured, compressed, photographed.
scripts/predict.py's way from a file to an MNIST image reads it back.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from _cli import run
from _report import grid

from jaxmnist.runs.programs import WARNING, load

if TYPE_CHECKING:  # the functions import what they use, so that --help does not wait for JAX
    import numpy as np
    from PIL import Image


@dataclasses.dataclass(frozen=True)
class Config:
    """The options."""

    weights: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="WEIGHTS")]
    """A weights file, or the directory that scripts/train.py --out wrote."""
    images: int = 1000
    """How many test images, chosen at random."""
    dataset: Literal["auto", "mnist", "synthetic"] = "auto"
    """MNIST, or drawn digits; auto is MNIST or, where that cannot be had, drawn digits."""
    data_dir: Path | None = None
    """Directory with MNIST's four IDX files; JAXMNIST_DATA_DIR does the same."""
    seed: int = 0
    """Chooses the images, shifts and shadows, and of drawn digits it is the training's."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is loaded."""
        if self.images < 1:
            raise ValueError(f"--images must be at least 1, not {self.images}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be at least 0 and below 2**32, not {self.seed}")


def main(config: Config) -> None:
    """Make the pictures, read them, predict, print a table."""
    import jax
    import numpy as np
    import tqdm

    from jaxmnist.errors import UsageError
    from jaxmnist.metrics import wilson_interval
    from jaxmnist.predict import load_model, predict

    jax.config.update("jax_platforms", "cpu")  # less work than waking an accelerator
    model, params = load_model(config.weights)
    data, drawn = load(config)
    n = len(data.test.labels)
    if config.images > n:
        raise UsageError(f"--images {config.images} is above the {n:,} test images")
    print(f"Data: {data.source}, {config.images:,} of {n:,} test images\n", flush=True)
    chosen = np.random.default_rng(config.seed).choice(n, config.images, replace=False)
    images, labels = data.test.images[chosen], data.test.labels[chosen]

    def right(images: Any) -> int:
        return int(
            (np.asarray(predict(model.apply, params, images)).argmax(axis=1) == labels).sum()
        )

    plain = right(images)
    rows = [["pictures", "accuracy", "95 % interval", "to plain, points"]]
    counts = {"none: the test images themselves": plain}
    with (
        ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool,
        tqdm.tqdm(total=len(VARIANTS) * len(images), leave=False, disable=None) as bar,
    ):
        for name in VARIANTS:
            seeds = [(config.seed, int(n)) for n in chosen]  # the same picture in any sample
            read = []
            for image in pool.map(through_a_file, repeat(name), images, seeds, chunksize=20):
                read.append(image)
                bar.update()
            counts[name] = right(np.stack(read))
    for name, count in counts.items():
        low, high = wilson_interval(count, len(images))
        points = 100 * (count - plain) / len(images)
        cells = [f"{count / len(images):.2%}", f"{low:.2%} to {high:.2%}", f"{points:+.2f}"]
        rows.append([name, *cells])
    print("\n".join(grid(rows)))
    if drawn:
        print(f"\n{WARNING}", file=sys.stderr)


def through_a_file(name: str, image: np.ndarray, seed: tuple[int, int]) -> np.ndarray:
    """The picture that VARIANTS[name] makes of the image, saved and read back."""
    import numpy as np

    from jaxmnist.predict import read_image

    picture, options = VARIANTS[name](image, np.random.default_rng(seed))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "picture")
        picture.save(path, **options)
        return read_image(path)


def as_png(image: np.ndarray, _: np.random.Generator) -> Made:
    """The pixels as they are."""
    return grey(image), PNG


def inverted(image: np.ndarray, _: np.random.Generator) -> Made:
    """Dark on white."""
    return grey(255 - image), PNG


def enlarged(image: np.ndarray, _: np.random.Generator) -> Made:
    """Ten times as large, dark on white."""
    return large(255 - image), PNG


def shifted(image: np.ndarray, rng: np.random.Generator) -> Made:
    """Anywhere in a picture of 56x56."""
    from PIL import Image

    picture = Image.new("L", (56, 56))
    picture.paste(grey(image), tuple(rng.integers(0, 29, 2).tolist()))
    return picture, PNG


def as_jpeg(image: np.ndarray, _: np.random.Generator) -> Made:
    """Compressed at JPEG's usual quality."""
    return grey(image), JPEG


def large_jpeg(image: np.ndarray, _: np.random.Generator) -> Made:
    """Ten times as large, dark on white, compressed hard."""
    return large(255 - image), {"format": "JPEG", "quality": 30}


def coloured(image: np.ndarray, rng: np.random.Generator) -> Made:
    """A colour on another one that is lighter or darker."""
    import numpy as np

    paper, ink = rng.integers(0, 256, (2, 3))
    while abs((paper - ink) @ (0.299, 0.587, 0.114)) < 80:
        ink = rng.integers(0, 256, 3)
    return colours(np.asarray(large(image)), paper, ink), PNG


def transparent(image: np.ndarray, _: np.random.Generator) -> Made:
    """Black ink on nothing, as drawing programs save it."""
    from PIL import Image

    picture = Image.new("RGBA", (280, 280))
    picture.putalpha(large(image))
    return picture, PNG


def photo(image: np.ndarray, rng: np.random.Generator) -> Made:
    """Blue ink on cream paper, a round shadow that takes 60 % of the light, noise, JPEG."""
    import numpy as np
    from PIL import Image

    paper = np.array(colours(np.asarray(large(image)), (235, 230, 215), (40, 45, 90)), float)
    y, x = np.mgrid[:280, :280] / 280
    centre_y, centre_x = rng.random(2)
    light = 1 - 0.6 * np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / 0.18)
    seen = paper * light[..., None] + rng.normal(0, 6, paper.shape)
    return Image.fromarray(seen.clip(0, 255).astype(np.uint8)), JPEG


def squared(image: np.ndarray, _: np.random.Generator) -> Made:
    """On squared paper."""
    import numpy as np
    from PIL import Image

    pixels = np.array(colours(np.asarray(large(image)), (250, 250, 245), (30, 30, 60)))
    lines = np.full_like(pixels, 255)
    lines[7::20] = lines[:, 7::20] = (170, 190, 220)
    return Image.fromarray(np.minimum(pixels, lines)), PNG


def turned(image: np.ndarray, _: np.random.Generator) -> Made:
    """Lying on its side, with the note in the EXIF data that says so."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned clockwise
    return large(255 - image).transpose(Image.Transpose.ROTATE_90), {**JPEG, "exif": exif}


def grey(image: np.ndarray) -> Image.Image:
    """The pixels as a picture."""
    from PIL import Image

    return Image.fromarray(image)


def large(image: np.ndarray) -> Image.Image:
    """Ten times as large, smoothly."""
    from PIL import Image

    return grey(image).resize((280, 280), Image.Resampling.BICUBIC)


def colours(ink: np.ndarray, paper: Any, pen: Any) -> Image.Image:
    """The ink, 0 to 255, in one colour on paper of another."""
    import numpy as np

    share = ink[..., None] / 255
    return grey(np.round(np.asarray(paper) * (1 - share) + np.asarray(pen) * share).astype("uint8"))


PNG, JPEG = {"format": "PNG"}, {"format": "JPEG"}
Made = tuple["Image.Image", dict[str, Any]]  # a picture, and how to save it
Variant = Callable[["np.ndarray", "np.random.Generator"], Made]
VARIANTS: dict[str, Variant] = {
    "PNG": as_png,
    "PNG, inverted": inverted,
    "PNG, inverted, 10 times as large": enlarged,
    "PNG, shifted anywhere in 56x56": shifted,
    "JPEG": as_jpeg,
    "JPEG of quality 30, inverted, 10 times as large": large_jpeg,
    "PNG, any colour on any other": coloured,
    "PNG, black on transparent": transparent,
    "JPEG, a photo with a shadow and noise": photo,
    "PNG, on squared paper": squared,
    "JPEG, turned by EXIF": turned,
}


if __name__ == "__main__":
    run(main, Config, __doc__)
