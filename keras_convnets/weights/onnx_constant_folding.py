"""Constant folding of ONNX graphs: weights may pass through Reshape, Transpose, Cast and similar operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from keras_convnets.weights.onnx_graph import attributes_of

# Casts allocate new arrays; the other operators return views. Casts may allocate this many bytes, plus this many times
# the bytes that the file stores.
LEAST_LIMIT, MOST_EXPANSION = 64 << 20, 4


def fold_constants(nodes: Iterable[Any], constants: dict[str, np.ndarray]) -> None:
    """Add to a graph's constants what Constant nodes hold, and what nodes make of constants without arithmetic.

    Args:
        nodes: of the graph, in its order.
        constants: by the tensor's name.

    Raises:
        ValueError: if a node can't do what it says, or conversions make far more bytes than the file stores.
    """
    left = LEAST_LIMIT + MOST_EXPANSION * sum(array.nbytes for array in constants.values())
    for node in nodes:
        names = [name for name in node.input if name]
        given = [constants[name] for name in names if name in constants]
        if node.op_type == "Constant":
            value = _value(node)
        elif node.op_type in FOLDED and given and len(given) == len(names):
            # How many bytes a conversion makes is known before it makes them.
            if node.op_type == "Cast":
                left -= given[0].size * _wanted_type(attributes_of(node)).itemsize
                if left < 0:
                    raise ValueError("its conversions make far more bytes than it stores")
            value = FOLDED[node.op_type](attributes_of(node), *given)
        else:
            continue
        if value is not None:
            constants[node.output[0]] = value


def _value(node: Any) -> np.ndarray | None:
    """Return what a Constant node holds; None of what are no numbers."""
    from onnx import numpy_helper

    item = node.attribute[0]
    if item.name == "value":
        return numpy_helper.to_array(item.t)
    value = attributes_of(node).get(item.name)
    types = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return np.array(value, types[item.name]) if item.name in types else None


def _wanted_type(attributes: Mapping[str, Any]) -> np.dtype:
    from onnx import TensorProto, helper

    to = attributes["to"]
    # Up to operator set 5 it is a name.
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(to) if isinstance(to, str) else to))
    if dtype.kind not in "biuf":
        raise ValueError(f"a constant is converted to {dtype}, which are no numbers")
    return dtype


def _cast(attributes: Mapping[str, Any], array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"a constant of {array.dtype} is converted, which are no numbers")
    return array.astype(_wanted_type(attributes))


def _reshape(attributes: Mapping[str, Any], array: np.ndarray, shape: np.ndarray | None = None) -> np.ndarray:
    # Up to operator set 4 the shape is an attribute.
    sides = list(attributes["shape"] if shape is None else shape.reshape(-1).tolist())
    if not attributes.get("allowzero"):
        sides = [array.shape[axis] if side == 0 else side for axis, side in enumerate(sides)]
    return array.reshape(sides)


def _transpose(attributes: Mapping[str, Any], array: np.ndarray) -> np.ndarray:
    return array.transpose(attributes.get("perm"))


def _squeeze(attributes: Mapping[str, Any], array: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    return array.squeeze(_axes(attributes, axes))


def _unsqueeze(attributes: Mapping[str, Any], array: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    return np.expand_dims(array, _axes(attributes, axes) or ())


def _axes(attributes: Mapping[str, Any], axes: np.ndarray | None) -> tuple[int, ...] | None:
    """Return an operator's axes: an input, or up to operator set 12 an attribute; None where it names none."""
    given = attributes.get("axes") if axes is None else axes.reshape(-1).tolist()
    return None if given is None else tuple(given)


# By operator: what makes its output of its attributes and its inputs.
FOLDED: Mapping[str, Callable[..., np.ndarray]] = {
    "Cast": _cast,
    "Identity": lambda attributes, array: array,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
