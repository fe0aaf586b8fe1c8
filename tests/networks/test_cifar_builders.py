"""The CIFAR networks of any depth: sizes, tops, depths, custom inputs."""

from __future__ import annotations

import functools
import json
import math
import re

import keras
import numpy as np
import pytest
from network_checks import as_numpy, both_families, images_of, randomise

import keras_convnets
from keras_convnets import (
    CIFARPlainNet,
    CIFARResNet,
    Preprocessing,
    get_model,
    model_info,
)
from keras_convnets.errors import UserError


def test_get_model_passes_every_argument_on():
    model = get_model("ResNet20", name="mine", classes=4)
    assert (model.name, model.output_shape) == ("mine", (None, 4))


@both_families
@pytest.mark.parametrize("size", [(4, 4), (8, 8), (32, 32), (40, 24), (33, 35), (5, 7)])
def test_any_size_at_least_4(family, size):
    of_any_size = any_size_network(family)
    fixed = family(8, input_shape=(*size, 3))
    fixed.set_weights(of_any_size.get_weights())
    images = images_of(*size)
    probabilities = as_numpy(fixed(images))
    assert probabilities.shape == (2, 10) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=0, atol=1e-5)
    assert np.abs(probabilities[0] - probabilities[1]).max() > 1e-5  # it looks at the image
    np.testing.assert_allclose(as_numpy(of_any_size(images)), probabilities, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(as_numpy(fixed(images.astype(np.float32))), probabilities, rtol=1e-5, atol=1e-7)


@functools.cache
def any_size_network(family):
    model = family(8, input_shape=(None, None, 3))
    assert model.input_shape == (None, None, None, 3)
    randomise(model)
    return model


@both_families
@pytest.mark.parametrize("size", [(8, 8), (33, 35), (4, 40)])
def test_without_top(family, size):
    shape = (*size, 3)
    maps = family(8, include_top=False, input_shape=shape)
    randomise(maps)
    # Strides of 2 with padding 1 round up.
    height, width = (math.ceil(math.ceil(side / 2) / 2) for side in size)
    assert maps.output_shape == (None, height, width, 64)
    images = images_of(*size)
    values = as_numpy(maps(images))
    assert values.shape == (2, height, width, 64) and values.max() > 0
    for pooling, reduce in (("avg", np.mean), ("max", np.max)):
        pooled = family(8, include_top=False, pooling=pooling, input_shape=shape)
        pooled.set_weights(maps.get_weights())
        assert pooled.output_shape == (None, 64)
        np.testing.assert_allclose(as_numpy(pooled(images)), reduce(values, axis=(1, 2)), rtol=1e-4, atol=1e-5)


@both_families
@pytest.mark.parametrize("activation", [None, "linear", "sigmoid"])
def test_classifier_activation(family, activation):
    shape = (8, 8, 3)
    reference = family(8, input_shape=shape)
    randomise(reference)
    logits = keras.Model(reference.input, reference.get_layer("predictions").output)
    model = family(8, input_shape=shape, classifier_activation=activation)
    model.set_weights(reference.get_weights())
    images = images_of(8, 8)
    expected = as_numpy(logits(images))
    softmax = np.exp(expected - expected.max(-1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    np.testing.assert_allclose(as_numpy(reference(images)), softmax, rtol=1e-4, atol=1e-6)
    if activation == "sigmoid":
        expected = 1 / (1 + np.exp(-expected))
    np.testing.assert_allclose(as_numpy(model(images)), expected, rtol=1e-4, atol=1e-6)


def test_networks_of_two_families_on_one_tensor():
    images = keras.Input((32, 32, 3))
    small = {"include_top": False, "pooling": "avg"}
    one = CIFARResNet(8, input_tensor=images, **small)
    other = keras_convnets.VGG11(input_tensor=one.input, **small)
    both = keras.Model(images, [one.output, other.output])
    names = [layer.name for layer in both.layers if hasattr(layer, "preprocessing")]
    assert names == ["resnet8_preprocessing", "vgg11_preprocessing"]
    # Without a tensor to share, the name stays what it is in files.
    assert CIFARResNet(8, **small).get_layer("preprocessing")


@both_families
def test_input_tensor(family):
    images = keras.Input((16, 12, 3), name="mine")
    model = family(8, input_tensor=images)
    assert model.input_shape == (None, 16, 12, 3) and model.inputs[0] is images
    # On top of layers of the user's own, which become part of the network.
    halved = keras.layers.AveragePooling2D(2, name="halve")(images)
    longer = family(8, input_tensor=halved)
    assert longer.input_shape == (None, 16, 12, 3) and longer.get_layer("halve")
    short = family(8, input_shape=(8, 6, 3))
    randomise(short)
    longer.set_weights(short.get_weights())
    # Whole numbers after halving, so that both see the same.
    small = images_of(8, 6)
    large = small.repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(as_numpy(longer(large)), as_numpy(short(small)), rtol=1e-4, atol=1e-6)


@both_families
def test_a_bare_network_takes_any_channels(family):
    model = family(8, input_shape=(8, 8, 5), include_preprocessing=False)
    assert model.get_layer("conv1_conv").kernel.shape == (3, 3, 5, 16)
    assert as_numpy(model(np.zeros((1, 8, 8, 5), np.float32))).shape == (1, 10)


@both_families
@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"input_shape": (3, 32, 3)}, "at least 4x4"),
        ({"input_shape": (32, 3, 3)}, "at least 4x4"),
        ({"input_shape": (None, 3, 3)}, "at least 4x4"),
        ({"input_shape": (0, 0, 3)}, "at least 4x4"),
        ({"input_shape": (32, 32)}, r"\(height, width, channels\)"),
        ({"input_shape": (1, 32, 32, 3)}, r"\(height, width, channels\)"),
        ({"input_shape": (32, 32, None)}, r"\(height, width, channels\)"),
        ({"input_shape": (32.0, 32.0, 3)}, r"\(height, width, channels\)"),
        ({"input_shape": (32, 32, 1)}, "3 channels"),
        ({"input_shape": (3, 32, 32)}, "at least 4x4"),
        ({"include_top": False, "pooling": "mean"}, "'mean'; it must be None, 'avg' or 'max'"),
        ({"classes": 0}, "classes is 0"),
        ({"classes": -1}, "classes is -1"),
        ({"classes": 2.5}, "classes is 2.5"),
        ({"classes": True}, "classes is True"),
        ({"classes": "10"}, "classes is '10'"),
        ({"classes": None}, "classes is None"),
        ({"weights": "imagenet"}, "'imagenet'.*no published weights"),
        ({"weights": "nowhere.keras"}, "no weights file nowhere.keras"),
        ({"weights": "nowhere.weights.h5"}, "no weights file nowhere.weights.h5"),
        ({"include_preprocessing": False, "preprocessing": Preprocessing((0, 0, 0))}, "one of the two"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_told_in_one_sentence(family, arguments, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        family(8, **arguments)
    assert "\n" not in str(caught.value)


@both_families
def test_numpys_whole_numbers_are_taken_as_pythons(family):
    model = family(np.int64(8), input_shape=np.array([8, 8, 3]), classes=np.int32(3))
    assert model.output_shape == (None, 3) and model.name.endswith("8")
    assert json.loads(json.dumps(model.get_config()["built_as"]))["arguments"]["classes"] == 3


@both_families
@pytest.mark.parametrize("depth", [0, 1, 2, -4, 3, 18, 21, 34, 49, 51, 8.0, "20", None, True])
def test_depth_is_6n_plus_2(family, depth):
    with pytest.raises(UserError, match=re.escape(f"depth is {depth!r}") + ".*6n\\+2"):
        family(depth)


@both_families
@pytest.mark.parametrize("depth", [8, 14, 26])
def test_depths_the_paper_does_not_use(family, depth):
    model = family(depth)
    assert model_info(model).depth == depth
    assert model.name == {CIFARResNet: "resnet", CIFARPlainNet: "plainnet"}[family] + str(depth)


def test_channels_first_is_refused():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(UserError, match="channels_last"):
            CIFARResNet(8)
    finally:
        keras.config.set_image_data_format("channels_last")
