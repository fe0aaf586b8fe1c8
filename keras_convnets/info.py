"""What a built network costs: parameters, multiply-adds, depth, counted from its own layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from keras_convnets.errors import UserError
from keras_convnets.registry import get_model


@dataclass(frozen=True)
class ModelInfo:
    """The size of one network at one input size.

    Attributes:
        name: the model's name.
        input_shape: (height, width, channels).
        output_shape: shape of one result.
        parameters: weights that training changes: kernels, biases, gamma and beta.
        statistics: the moving means and variances of batch normalisation.
        multiply_adds: of one image; convolutions, projections and fully connected layers, no biases, no BN.
        depth: weighted layers (convolutions and fully connected) on the longest path.
    """

    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
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
    input_shape, output_shape = tuple(model.input_shape[1:]), tuple(model.output_shape[1:])
    if None in input_shape:
        raise UserError(f"the input shape of {model.name} is {input_shape}; counting needs a fixed height and width.")
    weighted = list(_leaf_layers(model))
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


def _leaf_layers(model: keras.Model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaf_layers(layer)
        else:
            yield layer


def _is_weighted(layer: keras.layers.Layer) -> bool:
    return hasattr(layer, "kernel")


def _multiply_adds(layer: keras.layers.Layer) -> int:
    if not _is_weighted(layer):
        return 0
    # A kernel is applied once at each place of the output; a Dense layer's output has one place.
    return math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])


def _depth(model: keras.Model) -> int:
    """Return the number of weighted layers on the longest path from the input to the output."""
    deepest: dict[int, int] = {}
    for tensor in model.inputs:
        deepest[id(tensor)] = 0
    for operation in _in_order(model):
        for node in operation._inbound_nodes:
            before = max((deepest.get(id(tensor), -1) for tensor in node.input_tensors), default=-1)
            if before < 0:
                continue
            own = _depth(operation) if isinstance(operation, keras.Model) else int(_is_weighted(operation))
            for tensor in node.output_tensors:
                deepest[id(tensor)] = before + own
    return max(deepest.get(id(tensor), 0) for tensor in model.outputs)


def _in_order(model: keras.Model) -> list[keras.layers.Layer]:
    """Return the layers so that each stands after those it takes its input from, as `model.layers` promises."""
    return [layer for layer in model.layers if not isinstance(layer, layers.InputLayer)]
