"""Conversion of classifiers into fully convolutional networks, which map images of any size to score maps."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from keras_convnets.errors import UserError
from keras_convnets.networks.graph import leaves
from keras_convnets.networks.layers import LRN, ImageNormalization, ShortcutA
from keras_convnets.networks.outputs import main_output

# Global poolings after the last feature map, and the poolings with a window that replace them.
POOLINGS = {
    layers.GlobalAveragePooling2D: layers.AveragePooling2D,
    layers.GlobalMaxPooling2D: layers.MaxPooling2D,
}
# Layers allowed in the classifier head besides Dense: they act on each position independently.
POINTWISE = (
    layers.Activation,
    layers.BatchNormalization,
    layers.Dropout,
    layers.Identity,
    layers.LeakyReLU,
    layers.ReLU,
    layers.Softmax,
)
# Layers allowed before the head: they work on feature maps of any size.
ANY_SIZE = (
    *POINTWISE,
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
    """Return the fully convolutional form of a classifier, which gives a map of class scores for a larger image.

    Fully connected layers become convolutions; the kernel of the first has the size of the last feature map at the
    model's input size, and the others are 1 x 1. Global pooling becomes pooling with that window and stride 1 (He et
    al. 2015, section 3.4; Simonyan and Zisserman 2014, section 3.2). The softmax is over the classes at each position.
    Padding and pooling are the same as at the model's input size. The weights are copied. Auxiliary heads are left out.

    A mean image has the model's input size; for images of other sizes, the channel means are subtracted instead.

    Args:
        model: a functional classifier with a fixed input size: convolutions, poolings and sums, followed by a global
            pooling or a flattening and fully connected layers. Layers before the head may be in nested models.

    Returns:
        A model from images [batch, H, W, 3], at least as large as the model's input size, to scores
        [batch, h, w, classes]. At the model's input size, h = w = 1 and the scores are those of the classifier.

    Raises:
        UserError: if the model has no classifier head, no fixed input size, or a layer that requires a fixed size.
    """
    pooling, head = _classifier(model)
    maps = pooling.input
    window = tuple(maps.shape[1:3])
    if None in window or None in model.input_shape[1:3]:
        raise UserError(
            f"{model.name} has no fixed input size, which defines the kernel size of the classifier; build it with an "
            "input_shape."
        )
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
    """Return the global pooling or flattening after the last feature map, and the layers of the head, in order."""
    tensor = main_output(model)
    head: list[keras.layers.Layer] = []
    while tensor is not None:
        operation = tensor._keras_history.operation
        if isinstance(operation, tuple(POOLINGS)):
            break
        is_flat = isinstance(operation, (layers.Flatten, layers.Reshape))
        if not is_flat and not isinstance(operation, (*POINTWISE, layers.Dense)):
            tensor = None
            break
        tensor = operation._inbound_nodes[tensor._keras_history.node_index].input_tensors[0]
        pooled = isinstance(tensor._keras_history.operation, tuple(POOLINGS))
        if is_flat and len(tensor.shape) == 4 and not pooled:
            break
        if not is_flat:  # flattening a vector has no effect
            head.insert(0, operation)
    if tensor is None or not any(isinstance(layer, layers.Dense) for layer in head):
        raise UserError(
            f"{model.name} has no classifier head to convert into convolutions (a global pooling or a flattening, "
            "followed by fully connected layers); build it with include_top=True."
        )
    return operation, head


def _refusal(model: keras.Model, layer: keras.layers.Layer) -> UserError:
    return UserError(
        f"{model.name} has the layer {layer.name} ({type(layer).__name__}), which is not supported on images of any "
        "size; a fully convolutional network may have convolutions, poolings, normalisations and sums: evaluate this "
        "network on crops of its input size."
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
    """Return the output of a copy of the network's body, with its weights, for an input of any size."""

    def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
        if not isinstance(layer, keras.Model):
            return layer.__class__.from_config(layer.get_config())
        inner = keras.Input((None, None, layer.input_shape[-1]), dtype=layer.input.dtype)
        return keras.Model(inner, keras.models.clone_model(layer, inner, copied).output, name=layer.name)

    copy = keras.models.clone_model(body, images, copied)
    copy.set_weights(body.get_weights())
    return copy.output
