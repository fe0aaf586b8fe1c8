"""Files for PyTorch that are written here: its names and layouts, and the way back.

test_pytorch_files.py loads them in PyTorch.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from reference import as_numpy, randomise
from safetensors import safe_open
from safetensors.numpy import load_file
from test_state_dicts import logits_of, modules, state_dict
from weights_files import CLASSES, OTHERS, preprocessing_of

import keras_convnets
from keras_convnets import export
from keras_convnets.card import card_of_model
from keras_convnets.errors import UserError


def random_resnet20(**arguments):
    model = keras_convnets.ResNet20(**arguments)
    randomise(model, seed=3)
    return model


def test_a_cifar_network_has_torchvisions_names_and_shapes(tmp_path):
    model = random_resnet20(include_preprocessing=False, classifier_activation=None)
    keras_convnets.save_safetensors(model, tmp_path / "a.safetensors")
    arrays = load_file(tmp_path / "a.safetensors")
    expected = state_dict(modules())
    assert {name: array.shape for name, array in arrays.items()} == {
        name: array.shape for name, array in expected.items()
    }
    assert {name: array.dtype for name, array in arrays.items()} == {
        name: array.dtype for name, array in expected.items()
    }
    images = np.random.default_rng(3).normal(size=(2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(as_numpy(model(images)), logits_of(arrays, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "naming", "arguments"),
    [
        ("ResNet20", "torchvision", {}),
        ("PlainNet20", "keras_convnets", {}),
        ("ResNet18", "torchvision", {"input_shape": (32, 32, 3), "classes": CLASSES}),
        ("ResNet50", "keras_convnets", {"input_shape": (32, 32, 3), "classes": CLASSES}),
        ("VGG11", "torchvision", {"input_shape": (64, 64, 3), "classes": CLASSES}),
        ("AlexNet", "keras_convnets", {"input_shape": (99, 99, 3), "classes": CLASSES}),
        ("GoogLeNet", "keras_convnets", {"input_shape": (64, 64, 3), "classes": CLASSES}),
    ],
)
def test_the_way_back_assumes_nothing(tmp_path, hidden, caplog, name, naming, arguments):
    """All weights to the last bit, preprocessing and classes; the network between the layers is compared."""
    build = getattr(keras_convnets, name)
    model = build(**arguments, preprocessing=OTHERS)
    randomise(model, seed=3)
    path = tmp_path / "a.safetensors"
    keras_convnets.save_safetensors(model, path, naming=naming)
    again = build(**arguments, weights=path)
    for ours, was in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, was)
    assert preprocessing_of(again) == OTHERS
    assert "trust" not in caplog.text and "assumed" not in caplog.text


def test_classes_are_kept(tmp_path):
    model = random_resnet20(weights="cifar10")
    keras_convnets.save_safetensors(model, tmp_path / "a.safetensors")
    again = keras_convnets.ResNet20(weights=tmp_path / "a.safetensors")
    assert card_of_model(again).class_names == card_of_model(model).class_names
    assert card_of_model(again).class_names[3] == "cat"
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["keras_convnets"])["architecture"] == "ResNet20"


@pytest.mark.parametrize(
    ("name", "arguments", "pattern"),
    [
        ("PlainNet20", {}, "its networks of these layers are residual; give naming='keras_convnets'"),
        ("ResNet50", {"input_shape": (32, 32, 3)}, "stride 2 in the 3x3 convolution"),
        ("GoogLeNet", {"input_shape": (64, 64, 3)}, "no layer like conv1"),
    ],
)
def test_networks_that_torchvision_has_none_like(tmp_path, name, arguments, pattern):
    """Their weights would fit another network, or none; no file is written."""
    model = getattr(keras_convnets, name)(**arguments, classes=CLASSES)
    with pytest.raises(UserError, match=pattern):
        keras_convnets.save_safetensors(model, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(tmp_path):
    model = keras_convnets.ResNet20()
    with pytest.raises(UserError, match="give the path of a .safetensors file"):
        keras_convnets.save_safetensors(model, tmp_path / "a.pth")
    with pytest.raises(UserError, match="unknown naming 'timm'; valid names are torchvision, keras_convnets"):
        keras_convnets.save_safetensors(model, tmp_path / "a.safetensors", naming="timm")
    with pytest.raises(UserError, match="no builder of this package"):
        import keras

        keras_convnets.save_safetensors(keras.Model(model.input, model.output), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_version_with_files_of_weights(tmp_path):
    """Verified as every format: built again from the file, in another process."""
    model = random_resnet20(weights="cifar10")
    folder = export.publish(
        model, name="net", to=tmp_path / "models", formats=("safetensors", "weights_h5"), naming="keras_convnets"
    )
    card = export.load(folder).card
    assert {"safetensors", "weights h5"} <= set(card.export["formats"])
    assert {"safetensors images", "weights h5 images"} <= card.export["differences"].keys()
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    expected = as_numpy(model(images))
    for file in ("model.safetensors", "model.weights.h5"):
        classifier = export.load(folder / file)
        np.testing.assert_allclose(classifier(images), expected, atol=1e-5)
        assert classifier.card.class_names[3] == "cat"
        # Elsewhere too: the file itself says what network it is of.
        alone = tmp_path / file
        shutil.copyfile(folder / file, alone)
        np.testing.assert_allclose(export.load(alone)(images), expected, atol=1e-5)
    assert "conv1_conv.weight" in load_file(folder / "model.safetensors")


def test_a_version_that_torchvision_has_no_names_for_is_not_published(tmp_path):
    model = keras_convnets.PlainNet20()
    with pytest.raises(UserError, match="can't be written with the names of torchvision"):
        export.publish(model, name="net", to=tmp_path / "models", formats=("safetensors",))
    assert not list((tmp_path / "models").rglob("*.safetensors"))
    with pytest.raises(UserError, match=r"a committee can't be written as model\.safetensors"):
        export.publish([model, model], to=tmp_path / "models", formats=("safetensors",))
