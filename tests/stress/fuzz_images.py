"""Pictures as a target of tests.stress.fuzz, with a reader of simple PNGs that is not Pillow's."""

from __future__ import annotations

import io
import random
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from jaxmnist.predict import read_image
from tests.stress.fuzz_targets import Case
from tests.stress.mutations import ANYWHERE, damage, edit_png

# Chunks that say nothing about the pixels as they are stored.
SILENT = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tEXt", b"zTXt", b"iTXt", b"pHYs", b"tIME"}


class Images:
    """Pictures in Pillow's common formats: jaxmnist.predict.read_image."""

    def __init__(self) -> None:
        grey = np.full((40, 32), 230, np.uint8)
        grey[6:34, 14:18] = 20
        grey[6:10, 8:18] = 40
        picture = Image.fromarray(grey)
        kinds = [("PNG", mode) for mode in ("L", "RGB", "P", "1", "I;16", "RGBA", "LA")] * 2
        kinds += [("JPEG", "L"), ("JPEG", "RGB"), ("GIF", "P"), ("BMP", "RGB"), ("PPM", "RGB")]
        kinds += [("TIFF", "L"), ("TIFF", "RGB")]
        kinds += [("WEBP", "RGB")] if features.check("webp") else []
        self._originals = []
        for kind, mode in kinds:
            buffer = io.BytesIO()
            picture.convert(mode).save(buffer, kind)
            self._originals.append((f"x.{kind.lower()}", buffer.getvalue()))

    def make(self, rng: random.Random) -> Case:
        """Damaged anywhere; a PNG mostly in its chunks."""
        name, original = rng.choice(self._originals)
        mutations = (*ANYWHERE, *[edit_png] * 12) if name == "x.png" else ANYWHERE
        return Case(name, damage(rng, original, mutations), original)

    def read(self, path: Path, case: Case) -> Any:
        """The image as the model sees it."""
        return read_image(path)

    def is_right(self, case: Case, result: Any) -> bool:
        """Whether it is an image; for a simple PNG the one that its pixels give as a PPM."""
        if (result.shape, result.dtype) != ((28, 28), np.uint8) or result.max() == 0:
            return False
        pixels = read_png(case.content) if case.name == "x.png" else None
        if pixels is None:
            return True
        height, width, _ = pixels.shape
        with tempfile.NamedTemporaryFile(suffix=".ppm") as file:
            file.write(b"P6 %d %d 255\n" % (width, height) + pixels.tobytes())
            file.flush()
            return np.array_equal(read_image(Path(file.name)), result)


def read_png(content: bytes) -> np.ndarray | None:
    """The pixels, u8 [h, w, 3], of a PNG with 8 bits, no transparency, no interlacing, not large.

    None for any other. See https://www.w3.org/TR/png-3/, 9.2 for the filters.
    """
    header, palette, packed = b"", b"", b""
    for kind, data in _chunks(content):
        if kind not in SILENT or (kind == b"IHDR" and header) or (kind == b"PLTE" and palette):
            return None
        header = data if kind == b"IHDR" else header
        palette = data if kind == b"PLTE" else palette
        packed += data if kind == b"IDAT" else b""
    if len(header) != 13:
        return None
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", header)
    if (
        depth != 8
        or colour not in (0, 2, 3)
        or rest != [0, 0, 0]
        or not 0 < width * height < 10_000
    ):
        return None
    step = 3 if colour == 2 else 1  # bytes a pixel
    size = height * (width * step + 1)
    # Where the compressed data end early, Pillow takes the rest for zeros, as most viewers do.
    raw = zlib.decompressobj().decompress(packed, size).ljust(size, b"\0")
    rows = np.frombuffer(raw, np.uint8).reshape(height, width * step + 1).astype(int)
    pixels = np.zeros((height + 1, (width + 1) * step), int)  # with zeros above and to the left
    for y, (kind, *row) in enumerate(rows.tolist(), start=1):
        for x, value in enumerate(row, start=step):
            left, above, corner = pixels[y, x - step], pixels[y - 1, x], pixels[y - 1, x - step]
            paeth = min((left, above, corner), key=lambda near: abs(left + above - corner - near))
            guess = (0, left, above, (left + above) // 2, paeth)[kind]
            pixels[y, x] = (value + guess) % 256
    found = pixels[1:, step:].reshape(height, width, step).astype(np.uint8)
    if colour == 3:
        colours = np.frombuffer(palette[: len(palette) // 3 * 3], np.uint8).reshape(-1, 3)
        return None if found.max() >= len(colours) else colours[found[..., 0]]
    return np.broadcast_to(found, (height, width, 3))


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        kind = content[at + 4 : at + 8]
        yield kind, content[at + 8 : at + 8 + size]
        if kind == b"IEND":
            return
        at += 12 + size
