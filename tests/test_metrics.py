"""Precision, recall, calibration and intervals, worked out by hand."""

import json

import numpy as np
import pytest

from jaxmnist.metrics import calibration, classification_metrics, precision_recall

# Three classes; nothing was predicted as class 2, and there is no image of class 1.
CONFUSION = np.array([[3, 1, 0], [0, 0, 0], [2, 2, 0]], np.int32)


def test_precision_and_recall():
    precision, recall = precision_recall(CONFUSION)
    np.testing.assert_allclose(precision, [3 / 5, 0, np.nan])
    np.testing.assert_allclose(recall, [3 / 4, np.nan, 0])


def test_calibration():
    table = np.array([[0.55, 0.45], [0.6, 0.4], [0.1, 0.9], [0.0, 1.0]])
    found = calibration(table, np.array([0, 1, 1, 1]), bins=10)
    # A bin holds its upper edge: 0.6 is in the sixth with 0.55, 0.9 in the ninth.
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 1, 1]
    np.testing.assert_allclose(found.confidence[[5, 8, 9]], [0.575, 0.9, 1.0])
    np.testing.assert_allclose(found.accuracy[[5, 8, 9]], [0.5, 1.0, 1.0])
    assert np.isnan(found.accuracy[0])
    assert found.ece == pytest.approx((2 * 0.075 + 0.1 + 0.0) / 4)


def test_everything_as_json():
    labels = np.repeat([0, 2], 4).astype(np.int32)
    probabilities = np.eye(3)[[0, 0, 0, 1, 0, 0, 1, 1]]
    found = classification_metrics(CONFUSION, probabilities, labels)
    assert found == json.loads(json.dumps(found, allow_nan=False))
    assert found["accuracy"] == 3 / 8
    # Wilson's interval for 3 of 8, from its formula.
    z = 1.959964
    middle = (3 / 8 + z**2 / 16) / (1 + z**2 / 8)
    half = z * np.sqrt(15 / 64 / 8 + z**2 / 256) / (1 + z**2 / 8)
    np.testing.assert_allclose(found["accuracy_interval"], [middle - half, middle + half], 1e-5)
    assert found["precision"] == [3 / 5, 0, None]
    assert found["recall"] == [3 / 4, None, 0]
    assert found["ece"] == pytest.approx(5 / 8)
    assert found["calibration"][0]["confidence"] is None
    assert found["calibration"][-1]["images"] == 8
