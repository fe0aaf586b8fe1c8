"""Class maps: lookup by id, name and index, and evaluation among all classes or the data's classes only."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_convnets import training
from keras_convnets.card import card_of_model
from keras_convnets.classes import find_classes, imagenet_classes
from keras_convnets.errors import UserError
from keras_convnets.prediction import Classifier
from keras_convnets.training.data import ArraySplit, DataSet
from keras_convnets.training.evaluation import ClassMap

IMAGENET = imagenet_classes()
# Some of Imagenette's classes in the order of TensorFlow Datasets, and their indices in the 1,000 ImageNet classes.
WNIDS = ("n02979186", "n03417042", "n01440764", "n02102040", "n03028079")
NAMES = ("cassette player", "garbage truck", "tench", "English springer", "church")
PLACES = (482, 569, 0, 217, 497)
LABELS = np.array([0, 1, 2, 3, 4, 0, 2, 2])


def data_of(class_names, name="imagenette"):
    """A data set of eight images, each with its position in the first pixel."""
    images = np.zeros((8, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(8)
    return DataSet(name, tuple(class_names), True, {"validation": ArraySplit(images, LABELS)}, (8, 8))


def probabilities():
    """Float32 [8, 1000]: four correct predictions, two of classes not in the data, two of wrong classes of the data."""
    rows = np.full((8, 1000), 1e-4, np.float32)
    answers = [482, 569, 1, 217, 0, 482, 999, 497]
    rows[np.arange(8), answers] = 0.5
    # If the predicted class is not in the data, the true class is second.
    rows[2, 0], rows[6, 0] = 0.3, 0.2
    return rows / rows.sum(1, keepdims=True)


def guess(images):
    return probabilities()[images[:, 0, 0, 0]]


@pytest.fixture(scope="module")
def imagenet_classifier():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(1000, "softmax")])
    card = card_of_model(model, IMAGENET.names)
    return Classifier(card, guess)


def test_wordnet_ids_are_mapped_by_default(imagenet_classifier):
    result = training.evaluate(imagenet_classifier, data_of(WNIDS))
    # Ties are broken by the lower index: tench is in the top 5, and church is not.
    assert (result.n, result.top1, result.top5) == (8, 4 / 8, 7 / 8)
    assert result.class_names == IMAGENET.names and result.confusion.shape == (1000, 1000)
    wrong = {(0, 1): 1, (497, 0): 1, (0, 999): 1, (0, 497): 1}
    right = {(482, 482): 2, (569, 569): 1, (217, 217): 1}
    found = {
        (int(row), int(column)): int(result.confusion[row, column]) for row, column in np.argwhere(result.confusion)
    }
    assert found == wrong | right
    assert result.key == "imagenette/validation/center" and result.to_dict()["answers"] == "all"


def test_subset_predicts_among_the_datas_classes(imagenet_classifier):
    result = training.evaluate(imagenet_classifier, data_of(WNIDS), answers="subset")
    assert (result.n, result.top1, result.top5) == (8, 6 / 8, None)
    assert result.class_names == WNIDS
    assert result.confusion.tolist() == [
        [2, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 0, 2, 0, 1],
        [0, 0, 0, 1, 0],
        [0, 0, 1, 0, 0],
    ]
    assert result.key == "imagenette/validation/center/subset"


def test_probabilities_of_a_subset_sum_to_1():
    found = ClassMap((2, 0), ("a", "b"), ("x", "y", "z"), "subset").probabilities(
        np.array([[0.1, 0.6, 0.3], [0, 1, 0]], np.float32)
    )
    np.testing.assert_allclose(found, [[0.75, 0.25], [0.5, 0.5]], rtol=1e-6)


@pytest.mark.parametrize("class_names, classes", [
    (NAMES, "names"),
    (tuple(name.upper().replace(" ", "_") for name in NAMES), "names"),
    (tuple(map(str, PLACES)), "names"),
    (tuple(f"{wnid}_{name}" for wnid, name in zip(WNIDS, NAMES, strict=True)), "names"),
    ("abcde", WNIDS),
    ("abcde", ",".join(NAMES)),
    ("abcde", "482, n03417042,tench,217,church"),
    ("abcde", list(PLACES)),
    ("abcde", dict(zip("edcba", NAMES[::-1], strict=True))),
    ("abcde", ClassMap(PLACES, tuple("abcde"), IMAGENET.names)),
])  # fmt: skip
def test_classes_are_mapped_by_id_name_or_index(imagenet_classifier, class_names, classes):
    expected = training.evaluate(imagenet_classifier, data_of(WNIDS)).confusion
    # The classes of a function are assumed to be the 1,000 of ImageNet.
    for predictor in (imagenet_classifier, guess):
        result = training.evaluate(predictor, data_of(class_names), classes=classes)
        assert (result.confusion == expected).all() and result.class_names == IMAGENET.names


@pytest.mark.parametrize("lines", [
    WNIDS, NAMES, map(str, PLACES), [f"{wnid} {number} some_name" for number, wnid in enumerate(WNIDS, 1)],
    [f"{own}\t{name}" for own, name in zip("edcba", NAMES[::-1], strict=True)],
])  # fmt: skip
def test_classes_are_read_from_a_file(imagenet_classifier, tmp_path, lines):
    (tmp_path / "map").write_text("\n".join(lines) + "\n\n")
    expected = training.evaluate(imagenet_classifier, data_of(WNIDS)).confusion
    for place in (tmp_path / "map", str(tmp_path / "map")):
        assert (training.evaluate(imagenet_classifier, data_of("abcde"), classes=place).confusion == expected).all()


@pytest.mark.parametrize("classes, answers, sentence", [
    ("names", "all", "unknown class of the model 'a'; give a name, an id or an index from 0 to 999"),
    ("0,1,2,3,tensh", "all", "unknown class of the model 'tensh'; the nearest valid names are tench"),
    ("0,1,2,3,crane", "all", r"'crane' is ambiguous: n02012849 \(index 134\) and n03126707 .* give the id"),
    ("0,1,2,3,1000", "all", "class index 1000 is out of range for the model's 1000 classes; indices are 0 to 999"),
    ("0,1,2,3", "all", r"4 classes of the model are given and imagenette has 5 \(a, b, c, d, e\); give one for each"),
    ("0,1,2,3,tench", "all", "the classes a and e of imagenette both map to class tench of the model"),
    ({"a": 0, "x": 1}, "all", "unknown class of imagenette 'x'"),
    ({"a": 0}, "all", "class b of imagenette has no class of the model"),
    ("./nowhere.txt", "all", "the class file ./nowhere.txt can't be read .* give an existing text file"),
    (list(PLACES), "some", "unknown value of answers 'some'; valid names are all, subset"),
])  # fmt: skip
def test_invalid_class_maps_are_errors(imagenet_classifier, classes, answers, sentence):
    with pytest.raises(UserError, match=sentence):
        training.evaluate(imagenet_classifier, data_of("abcde"), classes=classes, answers=answers)


def test_names_take_precedence_over_indices():
    assert find_classes(["10", "2", 2], ["1", "10", "2"]) == [1, 2, 2]


def test_a_different_order_of_the_same_ids_is_mapped():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(5, "softmax")])
    classifier = Classifier(card_of_model(model, WNIDS[::-1]), lambda images: np.eye(5)[4 - LABELS[images[:, 0, 0, 0]]])
    assert training.evaluate(classifier, data_of(WNIDS)).top1 == 1
    assert training.evaluate(classifier, data_of(NAMES), classes="names").top1 == 1


def test_a_wrong_number_of_classes_is_an_error(imagenet_classifier):
    with pytest.raises(UserError, match=r"has 1000 classes and imagenette has 5; .* with classes \(--classes\)"):
        training.evaluate(guess, data_of("abcde"))
    with pytest.raises(UserError, match="the model has 5 outputs and 1000 class names"):
        training.evaluate(lambda images: np.eye(5)[images[:, 0, 0, 0] % 5], data_of("abcde"), classes="0,1,2,3,4")


def test_the_model_of_a_run_has_class_names(trained_run):
    run, data = training.Run(trained_run), training.load_dataset("digits")
    some = data.splits["test"].subset(np.flatnonzero(np.isin(data.splits["test"].labels, (3, 7))))
    subset = DataSet("two", ("three", "seven"), False, {"test": ArraySplit(some.images, some.labels // 7)}, (8, 8))
    model = run.model()
    result = training.evaluate(model, subset, classes={"three": "3", "seven": 7})
    whole = training.evaluate(model, data)
    assert (result.confusion[[3, 7]] == whole.confusion[[3, 7]]).all() and result.confusion.shape == (10, 10)
