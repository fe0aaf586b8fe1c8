"""Evaluation: the figures are scikit-learn's, and every example counts once."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics

from keras_convnets import CIFARResNet, training
from keras_convnets.errors import UserError
from keras_convnets.training.data import ArraySplit, DataSet
from keras_convnets.training.evaluation import CENTER, Protocol
from keras_convnets.training.evaluation.metrics import top_k_accuracy

CLASSES = 7


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (103, 8, 8, 3), np.uint8)
    split = ArraySplit(images, rng.integers(0, CLASSES, 103))
    return DataSet("made", tuple("abcdefg"), True, {"train": split, "test": split}, (8, 8))


def guess(images):
    """Probabilities that depend on the image alone."""
    sums = images.reshape(len(images), -1).astype(np.float64) @ np.random.default_rng(1).normal(size=(192, CLASSES))
    scores = np.exp(sums / 2000)
    return (scores / scores.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("batch_size", [1, 10, 103, 500])
def test_figures_are_scikit_learns_whatever_the_batch_size(data, batch_size):
    seen = []

    def predictor(images):
        seen.append(len(images))
        return guess(images)

    result = training.evaluate(predictor, data, batch_size=batch_size)
    split = data.splits["test"]
    probabilities, labels = guess(split.images), split.labels
    assert sum(seen) == result.n == 103
    assert result.top1 == pytest.approx(metrics.accuracy_score(labels, probabilities.argmax(1)))
    expected5 = metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=range(CLASSES))
    assert result.top5 == pytest.approx(expected5)
    expected = metrics.confusion_matrix(labels, probabilities.argmax(1), labels=range(CLASSES))
    assert (result.confusion == expected).all()
    recalls = metrics.recall_score(
        labels, probabilities.argmax(1), average=None, labels=range(CLASSES), zero_division=0
    )
    assert [row["top1"] for row in result.per_class] == pytest.approx(recalls)
    assert json.loads(json.dumps(result.to_dict()))["n"] == 103


def test_a_keras_model_gives_the_same_at_any_batch_size(data):
    model = CIFARResNet(8, input_shape=(8, 8, 3), classes=CLASSES)
    results = [training.evaluate(model, data, batch_size=size) for size in (32, 103)]
    assert (results[0].confusion == results[1].confusion).all()
    direct = model.predict(data.splits["test"].images, verbose=0).argmax(1)
    assert (
        results[0].confusion == metrics.confusion_matrix(data.splits["test"].labels, direct, labels=range(CLASSES))
    ).all()


def test_a_class_without_images_has_no_accuracy():
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 0, 1, 1])
    data = DataSet("made", ("a", "b", "c"), True, {"test": ArraySplit(images, labels)}, (8, 8))
    result = training.evaluate(lambda images: np.eye(3, dtype=np.float32)[[0] * len(images)], data)
    assert result.per_class == [
        {"class": "a", "n": 2, "top1": 1.0},
        {"class": "b", "n": 2, "top1": 0.0},
        {"class": "c", "n": 0, "top1": None},
    ]
    assert result.top1 == 0.5 and result.top5 is None
    assert result.standard_error == pytest.approx(0.25)


def test_ties_go_to_the_lower_class_index():
    probabilities = np.full((3, 4), 0.25, np.float32)
    assert top_k_accuracy(probabilities, np.array([0, 1, 3]), 1) == pytest.approx(1 / 3)
    assert top_k_accuracy(probabilities, np.array([0, 1, 3]), 2) == pytest.approx(2 / 3)


@pytest.mark.parametrize("outputs, right", [
    (lambda main, other: {"aux1": other, "probabilities": main}, True),
    (lambda main, other: [main], True),
    (lambda main, other: [main, other], False),
    (lambda main, other: {"left": main, "right": other}, False),
], ids=["auxiliary", "list of one", "list", "other names"])  # fmt: skip
def test_of_several_outputs_the_probabilities_are_measured(data, outputs, right):
    images = keras.Input((8, 8, 3))
    flat = keras.layers.Flatten()(images)
    main, other = (keras.layers.Dense(CLASSES, "softmax")(flat) for _ in range(2))
    model = keras.Model(images, outputs(main, other), name="several")
    if not right:
        with pytest.raises(UserError, match="several has 2 outputs; evaluation needs a model with one output"):
            training.evaluate(model, data)
        return
    expected = training.evaluate(keras.Model(images, main), data)
    assert (training.evaluate(model, data).confusion == expected.confusion).all()


def mirrored(image, view):
    """The image and its mirror image, at the size of the view."""
    assert view.crop == (8, 8)
    return tf.stack([image, tf.reverse(image, [1])])


@pytest.mark.parametrize("average, expected", [
    (None, lambda plain, mirror: (plain + mirror) / 2), (lambda views: views.max(axis=1), np.maximum)
], ids=["mean", "own"])  # fmt: skip
@pytest.mark.parametrize("batch_size", [1, 7, 128])
def test_a_protocol_shows_views_and_averages_the_answers(data, batch_size, average, expected):
    protocol = Protocol("mirrored", mirrored, **({"average": average} if average else {}))
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(CLASSES, "softmax")])
    model.set_weights([np.random.default_rng(3).normal(size=(192, CLASSES)) / 2000, np.zeros(CLASSES)])
    seen = []
    result = training.evaluate(
        model, data, protocol=protocol, batch_size=batch_size, progress=lambda done, total: seen.append((done, total))
    )
    split = data.splits["test"]
    plain, mirror = (model.predict(images, verbose=0) for images in (split.images, split.images[:, :, ::-1]))
    answers = expected(plain, mirror).argmax(1)
    assert (answers != plain.argmax(1)).any()
    assert (result.confusion == metrics.confusion_matrix(split.labels, answers, labels=range(CLASSES))).all()
    assert result.key == "made/test/mirrored" and seen[-1] == (103, 103)


def test_the_center_is_the_default_and_other_names_are_refused(data):
    assert (
        training.evaluate(guess, data).key == training.evaluate(guess, data, protocol=CENTER).key == "made/test/center"
    )
    with pytest.raises(UserError, match="unknown protocol 'centre'; the nearest valid names are center, dense"):
        training.evaluate(guess, data, protocol="centre")
    with pytest.raises(
        UserError, match="protocol mirrored crops or resizes the images, which needs .* use protocol center"
    ):
        training.evaluate(guess, data, protocol=Protocol("mirrored", mirrored))


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, None])
def test_a_batch_size_is_a_whole_number(data, batch_size):
    with pytest.raises(UserError, match=f"batch_size is {batch_size}; it must be a whole number of at least 1"):
        training.evaluate(guess, data, batch_size=batch_size)


@pytest.mark.parametrize("split, sentence", [("tset", "unknown split of made 'tset'; the nearest valid name is test")])
def test_unknown_splits_are_refused(data, split, sentence):
    with pytest.raises(UserError, match=sentence):
        training.evaluate(guess, data, split=split)


def test_another_number_of_classes_is_refused(data):
    with pytest.raises(UserError, match="the model has 7 classes and digits has 10"):
        training.evaluate(guess, training.load_dataset("digits"))


def test_data_without_an_evaluation_split_is_refused(data):
    only_train = DataSet("made", ("a", "b"), True, {"train": data.splits["train"]}, (8, 8))
    with pytest.raises(UserError, match="made has only train"):
        training.evaluate(guess, only_train)
