"""Where the ink is: what is around a digit goes, what belongs to it stays."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jaxmnist.errors import DataError
from jaxmnist.ink import ink_of
from jaxmnist.picture import read_picture
from jaxmnist.predict import centre
from jaxmnist.surroundings import panel, without_lines, without_underline


def picture(draw, size=(300, 300), paper=255):
    image = Image.new("L", size, paper)
    draw(ImageDraw.Draw(image))
    return np.repeat(np.asarray(image, np.float32)[..., None] / 255, 3, axis=2)


def seven(pen, grey=0, x=0, y=0, width=16):
    pen.line([(90 + x, 80 + y), (200 + x, 80 + y), (140 + x, 230 + y)], grey, width, joint="curve")


def read(draw, *args, **options):
    return centre(ink_of(picture(draw, *args, **options))).astype(int)


@pytest.fixture(scope="module")
def plain():
    return read(seven)


def on(*more):
    def draw(pen):
        seven(pen)
        for line in more:
            line(pen)

    return draw


SURROUNDED = {
    "a thick frame": on(lambda pen: pen.rectangle((50, 40, 250, 270), outline=0, width=14)),
    "a thin frame": on(lambda pen: pen.rectangle((50, 40, 250, 270), outline=0, width=2)),
    "an underline": on(lambda pen: pen.line((60, 262, 240, 256), 0, 8)),
    "a line that the digit stands on": on(lambda pen: pen.line((40, 232, 250, 234), 0, 8)),
    "ruled lines": on(*(lambda pen, y=y: pen.line((0, y, 300, y), 0, 3) for y in (20, 130, 240))),
    "a cell's lines": on(
        lambda pen: pen.line((20, 0, 20, 300), 0, 5), lambda pen: pen.line((0, 285, 300, 288), 0, 5)
    ),
    "specks": on(lambda pen: pen.point([(20, 20), (250, 250), (30, 200)], 0)),
}


@pytest.mark.parametrize("name", SURROUNDED)
def test_what_is_around_a_digit_is_left_out(plain, name):
    assert np.abs(read(SURROUNDED[name]) - plain).mean() < 8  # of 255


def test_a_sheet_on_a_desk_and_light_on_dark(plain):
    def desk(pen):
        pen.rectangle((60, 60, 460, 440), fill=240)
        seven(pen, x=90, y=60)

    assert np.abs(read(desk, (600, 500), 40) - plain).mean() < 6
    assert np.abs(read(lambda pen: seven(pen, 255), paper=0) - plain).mean() < 4


@pytest.mark.parametrize("light", [False, True])
def test_a_tight_crop(plain, light):
    whole = picture(lambda pen: seven(pen, 255), paper=0) if light else picture(seven)
    tight = whole[72:238, 84:208]
    assert np.abs(centre(ink_of(tight)).astype(int) - plain).mean() < 8


def test_weak_ink_that_is_connected_counts():
    def fading(pen):
        seven(pen)
        pen.line((160, 180, 140, 230), 160, 18)

    rows = np.flatnonzero((read(fading) > 100).any(axis=1))
    assert rows[-1] - rows[0] >= 18


def test_a_stroke_of_one_pixel_becomes_as_thick_as_mnists():
    thin = read(lambda pen: pen.line((14, 4, 14, 24), 0, 1), (28, 28))
    assert 2 <= (thin[14] > 127).sum() <= 4


def test_a_small_picture_without_a_margin():
    image = np.zeros((8, 8), np.float32)
    image[:, 3:5] = 1
    image[0, 2:6] = 1
    found = centre(ink_of(np.repeat(image[..., None], 3, axis=2)))
    assert (found[14] > 127).sum() < 10
    assert found.max() == 255


def test_a_faint_line_on_a_page_that_is_lit_from_one_side():
    def line(pen):
        pen.line((500, 300, 480, 380), 190, 4)

    page = picture(line, (1000, 1200), 235) * np.linspace(0.75, 1, 1000, dtype=np.float32)[:, None]
    page += np.random.default_rng(0).normal(0, 0.02, page.shape).astype(np.float32)
    found = centre(ink_of(page.astype(np.float32)))
    rows, columns = (np.flatnonzero((found > 100).any(axis)) for axis in (1, 0))
    assert len(rows) >= 18
    assert len(columns) <= 10


def test_lines_alone_are_the_digit():
    mask = np.zeros((100, 100), bool)
    mask[:, 48:52] = True
    np.testing.assert_array_equal(without_lines(mask), mask)
    np.testing.assert_array_equal(without_underline(mask), mask)


def test_a_seven_and_a_two_are_no_lines():
    mask = picture(seven)[72:238, 84:208, 0] < 0.5  # the bar goes from edge to edge
    assert without_lines(mask).sum() > 0.9 * mask.sum()
    two = picture(lambda pen: pen.line([(80, 80), (200, 80), (80, 220), (210, 220)], 0, 12))
    np.testing.assert_array_equal(without_underline(two[..., 0] < 0.5), two[..., 0] < 0.5)


@pytest.mark.parametrize("width", [30, 40])
def test_a_thick_zero_is_no_panel(width):
    zero = picture(lambda pen: pen.ellipse((60, 40, 240, 260), outline=0, width=width))
    np.testing.assert_array_equal(panel(zero), zero)
    upright = (80, 40, 220, 260), 60, None, 0, width  # more of a rectangle than an ellipse
    zero = picture(lambda pen: pen.rounded_rectangle(*upright))
    np.testing.assert_array_equal(panel(zero), zero)


@pytest.mark.parametrize("line", [3, 14])
@pytest.mark.parametrize("width", [12, 40])
def test_a_zero_in_a_box_is_none_of_it(line, width):
    """Its hole is paper, as the box's inside is, other than that of a thick 0 without a box."""

    def zero(pen):
        pen.ellipse((100, 80, 200, 230), outline=0, width=width)

    def boxed(pen):
        pen.rectangle((50, 40, 250, 270), outline=0, width=line)
        zero(pen)

    alone, found = read(zero), read(boxed)
    assert np.abs(found - alone).max() < 40


def test_heic_is_named(tmp_path):
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(40))
    with pytest.raises(DataError, match="convert it to JPEG"):
        read_picture(path)


def test_very_long_sides_are_refused(tmp_path):
    path = tmp_path / "long.png"
    Image.new("1", (1, 70_000)).save(path)
    with pytest.raises(DataError, match="shrink it first"):
        read_picture(path)
