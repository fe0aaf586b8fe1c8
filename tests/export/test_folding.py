"""The inference network: equal outputs from fewer operations, and the model unchanged."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import keras_convnets
from keras_convnets import CIFARResNet, GoogLeNet, Preprocessing, ResNet18, ResNet20, get_model, stages
from keras_convnets.errors import UserError
from keras_convnets.export.folding import IDENTITIES, inference_network
from keras_convnets.networks import resnet_cifar
from keras_convnets.networks.fully_convolutional import fully_convolutional
from keras_convnets.networks.layers import GroupedConv2D, ImageNormalization

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# Of the largest number: one sum in float32 of products that were rounded elsewhere.
TOLERANCE = 1e-5
CLASSES = 7
SIDES = {"AlexNet": 67, "GoogLeNet": 33, "VGG": 32}
# The others differ in depth, in where a stride is, or are of fewer kinds of layers.
QUICK = ("AlexNet", "VGG11", "GoogLeNet", "ResNet18", "ResNet20")
over_all = pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.heavy) for name in keras_convnets.list_models()],
)
MEAN, STD = (120.5, 110.25, 99.0), (58.4, 57.1, 52.0)


def mean_image(side):
    return np.random.default_rng(5).uniform(50, 200, (side, side, 3)).astype(np.float32)


def preprocessing(order="BGR", std=STD, image=None):
    return Preprocessing(mean=MEAN, std=std, order=order, mean_image=image)


def uint8_images(shape, count=2):
    return np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8)


def randomised(model):
    """Give every weight a random value, so that an omitted one is noticed; the outputs stay in range."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        shape = tuple(weight.shape)
        if weight.name in ("gamma", "moving_variance"):
            values = rng.uniform(0.5, 1.5, shape)
        elif len(shape) < 2:
            values = rng.uniform(-0.5, 0.5, shape)
        else:
            # Small enough that the deepest network's sum of blocks stays finite.
            values = (rng.random(shape, np.float32) - 0.5) * np.float32(np.sqrt(3 / np.prod(shape[:-1])))
        weight.assign(values)
    return model


def leaves(model):
    for layer in model.layers:
        yield from leaves(layer) if isinstance(layer, keras.Model) else [layer]


def convolutions(model):
    return [layer.name for layer in leaves(model) if isinstance(layer, layers.Conv2D)]


def kinds(model):
    """Return the types of a model's layers, Keras' where one of this package is derived from it."""
    return {kind for layer in leaves(model) for kind in type(layer).__mro__ if issubclass(kind, layers.Layer)}


def assert_close(got, expected):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape and got.dtype == np.float32
    assert np.isfinite(expected).all() and np.ptp(expected) > 1e-3
    assert np.abs(got - expected).max() <= TOLERANCE * max(1, np.abs(expected).max())


def numbers(model, images):
    """Return a model's output, logits and what enters its linear layer."""
    outputs = model.output
    main = outputs["probabilities"] if isinstance(outputs, dict) else outputs
    dense = model.get_layer("predictions")
    return keras.Model(model.input, [main, dense.output, dense.input])(images, training=False)


def assert_same(model, images=None):
    """Check the output of a model's inference network, on floats and on integers, and return it."""
    images = uint8_images(model.input_shape[1:]) if images is None else images
    folded = inference_network(model)
    for batch in (images, images.astype(np.float32)):
        assert_close(folded(batch)["probabilities"], model(batch, training=False))
    return folded


@over_all
def test_every_network_computes_the_same(name):
    side = next((side for start, side in SIDES.items() if name.startswith(start)), 32)
    model = randomised(get_model(name, input_shape=(side, side, 3), classes=CLASSES, preprocessing=preprocessing()))
    before, known = model.get_weights(), stages(model)
    images = uint8_images((side, side, 3))
    # Logits of a few units, so that the softmax neither saturates nor flattens.
    predictions = model.get_layer("predictions")
    kernel, bias = predictions.get_weights()
    predictions.set_weights([kernel / np.std(numbers(model, images)[1] - bias).clip(0.1), bias])
    before[-2] = predictions.get_weights()[0]

    folded = inference_network(model)
    expected = numbers(model, images)
    for batch in (images, images.astype(np.float32)):
        for got, wanted in zip(numbers(folded, batch), expected, strict=True):
            assert_close(got, wanted)
    assert_close(folded(images)["features"], expected[2])
    assert set(folded.output) == {"probabilities", "features"}
    assert not kinds(folded) & {layers.BatchNormalization, *IDENTITIES}
    assert convolutions(folded) == convolutions(model)
    assert folded.name == model.name and folded.input.name == "images" and folded.input_shape == model.input_shape
    assert_untouched(model, before, known)
    assert not {id(layer) for layer in leaves(folded)} & {id(layer) for layer in leaves(model)}
    assert not {id(weight) for weight in folded.weights} & {id(weight) for weight in model.weights}


def assert_untouched(model, before, known):
    assert all(np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True))
    assert all(len(layer._inbound_nodes) == 1 and layer.output is not None for layer in leaves(model))
    assert stages(model) == known


@pytest.mark.parametrize("image", [False, True], ids=["means", "mean image"])
@pytest.mark.parametrize("std", [(1, 1, 1), STD], ids=["std 1", "std"])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_every_preprocessing(order, std, image):
    values = preprocessing(order, std, mean_image(8) if image else None)
    model = randomised(CIFARResNet(8, input_shape=(8, 8, 3), preprocessing=values))
    folded = assert_same(model)
    left = folded.get_layer("preprocessing").preprocessing
    assert left.std == (1, 1, 1) and left.order == "RGB"
    step = -1 if order == "BGR" else 1
    assert left.mean == MEAN[::step]
    assert not image or np.array_equal(left.mean_image, mean_image(8)[..., ::step])


@pytest.mark.parametrize("padding", ["layer", "same"])
def test_the_border_is_padded_with_zeros_after_the_mean(padding):
    images = keras.Input((6, 6, 3), name="images")
    x = ImageNormalization(preprocessing())(images)
    if padding == "layer":
        x = layers.ZeroPadding2D(((1, 2), (0, 1)))(x)
    model = randomised(keras.Model(images, layers.Conv2D(4, 3, padding="same" if padding == "same" else "valid")(x)))
    folded = assert_same(model)
    pixels = uint8_images((6, 6, 3))
    # What a mean in the bias would give: inside the same, at the border far off.
    convolution = next(layer for layer in folded.layers if isinstance(layer, layers.Conv2D))
    kernel, bias = convolution.get_weights()
    wrong = bias - np.einsum("hwio,i->o", kernel, np.array(MEAN[::-1], np.float32))
    raw = folded(pixels)["probabilities"]
    padded = pixels if padding == "same" else np.pad(pixels, ((0, 0), (1, 2), (0, 1), (0, 0)))
    shifted = np.asarray(keras.ops.conv(padded.astype(np.float32), kernel, padding=convolution.padding)) + wrong
    apart = np.abs(shifted - raw)
    assert apart[:, 1:3, 1:3].max() < 1e-3
    assert apart[:, 0].min() > TOLERANCE * 100


def test_epsilon_scale_and_centre():
    images = keras.Input((5, 5, 3))
    x = layers.Conv2D(4, 3, name="a")(images)
    x = layers.BatchNormalization(epsilon=0.5, scale=False, name="a_bn")(x)
    x = layers.Conv2D(4, 2, use_bias=False, name="b")(x)
    x = layers.BatchNormalization(epsilon=2.0, center=False, name="b_bn")(x)
    model = randomised(keras.Model(images, x))
    folded = assert_same(model, uint8_images((5, 5, 3)) // 64)
    assert [layer.name for layer in folded.layers] == ["images", "a", "b"]
    kernel, bias = model.get_layer("a").get_weights()
    beta, mean, variance = model.get_layer("a_bn").get_weights()
    scale = 1 / np.sqrt(variance.astype(np.float64) + 0.5)
    np.testing.assert_allclose(folded.get_layer("a").get_weights()[0], kernel * scale, rtol=1e-6)
    np.testing.assert_allclose(folded.get_layer("a").get_weights()[1], (bias - mean) * scale + beta, rtol=1e-5)


@pytest.mark.parametrize("image", [None, 16, 24], ids=["means", "mean image", "mean image of another size"])
def test_an_input_of_unknown_size(image):
    values = preprocessing(image=image and mean_image(image))
    model = randomised(CIFARResNet(8, input_shape=(None, None, 3), preprocessing=values))
    folded = inference_network(model)
    assert folded.input_shape == (None, None, None, 3)
    for shape in ((16, 16, 3), (19, 12, 3)):
        got, expected = (numbers(network, uint8_images(shape)) for network in (folded, model))
        for ours, theirs in zip(got, expected, strict=True):
            assert_close(ours, theirs)


def test_without_preprocessing():
    model = randomised(ResNet18(include_preprocessing=False, input_shape=(32, 32, 1), classes=CLASSES))
    folded = inference_network(model)
    images = np.random.default_rng(2).standard_normal((2, 32, 32, 1), np.float32)
    assert_close(folded(images)["probabilities"], model(images, training=False))
    assert ImageNormalization not in kinds(folded) and layers.BatchNormalization not in kinds(folded)


def test_the_features_alone():
    model = randomised(ResNet20(include_top=False, input_shape=(8, 8, 3), pooling="avg"))
    assert set(assert_same(model).output) == {"probabilities"}
    assert set(inference_network(randomised(CIFARResNet(8, include_top=False))).output) == {"probabilities"}


def test_auxiliary_heads_are_dropped():
    model = randomised(GoogLeNet(auxiliary=True, input_shape=(79, 79, 3), classes=CLASSES))
    folded = inference_network(model)
    images = uint8_images((79, 79, 3))
    for got, expected in zip(numbers(folded, images), numbers(model, images), strict=True):
        assert_close(got, expected)
    assert set(folded.output) == {"probabilities", "features"}
    assert not any(layer.name.startswith("aux") for layer in folded.layers)
    assert len(convolutions(folded)) == len(convolutions(model)) - 2


def test_nested_models_stay_nested():
    inner = keras.Input((8, 8, 4))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", use_bias=False, name="inner_conv")(inner))
    block = keras.Model(inner, [layers.Dropout(0.5)(x), inner + 1.0], name="block")
    images = keras.Input((8, 8, 3), name="pixels")
    x = layers.Conv2D(4, 3, padding="same")(images)
    x = layers.Add()(block(layers.Add()(block(x))))
    model = randomised(keras.Model(images, layers.Dense(3)(layers.Flatten()(x))))
    folded = assert_same(model, uint8_images((8, 8, 3)) // 64)
    nested = folded.get_layer("block")
    assert isinstance(nested, keras.Model) and nested is not block and len(folded.layers) == len(model.layers)
    assert not kinds(folded) & {layers.BatchNormalization, layers.Dropout}
    assert len(block._inbound_nodes) == 2


def test_what_does_not_fold_stays():
    images = keras.Input((8, 8, 3))
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    x = layers.BatchNormalization()(shared(images))
    x = layers.BatchNormalization()(shared(x))
    active = layers.Conv2D(6, 3, padding="same", activation="relu", name="active")(x)
    x = layers.BatchNormalization()(active)
    twice = layers.Conv2D(8, 3, name="twice")(x)
    x = layers.Add()([layers.BatchNormalization()(twice), twice])
    x = layers.BatchNormalization(axis=1)(layers.Conv2D(8, 3, name="rows")(x))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3)(x))
    x = layers.BatchNormalization(name="folds")(GroupedConv2D(8, 2, groups=2, padding="same")(x))
    model = randomised(keras.Model(images, x))
    folded = assert_same(model, uint8_images((8, 8, 3)) // 64)
    assert sum(isinstance(layer, layers.BatchNormalization) for layer in folded.layers) == 6
    assert "folds" not in [layer.name for layer in folded.layers]
    assert shared.kernel.shape == (3, 3, 3, 3) and len(shared._inbound_nodes) == 2


@pytest.mark.parametrize("follower", ["two", "pooling", "groups", "twice"])
def test_normalisation_stays_where_no_single_convolution_follows(follower):
    images = keras.Input((8, 8, 3))
    normalisation = ImageNormalization(preprocessing(), name="preprocessing")
    x = normalisation(images)
    if follower == "two":
        x = layers.Add()([layers.Conv2D(4, 3)(x), layers.Conv2D(4, 3)(x)])
    elif follower == "pooling":
        x = layers.Conv2D(4, 3)(layers.MaxPooling2D()(x))
    elif follower == "groups":
        x = GroupedConv2D(3, 3, groups=3)(x)
    else:
        x = layers.Add()([layers.Conv2D(3, 3, padding="same")(x), normalisation(images)])
    model = randomised(keras.Model(images, x))
    assert assert_same(model).get_layer("preprocessing").preprocessing == preprocessing()


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_half_precision_becomes_float32(policy, nested, monkeypatch):
    monkeypatch.setattr(resnet_cifar, "DEEPEST_FLAT", 8 if nested else 110)
    monkeypatch.setattr(resnet_cifar, "BLOCKS_PER_NEST", 1)
    shape = (16, 16, 3)
    exact = randomised(CIFARResNet(14, input_shape=shape, preprocessing=preprocessing()))
    keras.config.set_dtype_policy(policy)
    try:
        half = CIFARResNet(14, input_shape=shape, preprocessing=preprocessing())
        half.set_weights(exact.get_weights())
        folded = inference_network(half)
    finally:
        keras.config.set_dtype_policy("float32")
    # Weights in bfloat16 are other weights.
    exact.set_weights([weight.astype(np.float32) for weight in half.get_weights()])
    assert len(list(leaves(folded))) > len(folded.layers) or not nested
    assert {layer.output.dtype for layer in leaves(folded)} == {"float32"}
    for got, expected in zip(numbers(folded, uint8_images(shape)), numbers(exact, uint8_images(shape)), strict=True):
        assert_close(got, expected)


@pytest.mark.parametrize("builder", ["MobileNet", pytest.param("MobileNetV3Small", marks=pytest.mark.heavy)])
def test_other_functional_models(builder):
    model = getattr(keras.applications, builder)(weights=None, input_shape=(32, 32, 3), classes=5)
    folded = assert_same(randomised(model))
    assert len(convolutions(folded)) == len(convolutions(model))
    removed = sum(isinstance(layer, layers.BatchNormalization) for layer in model.layers)
    kept = sum(isinstance(layer, layers.BatchNormalization) for layer in folded.layers)
    assert kept == sum(isinstance(layer, layers.DepthwiseConv2D) for layer in model.layers) < removed


def test_a_sequential_model():
    base = ResNet20(include_top=False, input_shape=(8, 8, 3))
    head = [layers.GlobalAveragePooling2D(), layers.Dropout(0.5), layers.Dense(4), layers.Softmax()]
    model = randomised(keras.Sequential([keras.Input((8, 8, 3)), base, *head]))
    folded = assert_same(model)
    assert folded.output["features"].shape == (None, 64)
    assert_same(keras.Model(images := keras.Input((8, 8, 3)), model(images)))
    assert layers.BatchNormalization not in kinds(folded)


def test_a_map_that_enters_the_linear_layer_is_flattened():
    images = keras.Input((4, 5, 3))
    model = randomised(keras.Model(images, layers.Dense(2, activation="softmax")(images)))
    pixels = uint8_images((4, 5, 3))
    folded = assert_same(model, pixels)
    assert_close(folded(pixels)["features"], pixels.reshape(2, -1).astype(np.float32))


def test_a_fully_convolutional_network():
    model = fully_convolutional(randomised(ResNet20(input_shape=(16, 16, 3), preprocessing=preprocessing())))
    folded = assert_same(model, uint8_images((24, 20, 3)))
    assert set(folded.output) == {"probabilities"} and layers.BatchNormalization not in kinds(folded)


def test_what_always_trains_stays():
    images = keras.Input((6, 6, 3))
    x = layers.Dropout(0.5, name="always_drops")(images, training=True)
    x = layers.BatchNormalization(name="always_of_the_batch")(layers.Conv2D(4, 3)(x), training=True)
    folded = inference_network(keras.Model(images, x))
    assert {"always_drops", "always_of_the_batch"} < {layer.name for layer in folded.layers}


def test_the_features_are_the_input_of_the_predictions_whatever_follows():
    images = keras.Input((6,))
    x = layers.Dense(5, name="predictions")(layers.Dense(4, activation="relu", name="hidden")(images))
    model = randomised(keras.Model(images, layers.Dense(3, name="calibration")(x)))
    vectors = uint8_images((6,))
    assert_close(assert_same(model, vectors)(vectors)["features"], numbers(model, vectors)[2])


def test_other_models_are_refused():
    one, two = keras.Input((2,)), keras.Input((2,))

    class Own(keras.Model):
        pass

    with pytest.raises(UserError, match="has 2 inputs"):
        inference_network(keras.Model([one, two], layers.Add()([one, two])))
    with pytest.raises(UserError, match="has 2 outputs"):
        inference_network(keras.Model(one, [layers.Dense(1)(one), layers.Dense(1)(one)]))
    for model in (Own(), keras.Sequential([layers.Dense(1)])):
        with pytest.raises(UserError, match="functional"):
            inference_network(model)
