"""How accurate a model stays on test images that come as pictures of other kinds.

Each image becomes a picture file: enlarged, inverted, shifted, coloured, compressed, photographed.
The way of scripts/predict.py from a file to an MNIST image reads it back.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import contextlib
import dataclasses
import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _cli as cli
from _options import WARNING, SeededDataOptions, Weights, at_least, load, wrong
from _tables import markdown

if TYPE_CHECKING:  # the functions import what they use, so that --help does not wait for JAX
    import numpy as np
    from PIL import Image


@dataclasses.dataclass(frozen=True)
class Options:
    """The options."""

    weights: Weights
    """A weights file, or the directory that scripts/train.py --out wrote."""
    images: int = 1000
    """How many test images, chosen at random."""
    data: SeededDataOptions = SeededDataOptions()

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is loaded."""
        at_least(1, images=self.images)


def main(options: Options) -> None:
    """Make the pictures, read them, predict, print a table."""
    import jax
    import numpy as np

    from jaxmnist.predict import load_model, predict

    jax.config.update("jax_platforms", "cpu")  # less work than waking an accelerator
    model, params = load_model(options.weights)
    seed = options.data.seed
    data = load(options.data, seed)
    n = len(data.test.labels)
    if options.images > n:
        wrong(f"--images {options.images} is above the {n:,} test images")
    print(f"Data: {data.source}, {options.images:,} of {n:,} test images\n", flush=True)
    chosen = np.random.default_rng(seed).choice(n, options.images, replace=False)
    images, labels = (np.asarray(part)[chosen] for part in data.test)

    def count_right(images: np.ndarray) -> int:
        probabilities = np.asarray(predict(model.apply, params, images))
        return int((probabilities.argmax(axis=1) == labels).sum())

    counts = {"none: the test images themselves": count_right(images)}
    seeds = [(seed, int(index)) for index in chosen]  # the same picture in any sample
    for name, read in read_variants(images, seeds).items():
        counts[name] = count_right(read)
    print(table(counts, len(images)))
    if data.missing:
        print(f"\n{WARNING}", file=sys.stderr)


def read_variants(images: np.ndarray, seeds: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """For each kind of picture, the images made into such files and read back."""
    import numpy as np
    import tqdm

    result, context = {}, multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(mp_context=context) as pool,
        tqdm.tqdm(total=len(VARIANTS) * len(images), leave=False, disable=None) as bar,
    ):
        try:
            for name in VARIANTS:
                with interrupts_blocked():
                    pending = pool.map(through_a_file, repeat(name), images, seeds, chunksize=20)
                read = []
                for image in pending:
                    read.append(image)
                    bar.update()
                result[name] = np.stack(read)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # or else all the pictures are still made
            raise
    return result


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Processes that are started here leave Ctrl-C, which a terminal sends to all, to this one."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def table(counts: dict[str, int], n: int) -> str:
    """The accuracy on each kind of picture, and its difference to the first."""
    from scipy.stats import binomtest

    rows = [["pictures", "accuracy", "95 % interval", "to plain, points"]]
    plain = next(iter(counts.values()))
    for name, count in counts.items():
        low, high = binomtest(count, n).proportion_ci(method="wilson")
        points = 100 * (count - plain) / n
        rows.append([name, f"{count / n:.2%}", f"{low:.2%} to {high:.2%}", f"{points:+.2f}"])
    return markdown(rows)


def through_a_file(name: str, image: np.ndarray, seed: tuple[int, int]) -> np.ndarray:
    """The picture that VARIANTS[name] makes of the image, saved and read back."""
    import numpy as np

    from jaxmnist.predict import read_image

    picture, options = VARIANTS[name](image, np.random.default_rng(seed))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "picture")
        picture.save(path, **options)
        return read_image(path)


def shifted(image: np.ndarray, rng: np.random.Generator) -> Made:
    """Anywhere in a picture of 56x56."""
    from PIL import Image

    picture = Image.new("L", (56, 56))
    picture.paste(grey(image), tuple(rng.integers(0, 29, 2).tolist()))
    return picture, PNG


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
    "PNG": lambda image, _: (grey(image), PNG),
    "PNG, inverted": lambda image, _: (grey(255 - image), PNG),
    "PNG, inverted, 10 times as large": lambda image, _: (large(255 - image), PNG),
    "PNG, shifted anywhere in 56x56": shifted,
    "JPEG": lambda image, _: (grey(image), JPEG),
    "JPEG of quality 30, inverted, 10 times as large": lambda image, _: (
        large(255 - image),
        {**JPEG, "quality": 30},
    ),
    "PNG, any colour on any other": coloured,
    "PNG, black on transparent": transparent,
    "JPEG, a photo with a shadow and noise": photo,
    "PNG, on squared paper": squared,
    "JPEG, turned by EXIF": turned,
}


if __name__ == "__main__":
    cli.run(main, Options, __doc__, result_on_stdout=True)
