"""NumPy arrays to TensorProtos and back, as TensorFlow Serving's gRPC interface has them.

Answers use the typed fields (`float_val`, `string_val`, ...), never `tensor_content`; requests may use either.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from keras_convnets.export.serving.admission.limits import NO_LIMITS, Limits
from keras_convnets.export.serving.signatures import NAMES, NUMBERS, TensorInfo, dtype_name
from keras_convnets.export.serving.status import invalid_argument

# Fields whose wire form is the array's own memory: the field's number by type.
_RAW_FIELDS = {"float": 5, "double": 6, "complex64": 9, "complex128": 12}
_LISTS = {
    "int32": "int_val",
    "int16": "int_val",
    "int8": "int_val",
    "uint8": "int_val",
    "uint16": "int_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "string": "string_val",
}
_FIELDS = _LISTS | {
    "float": "float_val",
    "double": "double_val",
    "complex64": "scomplex_val",
    "complex128": "dcomplex_val",
}
_MAX_RANK = 254


def is_raw(array: np.ndarray) -> bool:
    """Return whether an array is written as its memory stands, without an object for each element."""
    return dtype_name(array) in _RAW_FIELDS


def from_array(array: np.ndarray) -> tensor_pb2.TensorProto:
    """Return the TensorProto of an array, in typed fields and with its full shape.

    Example:
        >>> from_array(np.array([0.5], np.float32)).float_val
        [0.5]
    """
    dtype = dtype_name(array)
    proto = tensor_pb2.TensorProto(dtype=NUMBERS[dtype])
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if array.size == 0:
        return proto
    flat = np.ascontiguousarray(array).reshape(-1)
    if dtype in _RAW_FIELDS:
        # A packed field is the little-endian numbers after a tag and a length: one copy instead of one Python
        # object for each value.
        data = flat.astype(flat.dtype.newbyteorder("<"), copy=False).tobytes()
        proto.MergeFromString(bytes([_RAW_FIELDS[dtype] << 3 | 2]) + _varint(len(data)) + data)
    elif dtype in _LISTS:
        getattr(proto, _LISTS[dtype]).extend(flat.tolist())
    else:
        # half and bfloat16 travel as the integers of their bits.
        proto.half_val.extend(flat.view(np.uint16).tolist())
    return proto


def to_array(proto: tensor_pb2.TensorProto, info: TensorInfo, position: int, limits: Limits = NO_LIMITS) -> np.ndarray:
    """Return the array of a request's TensorProto; strings come as an object array of bytes.

    Args:
        proto: the tensor, in `tensor_content` or in typed values; when there are fewer values than elements, the
            last one is repeated.
        info: what the signature expects.
        position: the input's place among the signature's, for the error message.
        limits: how many rows, elements and repeated values it may have.

    Raises:
        ServingError: INVALID_ARGUMENT for a tensor that cannot be read, is of another type or beyond the limits.
    """
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if proto.dtype not in NAMES or len(sizes) > _MAX_RANK or min(sizes, default=0) < 0:
        raise invalid_argument(f"tensor parsing error: {info.alias}")
    if NAMES[proto.dtype] != info.dtype:
        raise invalid_argument(
            f"Expects arg[{position}] to be {info.dtype} but {NAMES[proto.dtype]} is provided for {info.alias}"
        )
    _check_size(proto, sizes, info, limits)
    try:
        # TensorFlow's parser, so that unusual but valid encodings are read as TensorFlow reads them.
        array: Any = tf.io.parse_tensor(proto.SerializeToString(), tf.as_dtype(proto.dtype)).numpy()
    except (tf.errors.OpError, ValueError, TypeError) as error:
        raise invalid_argument(f"tensor parsing error: {info.alias}") from error
    return array if isinstance(array, np.ndarray) else np.array(array, dtype=object)


def _check_size(proto: tensor_pb2.TensorProto, sizes: list[int], info: TensorInfo, limits: Limits) -> None:
    """Check what the tensor will take: a few bytes may ask for all memory, because values may be repeated."""
    elements = math.prod(sizes)
    if info.in_rows and sizes:
        limits.check_rows(sizes[0])
    limits.check_elements(elements, info.alias)
    if proto.tensor_content:
        return
    values = getattr(proto, _FIELDS.get(info.dtype, "half_val"))
    # A complex number is two values.
    sent = len(values) // (2 if info.dtype.startswith("complex") else 1)
    last = len(values[-1]) if info.dtype == "string" and sent else 0
    limits.check_repeated(max(elements - sent, 0), last, info.alias)


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
