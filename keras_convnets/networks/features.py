"""Feature extraction by named stages, and fully convolutional networks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from keras_convnets.errors import UserError, unknown_name
from keras_convnets.networks.graph import along_paths
from keras_convnets.networks.table import FAMILIES

# (pattern of a layer's name, name of the stage that the layer ends); the last of several layers counts.
STAGE_ENDS = tuple(dict.fromkeys((re.compile(pattern), name) for family in FAMILIES for pattern, name in family.stages))


@dataclass(frozen=True)
class Stage:
    """A named part of a network.

    Attributes:
        name: the paper's name, such as "conv3_x" or "inception_4a".
        layer: the layer whose output ends it.
        channels: number of maps.
        stride: input pixels between two places of a map.
    """

    name: str
    layer: str
    channels: int
    stride: int


def stages(model: keras.Model) -> dict[str, Stage]:
    """Return the named stages of a network, from the input on.

    Args:
        model: a network of this package, loaded or built, or one that keras.applications names alike.

    Example:
        >>> stages(keras_convnets.ResNet50())["conv4_x"].stride
        16
    """
    strides = along_paths(model, _stride, start=1, join=lambda before, own: before * own)
    found: dict[str, Stage] = {}
    for layer in model.layers:
        for pattern, name in STAGE_ENDS:
            if match := pattern.fullmatch(layer.name):
                tensor = _output_of(model, layer)
                stage = Stage(name.format(match[1]), layer.name, tensor.shape[-1], strides[id(tensor)])
                found[stage.name] = stage
    return found


def features(model: keras.Model, names: Sequence[str]) -> keras.Model:
    """Return a model that gives the feature maps of named stages; it shares the network's layers and weights.

    Args:
        model: a network, with or without its classifier.
        names: stages, such as ("conv3_x", "conv5_x"); `stages(model)` gives all with their channels and strides.

    Returns:
        images [batch, H, W, 3] to a dictionary: name to [batch, H / stride, W / stride, channels].

    Raises:
        UserError: if a name is none of the network's stages.

    Example:
        >>> backbone = features(keras_convnets.ResNet50(include_top=False), ("conv3_x", "conv5_x"))
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    known = stages(model)
    for name in names:
        if name not in known:
            raise unknown_name(f"stage of {model.name}", name, known)
    if not names:
        raise UserError(f"no stage of {model.name} was named; its stages are {', '.join(known)}.")
    outputs = {name: _output_of(model, model.get_layer(known[name].layer)) for name in names}
    return keras.Model(model.input, outputs, name=f"{model.name}_features")


def fully_convolutional(model: keras.Model) -> keras.Model:
    """Return the network with its classifier as convolutions: a larger image gives a map of class scores.

    Fully connected layers become convolutions, the first with the size of the training feature map; the global average
    pooling becomes average pooling with that window at stride 1 (He et al. 2015, section 3.4; Simonyan and Zisserman
    2014, section 3.2). The weights are copies. Auxiliary heads are left out.

    Args:
        model: a classifier of this package with a fixed input size.

    Returns:
        images [batch, H, W, 3] of any size not below the network's own to [batch, h, w, classes]; at the network's
        own size h = w = 1 and the scores are the classifier's.

    Raises:
        UserError: if the model has no classifier, or no fixed input size.
    """
    names = [layer.name for layer in model.layers]
    first = next((name for name in ("flatten", "avg_pool") if name in names), None)
    if first is None or "predictions" not in names:
        raise UserError(f"{model.name} has no classifier to turn into convolutions; build it with include_top=True.")
    window = tuple(model.get_layer(first).input.shape[1:3])
    if None in window:
        raise UserError(f"{model.name} has no fixed input size, so no training window; give it an input_shape.")
    body = keras.Model(model.input, model.get_layer(first).input)
    images = keras.Input((None, None, model.input_shape[-1]), name="images")
    x = _at_any_size(body, images)
    if first == "avg_pool":
        x = layers.AveragePooling2D(window, strides=1, name="avg_pool")(x)
        window = (1, 1)
    carried = []
    for layer in _behind(model, model.get_layer(first)):
        if isinstance(layer, layers.Dense):
            convolution = _as_convolution(layer, window)
            x = convolution(x)
            carried.append((convolution, layer))
            window = (1, 1)
        else:
            x = type(layer).from_config(layer.get_config())(x)
    fully = keras.Model(images, x, name=f"{model.name}_fully_convolutional")
    for convolution, dense in carried:
        kernel, bias = dense.get_weights()
        convolution.set_weights([kernel.reshape(convolution.kernel.shape), bias])
    return fully


def _behind(model: keras.Model, first: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return the layers that take a layer's output, directly or through others, in order."""
    reached = {id(_output_of(model, first))}
    found = []
    for layer in model.layers:
        for node in layer._inbound_nodes:
            if any(id(tensor) in reached for tensor in node.input_tensors):
                found.append(layer)
                reached.update(map(id, node.output_tensors))
                break
    return found


def _as_convolution(dense: keras.layers.Dense, window: tuple[int, int]) -> keras.layers.Conv2D:
    return layers.Conv2D(
        dense.units,
        window,
        padding="valid",
        activation=dense.activation,
        dtype=dense.dtype_policy,
        name=dense.name,
    )


def _at_any_size(body: keras.Model, images: Any) -> Any:
    """Return the output of a copy of a network's body on an input of another size, its weights carried over."""

    def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
        if not isinstance(layer, keras.Model):
            return layer.__class__.from_config(layer.get_config())
        inner = keras.Input((None, None, layer.input_shape[-1]), dtype=layer.input.dtype)
        return keras.Model(inner, keras.models.clone_model(layer, inner, copied).output, name=layer.name)

    copy = keras.models.clone_model(body, images, copied)
    copy.set_weights(body.get_weights())
    return copy.output


def _stride(layer: Any) -> int:
    # A convolution's and pooling's attribute, and ShortcutA's.
    stride = getattr(layer, "strides", getattr(layer, "stride", 1))
    return stride[0] if isinstance(stride, (tuple, list)) else stride


def _output_of(model: keras.Model, layer: keras.layers.Layer) -> Any:
    """Return a layer's output in this model: a layer that two models share has a node in each."""
    tensors = {
        id(tensor)
        for operation in model.operations
        for node in operation._inbound_nodes
        for tensor in node.input_tensors
    }
    tensors |= {id(tensor) for tensor in model.outputs}
    for node in layer._inbound_nodes:
        for tensor in node.output_tensors:
            if id(tensor) in tensors:
                return tensor
    return layer.output
