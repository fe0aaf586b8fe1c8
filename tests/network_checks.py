"""Checks of several test modules of networks."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_convnets import (
    CIFARPlainNet,
    CIFARResNet,
    Preprocessing,
    get_model,
)
from keras_convnets.networks.registry import ARCHITECTURES

DEEPEST = "ResNet1202"
CIFAR = [name for name, entry in ARCHITECTURES.items() if entry.module == "keras_convnets.networks.resnet_cifar"]
IMAGENET = [name for name in ARCHITECTURES if name not in CIFAR]
# ResNet1202 takes half a minute to build, so it is built once and only in the heavy run; a network just deep enough to
# be nested stands for it in the quick one.
QUICK = [name for name in CIFAR if name != DEEPEST]
# The smallest side that leaves every layer a pixel, by hand: AlexNet's three unpadded poolings need 15 places after
# conv1, VGG halves five times, GoogLeNet's poolings round up. ResNet and plain nets ask for their five halvings.
SMALLEST = {"alexnet": 64, "vgg": 32, "googlenet": 31, "resnet": 32, "resnet_cifar": 4}
FAMILIES = {"residual": CIFARResNet, "plain": CIFARPlainNet}
both_families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@functools.cache
def built(name):
    """A CIFAR network as its builder gives it; tests that change its weights randomise them."""
    return get_model(name)


def family_of(name):
    return ARCHITECTURES[name].module.removeprefix("keras_convnets.networks.")


def smallest(name):
    return SMALLEST[family_of(name)]


# The others differ from these in depth alone.
FEW = ("ResNet20", "PlainNet20")


def as_numpy(x):
    return keras.ops.convert_to_numpy(x)


def images_of(height, width, count=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def leaves(model):
    """The layers of a network, those of the models inside it included, in order."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer)
        else:
            yield layer


def randomise(model, seed=0):
    """Give every weight but the convolutions' a random value, statistics included, as training would.

    The second batch normalisation of a residual block, and the third, is scaled down: what the blocks add grows with
    their number, and at 1202 layers an untrained network's output is infinite. Networks without normalisation keep
    their kernels, whose scale they depend on.
    """
    rng = np.random.default_rng(seed)
    normalised = any(isinstance(layer, keras.layers.BatchNormalization) for layer in leaves(model))
    blocks = sum(isinstance(layer, keras.layers.Add) for layer in leaves(model))
    for layer in leaves(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            last = layer.name.endswith(("_2_bn", "_3_bn"))
            scale = min(1.0, 2.0 / blocks) if blocks and last else 1.0
            layer.gamma.assign(rng.uniform(0.7, 1.3, size) * scale)
            layer.beta.assign(rng.normal(0, 0.3, size) * scale)
            # The first one sees pixels.
            pixels = 50.0 if layer.name == "conv1_bn" else 1.0
            layer.moving_mean.assign(rng.normal(0, 0.3, size) * pixels)
            layer.moving_variance.assign(rng.uniform(0.5, 2.0, size) * pixels**2)
        elif isinstance(layer, keras.layers.Dense) and normalised:
            layer.kernel.assign(rng.normal(0, min(0.3, 2.4 / np.sqrt(layer.kernel.shape[0])), layer.kernel.shape))
            layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign_add(rng.normal(0, 0.1, layer.bias.shape))


def unsaturate(model):
    """Scale every head's logits to about one: saturated probabilities do not show the image and have no gradient."""
    images = images_of(*model.input_shape[1:3])
    for head in [layer for layer in model.layers if layer.name.endswith("predictions")]:
        logits = as_numpy(keras.Model(model.input, head.output)(images))
        head.kernel.assign(head.kernel * (2 / np.ptp(logits)))


def digest(model):
    """One number for all weights, in order."""
    return hashlib.sha256(b"".join(weight.tobytes() for weight in model.get_weights())).hexdigest()


def own_preset(kind, size):
    mean_image = np.random.default_rng(3).uniform(80, 160, (*size, 3))
    return {
        "means": Preprocessing((120.0, 110.0, 100.0)),
        "mean image": Preprocessing((120.0, 110.0, 100.0), mean_image=mean_image),
        "BGR, std and mean image": Preprocessing((120.0, 110.0, 100.0), (2.0, 1.5, 3.0), "BGR", mean_image),
    }[kind]


LOAD = """
import hashlib, json, sys
import {first}
import {second}
import numpy as np
images = np.load(sys.argv[1])
found = {{}}
for path in sys.argv[2:]:
    model = keras.saving.load_model(path)
    weights = b"".join(weight.tobytes() for weight in model.get_weights())
    height, width = model.input_shape[1:3]
    outputs = np.asarray(model(images[:, :height, :width])).tolist()
    structure = hashlib.sha256(model.to_json().encode()).hexdigest()
    found[path] = [hashlib.sha256(weights).hexdigest(), outputs, structure]
print(json.dumps([found, sys.getrecursionlimit()]))
"""


def load_in_a_fresh_process(images, paths, first="keras_convnets", second="keras"):
    """Return by .keras file its weights' digest, its outputs, its structure's digest; and the recursion limit."""
    images_file = paths[0].with_name("images.npy")
    np.save(images_file, images)
    command = [sys.executable, "-c", LOAD.format(first=first, second=second), str(images_file), *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])
