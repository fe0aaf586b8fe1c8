"""What tf2onnx makes of a network, brought to what one would write by hand.

What is removed: paddings before poolings, the way back to channels last before fully connected layers, products and
sums that are one operator.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

# What gives no negative numbers where none come in.
KEEPS_SIGN = ("AveragePool", "Concat", "LRN", "MaxPool")
TO_CHANNELS_LAST = [0, 2, 3, 1]


def simplify(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> None:
    """Simplify a model in place.

    Args:
        model: takes images and constants.
        arrays: the values of the inputs that are constants, by name; changed with the model.
    """
    for step in (_bias_in_convolution, _pad_in_pooling, _flatten_channels_first, _gemm):
        step(_Graph(model, arrays))
    _drop_unused(model.graph, arrays)


def as_input(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    """Return the description of an input that takes an array like this one."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def replace(repeated: Any, values: Sequence[Any]) -> None:
    """Replace the values of a repeated field, possibly by some of its current ones."""
    del repeated[:]
    repeated.extend(values)


class _Graph:
    """A graph with its nodes found by the tensors they give and take.

    Attributes:
        graph: the graph itself, whose nodes the functions below change.
        arrays: the values of the inputs that will be initializers, by name.
        shapes: by tensor, its sides; None where one is unknown.
        producers: by tensor, the node that gives it.
        users: by tensor, the nodes that take it.
    """

    def __init__(self, model: onnx.ModelProto, arrays: dict[str, np.ndarray]):
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self.graph = model.graph
        self.shapes = {
            value.name: [
                dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
            ]
            for value in (*inferred.value_info, *inferred.input)
        }
        self.arrays = arrays
        self._integers = {tensor.name: tensor for tensor in self.graph.initializer}
        self.producers = {name: node for node in self.graph.node for name in node.output}
        self.users = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.users[name].append(node)

    def nodes(self, kind: str) -> list[onnx.NodeProto]:
        """Return the nodes of one operator, in order."""
        return [node for node in self.graph.node if node.op_type == kind]

    def constant(self, name: str) -> np.ndarray | None:
        """Return a constant's value, or None for a computed tensor."""
        return numpy_helper.to_array(self._integers[name]) if name in self._integers else self.arrays.get(name)

    def add(self, name: str, array: np.ndarray) -> None:
        """Add a constant."""
        self.arrays[name] = array
        self.graph.input.append(as_input(name, array))

    def addend(self, node: onnx.NodeProto) -> str | None:
        """Return the name of the constant that is added to what a node gives, if that is all that is done with it."""
        users = self.users[node.output[0]]
        if len(users) != 1 or users[0].op_type != "Add":
            return None
        names = [name for name in users[0].input if name != node.output[0]]
        return names[0] if names and names[0] in self.arrays else None

    def take_sum(self, node: onnx.NodeProto, bias: str) -> None:
        """Let a node add a constant itself, in place of the following Add, which is then unused."""
        (addition,) = self.users[node.output[0]]
        node.input.append(bias)
        node.output[0] = addition.output[0]
        addition.output[0] += "_unused"

    def giver(self, name: str, kind: str) -> onnx.NodeProto | None:
        """Return the node that gives a tensor if it is of that operator."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type == kind else None


def _bias_in_convolution(graph: _Graph) -> None:
    """Make one operator of a convolution and of the sum with its bias."""
    for convolution in graph.nodes("Conv"):
        bias = graph.addend(convolution)
        weights = graph.constant(convolution.input[1])
        if weights is None:
            continue
        channels = weights.shape[0]
        if len(convolution.input) == 2 and bias is not None and graph.arrays[bias].shape[-3:] == (channels, 1, 1):
            name = f"{bias}_of_channels"
            graph.add(name, graph.arrays[bias].reshape(channels))
            graph.take_sum(convolution, name)


def _pad_in_pooling(graph: _Graph) -> None:
    """Let poolings pad by themselves where zeros come before them.

    A pooling pads with what never is the maximum, and zeros never are where nothing is negative.
    """
    for pool in graph.nodes("MaxPool"):
        pad = graph.giver(pool.input[0], "Pad")
        if pad is None or _attributes(pool).get("auto_pad", b"NOTSET") != b"NOTSET" or "pads" in _attributes(pool):
            continue
        pads, kernel = graph.constant(pad.input[1]), _attributes(pool)["kernel_shape"]
        if pads is None:
            continue
        begins, ends = pads[2:4], pads[6:8]
        inside = not pads[[0, 1, 4, 5]].any() and (begins < kernel).all() and (ends < kernel).all()
        if inside and _is_zero_padding(graph, pad) and _is_nonnegative(graph, pad.input[0]):
            pool.attribute.append(helper.make_attribute("pads", [*begins.tolist(), *ends.tolist()]))
            pool.input[0] = pad.input[0]


def _is_zero_padding(graph: _Graph, pad: onnx.NodeProto) -> bool:
    value = graph.constant(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(1)
    return _attributes(pad).get("mode", b"constant") == b"constant" and value is not None and not value.any()


def _is_nonnegative(graph: _Graph, name: str) -> bool:
    waiting = [name]
    while waiting:
        node = graph.producers.get(waiting.pop())
        if node is None or node.op_type not in ("Relu", *KEEPS_SIGN):
            return False
        if node.op_type in KEEPS_SIGN:
            waiting += node.input
    return True


def _flatten_channels_first(graph: _Graph) -> None:
    """Flatten maps as they lie, channels first, and let the rows of the fully connected layer's weights follow."""
    for product in graph.nodes("MatMul"):
        reshape = graph.giver(product.input[0], "Reshape")
        weights = graph.constant(product.input[1])
        if reshape is None or weights is None or weights.ndim != 2 or len(graph.users[reshape.output[0]]) != 1:
            continue
        transpose = graph.giver(reshape.input[0], "Transpose")
        maps = transpose.input[0] if transpose is not None else reshape.input[0]
        _, *sides = graph.shapes.get(maps, [None])
        is_last = transpose is not None and _attributes(transpose)["perm"] == TO_CHANNELS_LAST
        # Of single pixels the two orders are one, and the converter leaves the transposition out.
        is_single = transpose is None and sides[1:] == [1, 1]
        known = [side for side in sides if side is not None]
        if len(sides) != 3 or len(known) != 3 or math.prod(known) != len(weights) or not (is_last or is_single):
            continue
        channels, height, width = known
        rows = weights.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(weights.shape)
        # The converter lets equal constants be one, so another node may take the old one.
        product.input[1] += "_channels_first"
        graph.add(product.input[1], rows)
        reshape.CopyFrom(helper.make_node("Flatten", [maps], reshape.output, reshape.name, axis=1))


def _gemm(graph: _Graph) -> None:
    """Make one operator of a fully connected layer's product and of its bias, where there is one."""
    for product in graph.nodes("MatMul"):
        weights = graph.constant(product.input[1])
        if weights is None or weights.ndim != 2 or len(graph.shapes.get(product.output[0], ())) != 2:
            continue
        product.op_type = "Gemm"
        bias = graph.addend(product)
        if bias is not None and graph.arrays[bias].shape == weights.shape[1:]:
            graph.take_sum(product, bias)


def _drop_unused(graph: onnx.GraphProto, arrays: dict[str, np.ndarray]) -> None:
    """Drop nodes and constants that no output needs."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    replace(graph.node, kept[::-1])
    replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])
    for name in arrays.keys() - needed:
        del arrays[name]
    replace(graph.input, [value for value in graph.input if value.name == "images" or value.name in arrays])


def _attributes(node: onnx.NodeProto) -> dict:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
