"""Metrics: pure functions of probabilities and labels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np


def top_k_accuracy(probabilities: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Return the fraction of rows whose label is among the k largest; ties go to the lower class index.

    Args:
        probabilities: [n, classes].
        labels: integers [n].
        k: how many answers count.
    """
    # Counted and not sorted: the indices of 50,000 rows of 1,000 classes alone take 400 MB.
    own = probabilities[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    # What is not a number is no answer: it has all others before it.
    before = ~(probabilities <= own) | ((probabilities == own) & earlier)
    return float((before.sum(axis=1) < k).mean())


def mean_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy, in nats; a probability of 0 counts as float32's smallest."""
    right = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean())


def confusion_matrix(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Return counts, int64 [classes, classes]: row the truth, column the answer."""
    return np.bincount(labels * classes + answers, minlength=classes * classes).reshape(classes, classes)


def label_ranks(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how many classes come before the true one in each row, int64 [n]: 0 where it is the likeliest.

    Of equal probabilities the lower class index comes first.

    Args:
        probabilities: [n, classes].
        labels: integers [n].
    """
    own = probabilities[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    return ((probabilities > own) | ((probabilities == own) & earlier)).sum(axis=1)


def wilson_interval(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a proportion: for errors, which are rare, it holds where the normal one fails.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).

    Args:
        count: how many of the n have the property.
        n: at least 1.
        confidence: that the interval holds the true proportion, 0 to 1.

    Example:
        >>> wilson_interval(0, 100)
        (0.0, 0.036993...)
    """
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    fraction = count / n
    centre = (fraction + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n))
    # At the ends the sum of the two is 0 or 1 but for rounding.
    return 0.0 if count == 0 else centre - half, 1.0 if count == n else centre + half


def mcnemar_p_value(first: int, second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test of paired answers.

    It is the probability of a split at least as uneven as this one if each image that only one of two classifiers gets
    right were as likely to be the one's as the other's. Q. McNemar, Psychometrika 12 (1947).

    Args:
        first: how many images only the first gets right.
        second: how many only the second does.

    Example:
        >>> mcnemar_p_value(1, 7)
        0.0703125
    """
    n, ways, below = first + second, 1, 0
    for k in range(min(first, second) + 1):
        below += ways
        ways = ways * (n - k) // (k + 1)
    # Whole numbers until here: the quotient is exact for any n.
    return min(1.0, 2 * below / (1 << n))


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for being several, in their order, by Holm's method.

    Of the pairs with one below 0.05, all are different with a confidence of 0.95 together. S. Holm, A simple
    sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted
