"""Classifiers as convolutions: a network over images of any size, whose scores are a map."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from keras_convnets.errors import UserError
from keras_convnets.networks.graph import leaves
from keras_convnets.networks.layers import LRN, ImageNormalization, ShortcutA
from keras_convnets.networks.outputs import main_output

# What ends the feature maps: pooled over all places, or flattened before a fully connected layer.
POOLINGS = {
    layers.GlobalAveragePooling2D: layers.AveragePooling2D,
    layers.GlobalMaxPooling2D: layers.MaxPooling2D,
}
# Behind it stands what computes each place by itself.
PLACEWISE = (
    layers.Activation,
    layers.BatchNormalization,
    layers.Dropout,
    layers.Identity,
    layers.LeakyReLU,
    layers.ReLU,
    layers.Softmax,
)
# Before it stands what has no fixed size: the same windows at every place, sums of maps, and borders.
ANY_SIZE = (
    *PLACEWISE,
    layers.Add,
    layers.AveragePooling2D,
    layers.Concatenate,
    layers.Conv2D,
    layers.Cropping2D,
    layers.DepthwiseConv2D,
    layers.InputLayer,
    layers.MaxPooling2D,
    layers.Rescaling,
    layers.SeparableConv2D,
    layers.SpatialDropout2D,
    layers.ZeroPadding2D,
    ImageNormalization,
    LRN,
    ShortcutA,
)


def fully_convolutional(model: keras.Model) -> keras.Model:
    """Return the network with its classifier as convolutions: a larger image gives a map of class scores.

    Fully connected layers become convolutions, the first with the size of the training feature map; the global average
    pooling becomes average pooling with that window at stride 1 (He et al. 2015, section 3.4; Simonyan and Zisserman
    2014, section 3.2). A softmax is over the classes of each place. Paddings and poolings stay as they are at the
    network's own size. The weights are copies. Auxiliary heads are left out.

    A mean image belongs to the network's own size: at others the channels' means are subtracted instead.

    Args:
        model: a functional classifier with a fixed input size: convolutions, poolings and sums; then a global pooling
            or a flattening; then fully connected layers. Nested models may hold parts of what comes first.

    Returns:
        images [batch, H, W, 3] of any size not below the network's own to [batch, h, w, classes]; at the network's
        own size h = w = 1 and the scores are the classifier's.

    Raises:
        UserError: if the model has no classifier, no fixed input size, or a layer that needs one size.
    """
    pooling, head = _classifier(model)
    maps = pooling.input
    window = tuple(maps.shape[1:3])
    if None in window or None in model.input_shape[1:3]:
        raise UserError(f"{model.name} has no fixed input size, so no training window; give it an input_shape.")
    body = keras.Model(model.input, maps)
    for layer in leaves(body):
        if not isinstance(layer, ANY_SIZE):
            raise _refusal(model, layer)
    images = keras.Input((None, None, model.input_shape[-1]), name="images")
    x = _at_any_size(body, images)
    if type(pooling) in POOLINGS:
        x = POOLINGS[type(pooling)](window, strides=1, name=pooling.name)(x)
        window = (1, 1)
    carried = []
    for layer in head:
        if isinstance(layer, layers.Dense):
            copy = _as_convolution(layer, window)
            window = (1, 1)
        else:
            copy = type(layer).from_config(layer.get_config())
        x = copy(x)
        carried.append((copy, layer))
    fully = keras.Model(images, x, name=f"{model.name}_fully_convolutional")
    for copy, layer in carried:
        copy.set_weights([old.reshape(new.shape) for new, old in zip(copy.weights, layer.get_weights(), strict=True)])
    return fully


def _classifier(model: keras.Model) -> tuple[keras.layers.Layer, list[keras.layers.Layer]]:
    """Return the layer that ends the feature maps, and those behind it up to the class scores, in order."""
    tensor = main_output(model)
    head: list[keras.layers.Layer] = []
    while tensor is not None:
        operation = tensor._keras_history.operation
        if isinstance(operation, tuple(POOLINGS)):
            break
        is_flat = isinstance(operation, (layers.Flatten, layers.Reshape))
        if not is_flat and not isinstance(operation, (*PLACEWISE, layers.Dense)):
            tensor = None
            break
        tensor = operation._inbound_nodes[tensor._keras_history.node_index].input_tensors[0]
        pooled = isinstance(tensor._keras_history.operation, tuple(POOLINGS))
        if is_flat and len(tensor.shape) == 4 and not pooled:
            break
        if not is_flat:  # what flattens a vector changes nothing
            head.insert(0, operation)
    if tensor is None or not any(isinstance(layer, layers.Dense) for layer in head):
        raise UserError(
            f"{model.name} has no classifier to turn into convolutions, which is a global pooling or a flattening and "
            "fully connected layers behind it; build it with include_top=True."
        )
    return operation, head


def _refusal(model: keras.Model, layer: keras.layers.Layer) -> UserError:
    return UserError(
        f"{model.name} has the layer {layer.name} ({type(layer).__name__}), which is not known to work on images of "
        "any size; a fully convolutional network is made of convolutions, poolings, normalisations and sums: evaluate "
        "this one on crops of its own size."
    )


def _as_convolution(dense: keras.layers.Dense, window: tuple[int, int]) -> keras.layers.Conv2D:
    return layers.Conv2D(
        dense.units,
        window,
        padding="valid",
        activation=dense.activation,
        use_bias=dense.use_bias,
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
