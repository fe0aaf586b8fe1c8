"""The ONNX model: `images`, float32, RGB in 0-255 -> `probabilities`, float32 [batch, classes].

What tf2onnx makes of a network is close to what one would write by hand; the functions below take away the rest:
paddings before poolings, the way back to channels last before fully connected layers, products and sums apart.
"""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from pathlib import Path

import keras
import numpy as np
import onnx
import tensorflow as tf
from onnx import numpy_helper

from keras_convnets.card import ModelCard
from keras_convnets.errors import unknown_name

# Every operator needed is there, and runtimes of 2022 and later read it.
OPSET = 17
STANDARD_DOMAINS = ("", "ai.onnx")
LAYOUTS = ("nhwc", "nchw")
# What gives no negative numbers where none come in.
KEEPS_SIGN = ("AveragePool", "Concat", "LRN", "MaxPool")
TO_CHANNELS_LAST = [0, 2, 3, 1]


def write_onnx(network: keras.Model, card: ModelCard, path: Path, layout: str = "nhwc") -> None:
    """Convert a network and write it with names, metadata and a dynamic batch dimension.

    The file takes images of the input's size: ONNX has neither JPEG decoding nor antialiased resizing. Class names,
    preprocessing, view, layout and architecture stand in its metadata as JSON.

    Args:
        network: an inference network: `images` [batch, H, W, 3] -> a dictionary with "probabilities" [batch, classes].
        card: class names, view and architecture.
        path: the file to write.
        layout: "nhwc" takes images [batch, H, W, 3]; "nchw" takes [batch, 3, H, W], without any transposition inside.

    Raises:
        UserError: if there is no such layout.
        RuntimeError: if the conversion leaves operators that no ONNX runtime knows.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    converted = _converted(network, card, layout)
    _check_operators(converted)
    _simplify(converted)
    _name_batch(converted.graph)
    converted.graph.name = card.architecture
    height, width = card.view["crop"]
    shape = {"nhwc": ["batch", height, width, 3], "nchw": ["batch", 3, height, width]}[layout]
    facts = {
        "architecture": card.architecture,
        "class_names": card.class_names,
        "layout": layout,
        "preprocessing": f"inside: images are float32 {shape}, RGB in 0-255",
        "view": card.view,
    }
    onnx.helper.set_model_props(converted, {key: json.dumps(value) for key, value in facts.items()})
    onnx.checker.check_model(converted, full_check=True)
    onnx.save(converted, path)


def _converted(network: keras.Model, card: ModelCard, layout: str) -> onnx.ModelProto:
    import tf2onnx

    # tf2onnx logs what it could not convert and goes on all the same; `_check_operators` raises instead.
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    signature = [tf.TensorSpec([None, *card.view["crop"], 3], tf.float32, name="images")]

    @tf.function(input_signature=signature)
    def infer(images):
        return {"probabilities": network(images, training=False)["probabilities"]}

    first = ["images"] if layout == "nchw" else None
    return tf2onnx.convert.from_function(infer, input_signature=signature, opset=OPSET, inputs_as_nchw=first)[0]


def _check_operators(converted: onnx.ModelProto) -> None:
    strange = {node.op_type for node in converted.graph.node if node.domain not in STANDARD_DOMAINS}
    strange |= {node.op_type for node in converted.graph.node if not onnx.defs.has(node.op_type)}
    if strange:
        raise RuntimeError(f"the network does not convert to ONNX: no operator for {', '.join(sorted(strange))}")


def _name_batch(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    # Inferred shapes between would carry another name for the same dimension; runtimes infer them again.
    del graph.value_info[:]


class _Graph:
    """A graph with its nodes found by the tensors they give and take.

    Attributes:
        graph: the graph itself, whose nodes the functions below change.
        shapes: by tensor, its sides; None where one is unknown.
        constants: by name.
        producers: by tensor, the node that gives it.
        users: by tensor, the nodes that take it.
    """

    def __init__(self, model: onnx.ModelProto):
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self.graph = model.graph
        self.shapes = {
            value.name: [
                dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
            ]
            for value in (*inferred.value_info, *inferred.input)
        }
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.producers = {name: node for node in self.graph.node for name in node.output}
        self.users = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.users[name].append(node)

    def nodes(self, kind: str) -> list[onnx.NodeProto]:
        """Return the nodes of one operator, in order."""
        return [node for node in self.graph.node if node.op_type == kind]

    def constant(self, name: str) -> np.ndarray | None:
        """Return a constant's value, or None of what is computed."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def giver(self, name: str, kind: str) -> onnx.NodeProto | None:
        """Return the node that gives a tensor if it is of that operator."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type == kind else None


def _simplify(model: onnx.ModelProto) -> None:
    for step in (_pad_in_pooling, _flatten_channels_first, _gemm):
        step(_Graph(model))
    _drop_unused(model.graph)


def _pad_in_pooling(graph: _Graph) -> None:
    """Let poolings pad by themselves where zeros come before them.

    A pooling pads with what never is the maximum, and zeros never are where nothing is negative.
    """
    for pool in graph.nodes("MaxPool"):
        pad = graph.giver(pool.input[0], "Pad")
        if pad is None or _attributes(pool).get("auto_pad", b"NOTSET") != b"NOTSET" or "pads" in _attributes(pool):
            continue
        pads, kernel = graph.constant(pad.input[1]), _attributes(pool)["kernel_shape"]
        begins, ends = pads[2:4], pads[6:8]
        inside = not pads[[0, 1, 4, 5]].any() and (begins < kernel).all() and (ends < kernel).all()
        if inside and _is_zero_padding(graph, pad) and _is_nonnegative(graph, pad.input[0]):
            pool.attribute.append(onnx.helper.make_attribute("pads", [*begins.tolist(), *ends.tolist()]))
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
        if len(sides) != 3 or None in sides or math.prod(sides) != len(weights) or not (is_last or is_single):
            continue
        channels, height, width = sides
        rows = weights.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(weights.shape)
        # The converter lets equal constants be one, so another node may take the old one.
        product.input[1] += "_channels_first"
        graph.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(rows), product.input[1]))
        reshape.CopyFrom(onnx.helper.make_node("Flatten", [maps], reshape.output, reshape.name, axis=1))


def _gemm(graph: _Graph) -> None:
    """Make one operator of a fully connected layer's product and of its bias, where there is one."""
    for product in graph.nodes("MatMul"):
        weights = graph.constants.get(product.input[1])
        if weights is None or len(weights.dims) != 2 or len(graph.shapes.get(product.output[0], ())) != 2:
            continue
        product.op_type = "Gemm"
        users = graph.users[product.output[0]]
        if len(users) != 1 or users[0].op_type != "Add":
            continue
        (bias,) = (name for name in users[0].input if name != product.output[0])
        if bias in graph.constants and list(graph.constants[bias].dims) == [weights.dims[1]]:
            product.input.append(bias)
            # The sum's node goes, and the product gives what the sum gave.
            product.output[0] = users[0].output[0]
            users[0].output[0] += "_unused"


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Drop nodes and constants that no output needs."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:]
    graph.node.extend(reversed(kept))
    if len(constants) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(constants)


def _attributes(node: onnx.NodeProto) -> dict:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
