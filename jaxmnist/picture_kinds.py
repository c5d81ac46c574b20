"""MNIST images as pictures of other kinds: enlarged, shifted, coloured, compressed, photographed.

What a model must be able to read that is given pictures by people; scripts/robustness.py measures
how much worse it gets.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxmnist.predict import read_image

Digit: TypeAlias = UInt8[np.ndarray, "28 28"]
PNG, JPEG = {"format": "PNG"}, {"format": "JPEG"}
Made: TypeAlias = tuple[Image.Image, dict[str, Any]]  # a picture, and how to save it
Kind: TypeAlias = Callable[[Digit, np.random.Generator], Made]


def through_a_file(name: str, image: Digit, seed: tuple[int, int]) -> Digit:
    """The picture that `KINDS[name]` makes of an MNIST image, saved in a file and read back."""
    picture, options = KINDS[name](image, np.random.default_rng(seed))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "picture")
        picture.save(path, **options)
        return read_image(path)


def shifted(image: Digit, rng: np.random.Generator) -> Made:
    """Anywhere in a picture of 56x56."""
    picture = Image.new("L", (56, 56))
    picture.paste(grey(image), tuple(rng.integers(0, 29, 2).tolist()))
    return picture, PNG


def coloured(image: Digit, rng: np.random.Generator) -> Made:
    """A colour on another one that is lighter or darker."""
    paper, ink = rng.integers(0, 256, (2, 3))
    while abs((paper - ink) @ (0.299, 0.587, 0.114)) < 80:
        ink = rng.integers(0, 256, 3)
    return colours(np.asarray(large(image)), paper, ink), PNG


def transparent(image: Digit, _: np.random.Generator) -> Made:
    """Black ink on nothing, as drawing programs save it."""
    picture = Image.new("RGBA", (280, 280))
    picture.putalpha(large(image))
    return picture, PNG


def photo(image: Digit, rng: np.random.Generator) -> Made:
    """Blue ink on cream paper, a round shadow that takes 60 % of the light, noise, JPEG."""
    paper = np.array(colours(np.asarray(large(image)), (235, 230, 215), (40, 45, 90)), float)
    y, x = np.mgrid[:280, :280] / 280
    centre_y, centre_x = rng.random(2)
    light = 1 - 0.6 * np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / 0.18)
    photo = paper * light[..., None] + rng.normal(0, 6, paper.shape)
    return Image.fromarray(photo.clip(0, 255).astype(np.uint8)), JPEG


def squared(image: Digit, _: np.random.Generator) -> Made:
    """On squared paper."""
    pixels = np.array(colours(np.asarray(large(image)), (250, 250, 245), (30, 30, 60)))
    lines = np.full_like(pixels, 255)
    lines[7::20] = lines[:, 7::20] = (170, 190, 220)
    return Image.fromarray(np.minimum(pixels, lines)), PNG


def turned(image: Digit, _: np.random.Generator) -> Made:
    """Lying on its side, with the note in the EXIF data that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned clockwise
    return large(255 - image).transpose(Image.Transpose.ROTATE_90), {**JPEG, "exif": exif}


def grey(image: Digit) -> Image.Image:
    """The pixels as a picture."""
    return Image.fromarray(image)


def large(image: Digit) -> Image.Image:
    """Ten times as large, smoothly."""
    return grey(image).resize((280, 280), Image.Resampling.BICUBIC)


def colours(ink: np.ndarray, paper: Any, pen: Any) -> Image.Image:
    """The ink, 0 to 255, in one colour on paper of another."""
    share = ink[..., None] / 255
    return grey(np.round(np.asarray(paper) * (1 - share) + np.asarray(pen) * share).astype("uint8"))


KINDS: dict[str, Kind] = {
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
