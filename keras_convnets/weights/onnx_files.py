"""Check of ONNX files for external data, before any runtime opens them: tensors may refer to other files."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import Any

from keras_convnets.errors import UserError

# Fields of onnx.proto that lead to tensors, by message: number of the field to the message it holds.
FIELDS = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
# TensorProto's external_data and data_location, of which 1 is EXTERNAL.
EXTERNAL_DATA, DATA_LOCATION = 13, 14
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def refuse_external_data(path: str | os.PathLike, what: str = "an ONNX file") -> None:
    """Refuse an ONNX file whose tensors lie in other files; it is looked through without being read into memory.

    Args:
        path: the file.
        what: what it should be, for the error message.

    Raises:
        UserError: if one does, or the file is no ONNX file.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _has_external_data(data)
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path} is not {what} ({' '.join(str(error).split())[:200]}).") from error
    if found:
        raise UserError(
            f"{path} keeps tensors in other files (external data), which are not read, as they could be any of this "
            "machine; save it again as one file."
        )


def _has_external_data(data: Any) -> bool:
    waiting = [("Model", 0, len(data))]
    while waiting:
        message, start, end = waiting.pop()
        for number, kind, value in _fields(data, start, end):
            if message == "Tensor" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value == 1)):
                return True
            inner = FIELDS[message].get(number)
            if inner is not None and kind == BYTES:
                waiting.append((inner, *value))
    return False


def _fields(data: Any, at: int, end: int) -> Iterator[tuple[int, int, Any]]:
    """Yield (number, wire type, value) of a message's fields: of bytes where they start and end, of a varint itself."""
    while at < end:
        tag, at = _varint(data, at, end)
        kind = tag & 7
        value: Any = None
        if kind == VARINT:
            value, at = _varint(data, at, end)
        elif kind == BYTES:
            length, at = _varint(data, at, end)
            value, at = (at, at + length), at + length
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise ValueError("it is no message of protobuf")
        if at > end:
            raise ValueError("it is truncated")
        yield tag >> 3, kind, value


def _varint(data: Any, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it is truncated")
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise ValueError("it holds a number that does not end")
