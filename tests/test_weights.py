"""Published weights: what a file's own runtime computes is what the network computes that loaded it."""

import dataclasses
import hashlib
import inspect
import io
import json
import logging
import os
import re
import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import onnx
import pytest
import zoo
from PIL import Image
from reference import as_numpy, randomise, relative_difference

import keras_convnets
from keras_convnets.card import card_of_model
from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.networks.functional import load_keras
from keras_convnets.prediction import keras_classifier
from keras_convnets.weights import keras_reader, pretrained
from keras_convnets.weights.loading import find_weights, load_weights

# Two runtimes sum the same float32 products in other orders, through as many as fifty layers.
TOLERANCE = 1e-4
# Three poolings of 99 pixels leave conv5 maps of 2x2: enough for the order of height, width and channels to show.
SIDE, CLASSES = 99, 7
SMALL = {"input_shape": (32, 32, 3), "classes": CLASSES}
# A preprocessing that no convention has.
OTHERS = Preprocessing(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
SMALL_ALEXNET = {"input_shape": (SIDE, SIDE, 3), "classes": CLASSES}


def bgr(images):
    """Preprocessing of Caffe's networks, as the files' pages state it."""
    return images[..., ::-1].astype(np.float32) - np.array([104, 117, 123], np.float32)


def unit_scaled(images):
    """Preprocessing of Gluon's networks, as the files' pages state it."""
    scaled = images.astype(np.float64) / 255
    return ((scaled - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)


def images_of(side, n=2):
    """Images that differ: blocks of colour under noise, so that neither the mean nor a pixel tells them all."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (n, -(-side // 16), -(-side // 16), 3)).repeat(16, axis=1).repeat(16, axis=2)
    noise = rng.integers(-60, 61, (n, side, side, 3))
    return np.clip(coarse[:, :side, :side] + noise, 0, 255).astype(np.uint8)


def centred_log(probabilities):
    """The logits that probabilities come from, but for a constant."""
    return centred(np.log(probabilities.astype(np.float64)))


def centred(logits):
    return logits - logits.mean(-1, keepdims=True)


def same_logits(result, reference):
    assert np.isfinite(reference).all()
    # The images must be told apart, or the agreement would be that of the last biases.
    assert np.abs(reference[0] - reference[1]).max() > 0.02 * np.abs(reference).max()
    assert relative_difference(result, reference) <= TOLERANCE


def weights_by_layer(model):
    return {layer.name: [as_numpy(weight) for weight in layer.weights] for layer in model.layers if layer.weights}


def differing(model, other):
    """Names of the layers whose weights differ between two networks of the same layers."""
    first, second = weights_by_layer(model), weights_by_layer(other)
    assert first.keys() == second.keys()
    return {
        name
        for name, arrays in first.items()
        if not all(np.array_equal(*pair) for pair in zip(arrays, second[name], strict=True))
    }


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.INFO, logger="keras_convnets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo")
    yield path
    shutil.rmtree(path)


def once(folder, name, write, **how):
    """The path of a file that the first test which needs it writes."""
    path = folder / name
    return path if path.exists() else write(path, **how)


@pytest.fixture
def resnet18(folder):
    return once(folder, "resnet18.onnx", lambda path: zoo.resnet(path, 18, 32, CLASSES))


@pytest.fixture
def small_alexnet(folder):
    return once(folder, "alexnet.onnx", lambda path: zoo.alexnet(path, SIDE, CLASSES, linear="transB=1"))


@pytest.fixture
def resnet50(folder):
    return once(folder, "resnet50.onnx", lambda path: zoo.resnet(path, 50, 64, CLASSES))


def test_caffes_alexnet(tmp_path):
    with zoo.removed_after(zoo.alexnet(tmp_path / "alexnet.onnx")) as path:
        model = keras_convnets.AlexNet(weights=path)
        assert model.input_shape == (None, 227, 227, 3)
        lrn = model.get_layer("norm1")
        assert (lrn.n, lrn.k, lrn.beta) == (5, 1, 0.75) and lrn.alpha == pytest.approx(2e-5)
        images = images_of(227)
        reference = zoo.run(path, bgr(images))
    np.testing.assert_allclose(as_numpy(model(images)), reference, rtol=1e-3, atol=1e-7)
    same_logits(centred_log(as_numpy(model(images))), centred_log(reference))


@pytest.mark.parametrize("side", [64, pytest.param(224, marks=pytest.mark.heavy)])
def test_vgg16_and_its_other_sizes(tmp_path, side):
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
        refused(small, path, "fc1.*" + both((512, 4096), (512 * (side // 32) ** 2, 4096)))


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("downsample_first", [True, False])
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


@pytest.mark.parametrize("backwards", [False, True])
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
    [{"constants": True, "linear": "matmul"}, {"epsilon": 0.1, "linear": "behind constants"}, {"folded": True}],
    ids=str,
)
def test_a_resnet_however_it_is_written(tmp_path, how, caplog):
    path = zoo.resnet(tmp_path / "resnet18.onnx", 18, 32, CLASSES, **how)
    images = images_of(32)
    model = keras_convnets.ResNet18(weights=path, **SMALL, classifier_activation=None)
    same_logits(as_numpy(model(images)), zoo.run(path, unit_scaled(images)))
    assert ("has its batch normalisation folded" in caplog.text) == ("folded" in how)


@pytest.fixture(scope="module")
def googlenet(real_data):
    """The path of the published file, and the network that loaded it."""
    path = real_data.parent / "weights" / "bvlc_googlenet.onnx"
    if not path.is_file():
        pytest.skip("there is no weights/bvlc_googlenet.onnx in the folder of real data")
    return path, keras_convnets.GoogLeNet(weights=path)


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
    (path, model), (files, truth) = googlenet, photographs
    pixels = np.stack([centre(file) for file in files])
    reference = zoo.run(path, bgr(pixels))
    ours = np.concatenate([as_numpy(model(pixels[start : start + 25])) for start in range(0, 100, 25)])
    np.testing.assert_array_equal(ours.argmax(1), reference.argmax(1))
    np.testing.assert_allclose(ours, reference, atol=1e-4)
    assert (ours.argmax(1) == truth).sum() >= 74


def test_the_real_googlenet_recognises_photographs(googlenet, photographs):
    (_, model), (files, truth) = googlenet, photographs
    classifier = keras_classifier(model, card_of_model(model))
    ranked = np.argsort(-classifier.predict([file.read_bytes() for file in files]), axis=1)
    assert (ranked[:, 0] == truth).sum() >= 74
    assert (ranked[:, :5] == truth[:, None]).sum() >= 92


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


def write_legacy(model, path, names=None):
    """Write weights as the files that keras.applications' releases offer: groups by layer, named in attributes.

    names: of the arrays of a layer; by default those of the ResNets' files, such as conv1_conv/kernel:0.
    """
    with h5py.File(path, "w") as root:
        root.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        root.attrs["backend"], root.attrs["keras_version"] = b"tensorflow", b"2.0.6"
        for layer in model.layers:
            group = root.create_group(layer.name)
            arrays = [as_numpy(weight) for weight in layer.weights]
            titles = names(layer) if names else [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [title.encode() for title in titles[: len(arrays)]]
            for title, array in zip(titles, arrays, strict=False):
                group.create_dataset(title, data=array)
    return path


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


def untrained(caplog):
    """What the log says of layers that the file gave nothing to."""
    said = [record.getMessage() for record in caplog.records if record.name == "keras_convnets"]
    return " ".join(text for text in said if re.search(r"untrained|not loaded", text))


@pytest.fixture(scope="module")
def resnet20(folder):
    """A network of random weights, and its files by suffix."""
    model = keras_convnets.ResNet20(classes=CLASSES)
    randomise(model)
    paths = {suffix: folder / f"resnet20{suffix}" for suffix in (".weights.h5", ".keras")}
    model.save_weights(paths[".weights.h5"])
    model.save(paths[".keras"])
    return model, {**paths, ".h5": write_legacy(model, folder / "resnet20.h5")}


def built(suffix, request, **arguments):
    """A builder's network from the small file of a kind."""
    if suffix == ".onnx":
        path = request.getfixturevalue("resnet18")
        return keras_convnets.ResNet18(weights=path, **{**SMALL, **arguments})
    return keras_convnets.ResNet20(
        weights=request.getfixturevalue("resnet20")[1][suffix], **{"classes": CLASSES, **arguments}
    )


FORMATS = [".onnx", ".h5", ".weights.h5", ".keras"]


@pytest.mark.parametrize("suffix", FORMATS)
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


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_with_a_head_into_a_network_without(suffix, request, caplog):
    whole = weights_by_layer(built(suffix, request))
    maps = weights_by_layer(built(suffix, request, include_top=False))
    assert maps.keys() == whole.keys() - {"predictions"}
    for name, arrays in maps.items():
        for array, expected in zip(arrays, whole[name], strict=True):
            np.testing.assert_array_equal(array, expected, err_msg=name)
    assert not untrained(caplog)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
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


def both(first, second):
    """A pattern that finds two shapes, in either order and however they are written."""
    texts = [r"\b" + r"(?:x|, )".join(map(str, shape)) + r"\b" for shape in (first, second)]
    return f"(?:{texts[0]}.*{texts[1]}|{texts[1]}.*{texts[0]})"


def refused(model, path, pattern):
    """The file is refused in one sentence that a pattern finds something in, and every weight is as it was."""
    before = model.get_weights()
    with pytest.raises(UserError, match=pattern) as raised:
        load_weights(model, path)
    assert "\n" not in str(raised.value)
    for ours, was in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, was)


def test_an_onnx_file_of_another_depth(folder, resnet18):
    resnet34 = once(folder, "resnet34.onnx", lambda path: zoo.resnet(path, 34, 32, CLASSES))
    # ResNet-34 has a third block in conv2_x where ResNet-18 goes on to wider ones.
    other_width = both((3, 3, 64, 64), (3, 3, 64, 128))
    refused(keras_convnets.ResNet18(**SMALL), resnet34, rf"conv3_block1_\w+.*{other_width}.*; ResNet34\(\) takes it")
    refused(keras_convnets.ResNet34(**SMALL), resnet18, rf"conv2_block3_\w+.*{other_width}.*; ResNet18\(\) takes it")
    with pytest.raises(UserError, match="conv3_block1"):
        keras_convnets.ResNet18(**SMALL, weights=resnet34)
    resnet34.unlink()


def test_an_onnx_file_that_goes_on_where_the_network_ends(tmp_path):
    path = zoo.resnet(tmp_path / "longer.onnx", 18, 32, CLASSES, blocks=(2, 2, 2, 3))
    refused(keras_convnets.ResNet18(**SMALL), path, r"predictions.*\b3(?:x|, )3(?:x|, )512(?:x|, )512\b")
    refused(keras_convnets.ResNet18(**SMALL, include_top=False), path, r"\b3(?:x|, )3(?:x|, )512(?:x|, )512\b")


def test_an_onnx_file_into_the_plain_network(resnet18):
    # It has no projection where conv3_x begins; its first 3x3 convolution of conv3_x is the file's too.
    refused(keras_convnets.PlainNet18(**SMALL), resnet18, r"conv3_block[12]_\w+.*; ResNet18\(\) takes it")


def test_a_residual_network_from_the_plain_ones_layers(resnet18):
    """Without its first projection the plain network has the layers of the residual one: only the sums tell."""
    model = keras_convnets.ResNet18(**SMALL, shortcut="C")
    refused(model, resnet18, r"conv2_block1_.*; ResNet18\(shortcut='B'\) takes it")


def test_an_onnx_file_of_other_strides(resnet50, folder):
    shape = {"input_shape": (64, 64, 3), "classes": CLASSES}
    strides = r"conv3_block1_1\w*.*(\D2\D.*\D1\D|\D1\D.*\D2\D)"
    refused(keras_convnets.ResNet50v1_5(**shape), resnet50, rf"{strides}.*; ResNet50\(\) takes it\.$")

    def write(path):
        return zoo.resnet(path, 50, 64, CLASSES, stride_on_3x3=True)

    other = once(folder, "resnet50v1_5.onnx", write)
    refused(keras_convnets.ResNet50(**shape), other, rf"{strides}.*; ResNet50v1_5\(\) takes it\.$")
    images = images_of(64)
    model = keras_convnets.ResNet50v1_5(**shape, weights=other, classifier_activation=None)
    same_logits(as_numpy(model(images)), zoo.run(other, unit_scaled(images)))
    other.unlink()


def test_an_onnx_file_of_another_input_size(small_alexnet):
    # 131 pixels leave conv5 maps of 3x3, 9 * 256 numbers instead of 4 * 256.
    model = keras_convnets.AlexNet(input_shape=(131, 131, 3), classes=CLASSES)
    refused(model, small_alexnet, "fc6.*" + both((2304, 4096), (1024, 4096)))


def test_an_onnx_file_without_groups(small_alexnet):
    model = keras_convnets.AlexNetOneTower(**SMALL_ALEXNET)
    refused(model, small_alexnet, "conv2.*" + both((5, 5, 96, 256), (5, 5, 48, 256)) + r".*; AlexNet\(\) takes it")


@pytest.mark.parametrize("suffix", FORMATS[1:])
def test_keras_files_of_another_depth(suffix, resnet20):
    _, paths = resnet20
    words = r"(conv\d_block\d_\w+|another network).*; ResNet20\(\) takes it"
    refused(keras_convnets.ResNet32(classes=CLASSES), paths[suffix], words)
    refused(keras_convnets.PlainNet32(classes=CLASSES), paths[suffix], words)


def test_a_keras_file_of_the_plain_network_with_the_same_arrays(resnet20):
    """Option A has no weights: every array of the residual network is the plain one's, and only the layers tell."""
    refused(
        keras_convnets.PlainNet20(classes=CLASSES), resnet20[1][".keras"], r"another network.*; ResNet20\(\) takes it"
    )


def halved(path, target):
    """Copy a file of Keras; of the last block's first kernel, [3, 3, 64, 64], half the filters are left."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
            for name in source.namelist():
                data = source.read(name)
                if name.endswith(".h5"):
                    data = io.BytesIO(data)
                    with h5py.File(data, "r+") as file:
                        _halve(file)
                    data = data.getvalue()
                copy.writestr(name, data)
    else:
        shutil.copy(path, target)
        with h5py.File(target, "r+") as file:
            _halve(file)
    return target


def _halve(file):
    kernels = []
    file.visititems(lambda name, item: kernels.append(name) if getattr(item, "shape", ()) == (3, 3, 64, 64) else None)
    assert kernels
    array = file[kernels[-1]][..., :32]
    del file[kernels[-1]]
    file.create_dataset(kernels[-1], data=array)


@pytest.mark.parametrize("suffix", FORMATS[1:])
def test_keras_files_of_one_other_shape(suffix, resnet20, tmp_path):
    _, paths = resnet20
    path = halved(paths[suffix], tmp_path / f"other{suffix}")
    model = keras_convnets.ResNet20(classes=CLASSES)
    refused(model, path, r"conv4_block\d_\d_conv.*" + both((3, 3, 64, 64), (3, 3, 64, 32)))


def test_a_file_of_another_family(resnet18, resnet20):
    refused(keras_convnets.ResNet20(classes=CLASSES), resnet18, "conv1_conv.*" + both((3, 3, 3, 16), (7, 7, 3, 64)))
    refused(keras_convnets.ResNet18(**SMALL), resnet20[1][".weights.h5"], r"conv\d\w*")


def preprocessing_of(model):
    return model.get_layer("preprocessing").preprocessing


def said_of_preprocessing(caplog):
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("preprocessing by")][-1]


@pytest.fixture
def recorded(monkeypatch):
    """Make a file the published one of a record; returns the record."""

    def record(path, **fields):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        known = dataclasses.replace(
            pretrained.get_record(fields.pop("architecture"), "imagenet"),
            file=path.name,
            size=path.stat().st_size,
            sha256=digest,
            **fields,
        )
        monkeypatch.setattr(pretrained, "RECORDS", (known,))
        return known

    return record


def test_which_preprocessing_a_network_has(resnet18, recorded, caplog):
    of_kind = keras_convnets.ResNet18(weights=resnet18, **SMALL)
    expected = unit_scaled(images_of(32))
    np.testing.assert_allclose(preprocessing_of(of_kind)(images_of(32)), expected, atol=1e-5)
    assert "resnet18.onnx" in said_of_preprocessing(caplog)
    known = recorded(resnet18, architecture="ResNet18", preprocessing=OTHERS)
    assert preprocessing_of(keras_convnets.ResNet18(weights=resnet18, **SMALL)) == OTHERS
    assert str(known) in said_of_preprocessing(caplog)
    given = Preprocessing(mean=(9.0, 8.0, 7.0))
    model = keras_convnets.ResNet18(weights=resnet18, **SMALL, preprocessing=given)
    assert preprocessing_of(model) == given
    assert "argument" in said_of_preprocessing(caplog)
    assert preprocessing_of(keras_convnets.ResNet18(**SMALL)) == Preprocessing((123.68, 116.779, 103.939))
    assert "default" in said_of_preprocessing(caplog)


def test_a_records_sha256_is_looked_up_for_its_own_network_only(resnet18, recorded):
    recorded(resnet18, architecture="ResNet34", preprocessing=OTHERS)
    assert preprocessing_of(keras_convnets.ResNet18(weights=resnet18, **SMALL)) != OTHERS


def test_a_record_gives_its_arguments_and_its_input_size(small_alexnet, recorded):
    constants = {"n": 3, "k": 4.0, "alpha": 3e-5, "beta": 0.5}
    fields = {"arguments": {"lrn": constants}, "input_shape": (SIDE, SIDE, 3), "preprocessing": OTHERS}
    recorded(small_alexnet, architecture="AlexNet", **fields)
    model = keras_convnets.AlexNet(weights=small_alexnet, classes=CLASSES)
    assert model.input_shape == (None, SIDE, SIDE, 3) and preprocessing_of(model) == OTHERS
    norm = model.get_layer("norm1")
    assert {name: getattr(norm, name) for name in constants} == constants
    given = keras_convnets.AlexNet(weights=small_alexnet, **SMALL_ALEXNET, lrn={"k": 6.0})
    assert (given.get_layer("norm1").k, given.get_layer("norm1").n) == (6.0, 5)


def test_a_card_says_of_a_file_what_holds_of_its_weights(resnet18, recorded, caplog):
    known = recorded(resnet18, architecture="ResNet18")
    model = keras_convnets.ResNet18(weights=resnet18, **SMALL)
    card = card_of_model(model)
    assert card.weights == {"file": "resnet18.onnx", "sha256": known.sha256}
    assert card.metrics and card.data == {"name": "ImageNet 2012"} and card.trained
    assert (card.architecture, card.arguments) == ("ResNet18", {"classes": CLASSES, "input_shape": [32, 32, 3]})
    assert "no longer" not in caplog.text
    # A statistic alone, as one step with every layer frozen but the normalisation leaves it.
    mean = model.get_layer("conv1_bn").moving_mean
    before = as_numpy(mean)
    mean.assign(before + np.eye(1, 64, 5)[0])
    later = card_of_model(model)
    assert (later.weights, later.metrics, later.data, later.recipe) == ({}, {}, {}, {})
    assert "resnet18 no longer has the weights of resnet18.onnx" in caplog.text
    assert (later.architecture, later.arguments, later.trained) == (card.architecture, card.arguments, True)
    mean.assign(before)
    assert card_of_model(model).weights == card.weights
    # Another network, or a copy from a file, says nothing of the published one.
    assert card_of_model(keras.Model(model.input, model.output)).weights == {}


def test_a_keras_file_keeps_its_own_preprocessing(tmp_path):
    path = tmp_path / "own.keras"
    keras_convnets.ResNet20(preprocessing=OTHERS).save(path)
    assert preprocessing_of(keras_convnets.ResNet20(weights=path)) == OTHERS
    arrays = tmp_path / "own.weights.h5"
    keras_convnets.ResNet20(preprocessing=OTHERS).save_weights(arrays)
    default = preprocessing_of(keras_convnets.ResNet20())
    assert preprocessing_of(keras_convnets.ResNet20(weights=arrays)) == default


def broken(folder, wholes):
    """Paths, named by what is wrong with them; `wholes` are files that lose their second half."""
    made = {
        **{f"truncated{whole.name}": whole.read_bytes()[: whole.stat().st_size // 2] for whole in wholes},
        "text.onnx": b"this is no graph",
        "empty.onnx": b"",
        "text.h5": b"this is no HDF5",
        "empty.weights.h5": b"",
        "text.keras": b"this is no archive",
        "no_weights.txt": b"1 2 3",
    }
    for name, data in made.items():
        (folder / name).write_bytes(data)
    for name in ("folder.onnx", "folder.keras"):
        (folder / name).mkdir()
    for name in ("no_layers.h5", "no_layers.weights.h5"):
        with h5py.File(folder / name, "w") as file:
            file["array"] = np.zeros(3)
    with zipfile.ZipFile(folder / "no_model.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"config": {"layers": []}}))
    return [*sorted(folder.iterdir()), folder / "missing.onnx", folder / "missing.h5"]


def test_files_that_hold_no_weights_are_named_in_one_sentence(tmp_path, resnet18, resnet20):
    model = keras_convnets.ResNet18(**SMALL)
    before = model.get_weights()
    loads = (lambda path: keras_convnets.ResNet18(weights=path, **SMALL), lambda path: load_weights(model, path))
    for path in broken(tmp_path, [resnet18, *resnet20[1].values()]):
        for load in loads:
            with pytest.raises(UserError) as raised:
                load(path)
            text = str(raised.value)
            assert path.name in text and "\n" not in text and text.endswith("."), text
    for ours, was in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, was)


def test_a_graph_without_stored_weights(tmp_path):
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "nothing", [], []))
    onnx.save(empty, tmp_path / "nothing.onnx")
    with pytest.raises(UserError, match=r"nothing\.onnx"):
        keras_convnets.ResNet18(weights=tmp_path / "nothing.onnx", **SMALL)


def test_names_that_no_weights_have():
    with pytest.raises(UserError, match=r"'imagenette'.*'imagenet'"):
        keras_convnets.ResNet18(weights="imagenette")
    with pytest.raises(UserError, match=r"none are published"):
        keras_convnets.ResNet20(weights="imagenet")
    with pytest.raises(UserError, match=r"VGG16"):
        keras_convnets.ResNet18(weights=pretrained.get_record("VGG16", "imagenet"))


def test_a_name_is_a_name_whatever_lies_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_CONVNETS_OFFLINE", "1")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "imagenet").mkdir()
    for name in ("imagenet", "ImageNet"):
        with pytest.raises(UserError, match=r"resnet18-v1-7\.onnx can't be downloaded"):
            find_weights(name, "ResNet18")
        with pytest.raises(UserError, match=r"none are published"):
            find_weights(name, "ResNet20")
    for path in ("./imagenet", Path("imagenet"), b"imagenet"):
        with pytest.raises(UserError, match=r"imagenet'; give the path of a \.onnx"):
            find_weights(path, "ResNet18")


@pytest.mark.parametrize("weights", [5, True, 0.5, ["a.h5"], np.zeros(3), "", b""], ids=repr)
def test_what_are_no_weights(weights):
    with pytest.raises(UserError, match=r"^weights is .*; it takes None, the name of published weights,.* file\.$"):
        find_weights(weights, "ResNet18")


@pytest.mark.parametrize("weights", ["https://host/a/b.h5", b"HTTP://host/b.onnx", "gs://bucket/imagenet"])
def test_a_url_is_no_file(weights):
    with pytest.raises(UserError, match=rf"^weights is '{os.fsdecode(weights)}', a URL, .*: download it first\.$"):
        find_weights(weights, "ResNet18")


@pytest.mark.parametrize("kind, suffix", [
    (".onnx", ".ONNX"), (".h5", ".H5"), (".h5", ".hdf5"), (".weights.h5", ".Weights.H5"),
    (".weights.h5", ".weights.hdf5"), (".keras", ".KERAS"),
])  # fmt: skip
def test_files_are_known_by_their_ends_in_capital_letters_too(kind, suffix, request, tmp_path):
    whole, name = (request.getfixturevalue("resnet18"), "ResNet18") if kind == ".onnx" else (None, "ResNet20")
    model, paths = (None, {kind: whole}) if whole else request.getfixturevalue("resnet20")
    path = shutil.copy(paths[kind], tmp_path / f"weights{suffix}")
    found, usual = (find_weights(place, name) for place in (os.fsencode(path), paths[kind]))
    assert found.suffix == kind and found.preprocessing == usual.preprocessing
    if model is not None:
        load_weights(model, path)
        assert keras_reader.configuration(path) == keras_reader.configuration(paths[kind])
    if kind == ".keras":
        np.testing.assert_array_equal(load_keras(path).get_weights()[0], model.get_weights()[0])


def test_the_list_of_published_weights():
    assert pretrained.list_weights() == list(pretrained.RECORDS)
    names = [f"ResNet{depth}:imagenet" for depth in (18, 34, 50, 101, 152)]
    assert [str(record) for record in pretrained.list_weights("resnet*")] == names
    assert [str(record) for record in pretrained.list_weights("VGG16:imagenet")] == ["VGG16:imagenet"]
    assert pretrained.list_weights("nothing*") == []
    assert len({(record.architecture, record.name) for record in pretrained.RECORDS}) == len(pretrained.RECORDS)
    assert len({record.sha256 for record in pretrained.RECORDS}) == len(pretrained.RECORDS)


@pytest.mark.parametrize("record", pretrained.RECORDS, ids=str)
def test_each_record_is_whole(record):
    assert pretrained.get_record(record.architecture, record.name) is record
    assert pretrained.record_of_file(record.architecture, record.sha256) is record
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in (record.sha256, *record.same_weights))
    assert record.locations and all(place.startswith("https://") for place in record.locations)
    assert all(place.endswith(record.file) for place in record.locations)
    assert record.size > 20e6 and record.license and record.obtained
    assert record.accuracies
    for accuracy in record.accuracies:
        assert accuracy.n == 50_000 and 50 < accuracy.top1 < accuracy.top5 < 100
        assert accuracy.protocol and accuracy.source and "{" not in accuracy.protocol
    assert len(record.class_names) == len(set(record.class_ids)) == 1000
    assert not any("{" in place for place in record.locations)


# Parameters of the networks with 1,000 classes, as torchvision's documentation counts them (Caffe's AlexNet by hand:
# it has two towers); GoogLeNet by hand too, without auxiliary heads and with biases instead of normalisation.
PARAMETERS = {
    "AlexNet": 60_965_224,
    "GoogLeNet": 6_998_552,
    "VGG16": 138_357_544,
    "VGG19": 143_667_240,
    "ResNet18": 11_689_512,
    "ResNet34": 21_797_672,
    "ResNet50": 25_557_032,
    "ResNet101": 44_549_160,
    "ResNet152": 60_192_808,
}


@pytest.mark.parametrize("record", pretrained.RECORDS, ids=str)
def test_each_records_file_has_its_networks_size(record):
    """A float32 for every parameter, and at most 1 % for statistics and graph: the file is not another network's."""
    builder = getattr(keras_convnets, record.architecture)
    assert set(record.arguments) <= set(inspect.signature(builder).parameters)
    arrays = 4 * PARAMETERS[record.architecture]
    assert arrays < record.size < 1.01 * arrays


def test_a_record_preprocesses_for_the_bare_network():
    images = images_of(32)
    kept = images.copy()
    for name, expected in (("GoogLeNet", bgr), ("VGG16", unit_scaled)):
        result = pretrained.get_record(name, "imagenet").preprocess(images)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected(images), atol=1e-5)
        floats = images.astype(np.float32)
        pretrained.get_record(name, "imagenet").preprocess(floats)
        np.testing.assert_array_equal(floats, images)
    np.testing.assert_array_equal(images, kept)
