"""Metrics and calibration: compared with closed forms, values computed by hand, scikit-learn and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from keras_convnets.errors import UserError
from keras_convnets.training.evaluation import Predictions
from keras_convnets.training.evaluation.calibration import (
    HIGHEST,
    LOWEST,
    calibrate,
    fitted_temperature,
    reliability,
    with_temperature,
)
from keras_convnets.training.evaluation.metrics import (
    holm_adjusted,
    label_ranks,
    mcnemar_p_value,
    mean_loss,
    top_k_accuracy,
    wilson_interval,
)


def drawn(n=500, classes=7, seed=0, scale=2.0):
    """Probabilities, and labels drawn from softmax(logits / scale)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 3
    true = np.exp(logits / scale)
    true /= true.sum(1, keepdims=True)
    labels = np.array([rng.choice(classes, p=row) for row in true])
    shown = np.exp(logits)
    return (shown / shown.sum(1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("count, n", [(0, 1), (1, 1), (0, 100), (11, 360), (180, 360), (50_000, 50_000), (3, 8)])
def test_wilson_interval_matches_scipy(count, n):
    expected = stats.binomtest(count, n).proportion_ci(method="wilson")
    assert wilson_interval(count, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_in_closed_form():
    # For count 0, the upper bound is z^2 / (n + z^2).
    z = 1.959963984540054
    assert wilson_interval(0, 100) == pytest.approx((0, z**2 / (100 + z**2)), abs=1e-12)


@pytest.mark.parametrize("first, second", [(0, 0), (1, 0), (1, 7), (7, 1), (5, 5), (40, 61), (4000, 4200)])
def test_mcnemar_is_the_binomial_test(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar_p_value(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand():
    # (1 + 8) of the 2^8 outcomes in each tail.
    assert mcnemar_p_value(1, 7) == 18 / 256
    assert mcnemar_p_value(0, 3000) == pytest.approx(2.0**-2999) and mcnemar_p_value(0, 5000) == 0


def test_holm_by_hand():
    # Ascending: 0.01 x 4, 0.02 x 3, 0.04 x 2, 0.3 x 1, made monotone by the running maximum.
    assert holm_adjusted([0.04, 0.01, 0.3, 0.02]) == pytest.approx([0.08, 0.04, 0.3, 0.06])
    assert holm_adjusted([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm_adjusted([0.6, 0.9]) == [1.0, 1.0] and holm_adjusted([]) == []


@pytest.mark.parametrize("k", [1, 2, 5])
def test_label_ranks_agree_with_top_k_accuracy(k):
    probabilities = np.random.default_rng(3).integers(0, 4, (200, 7)) / 4  # many ties
    labels = np.random.default_rng(4).integers(0, 7, 200)
    assert (label_ranks(probabilities, labels) < k).mean() == top_k_accuracy(probabilities, labels, k)


def test_log_loss_matches_scikit_learn():
    probabilities, labels = drawn()
    wide = probabilities.astype(np.float64)
    expected = sklearn_metrics.log_loss(labels, wide / wide.sum(1, keepdims=True), labels=range(7))
    assert mean_loss(probabilities, labels) == pytest.approx(expected, rel=1e-6)


def test_calibration_error_by_hand():
    # Four predictions with confidence 0.9, two of them correct, and a correct one with 0.6: 4/5 x 0.4 + 1/5 x 0.4.
    first = np.array([0.9, 0.9, 0.9, 0.9, 0.6])
    found = reliability(np.stack([first, 1 - first], axis=1), np.array([0, 0, 1, 1, 0]), bins=10)
    assert found.error == pytest.approx(0.4)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 4, 0]
    assert found.confidence[8] == pytest.approx(0.9) and found.accuracy[[5, 8]].tolist() == [1, 0.5]


def test_bins_include_their_upper_bound():
    found = reliability(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 0]), bins=2)
    assert found.counts.tolist() == [1, 1]  # 0.5 belongs to the first, 1 to the last


def test_reliability_matches_scikit_learn():
    calibration = pytest.importorskip("sklearn.calibration")
    probabilities, labels = drawn()
    answers, confidence = probabilities.argmax(1), probabilities.max(1)
    right, sure = calibration.calibration_curve(answers == labels, confidence, n_bins=15)
    found = reliability(probabilities, labels)
    filled = found.counts > 0
    np.testing.assert_allclose(found.accuracy[filled], right)
    np.testing.assert_allclose(found.confidence[filled], sure, rtol=1e-6)


def test_temperature_in_closed_form():
    # Two classes at 0.9 and 0.1, 7 of 10 correct: the optimal probability is 0.7, at logit(0.9) / logit(0.7).
    probabilities = np.tile([0.9, 0.1], (10, 1))
    labels = np.array([0] * 7 + [1] * 3)
    temperature = fitted_temperature(probabilities, labels)
    assert temperature == pytest.approx(math.log(9) / math.log(7 / 3), rel=1e-6)
    np.testing.assert_allclose(with_temperature(probabilities, temperature)[:, 0], 0.7, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_true_temperature_is_recovered(scale):
    probabilities, labels = drawn(20_000, scale=scale)
    temperature = fitted_temperature(probabilities, labels)
    assert temperature == pytest.approx(scale, rel=0.05)
    best = mean_loss(with_temperature(probabilities, temperature), labels)
    assert all(
        best <= mean_loss(with_temperature(probabilities, temperature * other), labels) for other in (0.98, 1.02)
    )


def test_temperatures_have_bounds():
    sure = np.tile([0.9, 0.1], (4, 1))
    assert fitted_temperature(sure, np.zeros(4, int)) == LOWEST
    assert fitted_temperature(sure, np.array([0, 0, 1, 1])) == HIGHEST
    zeros = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert LOWEST <= fitted_temperature(zeros, np.array([0, 0, 0])) <= HIGHEST


def predictions(probabilities, labels, split="test", prefix=""):
    classes = tuple(f"class {index}" for index in range(probabilities.shape[1]))
    ids = tuple(f"{prefix}{number:05d}" for number in range(len(labels)))
    return Predictions("a", "made", split, "center", classes, ids, labels, probabilities)


def test_calibration_is_fitted_and_measured_on_disjoint_halves():
    found = predictions(*drawn(2000))
    result = calibrate(found)
    assert result.fitted + result.measured == 2000 and abs(result.fitted - result.measured) <= 1
    assert result.after.error < result.before.error and result.loss_after < result.loss_before
    assert result.temperature == pytest.approx(2, rel=0.1)
    order = np.random.default_rng(9).permutation(2000)
    assert calibrate(found.at(order)).temperature == pytest.approx(result.temperature, rel=1e-9)
    halves = [np.bincount(found.labels), 2 * np.bincount(found.labels, minlength=7)]
    assert result.before.counts.sum() == result.measured and np.abs(halves[0] - halves[1] / 2).max() <= 1


def test_calibration_fitted_on_a_holdout():
    test, holdout = predictions(*drawn(600)), predictions(*drawn(900, seed=1), split="holdout")
    result = calibrate(test, holdout)
    assert (result.fitted, result.measured) == (900, 600)
    expected = fitted_temperature(holdout.probabilities, holdout.labels)
    assert result.temperature == pytest.approx(expected, rel=1e-6)  # float32 rows sum to 1 but for rounding
    with pytest.raises(UserError, match="images of made/test/center that the calibration is measured on"):
        calibrate(test, test)
    with pytest.raises(UserError, match="different classes"):
        calibrate(test, predictions(*drawn(10, classes=3), split="holdout"))
    with pytest.raises(UserError, match="needs at least two images"):
        calibrate(test.at([0]))


def test_probabilities_are_normalised_before_calibration():
    probabilities, labels = drawn()
    doubled = calibrate(predictions(probabilities * 2, labels))
    plain = calibrate(predictions(probabilities, labels))
    assert doubled.before.error == pytest.approx(plain.before.error, abs=1e-6)
    assert doubled.temperature == pytest.approx(plain.temperature, rel=1e-4)
