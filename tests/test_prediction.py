"""A classifier in hand: names, scores, decoding."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from cards import filled_card

from keras_convnets.errors import UserError
from keras_convnets.images.files import encode_png
from keras_convnets.prediction import Classifier, name_scores


@pytest.mark.parametrize(
    "probabilities, k, found",
    [
        ([0.1, 0.6, 0.3], 2, [("b", 0.6), ("c", 0.3)]),
        ([0.1, 0.6, 0.3], 1, [("b", 0.6)]),
        ([0.1, 0.6, 0.3], 9, [("b", 0.6), ("c", 0.3), ("a", 0.1)]),
        ([0.25, 0.5, 0.25], 3, [("b", 0.5), ("a", 0.25), ("c", 0.25)]),
        ([0.25, 0.25, 0.5], 2, [("c", 0.5), ("a", 0.25)]),
    ],
)
def test_name_scores(probabilities, k, found):
    probabilities = np.array(probabilities, np.float64)
    assert name_scores(probabilities, ("a", "b", "c"), k) == found


def test_name_scores_breaks_many_ties_by_index():
    # So many that a sort which is not stable shows.
    names = [str(index) for index in range(1000)]
    probabilities = np.array([1e-3, 2e-3] * 500, np.float32)
    assert [name for name, _ in name_scores(probabilities, names, 1000)] == names[1::2] + names[::2]


def test_scores_are_plain_floats_for_json():
    (pair,) = name_scores(np.array([0.5], np.float32), ("a",), 1)
    assert json.loads(json.dumps(pair)) == ["a", 0.5]


def test_a_classifier_names_what_it_sees():
    card = dataclasses.replace(filled_card(), class_names=("dark", "bright"))

    def brightness(images):
        assert images.shape[1:] == (8, 8, 3) and images.dtype == np.uint8
        bright = images.mean((1, 2, 3)) / 255
        return np.stack([1 - bright, bright], -1)

    classifier = Classifier(card, brightness)
    encoded = [encode_png(np.full((20, 30, 3), value, np.uint8)) for value in (0, 255)]
    assert classifier.top_k(encoded, 1) == [[("dark", 1.0)], [("bright", 1.0)]]
    np.testing.assert_array_equal(classifier(np.full((1, 8, 8, 3), 255, np.uint8)), [[0, 1]])
    with pytest.raises(UserError, match="image 1 is not readable"):
        classifier.predict([encoded[0], b"text"])


def test_a_classifier_that_decodes_by_itself_is_let():
    card = dataclasses.replace(filled_card(), class_names=("a", "b"))
    classifier = Classifier(card, lambda images: pytest.fail("decoded here"), lambda encoded: np.array([[0.25, 0.75]]))
    assert classifier.top_k([b"anything"], 1) == [[("b", 0.75)]]
