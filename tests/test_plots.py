"""The pictures show what they were given, with labelled axes; a script draws README's."""

import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from jaxmnist.plots import digit_grid, loss_curve


def test_loss_curve_draws_every_step_and_epoch():
    losses = np.linspace(2.3, 0.4, 30).reshape(3, 10)
    records = [
        {"train_loss": losses[e].mean(), "test_loss": 1.0 / (e + 1), "test_accuracy": 0.8 + e / 20}
        for e in range(3)
    ]
    (axes,) = loss_curve(losses, records).axes
    steps, means, tests = axes.lines
    np.testing.assert_allclose(steps.get_ydata(), losses.ravel())
    np.testing.assert_allclose(steps.get_xdata()[[0, -1]], [0.1, 3.0])
    np.testing.assert_allclose(means.get_ydata(), losses.mean(axis=1))
    np.testing.assert_allclose(tests.get_xydata(), [[1, 1], [2, 1 / 2], [3, 1 / 3]])
    assert [text.get_text() for text in axes.texts] == ["80.0%", "85.0%", "90.0%"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epochs", "loss (nats)")


def test_digit_grid_tiles_the_images():
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    (axes,) = digit_grid(images).axes
    (picture,) = axes.images
    assert picture.get_array().shape == (8, 15)
    np.testing.assert_array_equal(picture.get_array()[4:, 5:10], images[1, 1])


def test_without_matplotlib_the_extra_is_named(script, mnist_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["jaxmnist.plots"], "loss_curve", missing)
    out = tmp_path / "out"
    code, _, stderr = script("pictures.py", "--data-dir", mnist_dir, "--out", out)
    expected = "pictures.py: error: this needs matplotlib: pip install 'jaxmnist[plots]'\n"
    assert (code, stderr) == (1, expected)
    assert not out.exists()


def missing(*_):
    raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")


def test_the_readmes_pictures(script, mnist_dir, tmp_path):
    code, stdout, _ = script("pictures.py", "--data-dir", mnist_dir, "--out", tmp_path)
    assert code == 0
    assert str(tmp_path) in stdout
    for name in ("loss.png", "drawn_digits.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
