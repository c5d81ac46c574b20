"""The pictures show what they were given, with labelled axes; a script draws README's."""

import numpy as np
import pytest

from tests.helpers import uninstall

pytest.importorskip("matplotlib")

from jaxmnist.digit_plots import (
    confident_mistakes,
    digit_grid,
    mistake_grid,
    percent,
    weight_grid,
)
from jaxmnist.plots import COLORS, confusion_matrix, loss_curve, run_curves


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


def records(epochs):
    return [
        {"train_loss": 2 / e, "test_loss": 1 / e, "test_accuracy": 1 - 0.5 / e}
        for e in range(1, epochs + 1)
    ]


def test_a_long_run_is_drawn_by_its_extremes():
    losses = np.random.default_rng(0).uniform(0.5, 1, (600, 100)).astype(np.float32)
    losses[123, 45], losses[321, 12] = 0.1, 3.0
    losses[7] = np.nan
    (axes,) = loss_curve(losses, records(600)).axes
    drawn = axes.lines[0].get_xydata()
    assert len(drawn) <= 10_000
    low, high = drawn[np.nanargmin(drawn[:, 1])], drawn[np.nanargmax(drawn[:, 1])]
    np.testing.assert_allclose((low[1], high[1]), (0.1, 3.0), rtol=1e-6)
    np.testing.assert_allclose((low[0], high[0]), (123.46, 321.13), atol=0.15)
    assert np.isnan(drawn[np.abs(drawn[:, 0] - 7.5) < 0.3, 1]).all()
    assert len(axes.texts) == 10


def test_losses_of_steps_that_nobody_kept():
    (axes,) = loss_curve(np.zeros((3, 0), np.float32), records(3)).axes
    means, tests = axes.lines
    np.testing.assert_allclose(means.get_ydata(), [2, 1, 2 / 3])
    np.testing.assert_allclose(tests.get_ydata(), [1, 1 / 2, 1 / 3])


def test_run_curves_draws_every_run():
    falling = np.linspace(2, 1, 2000).reshape(2, 1000)
    falling[0, :500] = np.nan
    names = ["_hidden?", "$x$", "a name that is much too long to be written out in a legend"]
    runs = [(falling, records(2)), (np.zeros((3, 0)), records(3)), (np.ones((1, 4)), records(1))]
    figure = run_curves(names, runs)
    upper, lower = figure.axes
    labels = upper.get_ylabel(), lower.get_ylabel(), lower.get_xlabel()
    assert labels == ("loss (nats)", "test accuracy", "epochs")
    train, test, bare, bare_test, short, _ = (line.get_xydata() for line in upper.lines)
    # by hand: 100 stretches of 20 steps, the first 25 of them unknown
    np.testing.assert_allclose(train[:, 0], (np.arange(100) + 0.5) / 50)
    assert np.isnan(train[:25, 1]).all()
    np.testing.assert_allclose(train[25:, 1], falling.reshape(100, 20).mean(axis=1)[25:])
    np.testing.assert_allclose(test, [[1, 1], [2, 1 / 2]])
    np.testing.assert_allclose(bare, [[0.5, 2], [1.5, 1], [2.5, 2 / 3]])
    np.testing.assert_allclose(bare_test, [[1, 1], [2, 1 / 2], [3, 1 / 3]])
    np.testing.assert_allclose(short, [[(k + 0.5) / 4, 1] for k in range(4)])
    np.testing.assert_allclose(lower.lines[1].get_ydata(), [0.5, 0.75, 1 - 0.5 / 3])
    for lines in (upper.lines[::2], upper.lines[1::2], lower.lines):
        assert [line.get_color() for line in lines] == list(COLORS[:3])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[2:4] == names[:2]
    assert len(texts[4]) == 30


def test_every_colour_is_read_on_light_and_on_dark():
    """The contrast of WCAG 2, to white and to the report's dark: at least 3 for what is drawn."""

    def luminance(color):
        parts = np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for color in COLORS:
        assert 1.05 / (luminance(color) + 0.05) >= 3, color
        assert (luminance(color) + 0.05) / (luminance("#202227") + 0.05) >= 3, color


def test_confusion_matrix_shows_every_count():
    confusion = np.array([[5, 2, 0], [0, 7, 1], [4, 0, 1]], np.int32)
    figure = confusion_matrix(confusion)
    axes, bar = figure.axes
    shown = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    places = np.argwhere(confusion).tolist()
    expected = {(column, row): str(confusion[row, column]) for row, column in places}
    assert shown == expected
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true digit", "predicted digit")
    assert bar.get_ylabel() == "images predicted as another digit"
    assert figure.get_suptitle() == "13 of 20 test images are right"


def test_the_surest_mistakes_come_first():
    probabilities = np.array(
        [[0.9, 0.1, 0], [0.2, 0.8, 0], [0, 0.3, 0.7], [0.8, 0.1, 0.1], [0.4, 0.3, 0.3]], np.float32
    )
    labels = np.array([0, 0, 1, 2, 1], np.int32)
    np.testing.assert_array_equal(confident_mistakes(probabilities, labels), [1, 3, 2, 4])
    np.testing.assert_array_equal(confident_mistakes(probabilities, labels, count=2), [1, 3])
    right = confident_mistakes(probabilities, probabilities.argmax(axis=1).astype(np.int32))
    assert right.shape == (0,)


def test_mistakes_with_their_probabilities():
    images = np.arange(9 * 784).reshape(9, 28, 28).astype(np.uint8)
    probabilities = np.full((9, 10), 0.05, np.float32)
    probabilities[:, 3], probabilities[:, 8] = 0.6, 0.0001
    figure = mistake_grid(images, probabilities, np.full(9, 8, np.int32))
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 9
    for image, axes in zip(images, shown, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
        assert axes.get_title() == "said 3: 60.0%\nis 8: < 0.1%"
    nothing = mistake_grid(images[:0], probabilities[:0], np.zeros(0, np.int32))
    assert nothing.get_suptitle() == "No test image was mistaken"


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0.0%"), (0.0004, "< 0.1%"), (0.0005, "0.1%"), (0.99961, "> 99.9%")]
)
def test_percentages(share, text):
    assert percent(share) == text


def test_weights_lie_where_their_pixels_do():
    weight = np.random.default_rng(0).normal(size=(20, 784)).astype(np.float32)
    weight[[3, 17]] *= 0.1
    axes, bar = weight_grid(weight, columns=6, most=18).axes
    tiled = axes.images[0].get_array()
    assert tiled.shape == (90, 180)
    chosen = [unit for unit in range(20) if unit not in (3, 17)]
    for place, unit in enumerate(chosen):
        top, left = place // 6 * 30 + 1, place % 6 * 30 + 1
        tile = tiled[top : top + 28, left : left + 28]
        np.testing.assert_array_equal(tile, weight[unit].reshape(28, 28))
    low, high = axes.images[0].get_clim()
    assert low == -high == -np.abs(weight).max()
    assert "18 largest of 20 units" in axes.get_title()
    assert bar.get_xlabel().startswith("weight of a pixel")
    (axes, _) = weight_grid(np.zeros((10, 784), np.float32)).axes
    assert "10 units" in axes.get_title()


def test_digit_grid_tiles_the_images():
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    (axes,) = digit_grid(images).axes
    (picture,) = axes.images
    assert picture.get_array().shape == (8, 15)
    np.testing.assert_array_equal(picture.get_array()[4:, 5:10], images[1, 1])


def test_without_matplotlib_the_extra_is_named(script, tmp_path, monkeypatch):
    uninstall(monkeypatch, "matplotlib")
    out = tmp_path / "out"
    code, _, stderr = script("pictures.py", "--out", out)
    assert code == 1
    assert stderr.startswith("pictures.py: error: this needs matplotlib: ")
    assert stderr.endswith(".[plots]'\n")
    assert not out.exists()


@pytest.mark.slow
def test_the_readmes_pictures(script, mnist_dir, tmp_path):
    code, stdout, _ = script("pictures.py", "--data-dir", mnist_dir, "--out", tmp_path)
    assert code == 0
    assert str(tmp_path) in stdout
    for name in ("loss.png", "mistakes.png", "drawn_digits.png", "digit.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
