"""The model card: written, read, refused; and the network that it describes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from cards import filled_card

import keras_convnets
from keras_convnets import CIFARResNet, ModelCard, Preprocessing, get_model, list_models
from keras_convnets import card as card_module
from keras_convnets.card import FILE_NAME, card_of_model, current_git_revision, current_versions
from keras_convnets.errors import UserError
from keras_convnets.files import (
    write_json,
)
from keras_convnets.images.view import View
from keras_convnets.networks.functional import Functional


@pytest.mark.parametrize("whole_path", [False, True], ids=["folder", "file"])
def test_card_round_trip(tmp_path, whole_path):
    card = filled_card()
    empty = ModelCard("", {}, (), card.preprocessing, card.view)
    for field in dataclasses.fields(card)[5:]:  # those with a default: each must differ from it to show a loss
        assert getattr(card, field.name) != getattr(empty, field.name)
    card.write(tmp_path)
    assert os.listdir(tmp_path) == [FILE_NAME] == ["model.json"]
    back = ModelCard.read(tmp_path / FILE_NAME if whole_path else tmp_path)
    for field in dataclasses.fields(card):
        assert getattr(back, field.name) == getattr(card, field.name), field.name
    assert isinstance(back.class_names, tuple)


def test_a_card_with_fields_of_a_later_version_is_read():
    assert ModelCard.from_dict({**filled_card().to_dict(), "colour": "blue"}) == filled_card()


def test_metrics_are_added_to_a_card():
    card = filled_card()
    more = card.with_metrics("animals/val/center", {"top1": 0.2, "n": 5})
    assert more.metrics == {
        "animals/test/center": {"top1": 0.1, "n": 4},
        "animals/val/center": {"top1": 0.2, "n": 5},
    }
    assert card == filled_card()


@pytest.mark.parametrize("plain", [[], {}, "card", {**filled_card().to_dict(), "format": 2}])
def test_a_card_of_another_format_is_refused(tmp_path, plain):
    write_json(tmp_path / FILE_NAME, plain)
    with pytest.raises(UserError, match="is not a model card of format 1") as caught:
        ModelCard.read(tmp_path)
    assert str(tmp_path / FILE_NAME) in str(caught.value)


@pytest.mark.parametrize("field", ["architecture", "arguments", "class_names", "preprocessing", "view"])
def test_a_card_that_lacks_a_field_is_refused(field):
    plain = filled_card().to_dict()
    del plain[field]
    with pytest.raises(UserError, match=f"is not a whole model card.*{field}"):
        ModelCard.from_dict(plain)


def test_a_view_that_is_a_dictionary_is_refused():
    with pytest.raises(UserError, match=r"has the view \{.*\}; give it a View"):
        dataclasses.replace(filled_card(), view=filled_card().view.to_dict())


def test_a_folder_without_a_card(tmp_path):
    with pytest.raises(UserError, match="there is no model card at"):
        ModelCard.read(tmp_path)


def test_versions_name_what_a_result_depends_on():
    versions = current_versions()
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["keras"] == keras.__version__ and versions["numpy"] == np.__version__
    assert {"tensorflow", "keras-convnets"} <= set(versions)


def test_git_revision_is_a_revision_or_nothing():
    revision = current_git_revision()
    assert revision is None or (len(revision) == 40 and set(revision) <= set("0123456789abcdef"))


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_git_revision_is_that_of_this_packages_own_checkout(tmp_path, monkeypatch):
    for variable in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(variable)

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    places = [tmp_path / folder / "keras_convnets" / "card.py" for folder in ("", "vendor", ".venv/site-packages")]
    for place in places:
        place.parent.mkdir(parents=True)
        place.touch()
    git("init", "-q")
    git("add", "keras_convnets", "vendor")
    git("commit", "-q", "-m", "both")
    found = []
    for place in places:
        monkeypatch.setattr(card_module, "__file__", str(place))
        found.append(current_git_revision())
    # Tracked at the top, as here; a copy that somebody else's repository tracks; one installed inside it.
    assert found == [git("rev-parse", "HEAD"), None, None]
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere" / "keras_convnets"
    elsewhere.mkdir(parents=True)
    monkeypatch.setattr(card_module, "__file__", str(elsewhere / "card.py"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))  # as within a hook
    assert current_git_revision() is None


def test_no_git_is_no_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert current_git_revision() is None


def test_card_of_a_model():
    preset = Preprocessing((1.0, 2.0, 3.0), order="BGR")
    model = CIFARResNet(8, classes=3, input_shape=(12, 8, 3), preprocessing=preset)
    card = card_of_model(model)
    assert (card.architecture, card.trained) == ("CIFARResNet", False)
    assert card.arguments == {"depth": 8, "classes": 3, "input_shape": [12, 8, 3]}
    assert card.class_names == ("0", "1", "2") and card.preprocessing == preset
    # The shorter side of a picture becomes the input's shorter side, and its centre is kept.
    assert card.view == View(8, (12, 8))
    assert ModelCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card
    assert card_of_model(model, ("a", "b", "c")).class_names == ("a", "b", "c")


def test_card_of_a_model_that_does_not_normalise():
    inputs = keras.Input((4, 4, 3))
    outputs = keras.layers.Softmax()(keras.layers.GlobalAveragePooling2D()(inputs))
    assert card_of_model(keras.Model(inputs, outputs)).preprocessing == Preprocessing((0, 0, 0))


def test_a_card_of_another_packages_model_names_no_builder():
    inputs = keras.Input((4, 4, 3))
    outputs = keras.layers.Dense(2, "softmax")(keras.layers.Flatten()(inputs))
    card = card_of_model(keras.Model(inputs, outputs, name="ResNet20"))
    assert (card.architecture, card.arguments) == ("ResNet20", {})
    with pytest.raises(UserError, match="made by no builder of this package"):
        card.build()


def test_a_card_names_the_builder_and_what_it_took(tmp_path):
    arguments = {"shortcut": "A", "name": "mine", "classes": 4, "input_shape": (32, np.int64(40), 3)}
    model = keras_convnets.ResNet18(**arguments, classifier_activation=keras.activations.softmax)
    expected = {"shortcut": "A", "name": "mine", "classes": 4, "input_shape": [32, 40, 3]}
    card = card_of_model(model)
    assert (card.architecture, dict(card.arguments)) == ("ResNet18", expected)
    # A part of a network, or one with layers before it, is another network.
    part = keras.Model(model.input, keras.layers.Dense(2)(model.get_layer("avg_pool").output))
    assert card_of_model(part).arguments == {}
    inputs = keras.Input((8, 8, 3))
    assert card_of_model(CIFARResNet(8, input_tensor=keras.layers.ReLU()(inputs))).arguments == {}
    assert card_of_model(CIFARResNet(8, input_tensor=inputs)).arguments["depth"] == 8


def test_keras_names_this_package_where_it_is_not_imported(tmp_path, monkeypatch):
    images = keras.Input((2,))
    Functional(images, keras.layers.Dense(1)(images), name="tiny").save(tmp_path / "tiny.keras")
    assert keras.saving.load_model(tmp_path / "tiny.keras").name == "tiny"
    monkeypatch.delitem(keras.saving.get_custom_objects(), "keras_convnets>Functional")
    with pytest.raises(TypeError) as raised:
        keras.saving.load_model(tmp_path / "tiny.keras")
    sentence = str(raised.value)
    assert "'import keras_convnets' before loading it" in sentence
    # Of what the file says it stands first, so that it is seen before a thousand lines of layers.
    assert sentence.index("import keras_convnets") - sentence.index("Full object config") < 150


def test_the_builder_is_known_from_a_file(tmp_path):
    constants = {"k": 1.0, "alpha": np.float32(2e-5)}
    model = keras_convnets.GoogLeNet(
        input_shape=(80, 80, 3), classes=5, auxiliary=True, lrn=constants, include_preprocessing=False
    )
    model.save(tmp_path / "own.keras")
    loaded = keras.saving.load_model(tmp_path / "own.keras")
    for network, further in ((loaded, {"auxiliary": True}), (keras_convnets.without_auxiliary(loaded), {})):
        card = ModelCard.from_dict(json.loads(json.dumps(card_of_model(network).to_dict())))
        lrn = {"k": 1.0, "alpha": float(np.float32(2e-5))}
        expected = {"classes": 5, "input_shape": [80, 80, 3], "lrn": lrn, "include_preprocessing": False, **further}
        assert (card.architecture, card.arguments) == ("GoogLeNet", expected)
    model.save(tmp_path / "own.h5")
    assert card_of_model(keras.saving.load_model(tmp_path / "own.h5")).arguments == {}


# One network of each module and way to build it; what all of them note is tested where all of them are built.
REBUILT = {
    "AlexNetSixConvs": {"lrn": {"k": 1.0}},
    "GoogLeNet": {"classifier_activation": None},
    "ResNet18": {"shortcut": "C"},
    "PlainNet18": {"include_preprocessing": False},
    "ResNet20": {"preprocessing": Preprocessing((1.0, 2.0, 3.0), order="BGR"), "name": "mine"},
}


def zeros(self, shape, dtype=None):
    return keras.ops.zeros(shape, dtype)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in REBUILT else pytest.mark.heavy) for name in list_models()]
)
def test_a_network_is_built_again_from_its_card(name, tmp_path, monkeypatch):
    # Drawing tens of millions of random numbers takes most of the time, and none is looked at.
    monkeypatch.setattr(keras.initializers.RandomNormal, "__call__", zeros)
    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", zeros)
    side = 32 if name.startswith(("ResNet", "Plain", "VGG")) else 64
    model = get_model(name, classes=3, input_shape=(side, side, 3), **REBUILT.get(name, {}))
    model.get_layer("predictions").bias.assign([1.0, 2.0, 3.0])
    model.save_weights(tmp_path / "own.weights.h5")
    card = ModelCard.from_dict(json.loads(json.dumps(card_of_model(model).to_dict())))
    assert card.architecture == name
    again = card.build(weights=tmp_path / "own.weights.h5")
    assert again.built_as == model.built_as and again.to_json() == model.to_json()
    np.testing.assert_array_equal(again.get_layer("predictions").bias, [1.0, 2.0, 3.0])
    (tmp_path / "own.weights.h5").unlink()


def test_a_card_with_arguments_that_no_builder_takes():
    for architecture, arguments in (("ResNet20", {"dilation": 2}), ("get_model", {"name": "ResNet20"})):
        card = dataclasses.replace(filled_card(), architecture=architecture, arguments=arguments)
        with pytest.raises(UserError, match="arguments are none of ResNet20's|made by no builder"):
            card.build()


@pytest.mark.parametrize("name", ["../../other.keras", "/etc/passwd", "a/b.keras", "..", 7])
def test_a_card_that_names_a_file_elsewhere_is_refused(name):
    with pytest.raises(UserError, match="must lie beside the card"):
        ModelCard.from_dict({**filled_card().to_dict(), "weights": {"file": name, "sha256": "0" * 64}})


def two_outputs():
    inputs = keras.Input((4, 4, 3))
    return keras.Model(inputs, [keras.layers.GlobalAveragePooling2D()(inputs), inputs])


def two_inputs():
    first, second = keras.Input((4, 4, 3)), keras.Input((4, 4, 3))
    return keras.Model([first, second], keras.layers.GlobalAveragePooling2D()(first + second))


def of_grey_images():
    inputs = keras.Input((4, 4, 1))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs))


def of_vectors():
    inputs = keras.Input((7,))
    return keras.Model(inputs, keras.layers.Dense(2)(inputs))


@pytest.mark.parametrize(
    "build",
    [
        lambda: CIFARResNet(8, include_top=False),
        lambda: CIFARResNet(8, input_shape=(None, None, 3)),
        lambda: CIFARResNet(8, input_shape=(8, None, 3)),
        two_outputs,
        two_inputs,
        of_vectors,
        of_grey_images,
    ],
    ids=["feature map", "any size", "any width", "two outputs", "two inputs", "vectors", "grey images"],
)
def test_a_model_that_is_no_classifier_of_images_has_no_card(build):
    with pytest.raises(UserError, match="a classifier takes images of one fixed size"):
        card_of_model(build())


def test_a_model_with_fewer_classes_than_names_has_no_card():
    with pytest.raises(UserError, match="2.*3|3.*2"):
        card_of_model(CIFARResNet(8, classes=3), ("a", "b"))
