"""Reads the weights of ONNX Model Zoo files: convolutions, batch normalisations and fully connected layers in order.

The files store a graph in NCHW; what comes out is in Keras' layout, except that the rows of a fully connected matrix
behind a feature map are still in C, H, W order: only the network knows that map's size.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.weights.graph_comparison import Step
from keras_convnets.weights.onnx_constant_folding import fold_constants
from keras_convnets.weights.onnx_files import refuse_external_data
from keras_convnets.weights.onnx_graph import onnx_steps

Node = TypeVar("Node")


@dataclass(frozen=True)
class StoredLayer:
    """The numbers of one layer of a weights file, in Keras' layout.

    Attributes:
        name: the layer's name in the file.
        kind: "Conv2D", "BatchNormalization" or "Dense".
        arrays: by Keras' names: kernel and bias; or gamma, beta, moving_mean and moving_variance.
        settings: of the layer, as far as the file says: strides, groups, epsilon.
        channels_first: whether the rows of a Dense kernel that follows a feature map are in C, H, W order.
        step: what the file's steps know the layer by.
    """

    name: str
    kind: str
    arrays: Mapping[str, np.ndarray]
    settings: Mapping[str, Any] = field(default_factory=dict)
    channels_first: bool = False
    step: Hashable = None


@dataclass(frozen=True)
class OnnxWeights:
    """What an ONNX file says.

    Attributes:
        layers: in the order of the graph.
        lrn: the constants of its response normalisation in this package's convention, or None where it has none.
        steps: what the graph does between its layers.
    """

    layers: tuple[StoredLayer, ...]
    lrn: Mapping[str, float] | None
    steps: tuple[Step, ...] = ()


def read_onnx(path: str | os.PathLike) -> OnnxWeights:
    """Read the weights of an ONNX file.

    Raises:
        UserError: if it is no ONNX file, keeps tensors in other files, or its layers are not stored as constants.
    """
    import onnx

    refuse_external_data(path)
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's own error class differs by its implementation
        raise UserError(f"{path} is not an ONNX file ({' '.join(str(error).split())[:200]}).") from error
    if not graph.node or not graph.output:
        raise UserError(f"{path} is not an ONNX file: it holds no network.")
    constants = _constants(graph, path)
    if any(node.op_type == "Transpose" and node.input[0] not in constants for node in graph.node):
        # Behind one, the rows of a fully connected matrix are in another order, and nothing in a shape says so.
        raise UserError(
            f"{path} transposes its images or maps, as exports of TensorFlow do; only files that compute in NCHW "
            "throughout, as the ONNX Model Zoo's, can be read: give one, or a .keras or .weights.h5 file."
        )
    biases = _separate_biases(graph, constants)
    stored: dict[str, StoredLayer] = {}
    for node in graph.node:
        if layer := _stored(node, constants, biases, path):
            stored[node.output[0]] = dataclasses.replace(layer, step=node.output[0])
    order = in_graph_order(
        graph.node,
        inputs=lambda node: [name for name in node.input if name not in constants],
        outputs=lambda node: list(node.output),
        weighted=lambda node: node.output[0] in stored,
        adds=lambda node: node.op_type in ("Add", "Sum"),
        result=graph.output[0].name,
    )
    layers = tuple(stored[node.output[0]] for node in order)
    return OnnxWeights(layers, _response_normalization(graph), tuple(onnx_steps(graph, constants, biases)))


def with_normalizations(onnx: OnnxWeights) -> OnnxWeights:
    """Return a file's weights with an identity batch normalisation added behind each convolution.

    For files whose batch normalisations were folded: the network's own then takes the convolution's bias.
    """
    layers: list[StoredLayer] = []
    for layer in onnx.layers:
        layers.append(layer)
        if layer.kind == "Conv2D":
            zeros = np.zeros(layer.arrays["kernel"].shape[-1:], np.float32)
            arrays = {"gamma": zeros + 1, "beta": zeros, "moving_mean": zeros, "moving_variance": zeros + 1}
            name = f"the batch normalisation of {layer.name}"
            settings = {"epsilon": 0.0}
            layers.append(StoredLayer(name, "BatchNormalization", arrays, settings, step=(layer.step, "normalised")))
    steps: list[Step] = []
    for step in onnx.steps:
        if step.kind == "convolution":
            plain = (step.output, "plain")
            steps.append(dataclasses.replace(step, output=plain))
            steps.append(Step("batch normalisation", (plain,), step.output, (step.layer, "normalised")))
        else:
            steps.append(step)
    return OnnxWeights(tuple(layers), onnx.lrn, tuple(steps))


def in_graph_order(
    nodes: Iterable[Node],
    inputs: Callable[[Node], Iterable[Hashable]],
    outputs: Callable[[Node], Iterable[Hashable]],
    weighted: Callable[[Node], bool],
    adds: Callable[[Node], bool],
    result: Hashable,
) -> list[Node]:
    """Return the weighted nodes on the way to a result in an order that depends on the graph alone.

    Where branches are concatenated, they come in the order of the concatenation. Where they are added, the one with
    more weighted nodes comes first: exporters list a shortcut before or after the layers that it leads around.

    Args:
        nodes: in topological order.
        inputs: the tensors a node takes; those that no node gives are left out.
        outputs: the tensors a node gives.
        weighted: whether a node counts.
        adds: whether a node's inputs may change places.
        result: the tensor that is asked for.
    """
    ways: dict[Hashable, dict[int, Node]] = {}
    depths: dict[Hashable, int] = {}
    for node in nodes:
        given = [tensor for tensor in inputs(node) if tensor in ways]
        depth = max((depths[tensor] for tensor in given), default=0)
        if adds(node):
            given.sort(key=lambda tensor: -depths[tensor])
        way: dict[int, Node] = {}
        for tensor in given:
            way.update(ways[tensor])
        if weighted(node):
            way[id(node)] = node
            depth += 1
        for tensor in outputs(node):
            ways[tensor], depths[tensor] = way, depth
    return list(ways.get(result, {}).values())


def _constants(graph: Any, path: Any) -> dict[str, np.ndarray]:
    """Return what a graph stores by the tensor's name, also what it only reshapes, transposes or converts."""
    from onnx import numpy_helper

    try:
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        fold_constants(graph.node, constants)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds a tensor that can't be read ({error}).") from error
    return constants


def _separate_biases(graph: Any, constants: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return constant vectors that an Add puts on the output of a MatMul or Conv, by that output's name."""
    produced = {node.output[0] for node in graph.node if node.op_type in ("MatMul", "Conv")}
    biases = {}
    for node in graph.node:
        if node.op_type == "Add":
            for tensor, other in (node.input, reversed(node.input)):
                if tensor in produced and other in constants:
                    biases[tensor] = constants[other].reshape(-1)
    return biases


def _stored(node: Any, constants: Mapping, biases: Mapping, path: Any) -> StoredLayer | None:
    readers = {"Conv": _convolution, "BatchNormalization": _normalization, "Gemm": _gemm, "MatMul": _matmul}
    if node.op_type not in readers:
        return None
    given = [constants[name].astype(np.float32) for name in node.input[1:] if name in constants]
    name = printable(node.name or node.output[0], 200)
    if len(given) != len([tensor for tensor in node.input[1:] if tensor]) or not given:
        raise UserError(f"{path} computes the weights of {name} instead of storing them; give a file that stores them.")
    layer = readers[node.op_type](name, given, {item.name: item for item in node.attribute})
    bias = biases.get(node.output[0])
    if bias is not None:
        bias = bias.astype(np.float32) + layer.arrays.get("bias", 0)
        layer = dataclasses.replace(layer, arrays={**layer.arrays, "bias": bias})
    return layer


def _convolution(name: str, given: list[np.ndarray], attributes: Mapping[str, Any]) -> StoredLayer:
    arrays = {"kernel": given[0].transpose(2, 3, 1, 0)} | ({"bias": given[1]} if len(given) > 1 else {})
    settings = {
        "strides": tuple(attributes["strides"].ints) if "strides" in attributes else (1, 1),
        "groups": attributes["group"].i if "group" in attributes else 1,
    }
    return StoredLayer(name, "Conv2D", arrays, settings)


def _normalization(name: str, given: list[np.ndarray], attributes: Mapping[str, Any]) -> StoredLayer:
    arrays = dict(zip(("gamma", "beta", "moving_mean", "moving_variance"), given, strict=False))
    return StoredLayer(
        name, "BatchNormalization", arrays, {"epsilon": attributes["epsilon"].f if "epsilon" in attributes else 1e-5}
    )


def _gemm(name: str, given: list[np.ndarray], attributes: Mapping[str, Any]) -> StoredLayer:
    kernel = given[0].T if "transB" in attributes and attributes["transB"].i else given[0]
    if "alpha" in attributes:
        kernel = kernel * np.float32(attributes["alpha"].f)
    arrays = {"kernel": kernel}
    if len(given) > 1:
        scale = attributes["beta"].f if "beta" in attributes else 1.0
        arrays["bias"] = np.broadcast_to(given[1].reshape(-1) * np.float32(scale), kernel.shape[-1:])
    return StoredLayer(name, "Dense", arrays, channels_first=True)


def _matmul(name: str, given: list[np.ndarray], attributes: Mapping[str, Any]) -> StoredLayer:
    return StoredLayer(name, "Dense", {"kernel": given[0]}, channels_first=True)


def _response_normalization(graph: Any) -> dict[str, float] | None:
    """Return the constants of the first LRN node; ONNX divides alpha by the number of maps, the papers do not."""
    for node in _of_type(graph, "LRN"):
        given = {item.name: item.i if item.name == "size" else item.f for item in node.attribute}
        alpha = given.get("alpha", 1e-4) / given["size"]
        return {"n": given["size"], "k": given.get("bias", 1.0), "alpha": alpha, "beta": given.get("beta", 0.75)}
    return None


def _of_type(graph: Any, op_type: str) -> Iterator[Any]:
    return (node for node in graph.node if node.op_type == op_type)
