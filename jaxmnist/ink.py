"""The ink in a picture of a digit: any size, any colours, a photo, a scan or a drawing.

`read_picture` decodes a file, `ink_of` finds what is written in it.
"""

import contextlib
import logging
import math
import os
import warnings
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Float32

from jaxmnist.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 2**26  # 67 million: what today's cameras take, in 0.6 GB of memory at most
# Pillow reads more; but for EPS it would start another program, and the others are no pictures
# that a person has.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
WORK = 240  # pixels: a larger picture is shrunk by a whole number to about this, 360 at most
LARGE = 64  # pixels a side; up to there a picture is left as it is
CONTRAST = 0.1  # of ink and paper, as a distance of colours; below it a picture is blank
MARGIN = 0.08  # of each side, that does not count for which colour is the ink's
SHARP = (0.1, 0.7)  # in a large picture ink of less than the first is none, from the second on full
BOX = 20  # pixels of a digit's longer side in an MNIST image
STROKE = 2.4  # pixels, the median width of MNIST's strokes

# Where nobody has set up logging, Python prints what Pillow logs about a damaged file.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def read_picture(path: str | os.PathLike[str]) -> Float32[np.ndarray, "h w 3"]:
    """A picture file's colours, from 0 to 1, upright and shrunk to about WORK pixels a side.

    Of an animation or several pages the first is taken; what is transparent becomes paper. Raises
    a DataError where the file is missing, damaged, of no format in FORMATS, or has more than
    MAX_PIXELS, which is checked before it is decoded.
    """
    from PIL import Image

    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow finds odd, but can read
            with Image.open(path, formats=formats) as image:
                if math.prod(image.size) > MAX_PIXELS:
                    raise Image.DecompressionBombError
                image.load()
                return _colours(image)
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: larger than {MAX_PIXELS:,} pixels, which is the limit; shrink it first"
        ) from error
    except Image.UnidentifiedImageError as error:
        empty = os.path.isfile(path) and os.path.getsize(path) == 0
        problem = "is empty" if empty else f"is no picture in one of {', '.join(formats)}"
        raise DataError(f"{path}: {problem}") from error
    except Exception as error:  # on damaged files the decoders raise errors of a dozen kinds
        if isinstance(error, OSError) and error.errno:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        raise DataError(f"{path}: damaged or cut short, it cannot be decoded") from error


def _colours(image: "Image.Image") -> Float32[np.ndarray, "h w 3"]:
    from PIL import ImageOps

    with contextlib.suppress(Exception):  # damaged metadata do not make a picture useless
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits of grey, which Pillow would cut to 8
        grey = np.asarray(_shrink(image.convert("F")), np.float32)
        if not np.isfinite(grey).all():
            raise ValueError("values that are not finite")
        grey = grey / max(1.0, np.abs(grey).max())
        return np.repeat(grey[..., None], 3, axis=2)
    transparent = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    pixels = np.asarray(_shrink(image.convert("RGBA" if transparent else "RGB")), np.float32) / 255
    if not transparent:
        return pixels
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    visible = colours[alpha[..., 0] > 0.5 * alpha.max()]
    if not len(visible):
        return np.zeros_like(colours)
    if np.ptp(visible, axis=0).max() < 0.25 or alpha.mean() < 0.5:  # ink that is drawn on nothing
        paper = np.float32(visible.mean() < 0.5)
    else:  # paper with holes, as a window with round corners
        paper = np.median(visible, axis=0)
    return colours * alpha + paper * (1 - alpha)


def _shrink(image: "Image.Image") -> "Image.Image":
    return image.reduce(max(1, round(max(image.size) / WORK)))


def ink_of(picture: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h2 w2"]:
    """How much ink is where in a picture of one digit, from 0 to 1; all 0 in a blank one.

    There is a margin around it, so that it may be larger than the picture.

    The ink is what differs from its surroundings and is the smaller part of them. So it may be dark
    on light or light on dark, in any two colours, on paper that is lit unevenly. Shadows' edges,
    specks and what reaches in from the border are left out where there is something else. Strokes
    thinner than MNIST's usual ones are thickened. Ink in a small picture, up to LARGE pixels a
    side, keeps its grey levels; in a larger one it is black or white but for the edges, as
    MNIST's digits were before they were shrunk.
    """
    from scipy import ndimage

    large = max(picture.shape[:2]) > LARGE
    smooth = ndimage.uniform_filter(picture, (3, 3, 1)) if large else picture  # against noise
    axis = _ink_colour(smooth)
    paper = _paper(smooth @ axis)
    ink = np.maximum(picture @ axis - paper, 0)
    if (axis < 0.1).all():  # dark on light: in the shade there is less light to take away
        ink *= np.median(paper) / np.minimum(paper, -0.05)
    level = (ndimage.uniform_filter(ink, 3) if large else ink).max()
    if level < CONTRAST:
        return np.zeros_like(ink)
    strong = _digit(ink / level)
    pitch = _pitch(strong)
    near = ndimage.maximum_filter(strong, 2 * max(1, round(pitch)) + 1)
    ink = np.where(near, ink / level, 0)
    ink = np.clip((ink - SHARP[0]) / (SHARP[1] - SHARP[0]), 0, 1) if large else ink / ink.max()
    return _thicken(ink, pitch).astype(np.float32)


def _ink_colour(picture: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, " 3"]:
    """The direction from the paper's colour to the ink's, a unit vector; 0 for a flat picture.

    It is the principal axis of the differences from a wide mean around each pixel. Its sign comes
    from their skewness: ink is less than paper, so it lies further away from the mean.
    """
    from scipy import ndimage

    height, width = picture.shape[:2]
    y, x = int(MARGIN * height), int(MARGIN * width)  # a scan's black border is no ink
    inner = picture[y : height - y, x : width - x]
    wide = max(1, max(inner.shape[:2]) // 2)
    difference = inner - ndimage.uniform_filter(inner, (wide, wide, 1), mode="nearest")
    difference = difference.reshape(-1, 3)
    axis = np.linalg.eigh(difference.T @ difference)[1][:, -1]
    return axis * np.sign(np.sum((difference @ axis) ** 3))


def _paper(darkness: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """What would be there without ink: what is dark in all of a window a quarter as wide."""
    from scipy import ndimage

    reach = max(1, round(min(darkness.shape) / 8))
    paper = ndimage.grey_opening(darkness, 2 * reach + 1, mode="nearest")
    return ndimage.uniform_filter(paper, 2 * (reach // 4) + 1, mode="nearest")


def _digit(ink: Float32[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Where the ink is strong: the parts that are no specks and, if there are any, no border."""
    from scipy import ndimage

    parts, count = ndimage.label(ink >= 0.5, np.ones((3, 3)))
    mass = ndimage.sum_labels(ink, parts, np.arange(count + 1))
    mass[0] = 0  # the rest of the picture
    inner = mass.copy()
    inner[np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])] = 0
    if inner.max() > 0.1 * mass.max():
        mass = inner
    return (mass > 0.1 * mass.max())[parts]


def _pitch(inside: Bool[np.ndarray, "h w"]) -> float:
    """How many pixels become one where a digit of this extent becomes MNIST's size."""
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    return (max(np.ptp(rows), np.ptp(columns)) + 1) / BOX


def _thicken(ink: Float[np.ndarray, "h w"], pitch: float) -> Float[np.ndarray, "h2 w2"]:
    """Strokes at least STROKE wide, where a pixel of MNIST's is `pitch` of these."""
    from scipy import ndimage

    ink = np.pad(ink, 1)
    # A stroke has its width in ink and two edges, at each of which the ink goes from 0 to 1.
    edges = np.hypot(np.diff(ink, axis=0)[:, :-1], np.diff(ink, axis=1)[:-1]).sum()
    reach = max(0, round((STROKE * pitch - 2 * ink.sum() / edges) / 2))
    return ndimage.maximum_filter(np.pad(ink, reach), 2 * reach + 1)
