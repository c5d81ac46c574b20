"""Confusion, precision and recall of a classifier on a test set. NumPy.

>>> confusion = confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 2)
>>> confusion.tolist()
[[1, 1], [0, 2]]
>>> precision, recall = precision_recall(confusion)
>>> precision.round(3).tolist(), recall.tolist()
([1.0, 0.667], [0.5, 1.0])
"""

from collections.abc import Iterable
from typing import Any

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


def classification_metrics(
    log_probabilities: Float[AnyArray, "n classes"], labels: Int[AnyArray, " n"]
) -> dict[str, Any]:
    """Loss (nats), accuracy and all of this module in JSON's types; None for what is not finite."""
    table, labels = np.asarray(log_probabilities, np.float64), np.asarray(labels)
    confusion = confusion_matrix(labels, table.argmax(axis=1), table.shape[1])
    right, n = int(confusion.trace()), len(table)
    precision, recall = map(_numbers, precision_recall(confusion))
    (loss,) = _numbers([-table[np.arange(n), labels].mean()])
    return {
        "loss": loss,
        "accuracy": right / n,
        "accuracy_interval": accuracy_interval(right, n),
        "precision": precision,
        "recall": recall,
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
