"""The classes of ImageNet, predictions by name, and what a terminal shows of them. No TensorFlow, no network."""

from __future__ import annotations

import dataclasses
import json
import socket

import numpy as np
import pytest

import keras_convnets
from keras_convnets import display
from keras_convnets.card import ModelCard
from keras_convnets.classes import Classes, decode_predictions, imagenet_classes
from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import BGR_MEANS, UNIT_SCALED, Preprocessing
from keras_convnets.images.view import View
from keras_convnets.weights import record_text
from keras_convnets.weights.pretrained import RECORDS, get_record


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing here may ask the network."""

    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    imagenet_classes.cache_clear()


@pytest.fixture
def predictions():
    """Softmax of random logits over 1,000 classes, float64 [4, 1000]; float32 would have ties."""
    logits = np.random.default_rng(7).normal(0, 3, (4, 1000))
    values = np.exp(logits)
    return values / values.sum(-1, keepdims=True)


def card_of(*names):
    return ModelCard(
        architecture="ResNet20",
        arguments={"classes": len(names)},
        class_names=names,
        preprocessing=Preprocessing(mean=(0, 0, 0)),
        view=View(32, (32, 32)),
    )


def test_imagenet_has_1000_classes_by_wordnet_id():
    classes = imagenet_classes()
    assert len(classes.ids) == len(classes.names) == len(set(classes.ids)) == 1000
    assert list(classes.ids) == sorted(classes.ids)
    assert (classes.ids[0], classes.names[0]) == ("n01440764", "tench")
    assert (classes.ids[-1], classes.names[-1]) == ("n15075141", "toilet tissue")
    assert all(name == name.strip() and name for name in classes.names)
    # Two pairs of classes have the same name; only their ids differ.
    assert sorted({name for name in classes.names if classes.names.count(name) > 1}) == ["crane", "maillot"]


def test_the_classes_are_those_of_the_data(real_data):
    path = real_data / "imagenet_classes.txt"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    assert list(zip(imagenet_classes().ids, imagenet_classes().names, strict=True)) == [tuple(row) for row in rows]


@pytest.mark.parametrize("top", [1, 5, 1000])
def test_the_likeliest_classes_of_imagenet(predictions, top):
    found = decode_predictions(predictions, top=top)
    assert [len(row) for row in found] == [top] * 4
    for row, values in zip(found, predictions, strict=True):
        # The order of keras.applications: the last of an ascending sort, turned round.
        order = values.argsort()[-top:][::-1]
        classes = imagenet_classes()
        assert row == [(classes.ids[index], classes.names[index], float(values[index])) for index in order]
    assert all(type(value) is float for row in found for _, _, value in row)
    assert json.loads(json.dumps(found))[0][0] == list(found[0][0])


def test_five_are_named_unless_told(predictions):
    assert decode_predictions(predictions) == decode_predictions(predictions, top=5)


def test_ties_go_to_the_lower_index():
    names = imagenet_classes().names
    # So many that a sort which is not stable shows.
    found = decode_predictions(np.tile([1e-3, 2e-3], (1, 500)), 1000)[0]
    assert [name for _, name, _ in found] == [*names[1::2], *names[::2]]
    assert [id for id, _, _ in decode_predictions([[0.2, 0.4, 0.4]], 3, "a b c".split())[0]] == ["1", "2", "0"]


@pytest.mark.parametrize(
    "classes, ids",
    [
        (["cat", "dog"], ("0", "1")),
        (("cat", "dog"), ("0", "1")),
        (np.array(["cat", "dog"]), ("0", "1")),
        (Classes(("n1", "n2"), ("cat", "dog")), ("n1", "n2")),
        (card_of("cat", "dog"), ("0", "1")),
    ],
)
def test_other_classes(classes, ids):
    assert decode_predictions([[0.25, 0.75]], classes=classes) == [[(ids[1], "dog", 0.75), (ids[0], "cat", 0.25)]]


def test_ids_of_a_card_and_of_a_record_are_used(predictions):
    card = dataclasses.replace(card_of("cat", "dog"), class_ids=("n1", "n2"))
    assert decode_predictions([[0.25, 0.75]], 1, card) == [[("n2", "dog", 0.75)]]
    record = get_record("GoogLeNet", "imagenet")
    assert decode_predictions(predictions, classes=record) == decode_predictions(predictions)
    with pytest.raises(UserError, match="got 1 class ids and 2 class names"):
        decode_predictions([[0.25, 0.75]], 1, dataclasses.replace(card, class_ids=("n1",)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.uint8])
def test_any_number_will_do(dtype):
    values = np.array([[1, 3, 2], [0, 0, 7]], dtype)
    best = [row[0] for row in decode_predictions(values, 1, ("a", "b", "c"))]
    assert best == [("1", "b", 3.0), ("2", "c", 7.0)]
    assert values.tolist() == [[1, 3, 2], [0, 0, 7]]


def test_what_converts_to_an_array_will_do():
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return np.array([[0.5, 0.25]], np.float32)

    assert decode_predictions(Tensor(), 1, ("a", "b")) == [[("0", "a", 0.5)]]
    assert decode_predictions(np.zeros((0, 1000))) == []
    # Logits of classes that a mask takes out have an order.
    assert decode_predictions([[-np.inf, 2.0, np.inf]], 9, "abc_a abc_b abc_c".split())[0] == [
        ("2", "abc_c", np.inf),
        ("1", "abc_b", 2.0),
        ("0", "abc_a", -np.inf),
    ]


ROW = [[0.5, 0.5]]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((np.zeros(1000),), r"shape \(1000,\).*add the batch dimension: predictions\[None\]"),
        ((np.zeros((1, 7, 7, 1000)),), r"shape \(1, 7, 7, 1000\); give numbers of shape \[n, classes\]"),
        ((0.5,), r"shape \(\); give numbers"),
        ((np.zeros((2, 10)),), r"have 10 columns and ImageNet has 1000 classes; pass classes="),
        ((np.zeros((2, 10)), 5, ["a", "b"]), r"have 10 columns and classes has 2 classes"),
        ((ROW, 0, ["a", "b"]), r"top is 0; give a whole number of at least 1"),
        ((ROW, -1, ["a", "b"]), r"top is -1"),
        ((ROW, 2.5, ["a", "b"]), r"top is 2.5"),
        ((ROW, "5", ["a", "b"]), r"top is '5'"),
        (([["0.5", "0.5"]],), r"can't be read as an array of numbers \(their dtype is <U3\)"),
        (("tench",), r"can't be read as an array of numbers"),
        ((None,), r"can't be read as an array of numbers"),
        (([[0.5, 0.5], [1.0]],), r"can't be read as an array of numbers"),
        (([[1j, 2.0]],), r"their dtype is complex128"),
        (([[0.5, 0.5], [np.nan, 1.0]], 1, ["a", "b"]), r"predictions of image 1 contain NaN"),
        ((ROW, 5, "ab"), r"classes is 'ab'; give a sequence of class names"),
        ((ROW, 5, 2), r"classes is 2; give a sequence of class names"),
        ((ROW, 5, {"a", "b"}), r"classes is \{.*; give a sequence of class names"),
        ((ROW, 5, {0: "a", 1: "b"}), r"classes is \{0: 'a', 1: 'b'\}; give a sequence of class names"),
        ((ROW, 5, [0, 1]), r"classes is \[0, 1\]; give a sequence of class names"),
        ((ROW, 5, list(range(1000))), r"classes is \[0, 1, 2, .*\.\.\.; give a sequence of class names"),
    ],
)
def test_mistakes_get_one_sentence(arguments, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        decode_predictions(*arguments)
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 300


def test_the_public_names_are_these():
    assert keras_convnets.decode_predictions is decode_predictions
    assert keras_convnets.imagenet_classes is imagenet_classes
    assert keras_convnets.get_record("resnet50", "imagenet") in keras_convnets.list_weights("resnet50")


def test_classes_and_records_import_no_keras(run_python, tmp_path, monkeypatch):
    monkeypatch.undo()  # a separate process needs pipes, and no socket of this one
    script = (
        "import sys, keras_convnets as k\n"
        "k.decode_predictions([[0.1] * 1000]); k.list_weights(); k.get_record('VGG16', 'imagenet')\n"
        "assert not {'keras', 'tensorflow', 'onnx'} & set(sys.modules)\n"
    )
    process = run_python("-c", script, cwd=tmp_path)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    "fraction, blocks, shown",
    [
        (0.0, display.BLOCKS, ""),
        (1.0, display.BLOCKS, "█" * 10),
        (0.5, display.BLOCKS, "█" * 5),
        (0.55, display.BLOCKS, "█████▌"),
        (0.01, display.BLOCKS, "▏"),
        (0.55, display.ASCII_BLOCKS, "######"),
        (0.04, display.ASCII_BLOCKS, ""),
        (1.5, display.BLOCKS, "█" * 10),
        (-1.0, display.BLOCKS, ""),
    ],
)
def test_the_length_of_a_bar_is_its_fraction(fraction, blocks, shown):
    assert display.bar(fraction, blocks, cells=10) == shown


@pytest.mark.parametrize("encoding, blocks", [
    ("utf-8", display.BLOCKS),
    ("ascii", "#"),
    ("latin-1", "#"),
    ("cp437", "#"),  # it has the full block and not the narrow ones
    ("no-such-encoding", "#"),
    (None, "#"),
])  # fmt: skip
def test_bars_are_written_in_what_the_stream_can(encoding, blocks):
    assert display.blocks_for(encoding) == blocks


def test_answers_are_aligned_over_all_images():
    found = [
        {"image": "a.png", "classes": [{"class": "cat", "probability": 1.0}]},
        {"image": "b.png", "classes": [{"class": "tabby cat", "probability": 0.5}, {"class": "x", "probability": 0.0}]},
    ]
    assert display.answers_text(found, "#").splitlines() == [
        "a.png",
        "  cat        100.0%  " + "#" * 30,
        "b.png",
        "  tabby cat   50.0%  " + "#" * 15,
        "  x            0.0%",
    ]


def test_preprocessing_in_words():
    assert record_text.preprocessing_text(BGR_MEANS) == "BGR in 0-255, minus (104, 117, 123)"
    assert record_text.preprocessing_text(UNIT_SCALED) == (
        "RGB in 0-255, minus (123.675, 116.28, 103.53), divided by (58.395, 57.12, 57.375)"
    )
    mean_image = Preprocessing(mean=(1, 2, 3), mean_image=np.zeros((2, 2, 3)))
    assert record_text.preprocessing_text(mean_image) == "RGB in 0-255, minus the mean image"


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_a_record_is_shown_whole_and_is_plain_in_json(record):
    rows = record_text.record_rows(record)
    shown = "\n".join(text for _, text in rows)
    for fact in (record.file, record.sha256, record.license, record.obtained):
        assert fact in shown
    assert (record.size is None) == ("MB" not in dict(rows)["file"])
    assert record.size is None or f"{record.size / 1e6:.1f} MB" in shown
    # Of a sha256 that is known in part, it shows that there is more.
    assert (f"{record.sha256}..." in shown) == (0 < len(record.sha256) < 64)
    for accuracy in record.accuracies:
        assert f"top-1 {accuracy.top1:.2f} %" in shown and accuracy.protocol in shown and accuracy.source in shown
        assert f"n={accuracy.n:,}" in shown
    assert ("built with" in dict(rows)) == bool(record.arguments)
    plain = json.loads(json.dumps(record_text.record_plain(record)))
    assert set(plain) == {item.name for item in dataclasses.fields(record)}
    assert Preprocessing.from_dict(plain["preprocessing"]) == record.preprocessing
    assert plain["accuracies"] == json.loads(json.dumps([vars(accuracy) for accuracy in record.accuracies]))
