"""Traversal of a network's layers, nested models included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import layers


def leaves(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yield the layers of a model in order, those of nested models in place of the models."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer)
        else:
            yield layer


def along_paths(model: keras.Model, value: Callable[[Any], int], start: int, join: Callable[[int, int], int]) -> dict:
    """Follow every path from the inputs and return the largest joined value at each tensor.

    Args:
        model: a functional model.
        value: of one layer; nested models are followed inside.
        start: the value at the inputs.
        join: what a layer makes of the value before it and its own.

    Returns:
        id of a tensor to its value.
    """
    values = {id(tensor): start for tensor in model.inputs}
    for layer in model.layers:
        for node in layer._inbound_nodes:
            before = [values[id(tensor)] for tensor in node.input_tensors if id(tensor) in values]
            if not before or isinstance(layer, layers.InputLayer):
                continue
            if isinstance(layer, keras.Model):
                own = max(along_paths(layer, value, start, join)[id(tensor)] for tensor in layer.outputs)
            else:
                own = value(layer)
            for tensor in node.output_tensors:
                values[id(tensor)] = max(join(max(before), own), values.get(id(tensor), start))
    return values


def output_of(model: keras.Model, layer: keras.layers.Layer) -> Any:
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
