"""Confusion, precision, recall and calibration of a classifier on a test set. NumPy.

>>> confusion = confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 2)
>>> confusion.tolist()
[[1, 1], [0, 2]]
>>> precision, recall = precision_recall(confusion)
>>> precision.round(3).tolist(), recall.tolist()
([1.0, 0.667], [0.5, 1.0])
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int, Int64

from jaxmnist.types import AnyArray


def confusion_matrix(
    labels: Int[AnyArray, " n"], predictions: Int[AnyArray, " n"], classes: int
) -> Int64[np.ndarray, "classes classes"]:
    """How many examples of class i (rows) were predicted as class j (columns).

    Raises a ValueError where a label or a prediction is not from 0 to `classes` - 1.
    """
    pairs = np.ravel_multi_index((labels, predictions), (classes, classes))
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def precision_recall(
    confusion: Int[AnyArray, "classes classes"],
) -> tuple[Float64[np.ndarray, " classes"], Float64[np.ndarray, " classes"]]:
    """Each class's precision and recall.

    Precision is the share of a class's predictions that are right, recall the share of its examples
    that are found; NaN where there are none.
    """
    counts = np.asarray(confusion, np.float64)
    with np.errstate(invalid="ignore"):
        return np.diag(counts) / counts.sum(axis=0), np.diag(counts) / counts.sum(axis=1)


class Calibration(NamedTuple):
    """How far a model's confidence is from its accuracy; a bin without examples has NaN."""

    ece: float  # expected calibration error: mean distance of the two, weighted by the counts
    counts: Int64[np.ndarray, " bins"]  # examples in each bin
    confidence: Float64[np.ndarray, " bins"]  # mean of their largest probabilities
    accuracy: Float64[np.ndarray, " bins"]  # share of them that is right


def calibration(
    probabilities: Float[AnyArray, "n classes"], labels: Int[AnyArray, " n"], bins: int = 15
) -> Calibration:
    """Expected calibration error over bins of equal width, and the bins (a reliability diagram).

    Bin m of M, from 1, holds the examples whose largest probability is in ((m - 1)/M, m/M]: C. Guo,
    G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017,
    equation 3.
    """
    table = np.asarray(probabilities, np.float64)
    largest, right = table.max(axis=1), table.argmax(axis=1) == np.asarray(labels)
    index = np.clip(np.ceil(largest * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    confidences, rights = (np.bincount(index, x, bins) for x in (largest, right))
    ece = float(np.abs(confidences - rights).sum() / len(table))
    with np.errstate(invalid="ignore"):
        return Calibration(ece, counts, confidences / counts, rights / counts)


def classification_metrics(
    log_probabilities: Float[AnyArray, "n classes"], labels: Int[AnyArray, " n"]
) -> dict[str, Any]:
    """Loss (nats), accuracy and all of this module in JSON's types; None for what is not finite."""
    table, labels = np.asarray(log_probabilities, np.float64), np.asarray(labels)
    confusion = confusion_matrix(labels, table.argmax(axis=1), table.shape[1])
    right, n = int(confusion.trace()), len(table)
    precision, recall = precision_recall(confusion)
    error, counts, *shares = calibration(np.exp(table), labels)
    loss, ece = _numbers([-table[np.arange(n), labels].mean(), error])
    edges = (np.arange(len(counts) + 1) / len(counts)).tolist()
    columns = (edges[:-1], edges[1:], counts.tolist(), *map(_numbers, shares))
    names = ("over", "up_to", "images", "confidence", "accuracy")
    return {
        "loss": loss,
        "accuracy": right / n,
        "accuracy_interval": accuracy_interval(right, n),
        "precision": _numbers(precision),
        "recall": _numbers(recall),
        "ece": ece,
        "calibration": [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)],
        "confusion": confusion.tolist(),
    }


def accuracy_interval(right: int, n: int) -> list[float]:
    """The 95 % interval of an accuracy, `right` of `n`: low, high.

    It is Wilson's: E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", JASA 22 (1927), 209-212.

    >>> [round(end, 3) for end in accuracy_interval(9, 10)]
    [0.596, 0.982]
    """
    from scipy.stats import binomtest

    return [float(end) for end in binomtest(right, n).proportion_ci(method="wilson")]


def _numbers(values: Iterable[Any]) -> list[float | None]:
    return [float(x) if np.isfinite(x) else None for x in values]
