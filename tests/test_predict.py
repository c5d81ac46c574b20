"""Any picture of a digit: brought to MNIST's conventions, read, or refused in one line."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image, ImageDraw, ImageOps

from jaxmnist import MLP, init_state
from jaxmnist.errors import DataError
from jaxmnist.predict import centre, load_model, read_image
from jaxmnist.weights import load_weights, save_weights, to_state_dict
from tests.helpers import ROOT, refused
from tests.test_export import train_an_epoch


@pytest.fixture(scope="module")
def weights(mnist, tmp_path_factory):
    """Weights after one epoch on the real MNIST."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_weights(path, train_an_epoch(mnist[0], rate=0.05))
    return path


@pytest.fixture
def untrained(tmp_path):
    import jax
    import optax

    path = tmp_path / "untrained.safetensors"
    save_weights(path, init_state(MLP(), optax.sgd(0.1), jax.random.key(0)).params)
    return path


@pytest.mark.stress
def test_pictures_of_real_digits(weights, mnist_dir):
    """scripts/robustness.py in short: at no kind of picture does the model get much worse.

    Where the sheet is turned so is the digit, which this model has not learnt to read.
    """
    command = [sys.executable, ROOT / "scripts" / "robustness.py", weights, "--images", 60]
    done = subprocess.run(
        [*map(str, command), "--data-dir", str(mnist_dir)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.strip("| ").split("|") for line in done.stdout.splitlines() if "%" in line]
    found = {row[0].strip(): float(row[3]) for row in rows if row[1].strip()[0].isdigit()}
    assert len(found) == 24
    turned = found.pop("JPEG, a sheet on a dark desk, turned")
    assert abs(turned) < 25
    assert all(abs(points) < 9 for points in found.values())  # a digit is 1.7 points of 60
    assert abs(np.mean([*found.values()])) < 3


@pytest.mark.slow
@pytest.mark.usefixtures("sigint")
def test_ctrl_c_in_robustness_is_one_line(untrained):
    """A terminal sends it to every process, the workers too."""
    command = [sys.executable, ROOT / "scripts" / "robustness.py", untrained]
    command += ["--dataset", "synthetic", "--images", 10_000]
    with subprocess.Popen(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline().startswith("Data: ")
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate()
    assert (process.returncode, stderr) == (130, "robustness.py: error: interrupted\n")


def turned(picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned clockwise
    return picture.transpose(Image.Transpose.ROTATE_90), {"format": "TIFF", "exif": exif}


def deep(picture):
    grey = np.asarray(picture.convert("L"), np.uint16)
    return Image.fromarray(grey * 257), {"format": "PNG"}


def cut_out(picture):
    """Black ink on nothing: the paper is transparent, and black too."""
    clear = Image.new("RGBA", picture.size)
    clear.putalpha(ImageOps.invert(picture.convert("L")))
    return clear, {"format": "PNG"}


FORMATS = {
    "PNG": lambda picture: (picture, {"format": "PNG"}),
    "16 bits": deep,
    "1 bit": lambda picture: (picture.convert("1", dither=0), {"format": "PNG"}),
    "white on black": lambda picture: (ImageOps.invert(picture), {"format": "PNG"}),
    "grey and alpha": lambda picture: (picture.convert("LA"), {"format": "PNG"}),
    "transparent": cut_out,
    "a palette": lambda picture: (picture.quantize(16), {"format": "PNG"}),
    "a transparent colour": lambda picture: (
        picture.convert("1", dither=0).convert("P"),
        {"format": "PNG", "transparency": 255},
    ),
    "GIF": lambda picture: (picture, {"format": "GIF"}),
    "BMP": lambda picture: (picture, {"format": "BMP"}),
    "PPM": lambda picture: (picture, {"format": "PPM"}),
    "JPEG": lambda picture: (picture, {"format": "JPEG", "quality": 90}),
    "JPEG in CMYK": lambda picture: (picture.convert("CMYK"), {"format": "JPEG", "quality": 90}),
    "WebP": lambda picture: (picture, {"format": "WEBP", "quality": 90}),
    "TIFF": lambda picture: (picture, {"format": "TIFF"}),
    "turned by EXIF": turned,
}


@pytest.fixture(scope="module")
def drawing():
    """A four, dark on light."""
    picture = Image.new("RGB", (320, 400), "white")
    pen = ImageDraw.Draw(picture)
    for line in ([(110, 90), (90, 210), (230, 210)], [(200, 120), (190, 330)]):
        pen.line(line, "black", width=26, joint="curve")
    return picture


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_shows_the_same_digit(drawing, tmp_path, name):
    drawing.save(tmp_path / "plain.png")
    expected = read_image(tmp_path / "plain.png").astype(int)
    rows, columns = (np.flatnonzero(expected.any(axis)) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (20, 21)
    picture, options = FORMATS[name](drawing)
    picture.save(tmp_path / "picture", **options)
    found = read_image(tmp_path / "picture").astype(int)
    assert np.abs(found - expected).mean() < 4  # of 255; edges differ


def test_mnists_own_images_stay_as_they_are(mnist):
    for image in mnist[1].images[:100]:
        if image.max() == 255:
            np.testing.assert_array_equal(centre(image.astype(np.float32)), image)


def test_centre_by_hand():
    ink = np.zeros((100, 90), np.float32)
    ink[10:50, 60:80] = 0.5  # 40 x 20: two old pixels a new one, 20 x 10 new ones
    image = centre(ink)
    assert image.max() == image.min(where=image > 0, initial=255) == 255
    rows, columns = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
    # The centre of mass, 10 new pixels from the top of the extent and 5 from its left, comes to
    # 14.5; the extent begins at round(4.5) and round(9.5), and halves go up.
    assert (rows[0], rows[-1]) == (5, 24)
    assert (columns[0], columns[-1]) == (10, 19)


def test_the_script_prints_bars_and_json(script, weights, mnist, tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for path, image in zip(paths, mnist[1].images, strict=False):
        Image.fromarray(image).save(path)
    code, stdout, stderr = script("predict.py", weights, *paths)
    assert (code, stderr) == (0, "")
    assert f"{paths[0]}: {mnist[1].labels[0]}" in stdout
    assert stdout.count("%") == 30
    code, stdout, _ = script("predict.py", weights, *paths, "--json", "--plot", tmp_path / "x.png")
    results = json.loads(stdout)
    assert [result["digit"] for result in results] == mnist[1].labels[:3].tolist()
    np.testing.assert_allclose([sum(r["probabilities"]) for r in results], 1, rtol=1e-5)
    with Image.open(tmp_path / "x.png") as plot:
        assert plot.size[0] > 300


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_its_own_plot_is_replaced_and_no_other_file(script, untrained, drawing, tmp_path, kind):
    picture, plot = tmp_path / "a.png", tmp_path / f"plot.{kind}"
    drawing.save(picture)
    for _ in range(2):
        assert script("predict.py", untrained, picture, "--plot", plot)[0] == 0
    for precious in (picture, tmp_path / f"mine.{kind}"):
        precious.exists() or precious.write_text("precious")
        before = precious.read_bytes()
        result = script("predict.py", untrained, picture, "--plot", precious)
        if precious.suffix == f".{kind}":
            refused(result, 2, "already exists")
        assert precious.read_bytes() == before


def test_a_name_does_nothing_to_the_terminal(script, untrained, drawing, tmp_path):
    path = tmp_path / "a\x1b[31m\n7.png"
    drawing.save(path)
    code, stdout, _ = script("predict.py", untrained, path)
    assert code == 0
    assert "\x1b" not in stdout
    assert "a\\x1b[31m\\n7.png: " in stdout
    assert len(stdout.splitlines()) == 12  # an untrained model is not sure, and that is said


def test_what_libtiff_says_about_a_damaged_file_is_not_shown(script, untrained, drawing, tmp_path):
    path = tmp_path / "a.tif"
    drawing.save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    content[300:400] = bytes(range(100, 200))
    path.write_bytes(content)
    refused(script("predict.py", untrained, path), 1, str(path), "damaged")


def chunk(kind, data):
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


BOMB = b"\x89PNG\r\n\x1a\n" + b"".join(
    [
        chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)),
        chunk(b"IDAT", zlib.compress(bytes(20_001 * 1000), 9)),
        chunk(b"IEND", b""),
    ]
)


def tiff_of_many_samples():
    """Pillow logs an error about such a file before it raises one."""
    buffer = io.BytesIO()
    Image.new("RGB", (5, 5)).save(buffer, "TIFF")
    entry = struct.pack("<HHI", 277, 3, 1)  # SamplesPerPixel, a short, one of them
    assert entry in buffer.getvalue()
    at = buffer.getvalue().index(entry) + len(entry)
    return buffer.getvalue()[:at] + struct.pack("<H", 2048) + buffer.getvalue()[at + 2 :]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"no picture at all", "no picture"),
        (BOMB, "67,108,864 pixels"),
        (BOMB[:60], ""),
        (tiff_of_many_samples(), ""),
    ],
)
def test_bad_pictures_are_refused_in_one_line(script, untrained, tmp_path, content, words):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    code, stdout, stderr = script("predict.py", untrained, path)
    assert (code, stdout) == (1, "")
    (line,) = stderr.splitlines()
    assert str(path) in line
    assert words in line


def test_a_blank_picture_is_not_guessed_at(script, untrained, tmp_path):
    Image.new("RGB", (100, 80), (200, 190, 180)).save(tmp_path / "blank.png")
    code, stdout, stderr = script("predict.py", untrained, tmp_path / "blank.png")
    assert (code, stdout) == (1, "")
    assert "blank" in stderr


@pytest.mark.parametrize("name", ["predict.py", "evaluate.py"])
def test_weights_that_are_not_finite(script, untrained, drawing, tmp_path, name):
    params = load_weights(untrained)
    params["params"]["linear_0"]["bias"][0] = np.inf
    state_dict = to_state_dict(params)
    safetensors.numpy.save_file(state_dict, tmp_path / "bad.safetensors")
    drawing.save(tmp_path / "a.png")
    more = [tmp_path / "a.png"] if name == "predict.py" else ["--dataset", "synthetic"]
    result = script(name, tmp_path / "bad.safetensors", *more, "--json")
    refused(result, 1, "bad.safetensors", "not finite")
    assert result[1] == ""


def test_weights_of_another_model(tmp_path):
    import jax
    import optax

    path = tmp_path / "other.safetensors"
    state = init_state(MLP(), optax.sgd(0.1), jax.random.key(0), np.zeros(100, np.float32))
    save_weights(path, state.params)
    with pytest.raises(DataError, match="takes 100 numbers"):
        load_model(path)


def test_evaluate_script(script, weights, mnist_dir):
    code, stdout, _ = script("evaluate.py", weights, "--data-dir", mnist_dir, "--json")
    assert code == 0
    told = json.loads(stdout)
    confusion = np.array(told["confusion"])
    assert confusion.sum() == 10_000
    share = np.trace(confusion) / 10_000
    found = [value for key, value in told.items() if key.endswith("accuracy")]
    np.testing.assert_allclose(found, [share], atol=1e-6)
    code, stdout, _ = script("evaluate.py", weights, "--data-dir", mnist_dir)
    assert f"Test accuracy: {share:.2%}" in stdout
    z = 1.959964  # Wilson's interval by hand
    middle = (share + z**2 / 20_000) / (1 + z**2 / 10_000)
    half = z * np.sqrt(share * (1 - share) / 10_000 + z**2 / 4e8) / (1 + z**2 / 10_000)
    assert f"{middle - half:.2%} to {middle + half:.2%}" in stdout
