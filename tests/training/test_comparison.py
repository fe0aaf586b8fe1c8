"""Paired comparison of classifiers by McNemar's exact test."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from keras_convnets.errors import UserError
from keras_convnets.training.evaluation import Predictions, compare
from keras_convnets.training.evaluation.comparison import compare_all, distinct_names


def answering(right, source="a", **fields):
    """Predictions for two classes, correct where `right` is true."""
    right = np.asarray(right, bool)
    labels = np.arange(len(right)) % 2
    probabilities = np.where((np.arange(2) == labels[:, None]) == right[:, None], 0.75, 0.25)
    values = {"source": source, "data": "made", "split": "test", "protocol": "center", "class_names": ("ant", "bee")}
    values |= {"ids": tuple(f"{number}.jpg" for number in range(len(right))), "labels": labels}
    return Predictions(**{**values, "probabilities": probabilities, **fields})


# Correct: 20 both, 1 only the first, 9 only the second, 5 neither.
FIRST = [1] * 20 + [1] + [0] * 9 + [0] * 5
SECOND = [1] * 20 + [0] + [1] * 9 + [0] * 5


def test_counts_and_significance():
    found = compare(answering(FIRST, "runs/a"), answering(SECOND, "runs/b"))
    assert (found.n, found.both, found.only_first, found.only_second) == (35, 20, 1, 9)
    assert found.p_value == found.adjusted_p_value == 2 * (1 + 10) / 2**10
    assert found.better == "runs/b" and found.significant and found.difference == pytest.approx(8 / 35)
    assert found.sentence() == (
        "runs/b has a lower top-1 error than runs/a, by 22.86%: significant (only runs/a correct: 1, only runs/b "
        "correct: 9; p = 0.021)"
    )
    assert json.loads(json.dumps(found.to_dict()))["better"] == "runs/b"


def test_the_order_of_the_images_does_not_matter():
    order = np.random.default_rng(0).permutation(35)
    mixed = compare(answering(FIRST), answering(SECOND, "b").at(order))
    assert mixed == compare(answering(FIRST), answering(SECOND, "b"))


def test_equally_many_errors():
    found = compare(answering(FIRST), answering(FIRST, "b"))
    assert found.better is None and not found.significant and found.p_value == 1
    assert found.sentence().startswith("a and b have equally many errors")


def test_several_pairs_are_adjusted():
    found = compare_all([answering(FIRST), answering(SECOND, "b"), answering([1] * 35, "c")])
    assert [(row.first, row.second) for row in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    smallest, middle, largest = sorted(found, key=lambda row: row.p_value)
    assert smallest.adjusted_p_value == pytest.approx(3 * smallest.p_value)
    assert middle.adjusted_p_value == pytest.approx(2 * middle.p_value)
    assert largest.adjusted_p_value == max(largest.p_value, middle.adjusted_p_value)
    # Significant without the adjustment, but not with it.
    assert found[2].p_value == 2 / 2**6
    assert "adjusted by Holm's method" in found[0].sentence()


@pytest.mark.parametrize("fields, sentence", [
    ({"class_names": ("ant", "wasp")}, "a and b have different classes .ant, bee; ant, wasp."),
    ({"ids": tuple(f"{number}.jpg" for number in range(1, 36))}, "predictions for different images .*, such as 0.jpg"),
    ({"labels": np.zeros(35, int)}, "different true labels for 17 images, such as 1.jpg .bee; ant."),
])  # fmt: skip
def test_different_images_labels_or_classes_are_errors(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        compare(answering(FIRST), answering(SECOND, "b", **fields))


def test_missing_and_duplicate_images_are_errors():
    with pytest.raises(UserError, match="35 of made/test/center, 34 of made/test/center, such as 34.jpg"):
        compare(answering(FIRST), answering(SECOND).at(range(34)))
    twice = dataclasses.replace(answering(FIRST), ids=("0.jpg", *answering(FIRST).ids[:-1]))
    with pytest.raises(UserError, match="has two predictions for an image"):
        compare(twice, answering(SECOND))
    with pytest.raises(UserError, match="35 of made/test/center, 36 of made/test/center"):
        compare(answering(FIRST), answering(SECOND).at([0, *range(35)]))


def test_names_are_unique():
    one, crops = answering(FIRST, "a"), answering(FIRST, "a", protocol="ten_crop")
    assert distinct_names([one, crops, answering(FIRST, "b")]) == ["a (center)", "a (ten_crop)", "b"]
    assert distinct_names([one, one]) == ["a (center) #1", "a (center) #2"]
