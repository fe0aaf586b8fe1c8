"""Metrics: pure functions of probabilities and labels."""

from __future__ import annotations

import numpy as np


def top_k_accuracy(probabilities: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Return the fraction of rows whose label is among the k largest; ties go to the lower class index.

    Args:
        probabilities: [n, classes].
        labels: integers [n].
        k: how many answers count.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float((order == labels[:, None]).any(axis=1).mean())


def mean_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy, in nats; a probability of 0 counts as float32's smallest."""
    right = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean())


def confusion_matrix(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Return counts, int64 [classes, classes]: row the truth, column the answer."""
    return np.bincount(labels * classes + answers, minlength=classes * classes).reshape(classes, classes)
