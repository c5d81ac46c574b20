"""Precision, recall and calibration of a classifier on a test set. NumPy."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from jaxmnist.types import AnyArray


def confusion_matrix(
    labels: Int[AnyArray, " n"], predictions: Int[AnyArray, " n"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """How many examples of class i were taken for class j, in row i and column j.

    >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    pairs = np.asarray(labels, np.int64) * classes + np.asarray(predictions)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def precision_recall(
    confusion: Int[AnyArray, "classes classes"],
) -> tuple[Float64[np.ndarray, " classes"], Float64[np.ndarray, " classes"]]:
    """Each class's precision and recall from a confusion matrix (rows are true).

    Precision is the share of a class's predictions that are right, recall the share of its images
    that are found; NaN where there are none.
    """
    counts = np.asarray(confusion, np.float64)
    with np.errstate(invalid="ignore"):
        return np.diag(counts) / counts.sum(axis=0), np.diag(counts) / counts.sum(axis=1)


class Calibration(NamedTuple):
    """How far a model's confidence is from its accuracy; a bin without images has NaN."""

    ece: float  # expected calibration error: mean distance of the two, weighted by the counts
    counts: Int[np.ndarray, " bins"]  # images in each bin
    confidence: Float64[np.ndarray, " bins"]  # mean of their largest probabilities
    accuracy: Float64[np.ndarray, " bins"]  # share of them that is right


def calibration(
    probabilities: Float[AnyArray, "n classes"], labels: Int[AnyArray, " n"], bins: int = 15
) -> Calibration:
    """Expected calibration error over bins of equal width, and the bins (a reliability diagram).

    Bin m of M holds the images whose largest probability is in ((m - 1)/M, m/M]: C. Guo, G. Pleiss,
    Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017, equation 3.
    """
    table, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    largest, right = table.max(axis=1), table.argmax(axis=1) == labels
    index = np.clip(np.ceil(largest * bins).astype(int) - 1, 0, bins - 1)
    counts, confidences, rights = (
        np.bincount(index, weights, bins) for weights in (None, largest, right)
    )
    with np.errstate(invalid="ignore"):
        confidence, accuracy = confidences / counts, rights / counts
    ece = float(np.abs(confidences - rights).sum() / len(labels))
    return Calibration(ece, counts, confidence, accuracy)


def classification_metrics(
    confusion: Int[AnyArray, "classes classes"],
    probabilities: Float[AnyArray, "n classes"],
    labels: Int[AnyArray, " n"],
) -> dict[str, Any]:
    """Everything here in the types of JSON; None, not NaN, for a share of nothing.

    The accuracy comes with a 95 % interval, Wilson's: E. B. Wilson, "Probable inference, the law of
    succession, and statistical inference", JASA 22 (1927), 209-212.
    """
    from scipy.stats import binomtest

    confusion = np.asarray(confusion)
    right, n = int(confusion.trace()), int(confusion.sum())
    precision, recall = precision_recall(confusion)
    bins = calibration(probabilities, labels)
    count = len(bins.counts)
    return {
        "accuracy": right / n,
        "accuracy_interval": list(binomtest(right, n).proportion_ci(method="wilson")),
        "precision": [_number(share) for share in precision],
        "recall": [_number(share) for share in recall],
        "ece": _number(bins.ece),
        "calibration": [
            {
                "over": k / count,
                "up_to": (k + 1) / count,
                "images": int(bins.counts[k]),
                "confidence": _number(bins.confidence[k]),
                "accuracy": _number(bins.accuracy[k]),
            }
            for k in range(count)
        ],
        "confusion": confusion.tolist(),
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
