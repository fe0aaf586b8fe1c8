"""Parameters, multiply-adds and depth of a built network, counted from its layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from keras_convnets.errors import UserError
from keras_convnets.networks.graph import along_paths, leaves
from keras_convnets.networks.registry import get_model


@dataclass(frozen=True)
class ModelInfo:
    """The size of one network at one input size.

    Attributes:
        name: the model's name.
        input_shape: (height, width, channels).
        output_shape: shape of one result; of several outputs, by their names.
        parameters: weights that training changes: kernels, biases, gamma and beta; auxiliary heads included.
        statistics: the moving means and variances of batch normalisation.
        multiply_adds: of one image; convolutions, projections and fully connected layers, no biases, no BN.
        depth: weighted layers (convolutions and fully connected) on the longest path.
    """

    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...] | dict[str, tuple[int, ...]]
    parameters: int
    statistics: int
    multiply_adds: int
    depth: int


def model_info(model: str | keras.Model, **arguments: Any) -> ModelInfo:
    """Count parameters, multiply-adds and depth of a network.

    Args:
        model: a registered name, or a functional model with a fixed input size.
        **arguments: for a name: what its builder takes, such as `classes=100, input_shape=(64, 64, 3)`.

    Raises:
        UserError: if the name is unknown, or the input size is not fixed.

    Example:
        >>> model_info("ResNet20").parameters
        269722
    """
    if isinstance(model, str):
        model = get_model(model, **arguments)
    input_shape = tuple(model.input_shape[1:])
    output_shape = keras.tree.map_structure(lambda tensor: tuple(tensor.shape[1:]), model.output)
    if None in input_shape:
        raise UserError(f"the input shape of {model.name} is {input_shape}; counting needs a fixed height and width.")
    weighted = list(leaves(model))
    statistics = sum(
        math.prod(weight.shape)
        for layer in weighted
        if isinstance(layer, layers.BatchNormalization)
        for weight in (layer.moving_mean, layer.moving_variance)
    )
    return ModelInfo(
        name=model.name,
        input_shape=input_shape,
        output_shape=output_shape,
        parameters=model.count_params() - statistics,
        statistics=statistics,
        multiply_adds=sum(_multiply_adds(layer) for layer in weighted),
        depth=_depth(model),
    )


@dataclass(frozen=True)
class LayerRow:
    """A weighted layer of a network.

    Attributes:
        name: the layer's name.
        kind: what it is, such as "3x3 conv, stride 2, 2 groups" or "fully connected".
        output_shape: of one image.
        parameters: kernel and bias.
        multiply_adds: of one image.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def layer_table(model: keras.Model) -> list[LayerRow]:
    """Return the weighted layers of a network of fixed input size, in order, nested ones included."""
    return [
        LayerRow(
            name=layer.name,
            kind=_kind_in_words(layer),
            output_shape=tuple(layer.output.shape[1:]),
            parameters=layer.count_params(),
            multiply_adds=_multiply_adds(layer),
        )
        for layer in leaves(model)
        if _is_weighted(layer)
    ]


def _kind_in_words(layer: keras.layers.Layer) -> str:
    if not isinstance(layer, layers.Conv2D):
        return "fully connected"
    stride, groups = layer.strides[0], layer.groups
    details = [f"stride {stride}"] * (stride > 1) + [f"{groups} groups"] * (groups > 1)
    return ", ".join(["x".join(map(str, layer.kernel_size)) + " conv", *details])


def _is_weighted(layer: keras.layers.Layer) -> bool:
    return hasattr(layer, "kernel")


def _multiply_adds(layer: keras.layers.Layer) -> int:
    if not _is_weighted(layer):
        return 0
    # A kernel is applied once at each place of the output; a Dense layer's output has one place.
    return math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])


def _depth(model: keras.Model) -> int:
    """Return the number of weighted layers on the longest path from the input to an output."""
    depths = along_paths(model, lambda layer: int(_is_weighted(layer)), start=0, join=lambda before, own: before + own)
    return max(depths[id(tensor)] for tensor in model.outputs)
