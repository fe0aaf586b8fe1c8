"""An ONNX graph as the `Step`s that `graph_comparison` compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from keras_convnets.weights.graph_comparison import IMAGES, Step, response_normalization

# What changes nothing in inference, or nothing but to the shape before a fully connected layer.
NOTHING = ("Cast", "Dropout", "Flatten", "Identity", "Squeeze", "Unsqueeze")
POOLS = {"MaxPool": "max pooling", "AveragePool": "average pooling"}
WEIGHTED = {
    "Conv": "convolution",
    "Gemm": "fully connected layer",
    "MatMul": "fully connected layer",
    "BatchNormalization": "batch normalisation",
}
PLAIN = {"Add": "sum", "Sum": "sum", "GlobalAveragePool": "mean", "Relu": "relu"}


def onnx_steps(graph: Any, constants: Mapping[str, np.ndarray], biased: Mapping[str, Any]) -> Iterator[Step]:
    """Yield the steps of a graph that computes in NCHW. Weighted steps are known by the tensors they give.

    Args:
        graph: an onnx.GraphProto.
        constants: by the tensor's name.
        biased: the tensors that a following Add adds a bias to.
    """
    images = next((value.name for value in graph.input if value.name not in constants), None)
    for node in graph.node:
        inputs = tuple(IMAGES if name == images else name for name in node.input if name and name not in constants)
        if node.output and inputs:
            yield _step(node, inputs, constants, biased)


def _step(node: Any, inputs: tuple[str, ...], constants: Mapping[str, np.ndarray], biased: Mapping[str, Any]) -> Step:
    kind, output, attributes = node.op_type, node.output[0], attributes_of(node)
    fixed = [constants.get(name) for name in node.input[1:]]
    if kind in WEIGHTED:
        return Step(WEIGHTED[kind], inputs[:1], output, output, _weighted_settings(kind, attributes, fixed))
    if kind == "Add" and len(inputs) == 1 and inputs[0] in biased:
        return Step("nothing", inputs, output)
    if kind in PLAIN and len(inputs) == len(node.input):
        return Step(PLAIN[kind], inputs, output)
    if kind in POOLS:
        return Step(POOLS[kind], inputs, output, settings=_window(attributes))
    if kind == "LRN":
        n = attributes["size"]
        constant = (attributes.get("bias", 1.0), attributes.get("alpha", 1e-4) / n, attributes.get("beta", 0.75))
        return Step("LRN", inputs, output, settings=response_normalization(n, *constant))
    if kind == "Concat" and attributes.get("axis") in (1, -3) and len(inputs) == len(node.input):
        return Step("concatenation", inputs, output)
    if kind in NOTHING or (kind == "Reshape" and _flattens(fixed)):
        return Step("nothing", inputs[:1], output)
    return _rarer(kind, inputs, output, attributes, fixed)


def _rarer(kind: str, inputs: tuple, output: str, attributes: Mapping[str, Any], fixed: list) -> Step:
    """Return the step of a mean, a padding or a slice, or of an operator that no network here has."""
    first = fixed[0].tolist() if fixed and fixed[0] is not None else None
    if kind == "ReduceMean" and sorted(attributes.get("axes") or first or ()) in ([2, 3], [-2, -1]):
        return Step("mean", inputs, output)
    if kind == "Pad" and attributes.get("mode", "constant") == "constant" and not _pads_with(attributes, fixed):
        pads = [int(side) for side in attributes.get("pads") or first or ()]
        if len(pads) == 8 and not (pads[0] or pads[4]):
            if pads[1] or pads[5]:
                if not any(pads[2:4] + pads[6:]):
                    return Step("channels", inputs, output, settings={"before": pads[1], "behind": pads[5]})
            else:
                return Step("padding", inputs, output, settings={"padding": (*pads[2:4], *pads[6:])})
    strides = _slice_strides(attributes, fixed) if kind == "Slice" else None
    if strides is not None:
        return Step("max pooling", inputs, output, settings={"kernel": (1, 1), "strides": strides})
    constants = {f"input {number}": _digest(value) for number, value in enumerate(fixed, 1) if value is not None}
    return Step(kind, inputs, output, settings={**attributes, **constants})


def _weighted_settings(kind: str, attributes: Mapping[str, Any], fixed: list) -> dict[str, Any]:
    if kind != "Conv":
        return {}
    kernel = fixed[0]
    shape = (1, 1, 1, 1) if kernel is None else kernel.shape
    return {**_window(attributes), "kernel": shape[2:], "groups": attributes.get("group", 1), "filters": shape[0]}


def _window(attributes: Mapping[str, Any]) -> dict[str, Any]:
    padding: Any = tuple(attributes.get("pads") or (0, 0, 0, 0))
    automatic = attributes.get("auto_pad", "NOTSET")
    if automatic != "NOTSET":
        padding = {"SAME_UPPER": "same", "SAME_LOWER": "same before"}.get(automatic, "valid")
    return {
        "kernel": tuple(attributes.get("kernel_shape") or (1, 1)),
        "strides": tuple(attributes.get("strides") or (1, 1)),
        "dilation": tuple(attributes.get("dilations") or (1, 1)),
        "padding": padding,
        "rounds_up": bool(attributes.get("ceil_mode")),
        "counts_padding": bool(attributes.get("count_include_pad")),
    }


def _slice_strides(attributes: Mapping[str, Any], fixed: list) -> tuple[int, int] | None:
    """Return the strides of a slice over all rows and columns; None for any other slice."""
    if len(fixed) < 4 or any(value is None for value in fixed[:4]):
        return None
    starts, ends, axes, steps = (value.reshape(-1).tolist() for value in fixed[:4])
    whole = all(start == 0 and end >= 2**31 - 1 for start, end in zip(starts, ends, strict=False))
    if not whole or not set(axes) <= {2, 3} or min(steps) < 1:
        return None
    by_axis = dict(zip(axes, steps, strict=False))
    return by_axis.get(2, 1), by_axis.get(3, 1)


def _pads_with(attributes: Mapping[str, Any], fixed: list) -> float:
    value = fixed[1] if len(fixed) > 1 else None
    return attributes.get("value", 0.0) if value is None else float(np.ravel(value)[0])


def _flattens(fixed: list) -> bool:
    """Whether a reshape only drops places: to [batch, features], perhaps with ones behind; computed shapes count so."""
    shape = fixed[0].reshape(-1).tolist() if fixed and fixed[0] is not None else [0, -1]
    return len(shape) >= 2 and all(side == 1 for side in shape[2:])


def attributes_of(node: Any) -> dict[str, Any]:
    """Return a node's numbers and words by name; tensors and graphs are left out."""
    from onnx import AttributeProto

    readers = {
        AttributeProto.INT: lambda item: item.i,
        AttributeProto.INTS: lambda item: tuple(item.ints),
        AttributeProto.FLOAT: lambda item: item.f,
        AttributeProto.FLOATS: lambda item: tuple(item.floats),
        AttributeProto.STRING: lambda item: item.s.decode(errors="replace"),
    }
    return {item.name: readers[item.type](item) for item in node.attribute if item.type in readers}


def _digest(value: np.ndarray) -> Any:
    return tuple(value.reshape(-1).tolist()) if value.size <= 8 else f"an array of {'x'.join(map(str, value.shape))}"
