"""What is probably no single digit is named; MNIST's digits are not."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jaxmnist.doubt import doubt
from jaxmnist.ink import ink_of
from jaxmnist.predict import centre


def drawn(draw, size=(300, 300)):
    picture = Image.new("L", size, 255)
    draw(ImageDraw.Draw(picture))
    grey = np.asarray(picture, np.float32) / 255
    return centre(ink_of(np.repeat(grey[..., None], 3, axis=2)))


def cross(pen):
    pen.line((80, 70, 220, 230), 0, 16)
    pen.line((220, 70, 80, 230), 0, 16)


def two(pen):
    pen.line((80, 80, 80, 220), 0, 16)
    pen.ellipse((150, 80, 240, 220), outline=0, width=16)


def scribble(pen):
    pen.line([(60 + 60 * (n % 4), 60 + 180 * (n % 2)) for n in range(8)], 0, 6, joint="curve")
    pen.line([(60 + 180 * (n % 2), 60 + 36 * n) for n in range(6)], 0, 6, joint="curve")


THINGS = {
    "symmetric": cross,
    "side by side": two,
    "wider": lambda pen: pen.line((70, 150, 230, 156), 0, 18),
    "frame": lambda pen: pen.rectangle((70, 60, 220, 240), outline=0, width=14),
    "scribble": scribble,
    "spot": lambda pen: pen.rectangle((120, 120, 180, 180), fill=0),
}


@pytest.mark.parametrize("words", THINGS)
def test_what_is_no_digit(words):
    assert words in doubt(drawn(THINGS[words]))


def test_an_8_without_a_hole_and_a_model_that_is_not_sure():
    one = drawn(lambda pen: pen.line((170, 60, 130, 240), 0, 18))
    sure = np.full(10, 0.01)
    assert doubt(one, sure + 0.9 * np.eye(10)[1]) is None
    assert "8" in doubt(one, sure + 0.9 * np.eye(10)[8])
    assert "not sure" in doubt(one, np.full(10, 0.1))
    assert doubt(np.zeros((28, 28), np.uint8)) is not None


def test_few_of_mnists_digits_are_doubted(mnist):
    doubted = [doubt(image) is not None for image in mnist[1].images[:1000]]
    assert np.mean(doubted) < 0.02


def test_the_script_says_so(script, tmp_path):
    import jax
    import optax

    from jaxmnist import MLP, init_state
    from jaxmnist.weights import save_weights

    weights, path = tmp_path / "w.safetensors", tmp_path / "dash.png"
    save_weights(weights, init_state(MLP(), optax.sgd(0.1), jax.random.key(0)).params)
    picture = Image.new("L", (300, 300), 255)
    ImageDraw.Draw(picture).line((70, 150, 230, 156), 0, 18)
    picture.save(path)
    code, stdout, stderr = script("predict.py", weights, path)
    assert (code, stderr) == (0, "")
    assert stdout.count("probably no single digit: it is wider than a digit") == 1
    code, stdout, _ = script("predict.py", weights, path, "--json")
    assert "wider" in json.loads(stdout)[0]["doubt"]
