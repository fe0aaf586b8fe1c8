"""Committees: the predictions of the exported SavedModel equal NumPy's mean of the members' Keras predictions."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
from tensorflow.core.protobuf import saved_model_pb2

from keras_convnets import CIFARResNet, export, training
from keras_convnets.card import ModelCard, card_of_model
from keras_convnets.commands.main import main
from keras_convnets.errors import UserError
from keras_convnets.export import Client, verification
from keras_convnets.export.serving import ModelServer
from keras_convnets.files import sha256
from keras_convnets.prediction import view_encoded

# Tolerance for float32 sums in a different order.
TOLERANCE = 1e-6
SIDES = (32, 24, 32)


@pytest.fixture(scope="module")
def photographs(photograph_folder):
    """24 encoded photographs, and their labels: 1 for the flower, 0 for the other class."""
    paths = sorted((photograph_folder / "train").glob("*/*.jpg"))
    return [path.read_bytes() for path in paths], np.array([path.parent.name == "flower" for path in paths], int)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`.keras` files of three networks with two classes and two input sizes, with low-confidence predictions."""
    folder = tmp_path_factory.mktemp("networks")
    for number, side in enumerate(SIDES):
        keras.utils.set_random_seed(number)
        model = CIFARResNet(8, input_shape=(side, side, 3), classes=2) if number < 2 else small(number, 2, side)
        soften(model)
        model.save(folder / f"net{number}.keras")
    return folder


def small(seed, classes=3, side=8):
    """A network with one dense layer, for square images."""
    keras.utils.set_random_seed(seed)
    images = keras.Input((side, side, 3))
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Dense(classes, "softmax", name="predictions")(keras.layers.Flatten()(x))
    return keras.Model(images, x, name="small")


def soften(model):
    """Scale the logits to at most 3, so that the probabilities are not saturated."""
    layer = model.get_layer("predictions")
    noise = np.random.default_rng(0).uniform(0, 255, (8, *model.input_shape[1:])).astype(np.float32)
    logits = keras.Model(model.inputs[0], layer.output)(noise)
    layer.kernel.assign(layer.kernel * 3 / np.abs(logits).max())


def mean_of(paths, encoded):
    """Mean probabilities of the networks, each evaluated on its own view of the images."""
    models = [keras.saving.load_model(path) for path in paths]
    seen = [view_encoded(encoded, card_of_model(model)) for model in models]
    answers = [np.float64(model.predict(images, verbose=0)) for model, images in zip(models, seen, strict=True)]
    assert min(np.abs(one - other).max() for one, other in zip(answers, answers[1:], strict=False)) > 0.01
    return sum(answers) / len(answers)


@pytest.fixture(scope="module")
def version(folder, tmp_path_factory):
    """The exported version of the committee, `<repository>/committee/1`."""
    to = tmp_path_factory.mktemp("repository")
    sources = [str(folder / f"net{number}.keras") for number in range(len(SIDES))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "_run_runtimes", in_this_process)
        assert main(["export", *sources, "--to", str(to)]) == 0
    return to / "committee" / "1"


def in_this_process(folder, artifacts, exchange):
    verification._answer(folder, exchange, [artifact.key for artifact in artifacts])


@pytest.fixture(scope="module")
def classifier(version):
    return export.load(version)


@pytest.fixture(scope="module")
def expected(folder, photographs):
    """Probabilities, float64 [24, 2]."""
    return mean_of(sorted(folder.glob("*.keras")), photographs[0])


def test_the_saved_model_averages_its_members(classifier, version, photographs, expected):
    encoded, _ = photographs
    assert np.abs(classifier.predict(encoded) - expected).max() <= TOLERANCE
    assert np.ptp(expected[:, 0]) > 0.01
    named = classifier.top_k(encoded[:1], 2)[0]
    assert [name for name, _ in named] == np.argsort(-expected[0]).astype(str).tolist()
    with pytest.raises(UserError, match="see images in different views, so it has no one input size"):
        classifier(np.zeros((1, 32, 32, 3), np.uint8))
    assert not (version / "model.onnx").exists()


def test_an_image_is_decoded_once(version):
    graph = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes()).meta_graphs[0]
    assert {name for name in graph.signature_def if not name.startswith("__")} == {
        "serving_default",
        "top_k",
        "classify",
    }
    operations = [node.op for function in graph.graph_def.library.function for node in function.node_def]
    # A view is resized in two passes.
    assert operations.count("DecodeJpeg") == 1 and operations.count("ScaleAndTranslate") == 2 * len(set(SIDES))


def test_the_card_lists_the_members(version, folder):
    card = ModelCard.read(version / "assets.extra")
    assert (card.architecture, card.class_names, card.trained) == ("Committee", ("0", "1"), False)
    files = [folder / f"net{number}.keras" for number in range(len(SIDES))]
    assert [member.weights for member in card.members] == [
        {"file": path.name, "sha256": sha256(path)} for path in files
    ]
    assert [member.view.crop for member in card.members] == [(side, side) for side in SIDES]
    assert card.members[1].build().input_shape == (None, 24, 24, 3)
    assert set(card.export["differences"]) == {"saved_model image_bytes"}
    assert (version / "assets.extra" / "labels.txt").read_text() == "0\n1\n"


def test_a_committee_can_be_evaluated_and_served(classifier, version, photograph_folder, photographs, expected, capsys):
    encoded, labels = photographs
    confusion = np.zeros((2, 2), int)
    np.add.at(confusion, (labels, expected.argmax(1)), 1)
    data = training.load_dataset(photograph_folder)
    result = training.evaluate(classifier, data, split="train", classes=[0, 1], batch_size=7)
    assert (result.confusion == confusion).all() and result.n == 24
    with ModelServer({"committee": version.parent}, port=0, rest_api_port=0) as server:
        url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/committee"
        with Client(url) as client:
            assert client.image_size() is None and client.class_count() == 2
            assert np.abs(client.predict(encoded) - expected).max() <= TOLERANCE
            assert [name for name, _ in client.top_k(encoded[:1])[0]] == np.argsort(-expected[0]).astype(str).tolist()
        flags = ["--dataset", str(photograph_folder), "--split", "train", "--classes", "0,1", "--json"]
        assert main(["evaluate", str(version), url, *flags]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [figures[source]["confusion"] for source in (str(version), url)] == [confusion.tolist()] * 2


@pytest.mark.heavy
def test_all_formats_are_written_for_members_with_one_view(tmp_path, photographs, verified_here):
    encoded, _ = photographs
    models = [small(1), small(2)]
    path = export.publish(models, name="pair", to=tmp_path)
    assert path == tmp_path / "pair" / "1" and [item.name for item in path.parent.iterdir()] == ["1"]
    images = view_encoded(encoded, card_of_model(models[0]))
    answers = sum(np.float64(model.predict(images, verbose=0)) for model in models) / 2
    for found in (export.load(path), export.load(path / "model.onnx")):
        assert np.abs(found(images) - answers).max() <= TOLERANCE
        assert np.abs(found.predict(encoded) - answers).max() <= TOLERANCE
    digests = {member.weights["sha256"] for member in found.card.members}
    assert len(digests) == 2 and {len(digest) for digest in digests} == {64}
    assert [value.name for value in onnx.load(path / "model.onnx").graph.input] == ["images"]


def finished_run(folder, name, class_names):
    """A minimal folder that `publish` accepts as the finished run of a small network with these classes."""
    model, place = small(3, len(class_names)), folder / name
    place.mkdir()
    model.save(place / "best.keras")
    card = card_of_model(model, class_names)
    dataclasses.replace(card, weights={"file": "best.keras", "sha256": sha256(place / "best.keras")}).write(place)
    return place


@pytest.mark.parametrize("classes, sentence", [
    (("cat", "ant", "bee"), r"other has the classes of .*first in a different order \(class 0 is cat and ant\)"),
    (("ant", "bee"), r"other has 2 classes \(ant, bee\) and .*first has 3 classes \(ant, bee, cat\); a committee"),
])  # fmt: skip
def test_members_with_different_classes_are_an_error(tmp_path, classes, sentence):
    first, other = finished_run(tmp_path, "first", ("ant", "bee", "cat")), finished_run(tmp_path, "other", classes)
    with pytest.raises(UserError, match=sentence):
        export.publish([first, other], to=tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("arguments, sentence", [
    (lambda: {"source": [small(1)]}, "a committee got 1 network; give at least two"),
    (lambda: {"source": [small(1), small(2)], "card": card_of_model(small(1))}, "a card came with several networks"),
    (lambda: {"source": [small(1), 3]}, "source is 3, of type int"),
])  # fmt: skip
def test_invalid_committees_are_errors(tmp_path, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        export.publish(to=tmp_path / "repository", **arguments())
    assert not (tmp_path / "repository").exists()


def test_onnx_is_an_error_for_members_with_different_views(folder, tmp_path):
    sources = [folder / "net0.keras", Path(shutil.copy(folder / "net1.keras", tmp_path / "other.keras"))]
    with pytest.raises(UserError, match="formats are onnx, int8; the members see images in different views, .* give"):
        export.publish(sources, to=tmp_path / "repository", formats=("onnx", "int8"))
    assert not (tmp_path / "repository").exists()
