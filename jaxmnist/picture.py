"""Picture files as arrays of colours: any format that people have, upright, at a working size."""

import contextlib
import logging
import math
import os
import warnings
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from jaxmnist.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 2**26  # 67 million: what today's cameras take, in 0.6 GB of memory at most
MAX_MOVING = 2**24  # of an animation, whose decoders hold several whole pictures at once
MAX_SIDE = 2**16  # JPEG's; Pillow takes much memory for each row, however short
# Pillow reads more; but for EPS it would start another program, and the others are no pictures
# that a person has.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
WORK = 800  # pixels: a larger picture is shrunk by a whole number to about this, 1200 at most

# Where nobody has set up logging, Python prints what Pillow logs about a damaged file.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def read_picture(path: str | os.PathLike[str]) -> Float32[np.ndarray, "h w 3"]:
    """A picture file's colours, from 0 to 1, upright and shrunk to about WORK pixels a side.

    Of an animation or several pages the first is taken; what is transparent becomes paper. Raises
    a DataError where the file is missing, damaged, of no format in FORMATS, or has more pixels than
    MAX_PIXELS, MAX_MOVING and MAX_SIDE allow, which is checked before it is decoded.
    """
    import PIL
    from PIL import Image

    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow finds odd, but can read
            with Image.open(path, formats=formats) as image:
                most = MAX_MOVING if getattr(image, "is_animated", False) else MAX_PIXELS
                if math.prod(image.size) > most or max(image.size) > MAX_SIDE:
                    raise Image.DecompressionBombError
                image.load()
                return _colours(image)
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: larger than {MAX_PIXELS:,} pixels ({MAX_MOVING:,} for an animation, "
            f"{MAX_SIDE:,} a side), which is the limit; shrink it first"
        ) from error
    except PIL.UnidentifiedImageError as error:
        raise DataError(f"{path}: {_why_unknown(path, formats)}") from error
    except Exception as error:  # on damaged files the decoders raise errors of a dozen kinds
        if isinstance(error, OSError) and error.errno:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        raise DataError(f"{path}: damaged or cut short, it cannot be decoded") from error


def _why_unknown(path: str | os.PathLike[str], formats: list[str]) -> str:
    with open(path, "rb") as file:
        start = file.read(12)
    if not start:
        return "is empty"
    if start[4:8] == b"ftyp" and start[8:] in HEIC:
        return (
            "is a HEIC picture, which is not supported; convert it to JPEG, by `heif-convert` or "
            "ImageMagick's `magick`, or set the iPhone's camera to Most Compatible"
        )
    return f"is no picture in one of {', '.join(formats)}"


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
    return _on_paper(pixels) if transparent else pixels


def _on_paper(pixels: Float32[np.ndarray, "h w 4"]) -> Float32[np.ndarray, "h w 3"]:
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
