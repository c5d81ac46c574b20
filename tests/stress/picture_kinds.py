"""MNIST's test images as pictures of other kinds, and how well a model reads each: a table.

python -m tests.stress.picture_kinds RUN [IMAGES]
"""

import io
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import tqdm
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from jaxmnist import load_mnist
from jaxmnist.pictures import load_reader

Digit: TypeAlias = UInt8[np.ndarray, "28 28"]
Picture: TypeAlias = Image.Image
Kind: TypeAlias = Callable[[Digit, np.random.Generator], Picture]


def main(run: str, images: str = "200") -> None:
    """Read this many test images as pictures of each kind."""
    reader, test = load_reader(run), load_mnist()[1]
    print(f"| {'kind':50} | right |\n| {'-' * 50} | ----: |")
    for name, make in KINDS.items():
        right = 0
        for k in tqdm.trange(int(images), leave=False, disable=None):
            file, picture = io.BytesIO(), make(test.images[k], np.random.default_rng(k))
            quality = 30 if "quality 30" in name else 85
            picture.save(file, name[:4].strip(","), quality=quality, exif=picture.getexif())
            right += reader.read(file).digit == test.labels[k]
        print(f"| {name:50} | {right / int(images):5.1%} |", flush=True)


def shifted(image: Digit, rng: np.random.Generator) -> Picture:
    """Anywhere in a picture of 56x56."""
    picture = Image.new("L", (56, 56))
    picture.paste(grey(image), tuple(rng.integers(0, 29, 2).tolist()))
    return picture


def coloured(image: Digit, rng: np.random.Generator) -> Picture:
    """A colour on another one that is lighter or darker."""
    paper, ink = rng.integers(0, 256, (2, 3))
    while abs((paper - ink) @ (0.299, 0.587, 0.114)) < 80:
        ink = rng.integers(0, 256, 3)
    return colours(np.asarray(large(image)), paper, ink)


def transparent(image: Digit, _: np.random.Generator) -> Picture:
    """Black ink on nothing, as drawing programs save it."""
    picture = Image.new("RGBA", (280, 280))
    picture.putalpha(large(image))
    return picture


def photo(image: Digit, rng: np.random.Generator) -> Picture:
    """Blue ink on cream paper, a round shadow that takes 60 % of the light, noise."""
    paper = np.array(colours(np.asarray(large(image)), (235, 230, 215), (40, 45, 90)), float)
    y, x = np.mgrid[:280, :280] / 280
    centre_y, centre_x = rng.random(2)
    light = 1 - 0.6 * np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / 0.18)
    return grey(paper * light[..., None] + rng.normal(0, 6, paper.shape))


def squared(image: Digit, _: np.random.Generator) -> Picture:
    """On squared paper."""
    pixels = np.array(colours(np.asarray(large(image)), (250, 250, 245), (30, 30, 60)))
    lines = np.full_like(pixels, 255)
    lines[7::20] = lines[:, 7::20] = (170, 190, 220)
    return grey(np.minimum(pixels, lines))


def black_squared(image: Digit, rng: np.random.Generator) -> Picture:
    """On squared paper as black as the pen."""
    pixels, first = np.array(large(255 - image)), int(rng.integers(0, 28))
    for line in range(int(rng.integers(1, 4))):
        for lines in (pixels[first + line :: 28], pixels[:, first + line :: 28]):
            np.minimum(lines, 30, out=lines)
    return grey(pixels)


def turned(image: Digit, _: np.random.Generator) -> Picture:
    """Lying on its side, with the note in the EXIF data that says so."""
    picture = large(255 - image).transpose(Image.Transpose.ROTATE_90)
    picture.getexif()[0x0112] = 6  # orientation: to be turned clockwise
    return picture


def cropped(image: Digit) -> Digit:
    """As large as `large`, without what is around the digit."""
    pixels = np.asarray(large(image))
    rows, columns = (np.flatnonzero((pixels > 64).any(axis)) for axis in (1, 0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def on_paper(image: Digit) -> tuple[Picture, ImageDraw.ImageDraw]:
    """With paper around it, and a pen."""
    picture = Image.new("L", (400, 400), 255)
    picture.paste(large(255 - image), (60, 50))
    return picture, ImageDraw.Draw(picture)


def boxed(image: Digit, line: int) -> Picture:
    """In a box of a form."""
    picture, pen = on_paper(image)
    pen.rectangle((50, 40, 350, 340), outline=0, width=line)
    return picture


def underlined(image: Digit, rng: np.random.Generator) -> Picture:
    """Underlined by hand, more or less thickly."""
    picture, pen = on_paper(image)
    y, slope, line = (int(rng.integers(*ends)) for ends in ((310, 340), (-6, 7), (4, 20)))
    pen.line((80, y, 320, y + slope), 0, line)
    return picture


def on_a_page(image: Digit, rng: np.random.Generator, dark: float) -> Picture:
    """Somewhere on a photographed A4 page, 5 to 30 mm high, by `dark` grey levels darker."""
    side = int(rng.integers(50, 280))
    pen = np.asarray(grey(image).resize((side, side), Image.Resampling.BICUBIC)) / np.float32(255)
    page = np.full((2000, 1500), 235, np.float32)
    y, x = int(rng.integers(100, 1900 - side)), int(rng.integers(100, 1400 - side))
    page[y : y + side, x : x + side] -= dark * pen
    page = ndimage.gaussian_filter(page, 0.8) * np.linspace(0.75, 1, 1500, dtype=np.float32)
    return grey(page + rng.normal(0, 5, page.shape))


def on_a_desk(image: Digit, rng: np.random.Generator, degrees: float) -> Picture:
    """On a sheet that lies on a dark desk."""
    sheet, pen = Image.new("RGBA", (560, 760), (240, 238, 230)), large(image)
    sheet.paste((30, 30, 80), (int(rng.integers(20, 260)), int(rng.integers(20, 460))), pen)
    sheet = sheet.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    desk = Image.new("RGB", (900, 1100), (70, 50, 40))
    desk.paste(sheet, (int(rng.integers(40, 200)), int(rng.integers(40, 200))), sheet)
    return grey(np.asarray(desk) + rng.normal(0, 5, (1100, 900, 3)))


def grey(pixels: np.ndarray) -> Picture:
    """The pixels as a picture."""
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def large(image: Digit) -> Picture:
    """Ten times as large, smoothly."""
    return grey(image).resize((280, 280), Image.Resampling.BICUBIC)


def colours(ink: np.ndarray, paper: Any, pen: Any) -> Picture:
    """The ink, 0 to 255, in one colour on paper of another."""
    share = ink[..., None] / 255
    return grey(np.round(np.asarray(paper) * (1 - share) + np.asarray(pen) * share))


KINDS: dict[str, Kind] = {
    "PNG": lambda image, _: grey(image),
    "PNG, inverted": lambda image, _: grey(255 - image),
    "PNG, inverted, 10 times as large": lambda image, _: large(255 - image),
    "PNG, shifted anywhere in 56x56": shifted,
    "JPEG": lambda image, _: grey(image),
    "JPEG of quality 30, inverted, 10 times as large": lambda image, _: large(255 - image),
    "PNG, any colour on any other": coloured,
    "PNG, black on transparent": transparent,
    "JPEG, a photo with a shadow and noise": photo,
    "PNG, on squared paper": squared,
    "PNG, on squared paper as black as the pen": black_squared,
    "JPEG, turned by EXIF": turned,
    "PNG, cropped tightly, dark on light": lambda image, _: grey(255 - cropped(image)),
    "PNG, cropped tightly, light on dark": lambda image, _: grey(cropped(image)),
    "PNG, cropped tightly, black and white": lambda image, _: grey(255.0 * (cropped(image) < 128)),
    "PNG, in a box with a thick line": lambda image, _: boxed(image, 14),
    "PNG, in a box with a thin line": lambda image, _: boxed(image, 3),
    "PNG, underlined": underlined,
    "JPEG, pencil on a whole page": lambda image, rng: on_a_page(image, rng, 60),
    "JPEG, ball pen on a whole page": lambda image, rng: on_a_page(image, rng, 160),
    "JPEG, a sheet on a dark desk": lambda image, rng: on_a_desk(image, rng, 0),
    "JPEG, a sheet on a dark desk, turned": lambda image, rng: on_a_desk(image, rng, 8),
}

if __name__ == "__main__":
    main(*sys.argv[1:])
