"""VGG and ResNet are keras.applications' networks: the same layer names, and the same numbers for the same weights."""

import keras
import numpy as np
import pytest
from reference import as_numpy, randomise, relative_difference

import keras_convnets

TWINS = [
    "VGG16",
    "ResNet50",
    *(pytest.param(name, marks=pytest.mark.heavy) for name in ("VGG19", "ResNet101", "ResNet152")),
]
# Sides that halve to odd and even ones: where the padding of a stride of 2 stands differs between them.
SIZE = (64, 47)
# Both networks sum the same float32 products in the same order, but for the biases that were folded into moving means:
# `mean - bias` is rounded once, 6e-8 of its size, at each of 155 convolutions; independent, they come to some 1e-6.
TOLERANCE = 1e-5


def paired(name, **arguments):
    """A twin with random weights, and our network with the same."""
    twin = getattr(keras.applications, name)(weights=None, **arguments)
    ours = getattr(keras_convnets, name)(**arguments, include_preprocessing=False)
    randomise(twin)
    for layer in twin.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # The package's epsilon; keras.applications has 1.001e-5.
            layer.epsilon = 1e-5
        if layer.weights:
            carry(twin, layer, ours.get_layer(layer.name))
    return twin, ours


@pytest.fixture(scope="module", params=TWINS)
def pair(request):
    """The networks that give logits. Module scope: building the deep ones takes seconds."""
    return paired(request.param, input_shape=(*SIZE, 3), classes=10, classifier_activation=None)


def carry(twin, layer, to):
    """Set a layer's weights to those of its twin; a bias before a batch normalisation moves into the latter's mean.

    gamma * (x + bias - mean) / deviation + beta needs no bias where the mean is `mean - bias`.
    """
    weights = [as_numpy(weight) for weight in layer.weights]
    if isinstance(layer, keras.layers.BatchNormalization):
        gamma, beta, mean, variance = weights
        convolution = twin.get_layer(layer.name.removesuffix("_bn") + "_conv")
        weights = [gamma, beta, mean - as_numpy(convolution.bias), variance]
    elif isinstance(layer, keras.layers.Conv2D) and not to.use_bias:
        weights.pop()
    to.set_weights(weights)


def images_of(height, width):
    return np.random.default_rng(1).normal(0, 1, (2, height, width, 3)).astype(np.float32)


def weighted(model):
    return {layer.name for layer in model.layers if layer.weights}


def test_the_same_logits_as_the_twin(pair):
    twin, ours = pair
    reference = as_numpy(twin(images_of(*SIZE)))
    assert relative_difference(as_numpy(ours(images_of(*SIZE))), reference) <= TOLERANCE
    # The outputs must differ between images, or only the last biases would be compared.
    assert np.abs(reference[0] - reference[1]).max() > 0.01 * np.abs(reference).max()


def test_keras_layer_names_are_kept(pair):
    twin, ours = pair
    assert weighted(twin) == weighted(ours)


@pytest.mark.heavy
def test_the_same_feature_maps_as_the_twin_at_any_size():
    twin, ours = paired("ResNet50", include_top=False, input_shape=(None, None, 3))
    for size in ((32, 32), (64, 64), (65, 46)):
        reference = as_numpy(twin(images_of(*size)))
        assert relative_difference(as_numpy(ours(images_of(*size))), reference) <= TOLERANCE, size


@pytest.mark.parametrize(
    "pooling", ["avg", *(pytest.param(pooling, marks=pytest.mark.heavy) for pooling in (None, "max"))]
)
def test_the_same_features_as_the_twin(pooling):
    twin, ours = paired("VGG16", include_top=False, input_shape=(*SIZE, 3), pooling=pooling)
    assert relative_difference(as_numpy(ours(images_of(*SIZE))), as_numpy(twin(images_of(*SIZE)))) <= TOLERANCE
