"""The ONNX model: `images`, float32, RGB in 0-255 -> `probabilities`, float32 [batch, classes].

The converter, tf2onnx, copies every constant in each of its passes: with the weights as constants it took seventy times
their memory. It is therefore given a function that takes the weights as arguments, and converts a graph without them.
What the graph then computes from weights alone, such as a kernel's transposition, is computed once, here, and the
results become the file's initializers.

What tf2onnx makes of a network is close to what one would write by hand; the functions below remove the rest: paddings
before poolings, the way back to channels last before fully connected layers, products and sums that are one operator.
"""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

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
    converted, weights = _converted(network, card, layout)
    _check_operators(converted)
    arrays = _take_out_constants(converted, weights)
    _simplify(converted, arrays)
    _name_batch(converted.graph)
    converted.graph.name = card.architecture
    height, width = card.view.crop
    shape = {"nhwc": ["batch", height, width, 3], "nchw": ["batch", 3, height, width]}[layout]
    facts = {
        "architecture": card.architecture,
        "class_names": card.class_names,
        "layout": layout,
        "preprocessing": f"inside: images are float32 {shape}, RGB in 0-255",
        "view": card.view.to_dict(),
    }
    helper.set_model_props(converted, {key: json.dumps(value) for key, value in facts.items()})
    # While the weights are inputs: the checker would copy them.
    onnx.checker.check_model(converted, full_check=True)
    _write(converted, arrays, path)


def _converted(network: keras.Model, card: ModelCard, layout: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return a model that takes images and weights, and the weights by the names of its inputs."""
    trainable, others = network.trainable_variables, network.non_trainable_variables
    variables = {f"weight_{number}": variable for number, variable in enumerate((*trainable, *others))}
    signature = [
        tf.TensorSpec([None, *card.view.crop, 3], tf.float32, name="images"),
        *(tf.TensorSpec(variable.shape, variable.dtype, name=name) for name, variable in variables.items()),
    ]

    @tf.function(input_signature=signature, autograph=False)
    def infer(images, *weights):
        first, second = weights[: len(trainable)], weights[len(trainable) :]
        outputs, _ = network.stateless_call(first, second, images, training=False)
        return {"probabilities": outputs["probabilities"]}

    # A variable's `numpy()` would be a copy; this shares its memory.
    weights = {name: np.asarray(variable.value.read_value()) for name, variable in variables.items()}
    return _without_weights(infer.get_concrete_function(), ["images"] if layout == "nchw" else []), weights


def _without_weights(infer: Any, inputs_as_nchw: Sequence[str]) -> onnx.ModelProto:
    """Convert a function that holds no weights: tf2onnx's `from_function`, but for copies of the graph.

    Before each of its passes over the graph `from_function` copies it, to go on without the pass if it fails. That took
    longer than the passes themselves; here a pass that fails ends the conversion.
    """
    from tf2onnx import optimizer, tf_loader, tfonnx

    # tf2onnx logs what it could not convert and goes on all the same; `_check_operators` raises instead.
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    inputs, outputs = [tensor.name for tensor in infer.inputs], [tensor.name for tensor in infer.outputs]
    specifications = tf.nest.flatten(infer.structured_input_signature)
    names = dict(zip(inputs, (specification.name for specification in specifications), strict=True))
    names |= {tensor.name: name for name, tensor in infer.structured_outputs.items()}
    with tf.device("CPU"), tf.Graph().as_default() as graph:
        tf.import_graph_def(tf_loader.from_function(infer, inputs, outputs), name="")
        converted = tfonnx.process_tf_graph(
            graph,
            continue_on_error=True,
            opset=OPSET,
            inputs_as_nchw=inputs_as_nchw,
            input_names=inputs,
            output_names=outputs,
            tensors_to_rename=names,
        )
        return optimizer.optimize_graph(converted, catch_errors=False).make_model("keras_convnets")


def _check_operators(converted: onnx.ModelProto) -> None:
    strange = {node.op_type for node in converted.graph.node if node.domain not in STANDARD_DOMAINS}
    strange |= {node.op_type for node in converted.graph.node if not onnx.defs.has(node.op_type)}
    if strange:
        raise RuntimeError(f"the network does not convert to ONNX: no operator for {', '.join(sorted(strange))}")


def _take_out_constants(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute what comes from weights and constants alone, and take all these tensors out of a model.

    Those of floating point become inputs of the model. Integers stay in it, as shapes are inferred from them.

    Args:
        model: takes images and weights.
        weights: the weights by the names of the inputs.

    Returns:
        The values of all inputs but the images, by name.
    """
    graph = model.graph
    arrays = {**weights, **{tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}}
    names, foldable, kept = set(arrays), [], []
    for node in graph.node:
        is_constant = names.issuperset(name for name in node.input if name)
        names.update(node.output if is_constant else ())
        (foldable if is_constant else kept).append(node)
    wanted = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    results = [name for node in foldable for name in node.output if name in wanted]
    computation = helper.make_graph(
        foldable,
        "constants",
        [helper.make_empty_tensor_value_info(name) for name in arrays],
        [helper.make_empty_tensor_value_info(name) for name in results],
    )
    computed = ReferenceEvaluator(computation, opsets={"": OPSET}).run(None, arrays) if results else []
    arrays |= zip(results, computed, strict=True)
    used = {name: array for name, array in arrays.items() if name in wanted}
    taken_out = {name: array for name, array in used.items() if np.issubdtype(array.dtype, np.floating)}
    integers = [numpy_helper.from_array(array, name) for name, array in used.items() if name not in taken_out]
    images = [value for value in graph.input if value.name not in weights]
    _replace(graph.node, kept)
    _replace(graph.initializer, integers)
    _replace(graph.input, [*images, *map(_as_input, taken_out, taken_out.values())])
    return taken_out


def _as_input(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _replace(repeated: Any, values: Sequence[Any]) -> None:
    """Let a repeated field of a message hold these values, which may be some of its own."""
    del repeated[:]
    repeated.extend(values)


def _name_batch(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    for value in graph.output:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    # Inferred shapes between would carry another name for the same dimension; runtimes infer them again.
    del graph.value_info[:]


def _write(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a model with some of its inputs as initializers."""
    graph = model.graph
    _replace(graph.input, [value for value in graph.input if value.name not in arrays])
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(model, path)


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
        """Return a constant's value, or None of what is computed."""
        return numpy_helper.to_array(self._integers[name]) if name in self._integers else self.arrays.get(name)

    def add(self, name: str, array: np.ndarray) -> None:
        """Add a constant."""
        self.arrays[name] = array
        self.graph.input.append(_as_input(name, array))

    def addend(self, node: onnx.NodeProto) -> str | None:
        """Return the name of the constant that is added to what a node gives, if that is all that is done with it."""
        users = self.users[node.output[0]]
        if len(users) != 1 or users[0].op_type != "Add":
            return None
        names = [name for name in users[0].input if name != node.output[0]]
        return names[0] if names and names[0] in self.arrays else None

    def take_sum(self, node: onnx.NodeProto, bias: str) -> None:
        """Let a node add a constant by itself and give what the sum behind it gave, which then gives nothing."""
        (addition,) = self.users[node.output[0]]
        node.input.append(bias)
        node.output[0] = addition.output[0]
        addition.output[0] += "_unused"

    def giver(self, name: str, kind: str) -> onnx.NodeProto | None:
        """Return the node that gives a tensor if it is of that operator."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type == kind else None


def _simplify(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> None:
    for step in (_bias_in_convolution, _pad_in_pooling, _flatten_channels_first, _gemm):
        step(_Graph(model, arrays))
    _drop_unused(model.graph, arrays)


def _bias_in_convolution(graph: _Graph) -> None:
    """Make one operator of a convolution and of the sum with its bias."""
    for convolution in graph.nodes("Conv"):
        bias = graph.addend(convolution)
        channels = graph.constant(convolution.input[1]).shape[0]
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
        if len(sides) != 3 or None in sides or math.prod(sides) != len(weights) or not (is_last or is_single):
            continue
        channels, height, width = sides
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
    _replace(graph.node, kept[::-1])
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])
    for name in arrays.keys() - needed:
        del arrays[name]
    _replace(graph.input, [value for value in graph.input if value.name == "images" or value.name in arrays])


def _attributes(node: onnx.NodeProto) -> dict:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
