"""Weights of ONNX files: the zoo's networks however their files write them, and the real GoogLeNet."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest
import zoo
from PIL import Image
from reference import as_numpy
from weights_files import (
    CLASSES,
    HIDDEN,
    SIDE,
    SMALL,
    SMALL_ALEXNET,
    bgr,
    both,
    images_of,
    once,
    refused,
    same_logits,
    unit_scaled,
    untrained,
    weights_by_layer,
)

import keras_convnets
from keras_convnets.card import card_of_model
from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.prediction import keras_classifier
from keras_convnets.weights import pretrained

pytestmark = pytest.mark.usefixtures("info_log", "hidden")


def centred_log(probabilities):
    """The logits that probabilities come from, but for a constant."""
    return centred(np.log(probabilities.astype(np.float64)))


def centred(logits):
    return logits - logits.mean(-1, keepdims=True)


@pytest.mark.parametrize("hidden", [HIDDEN, pytest.param(4096, marks=pytest.mark.heavy)], indirect=True)
def test_caffes_alexnet(tmp_path, hidden):
    with zoo.removed_after(zoo.alexnet(tmp_path / "alexnet.onnx")) as path:
        model = keras_convnets.AlexNet(weights=path)
        assert model.input_shape == (None, 227, 227, 3)
        lrn = model.get_layer("norm1")
        assert (lrn.n, lrn.k, lrn.beta) == (5, 1, 0.75) and lrn.alpha == pytest.approx(2e-5)
        images = images_of(227)
        reference = zoo.run(path, bgr(images))
    np.testing.assert_allclose(as_numpy(model(images)), reference, rtol=1e-3, atol=1e-7)
    same_logits(centred_log(as_numpy(model(images))), centred_log(reference))


@pytest.mark.parametrize(
    "side, hidden", [(64, HIDDEN), pytest.param(224, 4096, marks=pytest.mark.heavy)], indirect=["hidden"]
)
def test_vgg16_and_its_other_sizes(tmp_path, side, hidden):
    arguments = {"input_shape": (side, side, 3), "classes": CLASSES}
    with zoo.removed_after(zoo.vgg16(tmp_path / "vgg16.onnx", side, CLASSES)) as path:
        model = keras_convnets.VGG16(weights=path, **arguments, classifier_activation=None)
        images = images_of(side)
        same_logits(as_numpy(model(images)), zoo.run(path, unit_scaled(images)))
        maps = keras_convnets.VGG16(weights=path, include_top=False, input_shape=(48, 32, 3))
        for name, arrays in weights_by_layer(maps).items():
            for ours, whole in zip(arrays, model.get_layer(name).get_weights(), strict=True):
                np.testing.assert_array_equal(ours, whole)
        del model
        small = keras_convnets.VGG16(input_shape=(32, 32, 3), classes=CLASSES)
        # Five poolings halve the sides; fc1 sees 512 maps.
        refused(small, path, "fc1.*" + both((512, hidden), (512 * (side // 32) ** 2, hidden)))


@pytest.mark.parametrize("depth, downsample_first", [
    (18, True), pytest.param(18, False, marks=pytest.mark.heavy),
    pytest.param(50, True, marks=pytest.mark.heavy), pytest.param(50, False, marks=pytest.mark.heavy),
])  # fmt: skip
def test_resnets_wherever_the_file_has_the_projections(folder, depth, downsample_first):
    def write(path):
        return zoo.resnet(path, depth, 64, CLASSES, downsample_first=downsample_first)

    path = once(folder, f"resnet{depth}_{downsample_first}.onnx", write)
    images, builder = images_of(64), getattr(keras_convnets, f"ResNet{depth}")
    arguments = {"input_shape": (64, 64, 3), "classes": CLASSES, "classifier_activation": None, "weights": path}
    reference = zoo.run(path, unit_scaled(images))
    same_logits(as_numpy(builder(**arguments)(images)), reference)
    bare = builder(**arguments, include_preprocessing=False)
    same_logits(as_numpy(bare(unit_scaled(images))), reference)
    path.unlink()


@pytest.mark.parametrize("backwards", [pytest.param(False, marks=pytest.mark.heavy), True])
def test_googlenet_in_whatever_order_the_file_lists_its_branches(tmp_path, backwards):
    path = zoo.googlenet(tmp_path / "googlenet.onnx", 96, CLASSES, backwards=backwards)
    images = images_of(96)
    model = keras_convnets.GoogLeNet(weights=path, input_shape=(96, 96, 3), classes=CLASSES)
    reference = zoo.run(path, bgr(images))
    np.testing.assert_allclose(as_numpy(model(images)), reference, atol=1e-5)
    same_logits(centred_log(as_numpy(model(images))), centred_log(reference))


WRITTEN = [
    {"linear": "transB=1"},
    {"linear": "transB=0"},
    {"linear": "matmul"},
    {"linear": "transB=1", "constants": True, "pool_pads": (0, 0, 1, 1)},
]


@pytest.mark.parametrize("how", WRITTEN, ids=["transB=1", "transB=0", "matmul", "constants"])
def test_the_fully_connected_layers_however_they_are_written(tmp_path, small_alexnet, how):
    path = small_alexnet if how == WRITTEN[0] else zoo.alexnet(tmp_path / "alexnet.onnx", SIDE, CLASSES, **how)
    images = images_of(SIDE)
    model = keras_convnets.AlexNet(
        weights=path, **SMALL_ALEXNET, classifier_activation=None, include_preprocessing=False
    )
    assert model.get_layer("flatten").input.shape[1:] == (2, 2, 256)
    same_logits(centred(as_numpy(model(bgr(images)))), centred_log(zoo.run(path, bgr(images))))
    if path != small_alexnet:
        path.unlink()


def test_rows_in_the_order_of_another_layout_are_not_taken_for_channels_first(tmp_path):
    """Files that other exporters made of NHWC networks, this package's too, turn the maps before they flatten them."""
    path = zoo.alexnet(tmp_path / "alexnet.onnx", SIDE, CLASSES, channels_last=True)
    images = images_of(SIDE)
    try:
        model = keras_convnets.AlexNet(weights=path, **SMALL_ALEXNET)
    except UserError as error:
        assert "alexnet.onnx" in str(error)
    else:
        same_logits(centred_log(as_numpy(model(images))), centred_log(zoo.run(path, bgr(images))))
    path.unlink()


def test_the_constants_of_the_response_normalisation_are_the_files(tmp_path):
    path = zoo.alexnet(tmp_path / "alexnet.onnx", SIDE, CLASSES, lrn_bias=2.5)
    model = keras_convnets.AlexNet(weights=path, **SMALL_ALEXNET)
    assert model.get_layer("norm2").k == 2.5
    images = images_of(SIDE)
    same_logits(centred_log(as_numpy(model(images))), centred_log(zoo.run(path, bgr(images))))
    given = keras_convnets.AlexNet(weights=path, **SMALL_ALEXNET, lrn={"k": 7.0})
    assert {given.get_layer(name).k for name in ("norm1", "norm2")} == {7.0}
    assert given.get_layer("norm1").alpha == 1e-4  # the paper's, as without weights
    path.unlink()


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"constants": True, "linear": "matmul"}, marks=pytest.mark.heavy),
        {"epsilon": 0.1, "linear": "behind constants"},
        {"folded": True},
    ],
    ids=str,
)
def test_a_resnet_however_it_is_written(tmp_path, how, caplog):
    path = zoo.resnet(tmp_path / "resnet18.onnx", 18, 32, CLASSES, **how)
    images = images_of(32)
    model = keras_convnets.ResNet18(weights=path, **SMALL, classifier_activation=None)
    same_logits(as_numpy(model(images)), zoo.run(path, unit_scaled(images)))
    assert ("has its batch normalisation folded" in caplog.text) == ("folded" in how)


@pytest.fixture(scope="module")
def photographs(real_data):
    """Files, and the index of the class that each file's name begins with."""
    files = sorted((real_data / "imagenet_samples").glob("*.JPEG"))
    ids = keras_convnets.imagenet_classes().ids
    assert len(files) == 100
    return files, np.array([ids.index(file.name.split("_")[0]) for file in files])


def centre(file):
    """Shorter side to 256, bilinear; the middle 224x224 pixels."""
    with Image.open(file) as image:
        image = image.convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
        left, top = ((side - 224) // 2 for side in image.size)
        return np.asarray(image.crop((left, top, left + 224, top + 224)))


def test_the_real_googlenet_equals_its_runtime_on_photographs(googlenet, photographs):
    (path, model), (files, _) = googlenet, photographs
    pixels = np.stack([centre(file) for file in files[::4]])
    reference, ours = zoo.run(path, bgr(pixels)), as_numpy(model(pixels))
    np.testing.assert_array_equal(ours.argmax(1), reference.argmax(1))
    np.testing.assert_allclose(ours, reference, atol=1e-4)


# Right first answers and right among five: measured 39 and 49 of 50, 76 and 94 of 100.
@pytest.mark.parametrize("step, first, five", [(2, 38, 48), pytest.param(1, 74, 92, marks=pytest.mark.heavy)])
def test_the_real_googlenet_recognises_photographs(googlenet, photographs, step, first, five):
    (_, model), (files, truth) = googlenet, photographs
    classifier = keras_classifier(model, card_of_model(model))
    files, truth = files[::step], truth[::step]
    ranked = np.argsort(-classifier.predict([file.read_bytes() for file in files]), axis=1)
    assert (ranked[:, 0] == truth).sum() >= first
    assert (ranked[:, :5] == truth[:, None]).sum() >= five


def test_the_real_file_is_that_of_the_record(googlenet, caplog):
    path, model = googlenet
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert pretrained.record_of_file("GoogLeNet", digest) == pretrained.get_record("GoogLeNet", "imagenet")
    assert model.get_layer("preprocessing").preprocessing == Preprocessing((104, 117, 123), order="BGR")
    assert (model.get_layer("norm1").k, model.get_layer("norm2").alpha) == (1, 2e-5)
    with_heads = keras_convnets.GoogLeNet(weights=path, auxiliary=True)
    said = untrained(caplog)
    assert "aux1" in said and "aux2" in said and not re.search(r"(?<!aux1_)(?<!aux2_)predictions", said)
    images = images_of(224)
    np.testing.assert_allclose(
        as_numpy(with_heads(images)["probabilities"]), as_numpy(model(images)), rtol=1e-5, atol=1e-7
    )
