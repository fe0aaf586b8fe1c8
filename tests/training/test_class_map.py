"""Data that have some of a network's classes: found by id, name and index, and measured over all or some answers."""

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
# Imagenette's classes in the order of TensorFlow Datasets, with their places among the 1,000.
WNIDS = ("n02979186", "n03417042", "n01440764", "n02102040", "n03028079")
NAMES = ("cassette player", "garbage truck", "tench", "English springer", "church")
PLACES = (482, 569, 0, 217, 497)
LABELS = np.array([0, 1, 2, 3, 4, 0, 2, 2])


def data_of(class_names, name="imagenette"):
    """Eight images, the position in their first pixel."""
    images = np.zeros((8, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(8)
    return DataSet(name, tuple(class_names), True, {"validation": ArraySplit(images, LABELS)}, (8, 8))


def probabilities():
    """Float32 [8, 1000]: right four times; twice a class that the data do not have is likelier, twice one of theirs."""
    rows = np.full((8, 1000), 1e-4, np.float32)
    answers = [482, 569, 1, 217, 0, 482, 999, 497]
    rows[np.arange(8), answers] = 0.5
    # Where the likeliest is no class of the data, the right one comes second.
    rows[2, 0], rows[6, 0] = 0.3, 0.2
    return rows / rows.sum(1, keepdims=True)


def guess(images):
    return probabilities()[images[:, 0, 0, 0]]


@pytest.fixture(scope="module")
def imagenet_classifier():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(1000, "softmax")])
    card = card_of_model(model, IMAGENET.names)
    return Classifier(card, guess)


def test_wordnet_ids_are_understood_without_being_asked(imagenet_classifier):
    result = training.evaluate(imagenet_classifier, data_of(WNIDS))
    # Of the equal ones the lower index goes first: tench is then among five, and church is not.
    assert (result.n, result.top1, result.top5) == (8, 4 / 8, 7 / 8)
    assert result.class_names == IMAGENET.names and result.confusion.shape == (1000, 1000)
    wrong = {(0, 1): 1, (497, 0): 1, (0, 999): 1, (0, 497): 1}
    right = {(482, 482): 2, (569, 569): 1, (217, 217): 1}
    found = {
        (int(row), int(column)): int(result.confusion[row, column]) for row, column in np.argwhere(result.confusion)
    }
    assert found == wrong | right
    assert result.key == "imagenette/validation/center" and result.to_dict()["answers"] == "all"


def test_among_the_subset_the_likeliest_of_the_datas_classes_is_the_answer(imagenet_classifier):
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


def test_probabilities_among_a_subset_sum_to_1():
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
def test_ids_names_and_indices_are_understood(imagenet_classifier, class_names, classes):
    expected = training.evaluate(imagenet_classifier, data_of(WNIDS)).confusion
    # A function's 1,000 classes are taken to be ImageNet's.
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
    ("0,1,2,3,crane", "all", r"'crane' is the name of n02012849 \(index 134\) and n03126707 .* give the id"),
    ("0,1,2,3,1000", "all", "class 1000 is beyond the model's 1000 classes; indices are 0 to 999"),
    ("0,1,2,3", "all", r"4 classes of the model are given and imagenette has 5 \(a, b, c, d, e\); give one for each"),
    ("0,1,2,3,tench", "all", "the classes a and e of imagenette are both tench of the model"),
    ({"a": 0, "x": 1}, "all", "unknown class of imagenette 'x'"),
    ({"a": 0}, "all", "no class of the model is given for b of imagenette"),
    ("./nowhere.txt", "all", "the classes ./nowhere.txt can't be read .* give an existing text file"),
    (list(PLACES), "some", "unknown kind of answers 'some'; valid names are all, subset"),
])  # fmt: skip
def test_what_is_unknown_or_ambiguous_is_refused(imagenet_classifier, classes, answers, sentence):
    with pytest.raises(UserError, match=sentence):
        training.evaluate(imagenet_classifier, data_of("abcde"), classes=classes, answers=answers)


def test_a_name_goes_before_an_index():
    assert find_classes(["10", "2", 2], ["1", "10", "2"]) == [1, 2, 2]


def test_another_order_of_the_same_ids_is_understood():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(5, "softmax")])
    classifier = Classifier(card_of_model(model, WNIDS[::-1]), lambda images: np.eye(5)[4 - LABELS[images[:, 0, 0, 0]]])
    assert training.evaluate(classifier, data_of(WNIDS)).top1 == 1
    assert training.evaluate(classifier, data_of(NAMES), classes="names").top1 == 1


def test_classes_of_which_nothing_is_known_are_refused(imagenet_classifier):
    with pytest.raises(UserError, match=r"gives 1000 classes and imagenette has 5; .* with classes \(--classes\)"):
        training.evaluate(guess, data_of("abcde"))
    with pytest.raises(UserError, match="the model gives 5 classes and 1000 are known by name"):
        training.evaluate(lambda images: np.eye(5)[images[:, 0, 0, 0] % 5], data_of("abcde"), classes="0,1,2,3,4")


def test_a_runs_model_knows_its_classes(trained_run):
    run, data = training.Run(trained_run), training.load_dataset("digits")
    some = data.splits["test"].subset(np.flatnonzero(np.isin(data.splits["test"].labels, (3, 7))))
    subset = DataSet("two", ("three", "seven"), False, {"test": ArraySplit(some.images, some.labels // 7)}, (8, 8))
    model = run.model()
    result = training.evaluate(model, subset, classes={"three": "3", "seven": 7})
    whole = training.evaluate(model, data)
    assert (result.confusion[[3, 7]] == whole.confusion[[3, 7]]).all() and result.confusion.shape == (10, 10)
