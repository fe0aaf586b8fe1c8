"""Metrics and statistical tests: pure functions of probabilities, labels and counts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np


def top_k_accuracy(probabilities: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Return the fraction of images whose label is among the k most probable classes.

    Ties are broken in favour of the lower class index.

    Args:
        probabilities: [n, classes].
        labels: integers [n].
        k: number of classes to consider.
    """
    # Ranks are counted instead of sorted: the sort indices of 50,000 rows of 1,000 classes would take 400 MB.
    own = probabilities[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    # NaN ranks last: every comparison with it is false.
    before = ~(probabilities <= own) | ((probabilities == own) & earlier)
    return float((before.sum(axis=1) < k).mean())


def mean_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy in nats; probabilities are clipped from below at float32's smallest normal."""
    right = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean())


def confusion_matrix(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Return the confusion matrix, int64 [classes, classes]; rows are true classes, columns predicted classes."""
    return np.bincount(labels * classes + answers, minlength=classes * classes).reshape(classes, classes)


def label_ranks(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the 0-based rank of the true class in each row, int64 [n]: 0 if it is the most probable class.

    Ties are broken in favour of the lower class index.

    Args:
        probabilities: [n, classes].
        labels: integers [n].
    """
    own = probabilities[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    return ((probabilities > own) | ((probabilities == own) & earlier)).sum(axis=1)


def wilson_interval(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion.

    Unlike the normal approximation, it has good coverage for proportions near 0 or 1, such as small errors. E. B.
    Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).

    Args:
        count: number of successes.
        n: number of trials, at least 1.
        confidence: confidence level, 0 to 1.

    Example:
        >>> wilson_interval(0, 100)
        (0.0, 0.036993...)
    """
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    fraction = count / n
    centre = (fraction + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n))
    # For count 0 or n, the bound is exactly 0 or 1; the formula has a rounding error.
    return 0.0 if count == 0 else centre - half, 1.0 if count == n else centre + half


def mcnemar_p_value(first: int, second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test for two classifiers on the same images.

    It is the binomial test with probability 1/2 on the discordant images, those that exactly one of the classifiers
    classifies correctly. Q. McNemar, Psychometrika 12 (1947).

    Args:
        first: number of images that only the first classifier classifies correctly.
        second: number of images that only the second classifier classifies correctly.

    Example:
        >>> mcnemar_p_value(1, 7)
        0.0703125
    """
    n, ways, below = first + second, 1, 0
    for k in range(min(first, second) + 1):
        below += ways
        ways = ways * (n - k) // (k + 1)
    # `below` and 2^n are exact integers, so the quotient does not overflow for any n.
    return min(1.0, 2 * below / (1 << n))


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple comparisons by Holm's step-down method, in the order given.

    Rejecting all hypotheses with an adjusted p-value below 0.05 bounds the family-wise error rate by 0.05. S. Holm, A
    simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted
