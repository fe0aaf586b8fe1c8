"""Calibration: whether a classifier is right as often as its probabilities say, and temperature scaling.

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
# Of temperatures: where every answer is right, the best is 0, and of chance it is infinite.
LOWEST, HIGHEST = 1 / 20, 20.0
MOST_STEPS, PRECISION = 100, 1e-9
# Rows whose logarithms are held at a time.
TOGETHER = 4096


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often answers of about the same probability are right: bins of equal width from 0 to 1.

    Attributes:
        counts: images in each bin, int64 [bins].
        confidence: mean probability of the likeliest class in each, [bins]; NaN in an empty one.
        accuracy: fraction of right answers in each, [bins]; NaN in an empty one.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: the mean of |accuracy - confidence| over all images, 0 to 1."""
        filled = self.counts > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((gaps * self.counts[filled]).sum() / self.counts.sum())


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration before and after temperature scaling, measured on images that the temperature was not fitted on.

    Attributes:
        temperature: what logits are divided by; above 1 where the classifier is too sure.
        fitted: number of images it was fitted on.
        measured: number of other images, on which all else is measured.
        before: reliability as the classifier answers.
        after: reliability with the temperature.
        loss_before: mean cross-entropy in nats.
        loss_after: the same with the temperature.
    """

    temperature: float
    fitted: int
    measured: int
    before: Reliability
    after: Reliability
    loss_before: float
    loss_after: float


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    """Return how often the likeliest class is right, by its probability.

    Args:
        probabilities: [n, classes], which sum to 1.
        labels: integers [n].
        bins: how many; bin i is from i / bins, itself excluded, to (i + 1) / bins.
    """
    answers = probabilities.argmax(axis=1)
    confidence = probabilities[np.arange(len(labels)), answers].astype(np.float64)
    at = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(at, minlength=bins)
    with np.errstate(invalid="ignore"):
        sure = np.bincount(at, weights=confidence, minlength=bins) / counts
        right = np.bincount(at, weights=answers == labels, minlength=bins) / counts
    return Reliability(counts, sure, right)


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities as they are when the logits are divided by a temperature, float32 [n, classes]."""
    parts = [_softmax(rows / temperature) for rows in _logarithms(probabilities)]
    return np.concatenate(parts).astype(np.float32)


def fitted_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature, 0.05 to 20, with the lowest mean cross-entropy.

    The cross-entropy is convex in 1 / temperature; its zero slope is found by Newton's steps, and by halving where one
    leads out of the interval that holds it.

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
    for _ in range(MOST_STEPS):
        slope, curvature = _slope(probabilities, labels, scale)
        low, high = (low, scale) if slope > 0 else (scale, high)
        new = scale - slope / curvature if curvature > 0 else low
        new = new if low < new < high else (low + high) / 2
        if abs(new - scale) <= PRECISION * scale:
            break
        scale = new
    return 1 / new


def calibration_error(predictions: Predictions) -> float:
    """Return the expected calibration error over all images, 0 to 1, without a temperature."""
    return reliability(_normalised(predictions), predictions.labels).error


def calibrate(predictions: Predictions, fit_on: Predictions | None = None) -> Calibration:
    """Fit a temperature on some images and measure calibration with and without it on others.

    Args:
        predictions: on which is measured.
        fit_on: other images, such as those of a holdout, by the same classifier. By default one half of the images is
            fitted on and the other measured: of each class every second one, in the order of the ids.

    Raises:
        UserError: if there are fewer than two images, or `fit_on` has images of `predictions` or other classes.

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
        raise UserError(f"{predictions.source} answered for {len(predictions)} image; calibration needs two or more.")
    order = np.array(sorted(range(len(predictions)), key=lambda position: predictions.ids[position]))
    first, second = held_out(predictions.labels[order], len(order) // 2)
    return predictions.at(order[first]), predictions.at(order[second])


def _apart(predictions: Predictions, fit_on: Predictions) -> tuple[Predictions, Predictions]:
    if predictions.class_names != fit_on.class_names:
        raise UserError(
            f"{predictions.source} and {fit_on.source} have other classes; fit on data of the same classes."
        )
    is_same_split = (predictions.data, predictions.split) == (fit_on.data, fit_on.split)
    if is_same_split and not set(predictions.ids).isdisjoint(fit_on.ids):
        raise UserError(
            f"the temperature would be fitted on images of {fit_on.key} that it is measured on; give others."
        )
    return fit_on, predictions


def _normalised(predictions: Predictions) -> np.ndarray:
    """Return probabilities that sum to 1: the highest of several views do not."""
    sums = predictions.probabilities.sum(axis=1, keepdims=True)
    return predictions.probabilities / np.maximum(sums, np.finfo(np.float32).tiny)


def _logarithms(probabilities: np.ndarray) -> Iterator[np.ndarray]:
    """Give the logarithms, float64, of some rows after the other; that of 0 is that of float32's smallest."""
    for start in range(0, len(probabilities), TOGETHER):
        rows = probabilities[start : start + TOGETHER].astype(np.float64)
        yield np.log(np.maximum(rows, np.finfo(np.float32).tiny))


def _softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _slope(probabilities: np.ndarray, labels: np.ndarray, scale: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean cross-entropy by what the logits are multiplied with."""
    slope, curvature, done = 0.0, 0.0, 0
    for scores in _logarithms(probabilities):
        own = scores[np.arange(len(scores)), labels[done : done + len(scores)]]
        done += len(scores)
        weights = _softmax(scores * scale)
        mean = (weights * scores).sum(axis=1)
        slope += float((mean - own).sum())
        curvature += float((weights * (scores - mean[:, None]) ** 2).sum())
    return slope / done, curvature / done
