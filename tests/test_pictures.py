"""Every kind of picture file that people have shows the same digit, or is refused in words."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from jaxmnist.errors import DataError
from jaxmnist.pictures.picture import read_picture


def drawing():
    """A four, dark on light."""
    picture = Image.new("RGB", (320, 400), "white")
    for line in ([(110, 90), (90, 210), (230, 210)], [(200, 120), (190, 330)]):
        ImageDraw.Draw(picture).line(line, "black", width=26, joint="curve")
    return picture


FOUR = drawing()
GREY = FOUR.convert("L")


def cut_out(ink):
    clear = Image.new("RGBA", FOUR.size, (ink, ink, ink, 0))
    clear.putalpha(ImageOps.invert(GREY))
    return clear


def save(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned clockwise
    return save(FOUR.transpose(Image.Transpose.ROTATE_90), "TIFF", exif=exif)


FORMATS = {
    "16 bits": save(Image.fromarray(np.asarray(GREY, np.uint16) * 257)),
    "1 bit": save(FOUR.convert("1", dither=0)),
    "grey and alpha": save(FOUR.convert("LA")),
    "black on nothing": save(cut_out(0)),
    "a palette": save(FOUR.quantize(16)),
    "a transparent colour": save(FOUR.convert("1", dither=0).convert("P"), transparency=255),
    "JPEG in CMYK": save(FOUR.convert("CMYK"), "JPEG", quality=90),
    "turned by EXIF": turned(),
} | {kind: save(FOUR, kind) for kind in ("PNG", "GIF", "BMP", "PPM", "JPEG", "WEBP", "TIFF")}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_shows_the_same_digit(name):
    found = read_picture(io.BytesIO(FORMATS[name]))
    assert np.abs(found - np.asarray(GREY) / 255).mean() < 0.02


def test_white_ink_on_nothing_lies_on_black_paper():
    found = read_picture(cut_out(255))
    assert np.abs(found - (1 - np.asarray(GREY) / 255)).mean() < 0.01


def test_a_large_picture_is_shrunk_by_a_whole_number():
    assert read_picture(GREY.resize((3200, 4000))).shape == (800, 640)


@pytest.mark.parametrize(
    "array", [np.zeros(5), np.zeros((5, 5, 2)), np.full((5, 5), 2.0), np.zeros((5, 5), np.int32),
              np.full((5, 5), np.nan), np.zeros((0, 5))]
)  # fmt: skip
def test_arrays_that_are_no_pictures(array):
    with pytest.raises(ValueError, match="an array must be"):
        read_picture(array)


def chunk(kind, data):
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


HEAD = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
BAD = {
    "empty": (b"", "is empty"),
    "a text": (b"no picture at all", "no picture"),
    "a bomb": (HEAD + chunk(b"IDAT", zlib.compress(bytes(10**6))), "67,108,864 pixels"),
    "cut short": (FORMATS["JPEG"][:900], "cut short"),
    "a chunk of 2 GB": (FORMATS["PNG"][:33] + b"\x7f\xff\xff\xffzTXt" + bytes(99), "damaged"),
    "a long side": (save(Image.new("1", (1, 70_000))), "shrink it first"),
    "an iPhone's": (b"\x00\x00\x00\x18ftypheic" + bytes(40), "convert it to JPEG"),
    "damaged": (FORMATS["TIFF"][:300] + bytes(range(200)), "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_words(name, tmp_path):
    content, words = BAD[name]
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=words) as refusal:
        read_picture(tmp_path / "a.png")
    assert str(refusal.value).startswith(f"{tmp_path / 'a.png'}: ")
