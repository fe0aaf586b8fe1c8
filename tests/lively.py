"""Networks and images that exports are compared on: with answers that depend on the image, though untrained."""

from __future__ import annotations

import keras
import numpy as np

from keras_convnets.export.folding import inference_network


def some_images(side, count):
    """Images that differ in colour and pattern, so that a network distinguishes them."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (count, 4, 4, 3)).repeat(-(-side // 4), 1).repeat(-(-side // 4), 2)
    return np.clip(coarse[:, :side, :side] + rng.integers(-20, 21, (count, side, side, 3)), 0, 255).astype(np.uint8)


def trained(model, images):
    """Give every weight a different value, and the classifier outputs that depend on the image."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            ranges = ((0.6, 1.4), (-0.3, 0.3), (-0.3, 0.3), (0.5, 1.5))
            layer.set_weights([rng.uniform(*range_, layer.gamma.shape) for range_ in ranges])
        elif hasattr(layer, "kernel"):
            deviation = (2 / np.prod(layer.kernel.shape[:-1])) ** 0.5
            layer.kernel.assign(rng.normal(0, deviation, layer.kernel.shape))
            if layer.bias is not None:
                layer.bias.assign(rng.uniform(-0.1, 0.1, layer.bias.shape))
    classifier = model.get_layer("predictions")
    features = inference_network(model)(images)["features"].numpy()
    kernel = rng.normal(size=classifier.kernel.shape)
    kernel /= (features @ kernel).std(0)
    classifier.set_weights([kernel, -(features @ kernel).mean(0)])
    return model
