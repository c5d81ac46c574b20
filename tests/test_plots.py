"""The figures show what they were given, with titles and labelled axes."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from jaxmnist import plots

LOSSES = np.linspace(2.3, 0.4, 30).reshape(3, 10)
# Two are right, and the mistakes are more and less confident.
TABLE = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0, 0.3, 0.7], [0.8, 0.1, 0.1], [0.4, 0.3, 0.3]])
LABELS = np.array([0, 0, 1, 2, 1])
RNG = np.random.default_rng(0)


def records(epochs):
    return [
        {"train_loss": 2 / e, "test_loss": 1 / e, "test_accuracy": 1 - 0.5 / e}
        for e in range(1, epochs + 1)
    ]


def test_loss_curves_of_a_run_and_its_steps():
    figure = plots.loss_curves({"one": records(3)}, LOSSES)
    upper, lower = figure.axes
    steps, means, tests = (line.get_xydata() for line in upper.lines)
    np.testing.assert_allclose(steps, np.stack([np.arange(1, 31) / 10, LOSSES.ravel()], 1))
    np.testing.assert_allclose(means, [[0.5, 2], [1.5, 1], [2.5, 2 / 3]])
    np.testing.assert_allclose(tests, [[1, 1], [2, 1 / 2], [3, 1 / 3]])
    np.testing.assert_allclose(lower.lines[0].get_xydata(), [[1, 0.5], [2, 0.75], [3, 5 / 6]])
    labels = upper.get_ylabel(), lower.get_xlabel(), lower.get_ylabel()
    assert labels == ("loss (nats)", "epochs", "test accuracy")
    assert len(figure.legends[0].get_texts()) == 4
    assert len(plots.loss_curves({"x": records(3)}, np.zeros((3, 0))).axes[0].lines) == 2


def test_loss_curves_of_several_runs():
    runs = {"_hidden?": records(2), "$x$": records(60), "a name that is " * 3: records(1)}
    figure = plots.loss_curves(runs)
    upper, lower = figure.axes
    for lines in (upper.lines[::2], upper.lines[1::2], lower.lines):
        assert [line.get_color() for line in lines] == list(plots.COLORS[:3])
        assert [line.get_markersize() for line in lines] == [5, 0, 5]
    figure.draw_without_rendering()
    texts = [text.get_text() for text in figure.legends[0].get_texts()[2:]]
    names = "_hidden?: 75.00%", r"\$x\$: 99.17%", "a name that is … name that is : 50.00%"
    assert texts == [f" {name}" for name in names]


def test_the_figures_of_a_run():
    images = np.arange(5 * 784).reshape(5, 28, 28).astype(np.uint8)
    params = {"params": {"linear_0": {"weight": np.ones((20, 784), np.float32)}}}
    run = SimpleNamespace(records=records(3), losses=LOSSES, params=params)
    figures = plots.run_figures(run, images, LABELS, TABLE)
    assert list(figures) == ["loss.png", "confusion.png", "mistakes.png", "weights.png"]
    (axes,) = figures["confusion.png"].axes
    shown = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert shown == dict.fromkeys([(0, 0), (1, 0), (2, 1), (0, 1), (0, 2)], "1")
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true digit", "predicted digit")
    assert figures["confusion.png"].get_suptitle() == "1 of 5 test images are right"
    sheet = [axes for axes in figures["mistakes.png"].axes if axes.images]
    found = [axes.images[0].get_array() for axes in sheet]
    np.testing.assert_array_equal(found, images[[1, 3, 2, 4]])
    assert sheet[0].get_title() == "said 1: 80.0%\nis 0: 20.0%"
    right = plots.mistake_grid(images, TABLE.argmax(axis=1), TABLE)
    assert right.get_suptitle() == "No test image was mistaken"


def test_weights_lie_where_their_pixels_do():
    weight = RNG.normal(size=(20, 784)).astype(np.float32)
    weight[[3, 17]] *= 0.1
    figure = plots.weight_grid(weight, columns=6, most=18)
    tiles = figure.axes[0].images[0].get_array().reshape(3, 30, 6, 30).swapaxes(1, 2)
    shown = tiles[:, :, 1:29, 1:29].reshape(18, 784)
    np.testing.assert_array_equal(shown, np.delete(weight, [3, 17], axis=0))
    assert figure.axes[0].images[0].get_clim()[1] == np.abs(weight).max()
    assert "18 largest of 20 units" in figure.get_suptitle()


def test_probabilities(tmp_path):
    images = RNG.integers(0, 256, (3, 28, 28), np.uint8)
    figure = plots.probability_figure(images, TABLE[:3], ["$a$", "三", "c"])
    bars = [axes for axes in figure.axes if axes.patches]
    assert [[bar.get_width() for bar in axes.patches] for axes in bars] == TABLE[:3].tolist()
    assert [text.get_text() for text in bars[0].texts] == ["90.0%", "10.0%", "0.0%"]
    plots.save_figure(figure, tmp_path / "x.PNG")
    assert (tmp_path / "x.PNG").read_bytes().startswith(b"\x89PNG")
