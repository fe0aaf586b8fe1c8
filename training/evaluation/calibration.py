"""Calibration: expected calibration error, reliability diagrams and temperature scaling.

C. Guo and others, On calibration of modern neural networks, ICML 2017. NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from keras_convnets.errors import UserError
from keras_convnets.training.data.splits import held_out
from keras_convnets.training.evaluation.metrics import mean_loss
from keras_convnets.training.evaluation.predictions import Predictions

BINS = 15
# Bounds of the temperature: the optimum is 0 if every prediction is correct, and infinite for uninformative ones.
LOWEST, HIGHEST = 1 / 20, 20.0
# Of Newton's method: maximum number of iterations, and relative tolerance.
MAX_ITERATIONS, TOLERANCE = 100, 1e-9
# Rows per chunk, to bound the memory of the float64 logarithms.
CHUNK_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Reliability:
    """Accuracy and mean confidence of predictions binned by confidence: the data of a reliability diagram.

    The confidence is the probability of the predicted class. The bins have equal widths from 0 to 1.

    Attributes:
        counts: number of images per bin, int64 [bins].
        confidence: mean confidence per bin, float64 [bins]; NaN for an empty bin.
        accuracy: top-1 accuracy per bin, float64 [bins]; NaN for an empty bin.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: mean of |accuracy - confidence| over bins, weighted by counts; 0 to 1."""
        filled = self.counts > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((gaps * self.counts[filled]).sum() / self.counts.sum())


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration before and after temperature scaling, measured on images that the temperature was not fitted on.

    Attributes:
        temperature: divisor of the logits; above 1 for an overconfident classifier.
        fitted: number of images that the temperature was fitted on.
        measured: number of held-out images, on which the following attributes are measured.
        before: reliability without temperature scaling.
        after: reliability with temperature scaling.
        loss_before: mean cross-entropy in nats, without temperature scaling.
        loss_after: mean cross-entropy in nats, with temperature scaling.
    """

    temperature: float
    fitted: int
    measured: int
    before: Reliability
    after: Reliability
    loss_before: float
    loss_after: float


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    """Return the accuracy and mean confidence of predictions binned by confidence.

    Args:
        probabilities: [n, classes]; each row sums to 1.
        labels: integers [n].
        bins: number of bins; bin i is the interval (i / bins, (i + 1) / bins].
    """
    answers = probabilities.argmax(axis=1)
    confidence = probabilities[np.arange(len(labels)), answers].astype(np.float64)
    at = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(at, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(at, weights=confidence, minlength=bins) / counts
        accuracy = np.bincount(at, weights=answers == labels, minlength=bins) / counts
    return Reliability(counts, mean_confidence, accuracy)


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities after temperature scaling, softmax(logits / temperature), float32 [n, classes]."""
    parts = [_softmax(rows / temperature) for rows in _logarithms(probabilities)]
    return np.concatenate(parts).astype(np.float32)


def fitted_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature, 0.05 to 20, that minimizes the mean cross-entropy.

    The cross-entropy is convex in 1 / temperature. Its minimum is found by Newton's method, with a bisection step
    whenever a Newton step leaves the bracketing interval.

    Args:
        probabilities: [n, classes].
        labels: integers [n].
    """
    low, high = 1 / HIGHEST, 1 / LOWEST
    if _slope(probabilities, labels, low)[0] >= 0:
        return HIGHEST
    if _slope(probabilities, labels, high)[0] <= 0:
        return LOWEST
    scale = 1.0
    for _ in range(MAX_ITERATIONS):
        slope, curvature = _slope(probabilities, labels, scale)
        low, high = (low, scale) if slope > 0 else (scale, high)
        new = scale - slope / curvature if curvature > 0 else low
        new = new if low < new < high else (low + high) / 2
        if abs(new - scale) <= TOLERANCE * scale:
            break
        scale = new
    return 1 / new


def calibration_error(predictions: Predictions) -> float:
    """Return the expected calibration error over all images, 0 to 1, without temperature scaling."""
    return reliability(_normalised(predictions), predictions.labels).error


def calibrate(predictions: Predictions, fit_on: Predictions | None = None) -> Calibration:
    """Fit a temperature on some images, and measure the calibration with and without it on others.

    Args:
        predictions: the predictions to measure.
        fit_on: predictions of the same classifier to fit the temperature on, for example those of a holdout split. By
            default, `predictions` is split into halves: every second image of each class, in the order of the ids, is
            fitted on, and the other half is measured.

    Raises:
        UserError: if there are fewer than two images, or if `fit_on` shares images with `predictions` or has different
            classes.

    Example:
        >>> calibrate(training.evaluate(model, data).predictions).temperature
        1.73
    """
    fitted, measured = _halves(predictions) if fit_on is None else _apart(predictions, fit_on)
    temperature = fitted_temperature(_normalised(fitted), fitted.labels)
    before = _normalised(measured)
    after = with_temperature(before, temperature)
    return Calibration(
        temperature=temperature,
        fitted=len(fitted),
        measured=len(measured),
        before=reliability(before, measured.labels),
        after=reliability(after, measured.labels),
        loss_before=mean_loss(before, measured.labels),
        loss_after=mean_loss(after, measured.labels),
    )


def _halves(predictions: Predictions) -> tuple[Predictions, Predictions]:
    if len(predictions) < 2:
        raise UserError(
            f"{predictions.source} has predictions for {len(predictions)} image; calibration needs at least two images."
        )
    order = np.array(sorted(range(len(predictions)), key=lambda position: predictions.ids[position]))
    first, second = held_out(predictions.labels[order], len(order) // 2)
    return predictions.at(order[first]), predictions.at(order[second])


def _apart(predictions: Predictions, fit_on: Predictions) -> tuple[Predictions, Predictions]:
    if predictions.class_names != fit_on.class_names:
        raise UserError(
            f"{predictions.source} and {fit_on.source} have different classes; fit on data with the same classes."
        )
    is_same_split = (predictions.data, predictions.split) == (fit_on.data, fit_on.split)
    if is_same_split and not set(predictions.ids).isdisjoint(fit_on.ids):
        raise UserError(
            f"fit_on contains images of {fit_on.key} that the calibration is measured on; pass predictions of other "
            "images."
        )
    return fit_on, predictions


def _normalised(predictions: Predictions) -> np.ndarray:
    """Return the probabilities normalised to sum 1 per image."""
    sums = predictions.probabilities.sum(axis=1, keepdims=True)
    return predictions.probabilities / np.maximum(sums, np.finfo(np.float32).tiny)


def _logarithms(probabilities: np.ndarray) -> Iterator[np.ndarray]:
    """Yield log-probabilities, float64 [rows, classes], in chunks; clipped from below at float32's smallest normal."""
    for start in range(0, len(probabilities), CHUNK_ROWS):
        rows = probabilities[start : start + CHUNK_ROWS].astype(np.float64)
        yield np.log(np.maximum(rows, np.finfo(np.float32).tiny))


def _softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _slope(probabilities: np.ndarray, labels: np.ndarray, scale: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean cross-entropy with respect to `scale` = 1 / temperature."""
    slope, curvature, done = 0.0, 0.0, 0
    for scores in _logarithms(probabilities):
        own = scores[np.arange(len(scores)), labels[done : done + len(scores)]]
        done += len(scores)
        weights = _softmax(scores * scale)
        mean = (weights * scores).sum(axis=1)
        slope += float((mean - own).sum())
        curvature += float((weights * (scores - mean[:, None]) ** 2).sum())
    return slope / done, curvature / done
