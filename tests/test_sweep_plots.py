"""The pictures of a sweep show the numbers that they are given."""

import itertools

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from jaxmnist.sweep_plots import curves_figure, effects_figure

NAMES = ("train_loss", "test_loss", "test_accuracy")


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return {name: rng.uniform(0.5, 0.9, (3, 4, 2)) for name in NAMES}


def test_curves_are_means_in_bands(scores):
    diverged = np.zeros((3, 4), bool)
    diverged[1, 2] = diverged[2] = True
    figure = curves_figure(scores, diverged, ["a", "b", "c"])
    figure.draw_without_rendering()
    for axes, values in zip(figure.axes, scores.values(), strict=True):
        kept = values[1][[0, 1, 3]]
        np.testing.assert_allclose(axes.lines[1].get_xydata().T, [[1, 2], kept.mean(axis=0)])
        bottom = kept.mean(axis=0) - kept.std(axis=0, ddof=1)
        band = [c for c in axes.collections if type(c).__name__.endswith("PolyCollection")][1]
        assert {*zip([1, 2], bottom, strict=True)} <= {*map(tuple, band.get_paths()[0].vertices)}
        assert (axes.get_xlabel(), bool(axes.get_ylabel())) == ("epochs", True)
        assert len({tuple(line.get_color()) for line in axes.lines}) == 3
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["a", "b (1 of 4 diverged)", "c (4 of 4 diverged)"]
    curves_figure(scores, np.ones((3, 4), bool), ["a", "b", "c"]).draw_without_rendering()


@pytest.mark.parametrize("spread", [1.2, 3, 12, 150, 10_000])
def test_labels_of_losses_do_not_overlap(scores, spread):
    """Losses of one size and of many, as in a grid of learning rates."""
    factors = np.geomspace(1, spread, 3)[:, None, None]
    figure = curves_figure(
        {"train_loss": scores["train_loss"] * factors}, np.zeros((3, 4), bool), ["a", "b", "c"]
    )
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    labels = [
        label.get_window_extent()
        for minor in (False, True)
        for label, at in zip(
            axes.get_yticklabels(minor=minor), axes.get_yticks(minor=minor), strict=True
        )
        if label.get_text() and low <= at <= high
    ]
    assert len(labels) >= 2
    labels.sort(key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(labels))


def test_effects_have_a_panel_an_option():
    rng = np.random.default_rng(0)
    settings = [
        {"rate": 10 ** rng.uniform(-4, 0), "size": (8, 4)[i % 2], "kind": "x", "decay": None}
        for i in range(40)
    ]
    values = rng.uniform(0.8, 0.9, (40, 2))
    values[3] = 0.1
    diverged = np.zeros((40, 2), bool)
    diverged[5, 1] = True
    figure = effects_figure(settings, values, diverged, "validation_accuracy")
    figure.draw_without_rendering()
    assert [axes.get_xlabel() for axes in figure.axes] == ["rate", "size"]
    rate, size = figure.axes
    assert rate.get_ylabel() == "validation accuracy"
    assert (rate.get_xscale(), size.get_xscale()) == ("log", "linear")
    assert [label.get_text() for label in size.get_xticklabels()] == ["4", "8"]
    dots, low, crosses = rate.lines[:3]
    assert [len(line.get_xdata()) for line in (dots, low, crosses)] == [38, 1, 1]
    np.testing.assert_allclose(crosses.get_xdata(), settings[5]["rate"])
    others = [i for i in range(40) if i not in (3, 5)]
    np.testing.assert_allclose(dots.get_ydata(), values[others].mean(axis=1))
    assert low.get_ydata() > rate.get_ylim()[0]
    medians = size.lines[3].get_ydata()
    means = values.mean(axis=1)
    np.testing.assert_allclose(medians[1], np.median([means[i] for i in range(0, 40, 2)]))


def test_effects_of_what_has_all_diverged_or_is_alone():
    settings = [{"rate": 0.1}, {"rate": None}]
    effects_figure(
        settings, np.full((2, 1), np.nan), np.ones((2, 1), bool)
    ).draw_without_rendering()
    effects_figure(settings[:1], np.ones((1, 1)), np.zeros((1, 1), bool)).draw_without_rendering()
