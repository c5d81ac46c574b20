"""Any picture of a digit: brought to MNIST's conventions, read, or refused in one line."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxmnist import MLP, DataError, init_state
from jaxmnist.predict import centre, load_model, predict, read_image
from jaxmnist.torch_compat import save_weights


@pytest.fixture(scope="module")
def weights(mnist, tmp_path_factory):
    """Weights after one epoch on the real MNIST."""
    import jax
    import optax

    from jaxmnist import train

    run = jax.jit(lambda data: train(jax.random.key(0), data, MLP(), optax.sgd(0.05), epochs=1)[0])
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_weights(path, run(mnist[0]).params)
    return path


@pytest.fixture
def untrained(tmp_path):
    import jax
    import optax

    path = tmp_path / "untrained.safetensors"
    save_weights(path, init_state(jax.random.key(0), MLP(), optax.sgd(0.1)).params)
    return path


def coloured(image):
    ink = (image / 255)[..., None]
    return np.uint8(ink * [20, 30, 90] + (1 - ink) * [240, 220, 120])


def shifted(image):
    canvas = np.zeros((60, 70), np.uint8)
    canvas[3:31, 35:63] = image
    return canvas


def transparent(image):
    return np.dstack([np.zeros((28, 28, 3), np.uint8), image])


VARIANTS = {
    "png": lambda image: image,
    "inverted": lambda image: 255 - image,
    "shifted": shifted,
    "jpg": lambda image: image,
    "coloured": coloured,
    "transparent": transparent,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_pictures_of_real_digits(weights, mnist, tmp_path, variant):
    model, params = load_model(weights)
    images, labels = (x[:200] for x in mnist[1])
    read = []
    for image in images:
        path = tmp_path / ("x.jpg" if variant == "jpg" else "x.png")
        Image.fromarray(VARIANTS[variant](image)).save(path)
        read.append(read_image(path))
    plain, got = (
        (np.argmax(predict(model.apply, params, x), axis=1) == labels).mean()
        for x in (images, np.stack(read))
    )
    assert plain > 0.85
    assert abs(got - plain) <= 0.02


def test_large_pictures_of_real_digits(weights, mnist, tmp_path):
    model, params = load_model(weights)
    images, labels = (x[:40] for x in mnist[1])
    read = []
    for image in images:
        big = Image.fromarray(255 - image).resize((280, 280), Image.Resampling.BICUBIC)
        big.save(tmp_path / "x.png")
        read.append(read_image(tmp_path / "x.png"))
    plain, got = (
        (np.argmax(predict(model.apply, params, x), axis=1) == labels).mean()
        for x in (images, np.stack(read))
    )
    assert abs(got - plain) <= 0.05


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
    with Image.open(tmp_path / "x.png") as drawn:
        assert drawn.size[0] > 300


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


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", ""), (b"no picture at all", "no picture"), (BOMB, "67,108,864 pixels"), (BOMB[:60], "")],
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


def test_weights_of_another_model(tmp_path):
    import jax
    import optax

    path = tmp_path / "other.safetensors"
    state = init_state(jax.random.key(0), MLP(), optax.sgd(0.1), np.zeros(100, np.float32))
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
