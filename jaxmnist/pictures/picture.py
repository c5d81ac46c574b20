"""A picture of any kind as grey levels: a file, a PIL image or an array, at a working size."""

import contextlib
import io
import logging
import math
import os
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxmnist.errors import DataError

Source = str | os.PathLike[str] | io.BufferedIOBase | Image.Image | np.ndarray
MAX_PIXELS = 2**26  # 67 million: today's cameras
MAX_MOVING = 2**24  # of an animation, whose decoders hold several whole pictures at once
MAX_SIDE = 2**16  # JPEG's; Pillow takes much memory for each row, however short
# Pillow's reader of EPS would start another program; its other formats hold no pictures of people.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
WORK = 800  # pixels: a larger picture is shrunk by a whole number to about this, 1200 at most
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, of red, green, blue

# Where nobody has set up logging, Python prints what Pillow logs about a damaged file.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def read_picture(source: Source) -> Float32[np.ndarray, "h w"]:
    """A picture's grey levels, from 0 to 1, upright and shrunk to about WORK pixels a side.

    Of an animation or several pages the first is taken; what is transparent becomes paper. A
    picture of 67 million pixels needs 0.4 GB of memory, 0.5 GB with alpha.

    Args:
        source: a path, a binary file, a PIL image, or an array [h, w], [h, w, 3] or [h, w, 4] of
            uint8, of bool, or of floats from 0 to 1.

    Raises:
        DataError: the file is damaged, of no format in FORMATS, or larger than MAX_PIXELS,
            MAX_MOVING and MAX_SIDE allow, which is checked before it is decoded.
        OSError: the file cannot be read.
        ValueError: the array is of another shape or type, or not finite.
    """
    if isinstance(source, Image.Image):
        return _grey(source)
    if hasattr(source, "__array__"):
        return _grey(Image.fromarray(_bytes(np.asarray(source))))
    # Read whole: Pillow would ask for as much memory as a damaged file claims to hold.
    if isinstance(source, str | os.PathLike):
        name, content = os.fspath(source), Path(source).read_bytes()
    else:
        name, content = "the picture", source.read()
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow finds odd, but can read
            with Image.open(io.BytesIO(content), formats=formats) as image:
                most = MAX_MOVING if getattr(image, "is_animated", False) else MAX_PIXELS
                if math.prod(image.size) > most or max(image.size) > MAX_SIDE:
                    raise Image.DecompressionBombError
                image.load()
                return _grey(image)
    except Image.DecompressionBombError as error:
        limits = f"{MAX_PIXELS:,} pixels ({MAX_MOVING:,} if it moves, {MAX_SIDE:,} a side)"
        raise DataError(f"{name}: larger than {limits}, the limit; shrink it first") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: {_why_unknown(content)}") from error
    except Exception as error:  # on damaged files the decoders raise errors of a dozen kinds
        raise DataError(f"{name}: damaged or cut short, it cannot be decoded") from error


def _bytes(array: np.ndarray) -> UInt8[np.ndarray, "h w *c"]:
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)) or not array.size:
        raise ValueError(f"an array must be [h, w], [h, w, 3] or [h, w, 4], not {array.shape}")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "bf" or not (0 <= array.min() <= array.max() <= 1):
        raise ValueError("an array must be of uint8, of bool, or of floats from 0 to 1")
    return np.round(array * np.float32(255)).astype(np.uint8)


def _why_unknown(content: bytes) -> str:
    if not content:
        return "is empty"
    if content[4:8] == b"ftyp" and content[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        return "is a HEIC picture; convert it to JPEG, or set the iPhone to Most Compatible"
    return f"is no picture in one of {', '.join(FORMATS)}"


def _grey(image: Image.Image) -> Float32[np.ndarray, "h w"]:
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits of grey, which Pillow would cut to 8
        grey = _shrunk(image, "F")
        grey = grey / max(1.0, np.abs(grey).max())
        if not np.isfinite(grey).all():
            raise ValueError("values that are not finite")
    elif image.has_transparency_data:
        grey = _on_paper(_shrunk(image, "RGBA") / np.float32(255))
    else:
        grey = _shrunk(image, "RGB") @ np.array(GREY, np.float32) / np.float32(255)
    with contextlib.suppress(Exception):  # damaged metadata do not make a picture useless
        small, exif = Image.fromarray(grey.astype(np.float32)), image.getexif()
        small.getexif()[0x0112] = exif.get(0x0112, 1)  # its orientation
        grey = np.asarray(ImageOps.exif_transpose(small))
    return np.asarray(grey, np.float32)


def _shrunk(image: Image.Image, mode: str) -> Float32[np.ndarray, "h w *c"]:
    """The picture at its working size; made in strips, since a converted copy takes memory."""
    factor, (width, height) = max(1, round(max(image.size) / WORK)), image.size
    strips = [
        image.crop((0, y, width, min(height, y + 64 * factor))).convert(mode).reduce(factor)
        for y in range(0, height, 64 * factor)
    ]
    return np.concatenate([np.asarray(strip, np.float32) for strip in strips])


def _on_paper(pixels: Float32[np.ndarray, "h w 4"]) -> Float32[np.ndarray, "h w"]:
    grey, alpha = pixels[..., :3] @ np.array(GREY, np.float32), pixels[..., 3]
    visible = grey[alpha >= 0.5 * alpha.max()]
    drawn = np.ptp(visible) < 0.25 or alpha.mean() < 0.5  # on nothing, or paper with holes
    paper = float(visible.mean() < 0.5) if drawn else np.median(visible)
    return grey * alpha + paper * (1 - alpha)
