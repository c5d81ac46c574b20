"""Where the ink is: what is around a digit goes, what belongs to it stays."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from jaxmnist.pictures.predict import centre
from jaxmnist.pictures.strokes import find_strokes


def picture(*draw, size=(300, 300), paper=255):
    image = Image.new("L", size, paper)
    for line in draw:
        line(ImageDraw.Draw(image))
    return np.asarray(image, np.float32) / 255


def seven(pen, grey=0, width=16):
    pen.line([(90, 80), (200, 80), (140, 230)], grey, width, joint="curve")


def read(grey):
    return centre(find_strokes(grey.astype(np.float32))).astype(int)


def line(*points, grey=0, width=8):
    return lambda pen: pen.line(points, grey, width)


def square(width):
    return lambda pen: pen.rectangle((50, 40, 250, 270), outline=0, width=width)


PLAIN = read(picture(seven))
SURROUNDED = {
    "light on dark": picture(lambda pen: seven(pen, 255), paper=0),
    "a thick frame": picture(seven, square(14)),
    "a thin frame": picture(seven, square(2)),
    "an underline": picture(seven, line(60, 262, 240, 256)),
    "a line that the digit stands on": picture(seven, line(30, 232, 250, 234)),
    "a line below the digit's arm": picture(seven, line(70, 232, 250, 234)),
    "ruled lines": picture(seven, *(line(0, y, 300, y + 3, width=3) for y in (20, 130, 240))),
    "a cell's lines": picture(seven, line(20, 0, 20, 300, width=5), line(0, 285, 300, 288)),
    "specks": picture(seven, lambda pen: pen.point([(20, 20), (250, 250), (30, 200)], 0)),
    "a tight crop": picture(seven)[72:238, 84:208],
    "a sheet on a desk": np.pad(picture(seven), ((80, 60), (40, 90)), constant_values=0.2),
    "a neighbour at the border": picture(seven, line(290, 100, 300, 180, width=16)),
    "light from one side": picture(seven) * np.linspace(0.6, 1, 300)[:, None],
}


@pytest.mark.parametrize("name", SURROUNDED)
def test_what_is_around_a_digit_is_left_out(name):
    assert np.abs(read(SURROUNDED[name]) - PLAIN).mean() < 8  # of 255


def test_a_sheet_may_lie_turned_on_a_desk():
    sheet = Image.fromarray(np.uint8(255 * picture(seven)))
    white, dark = (np.asarray(sheet.rotate(8, expand=True, fillcolor=c)) / 255 for c in (255, 60))
    dark = np.pad(dark, 40, constant_values=60 / 255)
    assert np.abs(read(dark) - read(white)).mean() < 8


def test_a_thick_slanted_stroke_with_a_speck_is_no_sheet():
    stroke, speck = line(60, 250, 240, 50, width=50), line(146, 150, 154, 150, grey=255)
    assert np.abs(read(picture(stroke, speck)) - read(picture(stroke))).mean() < 12


NEEDED = {
    "the foot of a 2": [(100, 90), (180, 90), (100, 220), (210, 220)],
    "a foot that begins before the stroke": [(180, 90), (110, 220), (95, 220), (200, 220)],
    "the foot of a 1": [(150, 80), (150, 220), (100, 220), (200, 220)],
    "the lower line of a 5": [(200, 80), (110, 80), (110, 140), (190, 150), (180, 220), (90, 220)],
}


@pytest.mark.parametrize("name", NEEDED)
def test_a_line_that_the_digit_needs_stays(name):
    drawn = picture(lambda pen: pen.line(NEEDED[name], 0, 12, joint="curve"))
    black = drawn < 0.5
    found = read(drawn)
    rows, columns = (np.flatnonzero((found > 100).any(axis)) for axis in (1, 0))
    height, width = (np.ptp(np.flatnonzero(black.any(axis))) for axis in (1, 0))
    assert (np.ptp(columns) + 1) / (np.ptp(rows) + 1) == pytest.approx(width / height, abs=0.12)


@pytest.mark.parametrize("dark", [True, False])
@pytest.mark.parametrize("side", [24, 200])
@pytest.mark.parametrize("shape", ["disc", "ring", "seven"])
def test_thick_soft_strokes_to_the_border(dark, shape, side):
    """No hole becomes ink, and a filled disc no ring."""
    image = Image.new("L", (200, 200), 0)
    pen = ImageDraw.Draw(image)
    if shape == "seven":
        pen.line([(30, 30), (165, 30), (90, 170)], 255, 58, joint="curve")
        for x, y in [(30, 30), (90, 170)]:
            pen.ellipse((x - 29, y - 29, x + 29, y + 29), 255)
    else:
        pen.ellipse((0, 0, 199, 199), 255 if shape == "disc" else 0, 255, 60)
    image = image.crop(image.getbbox()).filter(ImageFilter.GaussianBlur(8)).resize((side, side))
    ink = np.asarray(image, np.float32) / 255
    found, expected = read(1 - ink if dark else ink), centre(np.pad(ink, 1)).astype(int)
    assert np.abs(found - expected).mean() < 12


def test_weak_ink_that_is_connected_counts():
    found = read(picture(seven, line(160, 180, 140, 230, grey=160, width=18)))
    assert np.ptp(np.flatnonzero((found > 100).any(axis=1))) >= 18


@pytest.mark.parametrize(("width", "side"), [(1, 28), (1, 60), (3, 300), (8, 300)])
def test_thin_strokes_become_as_thick_as_mnists(width, side):
    down = line(side / 2, side / 8, side / 2, 7 * side / 8, width=width)
    assert 2 <= read(picture(down, size=(side, side)))[14].sum() / 255 <= 2.6


def test_a_faint_line_on_a_noisy_page():
    page = picture(line(500, 300, 480, 380, grey=190, width=4), size=(1000, 1200), paper=235)
    page = page * np.linspace(0.75, 1, 1000)
    found = read(page + np.random.default_rng(0).normal(0, 0.02, page.shape))
    rows, columns = (np.flatnonzero((found > 100).any(axis)) for axis in (1, 0))
    assert len(rows) >= 18
    assert len(columns) <= 10


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
@hypothesis.given(st.integers(1, 200), st.integers(1, 200), st.floats(0, 1, width=32))
def test_a_flat_picture_is_blank(height, width, grey):
    assert not find_strokes(np.full((height, width), grey, np.float32)).any()


def test_noise_alone_is_blank():
    noise = np.random.default_rng(0).normal(0, 0.02, (300, 300))
    assert not find_strokes((0.8 + noise).astype(np.float32)).any()


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
@hypothesis.given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 10**6))
def test_any_picture_gives_ink_from_0_to_1(height, width, seed):
    ink = find_strokes(np.random.default_rng(seed).random((height, width), np.float32) ** 3)
    assert np.isfinite(ink).all()
    assert ink.min() >= 0
    assert ink.max() <= 1


@pytest.mark.parametrize("columns", [slice(8, 28), slice(0, 32)])
def test_faint_ink_beside_a_dark_line(columns):
    """The line is all that is strong."""
    grey = np.zeros((40, 32), np.float32)
    grey[2:30, 4:8], grey[34:36, columns] = 0.4, 1
    assert find_strokes(grey).max() == 1
