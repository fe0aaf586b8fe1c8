"""The CIFAR networks against section 4.2 written in NumPy, nested or not; their initial values."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from network_checks import as_numpy, both_families, digest, images_of, leaves, own_preset, randomise

from keras_convnets import (
    CIFARPlainNet,
    CIFARResNet,
    model_info,
)
from keras_convnets.networks import resnet_cifar


def convolve(x, kernel, stride):
    """3x3 cross-correlation with one row or column of zeros on every side."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1] - 2, x.shape[2] - 2
    places = [
        x[:, row : row + height : stride, column : column + width : stride] @ kernel[row, column]
        for row in range(3)
        for column in range(3)
    ]
    return sum(places)


def paper_network(weights, images, *, residual, preset):
    """Section 4.2 in NumPy and float64: the feature maps after each stage, the logits and the probabilities.

    `weights` has the convolutions of the network in order, each with its batch normalisation, then the linear layer.
    """
    weights = list(weights)

    def layer(x, stride=1):
        kernel, gamma, beta, mean, variance = weights.pop(0)
        return (convolve(x, kernel, stride) - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def relu(x):
        return np.maximum(x, 0)

    x = images.astype(np.float64)
    if preset.order == "BGR":
        x = x[..., ::-1]
    same_size = preset.mean_image is not None and preset.mean_image.shape == x.shape[1:]
    x = (x - (preset.mean_image.astype(np.float64) if same_size else np.array(preset.mean))) / np.array(preset.std)
    x = relu(layer(x))
    n = (len(weights) - 1) // 6
    results = []
    for filters, first_stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(n):
            stride = first_stride if block == 0 else 1
            shortcut = x[:, ::stride, ::stride]
            shortcut = np.concatenate([shortcut, np.zeros((*shortcut.shape[:3], filters - x.shape[3]))], axis=3)
            x = layer(relu(layer(x, stride)))
            x = relu(x + shortcut if residual else x)
        results.append(x)
    kernel, bias = weights.pop(0)
    assert not weights
    logits = x.mean((1, 2)) @ kernel + bias
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return [*results, logits, exponentials / exponentials.sum(-1, keepdims=True)]


def weights_in_order(model):
    """The weights as `paper_network` takes them."""
    convolutions, normalisations = [], []
    for layer in leaves(model):
        if isinstance(layer, keras.layers.Conv2D):
            convolutions.append(layer.kernel)
        elif isinstance(layer, keras.layers.BatchNormalization):
            normalisations.append((layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance))
        elif isinstance(layer, keras.layers.Dense):
            linear = (layer.kernel, layer.bias)
    groups = [(kernel, *rest) for kernel, rest in zip(convolutions, normalisations, strict=True)]
    return [[as_numpy(weight).astype(np.float64) for weight in group] for group in (*groups, linear)]


def assert_close(results, references):
    """Within 1e-4 of the largest value.

    A float32 sum of 9 * 64 products is off by about 6e-8 * sqrt(576) = 1.4e-6 of its size; 20 layers add up to at
    most 3e-5. A wrong epsilon, stride or border shows at 1e-3 and more.
    """
    for result, reference in zip(results, references, strict=True):
        assert result.shape == reference.shape
        np.testing.assert_allclose(result, reference, rtol=0, atol=1e-4 * np.abs(reference).max())


@both_families
@pytest.mark.parametrize("depth", [8, 20])
# An even side that gets odd half-way, and odd ones: where to pad at stride 2 differs between them.
@pytest.mark.parametrize("size", [(8, 8), (9, 11), (10, 6)])
@pytest.mark.parametrize("kind", ["means", "mean image", "BGR, std and mean image"])
def test_forward_pass_is_the_papers(family, depth, size, kind):
    preset = own_preset(kind, size)
    model = family(depth, input_shape=(*size, 3), preprocessing=preset)
    randomise(model, seed=depth)
    last = (depth - 2) // 6
    names = [*(f"conv{stage}_block{last}_out" for stage in (2, 3, 4)), "predictions", "probabilities"]
    probe = keras.Model(model.input, [model.get_layer(name).output for name in names])
    images = images_of(*size)
    references = paper_network(weights_in_order(model), images, residual=family is CIFARResNet, preset=preset)
    # The comparison must not be one of dead feature maps or of saturated probabilities.
    assert all((reference > 0).mean() > 0.05 for reference in references[:3])
    assert references[4].max() < 0.9999
    assert_close([as_numpy(output) for output in probe(images)], references)


@pytest.mark.parametrize(
    "family", [CIFARResNet, pytest.param(CIFARPlainNet, marks=pytest.mark.heavy)], ids=["residual", "plain"]
)
def test_a_nested_network_computes_the_same(family, monkeypatch, tmp_path):
    # Five blocks a stage in inner models of two, two and one, as ResNet1202 has them by the fifty.
    monkeypatch.setattr(resnet_cifar, "DEEPEST_FLAT", 20)
    monkeypatch.setattr(resnet_cifar, "BLOCKS_PER_NEST", 2)
    model = family(32, input_shape=(8, 8, 3), classifier_activation=None)
    assert sum(isinstance(layer, keras.Model) for layer in model.layers) == 9
    randomise(model)
    preset = model.get_layer("preprocessing").preprocessing
    images = images_of(8, 8)
    logits = paper_network(weights_in_order(model), images, residual=family is CIFARResNet, preset=preset)[3]
    assert_close([as_numpy(model(images))], [logits])
    assert model_info(model).depth == 32
    model.save_weights(tmp_path / "nested.weights.h5")
    copy = family(32, weights=tmp_path / "nested.weights.h5", input_shape=(8, 8, 3), classifier_activation=None)
    assert digest(copy) == digest(model)
    monkeypatch.undo()
    flat = family(32, input_shape=(8, 8, 3), classifier_activation=None)
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
    assert dataclasses.replace(model_info(model), name="") == dataclasses.replace(model_info(flat), name="")


@both_families
def test_he_initialisation(family):
    model = family(20)
    kernels = {layer.name: layer.kernel for layer in model.layers if hasattr(layer, "kernel")}
    assert len(kernels) == 20
    for name, kernel in kernels.items():
        values = as_numpy(kernel)
        fan_in = values.size // values.shape[-1]
        std = np.sqrt(2 / fan_in)
        # The spread of a standard deviation over N draws is 1 / sqrt(2N) of it: five times that, 2 % at 36,864 draws.
        assert values.std() == pytest.approx(std, rel=5 / np.sqrt(2 * values.size)), name
        assert abs(values.mean()) < 5 * std / np.sqrt(values.size), name
    # A Gaussian that is not cut off has values beyond 3 standard deviations; Keras' he_normal ends at 2.3.
    large = as_numpy(kernels["conv4_block2_1_conv"])
    assert np.abs(large).max() > 3 * large.std()


@both_families
def test_layers_of_one_shape_get_different_weights(family):
    kernels = [as_numpy(layer.kernel) for layer in family(20).layers if isinstance(layer, keras.layers.Conv2D)]
    first_values = [kernel.flat[0] for kernel in kernels]
    assert len(set(first_values)) == len(kernels) == 19


@both_families
def test_a_seed_makes_builds_equal(family):
    digests = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        digests.append(digest(family(14)))
    assert digests[0] == digests[1] != digests[2]
