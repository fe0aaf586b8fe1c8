"""Weights of files that Keras wrote, of this package's networks and of keras.applications."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import zoo
from reference import as_numpy, randomise, relative_difference
from weights_files import (
    CLASSES,
    FORMATS,
    OTHERS,
    SMALL,
    images_of,
    preprocessing_of,
    untrained,
    weights_by_layer,
    write_legacy,
)

import keras_convnets
from keras_convnets.images.preprocessing import Preprocessing

pytestmark = pytest.mark.usefixtures("info_log")


# The ONNX file and one of Keras; the others of Keras' are for the heavy run.
over_formats = pytest.mark.parametrize(
    "suffix",
    [suffix if suffix in (".onnx", ".keras") else pytest.param(suffix, marks=pytest.mark.heavy) for suffix in FORMATS],
)


def differing(model, other):
    """Names of the layers whose weights differ between two networks of the same layers."""
    first, second = weights_by_layer(model), weights_by_layer(other)
    assert first.keys() == second.keys()
    return {
        name
        for name, arrays in first.items()
        if not all(np.array_equal(*pair) for pair in zip(arrays, second[name], strict=True))
    }


def names_of_2016(layer):
    """How the VGG files name their arrays."""
    return [f"{layer.name}_{letter}_1:0" for letter in "Wb"]


@pytest.fixture(scope="module")
def twin_resnet50(folder):
    """keras.applications' network of random weights, and the file of them; some variances are nearly nothing."""
    twin = keras.applications.ResNet50(
        weights=None, input_shape=(64, 64, 3), classes=CLASSES, classifier_activation=None
    )
    randomise(twin)
    for layer in twin.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # Where the epsilon counts: keras.applications has 1.001e-5, the package 1e-5.
            layer.moving_variance.assign(layer.moving_variance * 0 + 1e-4)
            layer.gamma.assign(layer.gamma * 0.01)
    return twin, write_legacy(twin, folder / "resnet50.h5")


def test_keras_applications_resnet50_by_its_legacy_file(twin_resnet50):
    twin, path = twin_resnet50
    images = images_of(64)
    reference = as_numpy(twin(keras.applications.resnet50.preprocess_input(images.astype(np.float32))))
    ours = keras_convnets.ResNet50(weights=path, input_shape=(64, 64, 3), classes=CLASSES, classifier_activation=None)
    assert relative_difference(as_numpy(ours(images)), reference) <= 1e-5
    assert np.abs(reference[0] - reference[1]).max() > 0.02 * np.abs(reference).max()
    assert ours.get_layer("preprocessing").preprocessing == Preprocessing((103.939, 116.779, 123.68), order="BGR")


@pytest.mark.heavy
def test_keras_applications_vgg16_by_its_legacy_file(tmp_path):
    arguments = {"weights": None, "input_shape": (64, 64, 3), "classes": CLASSES}
    twin = keras.applications.VGG16(**arguments, classifier_activation=None)
    randomise(twin)
    images = images_of(64)
    reference = as_numpy(twin(keras.applications.vgg16.preprocess_input(images.astype(np.float32))))
    with zoo.removed_after(write_legacy(twin, tmp_path / "vgg16.h5", names_of_2016)) as path:
        ours = keras_convnets.VGG16(**{**arguments, "weights": path}, classifier_activation=None)
    assert relative_difference(as_numpy(ours(images)), reference) <= 1e-5
    assert np.abs(reference[0] - reference[1]).max() > 0.02 * np.abs(reference).max()


def built(suffix, request, **arguments):
    """A builder's network from the small file of a kind."""
    if suffix == ".onnx":
        path = request.getfixturevalue("resnet18")
        return keras_convnets.ResNet18(weights=path, **{**SMALL, **arguments})
    return keras_convnets.ResNet20(
        weights=request.getfixturevalue("resnet20")[1][suffix], **{"classes": CLASSES, **arguments}
    )


@over_formats
def test_another_number_of_classes_leaves_the_head_untrained(suffix, request, caplog):
    whole = built(suffix, request)
    assert not untrained(caplog)
    other = built(suffix, request, classes=5)
    assert "predictions" in untrained(caplog)
    assert other.output_shape == (None, 5)
    theirs = weights_by_layer(whole)
    theirs["predictions"] = weights_by_layer(other)["predictions"]
    for name, arrays in weights_by_layer(other).items():
        for array, expected in zip(arrays, theirs[name], strict=True):
            np.testing.assert_array_equal(array, expected, err_msg=name)
    # A head as it is initialised, not zeros or half of the file's.
    kernel, bias = theirs["predictions"]
    assert kernel.std() > 0 and not bias.any()


@over_formats
def test_a_file_with_a_head_into_a_network_without(suffix, request, caplog):
    whole = weights_by_layer(built(suffix, request))
    maps = weights_by_layer(built(suffix, request, include_top=False))
    assert maps.keys() == whole.keys() - {"predictions"}
    for name, arrays in maps.items():
        for array, expected in zip(arrays, whole[name], strict=True):
            np.testing.assert_array_equal(array, expected, err_msg=name)
    assert not untrained(caplog)


@pytest.mark.parametrize("suffix", [pytest.param(".weights.h5", marks=pytest.mark.heavy), ".keras"])
def test_a_network_with_heads_dropout_and_an_optimizer(suffix, tmp_path, caplog):
    arguments = {"input_shape": (80, 80, 3), "classes": CLASSES}
    model = keras_convnets.GoogLeNet(**arguments, auxiliary=True)
    randomise(model)
    model.compile(optimizer=keras.optimizers.SGD(momentum=0.9), loss="mse")
    model.optimizer.build(model.trainable_variables)
    path = tmp_path / f"googlenet{suffix}"
    model.save(path) if suffix == ".keras" else model.save_weights(path)
    assert differing(keras_convnets.GoogLeNet(**arguments, auxiliary=True, weights=path), model) == set()
    without = keras_convnets.GoogLeNet(**arguments, weights=path)
    assert differing(without, keras_convnets.without_auxiliary(model)) == set()
    assert not untrained(caplog)


@pytest.mark.parametrize("suffix", FORMATS[1:])
def test_files_of_keras_bring_every_weight(suffix, resnet20):
    model, paths = resnet20
    # The legacy layout is read as keras.applications', whose epsilon is another: so are its variances.
    left = {name for name in weights_by_layer(model) if name.endswith("_bn")} if suffix == ".h5" else set()
    loaded = keras_convnets.ResNet20(classes=CLASSES, weights=paths[suffix])
    assert differing(loaded, model) <= left
    for name in left:
        for ours, theirs in zip(loaded.get_layer(name).get_weights(), model.get_layer(name).get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-8, rtol=1e-6)


def test_googlenet_without_auxiliary_heads_in_the_file(tmp_path, caplog):
    path = zoo.googlenet(tmp_path / "googlenet.onnx", 96, CLASSES)
    arguments = {"weights": path, "input_shape": (96, 96, 3), "classes": CLASSES}
    whole = keras_convnets.GoogLeNet(**arguments)
    assert not untrained(caplog)
    with_heads = weights_by_layer(keras_convnets.GoogLeNet(**arguments, auxiliary=True))
    said = untrained(caplog)
    assert "aux1" in said and "aux2" in said and not re.search(r"(?<!aux1_)(?<!aux2_)predictions", said)
    for name, arrays in weights_by_layer(whole).items():
        for array, expected in zip(with_heads[name], arrays, strict=True):
            np.testing.assert_array_equal(array, expected, err_msg=name)


def test_a_whole_model_in_a_legacy_file(resnet20, tmp_path):
    """It has its own preprocessing and epsilon, and is not taken for keras.applications'."""
    model = keras_convnets.ResNet20(classes=CLASSES, preprocessing=OTHERS)
    model.set_weights(resnet20[0].get_weights())
    model.save(tmp_path / "whole.h5")
    loaded = keras_convnets.ResNet20(classes=CLASSES, weights=tmp_path / "whole.h5")
    assert differing(loaded, model) == set()
    assert preprocessing_of(loaded) == OTHERS
