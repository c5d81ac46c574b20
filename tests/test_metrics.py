"""Precision, recall and intervals, worked out by hand."""

import json

import numpy as np
import pytest

from jaxmnist.metrics import classification_metrics, confusion_matrix

# Three classes; nothing was predicted as class 2, and there is no image of class 1.
LABELS = np.repeat([0, 2], 4).astype(np.int32)
PREDICTIONS = np.array([0, 0, 0, 1, 0, 0, 1, 1])


def test_everything_as_json():
    with np.errstate(divide="ignore"):
        found = classification_metrics(np.log(np.eye(3)[PREDICTIONS]), LABELS)
    assert found == json.loads(json.dumps(found, allow_nan=False))
    assert found["loss"] is None  # it is infinite
    assert found["accuracy"] == 3 / 8
    assert found["confusion"] == [[3, 1, 0], [0, 0, 0], [2, 2, 0]]
    # Wilson's interval for 3 of 8, from its formula.
    z = 1.959964
    middle = (3 / 8 + z**2 / 16) / (1 + z**2 / 8)
    half = z * np.sqrt(15 / 64 / 8 + z**2 / 256) / (1 + z**2 / 8)
    np.testing.assert_allclose(found["accuracy_interval"], [middle - half, middle + half], 1e-5)
    assert found["precision"] == [3 / 5, 0, None]
    assert found["recall"] == [3 / 4, None, 0]
    sure = classification_metrics(np.log(0.7 * np.eye(3)[LABELS] + 0.1), LABELS)
    assert sure["loss"] == pytest.approx(-np.log(0.8))
    with pytest.raises(ValueError, match="invalid entry"):
        confusion_matrix(LABELS, PREDICTIONS, 2)
