"""MNIST images as pictures of other kinds: enlarged, shifted, coloured, compressed, photographed.

What a model must be able to read that is given pictures by people.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from jaxmnist.pictures.predict import read_image

Digit: TypeAlias = UInt8[np.ndarray, "28 28"]
PNG, JPEG = {"format": "PNG"}, {"format": "JPEG"}
Made: TypeAlias = tuple[Image.Image, dict[str, Any]]  # a picture, and how to save it
Kind: TypeAlias = Callable[[Digit, np.random.Generator], Made]


def through_a_file(name: str, image: Digit, seed: tuple[int, int]) -> Digit:
    """The picture that `KINDS[name]` makes of an MNIST image, saved and read back; 0 if blank."""
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


def cropped(image: Digit) -> Digit:
    """As large as `large`, without what is around the digit."""
    pixels = np.asarray(large(image))
    rows, columns = (np.flatnonzero((pixels > 64).any(axis)) for axis in (1, 0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def two_valued(image: Digit, _: np.random.Generator) -> Made:
    """Cropped tightly, black and white."""
    return grey(np.where(cropped(image) > 127, 0, 255).astype(np.uint8)), PNG


def boxed(image: Digit, line: int) -> Made:
    """In a box of a form, with paper around it."""
    picture = Image.new("L", (400, 400), 255)
    picture.paste(large(255 - image), (60, 60))
    ImageDraw.Draw(picture).rectangle((50, 50, 350, 350), outline=0, width=line)
    return picture, PNG


def underlined(image: Digit, rng: np.random.Generator) -> Made:
    """Underlined by hand, more or less thickly."""
    picture = Image.new("L", (400, 400), 255)
    picture.paste(large(255 - image), (60, 40))
    y, slope, line = int(rng.integers(300, 330)), int(rng.integers(-6, 7)), int(rng.integers(4, 20))
    ImageDraw.Draw(picture).line((80, y, 320, y + slope), 0, line)
    return picture, PNG


def plotted(image: Digit, _: np.random.Generator) -> Made:
    """As matplotlib's imshow shows it, with axes, ticks and numbers."""
    picture = Image.new("L", (360, 340), 255)
    picture.paste(large(image), (50, 20))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((49, 19, 330, 300), outline=0)
    for tick in range(0, 28, 5):
        at = 25 + 10 * tick
        pen.line((at + 30, 300, at + 30, 304), 0)
        pen.line((45, at, 49, at), 0)
        pen.text((at + 26, 308), str(tick), 0)
        pen.text((28, at - 5), str(tick), 0)
    return picture, PNG


def black_squared(image: Digit, rng: np.random.Generator) -> Made:
    """On squared paper as black as the pen."""
    pixels, first = np.array(large(255 - image)), int(rng.integers(0, 28))
    for line in range(int(rng.integers(1, 4))):
        for lines in (pixels[first + line :: 28], pixels[:, first + line :: 28]):
            np.minimum(lines, 30, out=lines)
    return grey(pixels), PNG


def on_a_page(image: Digit, rng: np.random.Generator, dark: float) -> Made:
    """Somewhere on a photographed A4 page, 5 to 30 mm high, by `dark` grey levels darker."""
    side = int(rng.integers(50, 280))
    pen = np.asarray(grey(image).resize((side, side), Image.Resampling.BICUBIC)) / np.float32(255)
    page = np.full((2000, 1500), 235, np.float32)
    y, x = int(rng.integers(100, 1900 - side)), int(rng.integers(100, 1400 - side))
    page[y : y + side, x : x + side] -= dark * pen
    page = ndimage.gaussian_filter(page, 0.8) * np.linspace(0.75, 1, 1500, dtype=np.float32)
    page += rng.normal(0, 5, page.shape)
    return grey(page.clip(0, 255).astype(np.uint8)), JPEG


def on_a_desk(image: Digit, rng: np.random.Generator, degrees: float) -> Made:
    """On a sheet that lies on a dark desk."""
    sheet, pen = Image.new("RGB", (560, 760), (240, 238, 230)), large(image)
    place = int(rng.integers(20, 260)), int(rng.integers(20, 460))
    sheet.paste((30, 30, 80), place, pen)
    whole = Image.new("L", sheet.size, 255)
    sheet, whole = (
        part.rotate(degrees, Image.Resampling.BICUBIC, expand=True) for part in (sheet, whole)
    )
    desk = Image.new("RGB", (900, 1100), (70, 50, 40))
    desk.paste(sheet, (int(rng.integers(40, 200)), int(rng.integers(40, 200))), whole)
    pixels = np.asarray(desk) + rng.normal(0, 5, (1100, 900, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), JPEG


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
    "PNG, cropped tightly, dark on light": lambda image, _: (grey(255 - cropped(image)), PNG),
    "PNG, cropped tightly, light on dark": lambda image, _: (grey(cropped(image)), PNG),
    "PNG, cropped tightly, black and white": two_valued,
    "PNG, in a box with a thick line": lambda image, _: boxed(image, 14),
    "PNG, in a box with a thin line": lambda image, _: boxed(image, 3),
    "PNG, underlined": underlined,
    "PNG, in a plot with axes": plotted,
    "PNG, on squared paper as black as the pen": black_squared,
    "JPEG, pencil on a whole page": lambda image, rng: on_a_page(image, rng, 60),
    "JPEG, ball pen on a whole page": lambda image, rng: on_a_page(image, rng, 160),
    "JPEG, a sheet on a dark desk": lambda image, rng: on_a_desk(image, rng, 0),
    "JPEG, a sheet on a dark desk, turned": lambda image, rng: on_a_desk(image, rng, 8),
}
