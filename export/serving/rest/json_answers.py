"""Tensors to JSON answers, in TensorFlow Serving's row and columnar formats."""

from __future__ import annotations

import base64
import enum
import json
import math
from collections.abc import Callable, Mapping

import numpy as np

from keras_convnets.export.serving.signatures import dtype_name
from keras_convnets.export.serving.status import invalid_argument

_INTEGERS = ("int32", "int16", "int8", "uint8", "int64", "uint32", "uint64")


class Format(enum.Enum):
    """The two layouts of a request; the value is the key under which the answer comes."""

    ROW = "predictions"
    COLUMNAR = "outputs"


def encode_outputs(outputs: Mapping[str, np.ndarray], format: Format) -> bytes:
    """Write tensors as a JSON answer.

    A single output is written bare; several are objects keyed by output name, in row format one object for each
    example. Strings of an output whose name ends in "_bytes" are base64 objects.

    Args:
        outputs: the tensors by alias.
        format: the layout of the request that is answered.

    Raises:
        ServingError: INVALID_ARGUMENT when a row answer has an output without the batch as first dimension, or for a
            type that JSON cannot carry.

    Example:
        >>> encode_outputs({"y": np.array([0.5, 2.0], np.float32)}, Format.ROW)
        b'{"predictions":[0.5,2.0]}'
    """
    if not outputs:
        raise invalid_argument("Cannot convert empty tensor map to JSON")
    if format is Format.ROW:
        _check_batch(outputs)
    columns = {}
    for name, array in outputs.items():
        tokens = _tokens(name, array)
        columns[name] = _nest(tokens, array.shape, 1 if format is Format.ROW else 0)
    if len(columns) == 1:
        (rows,) = columns.values()
    else:
        keys = [json.dumps(name, ensure_ascii=False) for name in columns]
        rows = [
            "{" + ",".join(f"{key}:{value}" for key, value in zip(keys, values, strict=True)) + "}"
            for values in zip(*columns.values(), strict=True)
        ]
    text = f"[{','.join(rows)}]" if format is Format.ROW else rows[0]
    return f'{{"{format.value}":{text}}}'.encode("utf-8", "surrogateescape")


def _check_batch(outputs: Mapping[str, np.ndarray]) -> None:
    batch = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        if batch is not None and array.shape[0] != batch:
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {array.shape[0]} expecting: {batch}"
            )
        batch = array.shape[0]


def _tokens(name: str, array: np.ndarray) -> list[str]:
    """Return each value of a tensor as JSON text, in row-major order."""
    dtype = dtype_name(array)
    flat = array.ravel()
    if dtype in ("float", "double"):
        return float_tokens(flat)
    if dtype == "bool":
        return ["true" if value else "false" for value in flat.tolist()]
    if dtype in _INTEGERS:
        return list(map(str, flat.tolist()))
    if dtype != "string":
        # An empty tensor has no value that could not be written.
        if flat.size == 0:
            return []
        raise invalid_argument(f"Failed to write JSON value for tensor type: {dtype}")
    write: Callable[[bytes], str] = _base64_token if name.endswith("_bytes") else string_token
    return [write(value) for value in flat.tolist()]


def _base64_token(value: bytes) -> str:
    return f'{{"b64":"{base64.b64encode(value).decode("ascii")}"}}'


def string_token(value: bytes) -> str:
    """Write bytes as a JSON string; those that are not UTF-8 become surrogate escapes, to leave as they came."""
    return json.dumps(value.decode("utf-8", "surrogateescape"), ensure_ascii=False)


def float_tokens(flat: np.ndarray) -> list[str]:
    """Write numbers as JSON: six significant digits where they read back as the same, all that are needed elsewhere."""
    values = flat.tolist()
    # One format for all values is several times faster than one for each.
    tokens = ("%.6g " * len(values) % tuple(values)).split()
    with np.errstate(over="ignore"):
        read_back = np.array(list(map(float, tokens)), dtype=np.float64).astype(flat.dtype)
    full = "%.9g" if flat.dtype == np.float32 else "%.17g"
    for index in np.flatnonzero(read_back != flat):
        tokens[index] = full % values[index]
    for index in np.flatnonzero(~np.isfinite(flat)):
        value = values[index]
        tokens[index] = "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    # Whole numbers, as far as they are not written with an exponent.
    for index in np.flatnonzero(flat == np.trunc(flat)):
        tokens[index] += ".0" * tokens[index].lstrip("-").isdigit()
    return tokens


def _nest(tokens: list[str], shape: tuple[int, ...], axis: int) -> list[str]:
    """Bracket values by all dimensions from `axis` on; returns one text for each entry of the dimensions before."""
    for position in reversed(range(axis, len(shape))):
        size = shape[position]
        count = math.prod(shape[:position])
        tokens = [f"[{','.join(tokens[index * size : (index + 1) * size])}]" for index in range(count)]
    return tokens
