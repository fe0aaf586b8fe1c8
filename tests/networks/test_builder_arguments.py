"""The arguments of every builder: sizes, classes, pooling, activation, precision; and one sentence for a wrong one."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from network_checks import FEW, IMAGENET, as_numpy, family_of, images_of, smallest

import keras_convnets
from keras_convnets import (
    Preprocessing,
    get_model,
)
from keras_convnets.errors import UserError
from keras_convnets.networks.registry import ARCHITECTURES


def over_imagenet(quick):
    """Run a test with `small` over the networks named, and in the heavy run over all."""
    names = [name if name in quick else pytest.param(name, marks=pytest.mark.heavy) for name in IMAGENET]
    return pytest.mark.parametrize("small", names, indirect=True)


ONE_OF_EACH = ["AlexNet", "VGG11", "GoogLeNet", "ResNet18"]
FEATURES = {"alexnet": 256, "vgg": 512, "googlenet": 1024, "resnet_cifar": 64}


@pytest.mark.parametrize(
    "name",
    [name if name in (*FEW, *ONE_OF_EACH) else pytest.param(name, marks=pytest.mark.heavy) for name in ARCHITECTURES],
)
def test_every_builder_passes_its_arguments_on(name):
    builder = getattr(keras_convnets, name)
    side = smallest(name)
    model = builder(
        input_shape=(side + 5, side, 3),
        classes=7,
        classifier_activation=None,
        name="mine",
        preprocessing=Preprocessing((1, 2, 3)),
    )
    assert (model.name, model.input_shape, model.output_shape) == ("mine", (None, side + 5, side, 3), (None, 7))
    assert model.get_layer("preprocessing").preprocessing == Preprocessing((1, 2, 3))
    assert model.layers[-1].name == "predictions"
    model = builder(include_top=False, pooling="max", input_shape=(None, None, 5), include_preprocessing=False)
    maps = FEATURES.get(family_of(name), 2048 if ARCHITECTURES[name].depth >= 50 else 512)
    assert (model.name, model.input_shape, model.output_shape) == (name.lower(), (None, None, None, 5), (None, maps))


@over_imagenet([*ONE_OF_EACH, "PlainNet18"])
def test_the_smallest_size_works(small):
    name, model = small
    side = smallest(name)
    assert (model.input_shape, model.output_shape) == ((None, side, side, 3), (None, 3))
    images = images_of(side, side)
    probabilities = as_numpy(model(images))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=0, atol=1e-5)
    # It looks at the image. In 34 untrained plain layers the image fades on the way, which is the paper's point: there
    # the fourth stage shows it.
    seen = (
        as_numpy(keras_convnets.features(model, "conv4_x")(images)["conv4_x"])
        if name == "PlainNet34"
        else probabilities
    )
    assert np.abs(seen[0] - seen[1]).max() > max(1e-5, 1e-5 * np.abs(seen).max())
    np.testing.assert_allclose(as_numpy(model(images.astype(np.float32))), probabilities, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("include_top", [True, False])
@pytest.mark.parametrize("name", IMAGENET)
def test_a_smaller_size_is_refused(name, include_top):
    side = smallest(name)
    for shape in ((side - 1, side, 3), (None, side - 1, 3)):
        with pytest.raises(UserError, match=f"at least {side}x{side}") as caught:
            get_model(name, input_shape=shape, include_top=include_top)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in IMAGENET if family_of(name) in ("alexnet", "vgg")])
def test_fully_connected_layers_need_a_fixed_size(name):
    with pytest.raises(UserError, match="fixed input size.*fully_convolutional"):
        get_model(name, input_shape=(None, None, 3))


@over_imagenet(["GoogLeNet", "ResNet18"])
def test_without_fully_connected_layers_any_size_works(small):
    name, model = small
    if family_of(name) in ("alexnet", "vgg"):
        return  # the test above
    of_any_size = get_model(name, input_shape=(None, None, 3), classes=3)
    of_any_size.set_weights(model.get_weights())
    images = images_of(*model.input_shape[1:3])
    np.testing.assert_allclose(as_numpy(of_any_size(images)), as_numpy(model(images)), rtol=1e-4, atol=1e-6)
    assert as_numpy(of_any_size(images_of(45, 38))).shape == (2, 3)


@over_imagenet(["VGG11", "GoogLeNet"])
def test_without_top_and_pooled(small):
    name, model = small
    # Twice the smallest side, so that there is more than one place to pool.
    shape = (2 * smallest(name), 2 * smallest(name) + 3, 3)
    maps = get_model(name, include_top=False, input_shape=shape)
    # They are the weights of the classifier but its fully connected layers, which come last.
    maps.set_weights(model.get_weights()[: len(maps.get_weights())])
    images = images_of(*shape[:2])
    values = as_numpy(maps(images))
    assert values.shape == (2, *maps.output_shape[1:]) and values.shape[1] * values.shape[2] > 1
    for pooling, reduce in (("avg", np.mean), ("max", np.max)):
        pooled = get_model(name, include_top=False, pooling=pooling, input_shape=shape)
        pooled.set_weights(maps.get_weights())
        expected = reduce(values, axis=(1, 2))
        np.testing.assert_allclose(as_numpy(pooled(images)), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@over_imagenet(ONE_OF_EACH)
def test_logits_instead_of_probabilities(small):
    name, model = small
    side = smallest(name)
    logits = get_model(name, input_shape=(side, side, 3), classes=3, classifier_activation=None)
    assert logits.output_names == ["predictions"]
    logits.set_weights(model.get_weights())
    images = images_of(side, side)
    values = as_numpy(logits(images)).astype(np.float64)
    softmax = np.exp(values - values.max(-1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    np.testing.assert_allclose(as_numpy(model(images)), softmax, rtol=1e-4, atol=1e-6)


@pytest.fixture
def mixed_float16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


@over_imagenet(ONE_OF_EACH)
def test_mixed_precision_gives_float32_probabilities(small, mixed_float16):
    name, model = small
    side = smallest(name)
    mixed = get_model(name, input_shape=(side, side, 3), classes=3)
    mixed.set_weights(model.get_weights())
    kernels = [layer for layer in mixed.layers if hasattr(layer, "kernel") and layer.name != "predictions"]
    assert {layer.compute_dtype for layer in kernels} == {"float16"}
    images = images_of(side, side)
    probabilities = as_numpy(mixed(images))
    assert probabilities.dtype == np.float32
    # In half precision a sum of three would be off by about 1e-3.
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=0, atol=1e-6)
    # Eleven bits a product, over as many layers as there are.
    np.testing.assert_allclose(probabilities, as_numpy(model(images)), rtol=0, atol=0.05)


# The deepest take ten seconds and more to trace.
@over_imagenet(["AlexNet", "VGG11", "GoogLeNet", "ResNet18"])
def test_plain_compile_fit_evaluate(small):
    name, model = small
    model = keras.models.clone_model(model)  # the other tests want the weights as they were
    model.set_weights(small[1].get_weights())
    # Behind a sixth convolution, 1e-3 of the gradient is too small to move conv2's biases of 1 in float32.
    rate = 1e-1 if name == "AlexNetSixConvs" else 1e-3
    # Groups of convolutions are traced; the others take seconds more for it, and show no more. Batch normalisation is
    # traced in the tests of training.
    traced = name == "AlexNet"
    model.compile(
        keras.optimizers.SGD(rate), "sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=not traced
    )
    images, labels = images_of(smallest(name), smallest(name), count=4), np.array([0, 1, 2, 0])
    history = model.fit(images, labels, batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert [weight.path for weight in model.weights if not np.isfinite(weight.numpy()).all()] == []
    # Every weight learns: what a layer lost on the way would stay.
    pairs = zip(model.weights, small[1].get_weights(), strict=True)
    assert [weight.path for weight, old in pairs if "seed" not in weight.path and (weight.numpy() == old).all()] == []
    loss, accuracy = model.evaluate(images, labels, batch_size=4, verbose=0)
    assert np.isfinite(loss) and 0 <= accuracy <= 1
