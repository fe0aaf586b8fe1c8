"""Helpers of several test modules of weights."""

from __future__ import annotations

import re

import h5py
import numpy as np
import pytest
from reference import as_numpy, relative_difference

from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.weights.loading import load_weights

# Two runtimes sum the same float32 products in other orders, through as many as fifty layers.
TOLERANCE = 1e-4
# Three poolings of 99 pixels leave conv5 maps of 2x2: enough for the order of height, width and channels to show.
SIDE, CLASSES = 99, 7
# Units of the fully connected layers, for 4096: they take most of the time and show nothing more.
HIDDEN = 96
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


def same_logits(result, reference):
    assert np.isfinite(reference).all()
    # The outputs must differ between images, or only the last biases would be compared.
    assert np.abs(reference[0] - reference[1]).max() > 0.02 * np.abs(reference).max()
    assert relative_difference(result, reference) <= TOLERANCE


def weights_by_layer(model):
    return {layer.name: [as_numpy(weight) for weight in layer.weights] for layer in model.layers if layer.weights}


def once(folder, name, write, **how):
    """The path of a file that the first test which needs it writes."""
    path = folder / name
    return path if path.exists() else write(path, **how)


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


def untrained(caplog):
    """What the log says of layers that the file gave nothing to."""
    said = [record.getMessage() for record in caplog.records if record.name == "keras_convnets"]
    return " ".join(text for text in said if re.search(r"untrained|not loaded", text))


FORMATS = [".onnx", ".h5", ".weights.h5", ".keras"]


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


def preprocessing_of(model):
    return model.get_layer("preprocessing").preprocessing
