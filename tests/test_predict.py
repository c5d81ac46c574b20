"""What a model makes of a picture, what is said to be no digit, and scripts/predict.py."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image, ImageDraw

from jaxmnist.errors import DataError
from jaxmnist.pictures import load_reader
from jaxmnist.pictures.predict import centre, doubt, read_image
from tests.helpers import refused


def drawn(draw, width=16):
    picture = Image.new("L", (300, 300), 255)
    draw(ImageDraw.Draw(picture), width)
    return picture


def cross(pen, width):
    pen.line((80, 70, 220, 230), 0, width)
    pen.line((220, 70, 80, 230), 0, width)


def two(pen, width, left):
    pen.line((80, 80, 80, 220), 0, width)
    pen.ellipse((left, 80, left + 80, 220), outline=0, width=width)


THINGS = {
    "a cross": ("symmetric", cross),
    "two digits": ("more lines", lambda pen, width: two(pen, width, 110)),
    "two digits that touch": ("more lines", lambda pen, width: two(pen, width, 84)),
    "a dash": ("wider", lambda pen, width: pen.line((70, 150, 230, 156), 0, width)),
    "a frame": ("frame", lambda pen, width: pen.rectangle((70, 60, 220, 240), None, 0, width)),
    "a disc": ("spot", lambda pen, _: pen.ellipse((120, 120, 180, 180), fill=0)),
}


def four(pen, width=22):
    pen.line([(110, 60), (90, 160), (210, 160)], 0, width, joint="curve")
    pen.line([(180, 90), (170, 240)], 0, width)


def shapes():
    """Images of what is no digit, and of a digit."""
    return [read_image(drawn(draw)) for draw in (*(draw for _, draw in THINGS.values()), four)]


@pytest.fixture(scope="module")
def reader(trained_run):
    return load_reader(trained_run)


@pytest.mark.parametrize(("words", "draw"), THINGS.values(), ids=THINGS)
def test_what_is_no_digit(words, draw):
    code, why = doubt(read_image(drawn(draw)), np.array([0.01, 0.99]))
    assert code == "no_digit"
    assert words in why


@pytest.mark.parametrize(("start", "rows"), [(0, [(60, 240)]), (230, [(60, 156), (140, 236)])])
def test_a_symmetric_digit_is_no_cross(start, rows):
    """A 0 and a 3."""

    def arcs(pen, width):
        for top, bottom in rows:
            pen.arc((80, top, 220, bottom), start, 360 - start, 0, width)

    assert doubt(read_image(drawn(arcs)), np.array([0.01, 0.99])) == (None, None)


def test_not_sure_is_not_no_digit():
    image = read_image(drawn(four))
    assert doubt(image, 0.01 + 0.8 * np.eye(10)[4]) == (None, None)
    assert doubt(image, 0.03 + 0.7 * np.eye(10)[4]) == ("uncertain", "the model is not sure")


def test_few_of_the_synthetic_digits_are_no_digits(few_digits):
    sure = np.eye(10)[0]
    assert np.mean([doubt(image, sure)[0] is not None for image in few_digits[1].images]) < 0.04


def test_a_path_a_file_a_picture_and_an_array_are_read_alike(reader, tmp_path):
    picture = drawn(four)
    picture.save(tmp_path / "a.png")
    content = io.BytesIO((tmp_path / "a.png").read_bytes())
    array = np.asarray(picture)
    arrays = array, array / np.float32(255), np.stack([array] * 3, 2)
    first, *others = map(reader.read, [tmp_path / "a.png", content, picture, *arrays])
    assert first.digit == 4
    np.testing.assert_allclose(first.probabilities.sum(), 1, rtol=1e-5)
    for other in others:
        np.testing.assert_array_equal(other.image, first.image)


def test_centre_by_hand():
    ink = np.zeros((100, 90), np.float32)
    ink[10:50, 60:80] = 0.5  # 40 x 20: two old pixels a new one, 20 x 10 new ones
    image = centre(ink)
    assert image.max() == image.min(where=image > 0, initial=255) == 255
    rows, columns = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
    # The centre of mass, 10 new pixels from the top of the extent and 5 from its left, comes to
    # 14.5; the extent begins at round(4.5) and round(9.5), and halves go up.
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (5, 24, 10, 19)


def test_mnists_own_images_stay_as_they_are(mnist):
    for image in mnist[1].images[:100]:
        if image.max() == 255:
            np.testing.assert_array_equal(centre(image.astype(np.float32)), image)


def test_weights_that_are_not_finite(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    weights = safetensors.numpy.load_file(run / "weights.safetensors")
    weights["0.bias"][0] = np.inf
    safetensors.numpy.save_file(weights, run / "weights.safetensors")
    with pytest.raises(DataError, match="not finite"):
        load_reader(run)


def test_each_picture_has_its_line(script, trained_run, tmp_path, monkeypatch):
    """Whatever its neighbours are; the exit code is 1 if one cannot be read or is blank."""
    drawn(four).save(tmp_path / "4\x1b[31m\n.png")
    drawn(THINGS["a dash"][1]).save(tmp_path / "dash.png")
    drawn(lambda *_: None).save(tmp_path / "blank.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    names = ["4\x1b[31m\n.png", "bad.png", "dash.png", "blank.png", "none.png"]
    paths = [tmp_path / name for name in names]
    code, stdout, stderr = script("predict.py", trained_run, *paths)
    lines = [line for line in stdout.splitlines() if not line.startswith("  ")]
    assert (code, stderr) == (1, "")
    expected = ["4\\x1b[31m\\n.png: 4", "no picture", "no single digit", "blank", "No such"]
    for line, words in zip(lines, expected, strict=True):
        assert words in line
    more = ("--json", "--plot", tmp_path / "p.png")
    found = json.loads(script("predict.py", trained_run, *paths, *more)[1])
    assert [row["digit"] is None for row in found] == [False, True, False, True, True]
    assert [row["doubt"] for row in found[2:4]] == ["no_digit", "no_digit"]
    assert [row["error"] is None for row in found] == [True, False, True, False, False]
    assert (tmp_path / "p.png").stat().st_size > 5000
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(paths[0].read_bytes())))
    assert script("predict.py", trained_run, "-")[1].startswith("-: 4")
    refused(script("predict.py", tmp_path / "dash.png", paths[0]), 1, "dash.png")
