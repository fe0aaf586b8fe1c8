"""JSON bodies to tensors, in TensorFlow Serving's row and columnar formats.

A request's "instances" list holds one entry for each example (row format, answered under "predictions"); "inputs"
holds whole tensors by name (columnar format, answered under "outputs"). The order of the checks and the texts are
TensorFlow Serving's.
"""

from __future__ import annotations

import binascii
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pybase64

from keras_convnets.export.serving.admission.limits import NO_LIMITS, Limits
from keras_convnets.export.serving.rest import json_text
from keras_convnets.export.serving.rest.json_answers import Format
from keras_convnets.export.serving.signatures import TensorInfo
from keras_convnets.export.serving.status import Code, ServingError, invalid_argument


@dataclasses.dataclass(frozen=True)
class _Numeric:
    """How JSON values become a numeric tensor: Python types accepted, array types while gathering and at the end.

    `bounds` are those of the integers accepted: the small types are checked as 32-bit integers and then wrap, as
    TensorFlow Serving's do.
    """

    accepted: frozenset[type]
    gathered: type
    final: type
    bounds: tuple[int, int] | None = None


_INT32 = (-(2**31), 2**31 - 1)
_INTEGER = frozenset({int})
_NUMBER = frozenset({int, float})
_NUMERIC = {
    "float": _Numeric(_NUMBER, np.float64, np.float32),
    "double": _Numeric(_NUMBER, np.float64, np.float64),
    "int32": _Numeric(_INTEGER, np.int64, np.int32, _INT32),
    "int16": _Numeric(_INTEGER, np.int64, np.int16, _INT32),
    "int8": _Numeric(_INTEGER, np.int64, np.int8, _INT32),
    "uint8": _Numeric(_INTEGER, np.int64, np.uint8, _INT32),
    "int64": _Numeric(_INTEGER, np.int64, np.int64, (-(2**63), 2**63 - 1)),
    "uint32": _Numeric(_INTEGER, np.int64, np.uint32, (0, 2**32 - 1)),
    "uint64": _Numeric(_INTEGER, np.uint64, np.uint64, (0, 2**64 - 1)),
    "bool": _Numeric(frozenset({bool}), np.bool_, np.bool_),
}
_MAX_RANK = 254
_BASE64 = re.compile(r"[A-Za-z0-9+/]*")
_SPACES = re.compile(r"[ \t\n\v\f\r]+")


def parse_request(body: bytes) -> tuple[dict[str, Any], str]:
    """Return a request's document and the signature name that it asks for ("" when it names none).

    Raises:
        ServingError: INVALID_ARGUMENT for text that is not JSON, no object, or a signature name that is no string.

    Example:
        >>> parse_request(b'{"signature_name": "top_k", "instances": [1]}')[1]
        'top_k'
    """
    document = json_text.parse(body)
    if not isinstance(document, dict):
        raise format_error(document, "Is not object")
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise format_error(document, "not formatted correctly. 'signature_name' key must be a string value.")
    return document, name


def decode_inputs(
    document: Mapping[str, Any],
    inputs: Mapping[str, TensorInfo],
    signature_name: str = "",
    limits: Limits = NO_LIMITS,
) -> tuple[dict[str, np.ndarray], Format]:
    """Turn the "instances" or "inputs" of a request into tensors.

    Args:
        document: the parsed request.
        inputs: the signature's inputs by alias.
        signature_name: the name asked for, for the error message.
        limits: how many rows and elements there may be.

    Returns:
        The tensors by alias (strings as object arrays of bytes; in row format with the number of instances as first
        dimension) and the format to answer in.

    Raises:
        ServingError: INVALID_ARGUMENT, or UNIMPLEMENTED for a type that JSON cannot carry.

    Example:
        >>> decode_inputs({"instances": [1, 2]}, {"x": TensorInfo("x", "float", (None,))})[0]["x"]
        array([1., 2.], dtype=float32)
    """
    if not inputs:
        raise invalid_argument(f"Failed to get input map for signature: {signature_name or 'DEFAULT'}")
    if "instances" in document and "inputs" in document:
        raise format_error(
            document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise format_error(document, "Expecting 'instances' to be an list/array")
        if not instances:
            raise format_error(document, "No values in 'instances' array")
        if any(info.in_rows for info in inputs.values()):
            limits.check_rows(len(instances))
        return _decode_rows(instances, inputs, limits), Format.ROW
    if "inputs" in document:
        return _decode_columns(document["inputs"], inputs, limits), Format.COLUMNAR
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def format_error(value: Any, text: str) -> ServingError:
    """Return the error for a part of a request, which it quotes."""
    return invalid_argument(f"JSON Value: {json_text.dump(value)} {text}")


def _decode_rows(instances: list[Any], inputs: Mapping[str, TensorInfo], limits: Limits) -> dict[str, np.ndarray]:
    if not isinstance(instances[0], dict) and len(inputs) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple "
            "input tensors required as per tensorinfo_map"
        )
    named = _is_named(instances[0])
    columns: dict[str, _Column] = {}
    plain = min(inputs)
    for index, item in enumerate(instances):
        if _is_named(item) != named:
            expected, got = ("object", "list") if named else ("value/list", "object")
            raise invalid_argument(f"Expecting {expected} but got {got} at item {index} of input list")
        for name, value in item.items() if named else ((plain, item),):
            try:
                if name not in inputs:
                    raise invalid_argument(f"JSON object: does not have named input: {name}")
                columns.setdefault(name, _Column(inputs[name], limits)).add_instance(value)
            except ServingError as error:
                key = f" key: {name}" if named else ""
                raise invalid_argument(
                    f"Failed to process element: {index}{key} of 'instances' list. "
                    f"Error: {error.code.name}: {error.message}"
                ) from error
        if named and len(item) != len(inputs):
            raise invalid_argument(
                f"Failed to process element: {index} of 'instances' list. JSON object: {json_text.dump(item)} "
                f"keys must be equal to: {','.join(sorted(inputs))}"
            )
    return {name: column.array((len(instances), *column.shape)) for name, column in columns.items()}


def _decode_columns(value: Any, inputs: Mapping[str, TensorInfo], limits: Limits) -> dict[str, np.ndarray]:
    if not _is_named(value):
        if len(inputs) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple "
                "input tensors required as per tensorinfo_map"
            )
        value = {next(iter(inputs)): value}
    tensors = {}
    for name, info in inputs.items():
        if name not in value:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
        if info.in_rows and isinstance(value[name], list):
            limits.check_rows(len(value[name]))
        column = _Column(info, limits)
        column.add(value[name])
        tensors[name] = column.array(column.shape)
    return tensors


def is_base64(value: Any) -> bool:
    """Return whether a JSON value is `{"b64": "..."}`, the encoding of bytes."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


class _Column:
    """The values of one input, gathered in reading order.

    The shape is taken from the first element at each level; other elements that do not match it are an error.
    """

    def __init__(self, info: TensorInfo, limits: Limits):
        self._info = info
        self._limits = limits
        self._first_shape: tuple[int, ...] | None = None
        self._first_size = 0
        self._values: list[Any] = []
        self.shape: tuple[int, ...] = ()

    def add_instance(self, value: Any) -> None:
        """Add one instance, which must have the first instance's shape."""
        before = len(self._values)
        self.add(value)
        size = len(self._values) - before
        if self._first_shape is None:
            self._first_shape, self._first_size = self.shape, size
        elif size != self._first_size:
            raise invalid_argument(f"Expecting tensor size: {self._first_size} but got: {size}")
        elif self.shape != self._first_shape:
            raise invalid_argument(
                f"Expecting shape {_shape_text(self._first_shape)} but got: {_shape_text(self.shape)}"
            )

    def add(self, value: Any) -> None:
        """Add a scalar or nested lists of them."""
        shape = []
        inner = value
        while isinstance(inner, list):
            shape.append(len(inner))
            inner = inner[0] if inner else None
        if len(shape) > _MAX_RANK:
            raise invalid_argument(f"tensor parsing error: {self._info.alias}")
        self.shape = tuple(shape)
        self._limits.check_elements(len(self._values) + math.prod(shape), self._info.alias)
        self._fill(value, 0)

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return all values as one tensor."""
        if self._info.dtype == "string":
            array = np.empty(len(self._values), dtype=object)
            array[:] = self._values
            return array.reshape(shape)
        numeric = _NUMERIC.get(self._info.dtype)
        if numeric is None:
            raise _not_convertible([], self._info.dtype)
        # A double beyond float32 becomes infinity, and a 32-bit integer wraps into a smaller type.
        with np.errstate(over="ignore"):
            return np.array(self._values, dtype=numeric.gathered).astype(numeric.final).reshape(shape)

    def _fill(self, value: Any, level: int) -> None:
        rank = len(self.shape)
        if not isinstance(value, list):
            if level != rank:
                raise invalid_argument(
                    f"JSON Value: {json_text.dump(value)} found at incorrect level: {level + 1} "
                    f"in the JSON DOM. Expected at level: {rank}"
                )
            self._values.append(self._converted(value))
            return
        if level >= rank:
            raise invalid_argument(f"Encountered list at unexpected level: {level} expected < {rank}")
        if len(value) != self.shape[level]:
            raise invalid_argument(
                f"Encountered list at unexpected size: {len(value)} at level: {level} "
                f"expected size: {self.shape[level]}"
            )
        if level == rank - 1 and self._is_plain(value):
            self._values.extend(value)
            return
        for item in value:
            self._fill(item, level + 1)

    def _is_plain(self, values: list[Any]) -> bool:
        """Tell whether a whole innermost list needs no conversion, which spares most values a call each."""
        numeric = _NUMERIC.get(self._info.dtype)
        if numeric is None or not values or not numeric.accepted.issuperset(map(type, values)):
            return False
        return numeric.bounds is None or (min(values) >= numeric.bounds[0] and max(values) <= numeric.bounds[1])

    def _converted(self, value: Any) -> Any:
        dtype = self._info.dtype
        if isinstance(value, dict):
            if dtype != "string":
                raise _type_error(value, dtype)
            if not is_base64(value):
                raise format_error(value, "not formatted correctly for base64 data")
            return decode_base64(value["b64"])
        if dtype == "string":
            if not isinstance(value, str):
                raise _type_error(value, dtype)
            return value.encode("utf-8", "surrogateescape")
        numeric = _NUMERIC.get(dtype)
        if numeric is None:
            raise _not_convertible(value, dtype)
        if type(value) not in numeric.accepted:
            raise _type_error(value, dtype)
        if numeric.bounds and not numeric.bounds[0] <= value <= numeric.bounds[1]:
            raise _type_error(value, dtype)
        return value


def decode_base64(text: str) -> bytes:
    """Decode standard base64; the padding may be missing and white space is skipped.

    Raises:
        ServingError: INVALID_ARGUMENT "Unable to base64 decode", for the URL-safe alphabet too.

    Example:
        >>> decode_base64("aGk")
        b'hi'
    """
    try:
        # Several times as fast as the standard library.
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        pass
    stripped = _SPACES.sub("", text)
    data = stripped.rstrip("=")
    padding = len(stripped) - len(data)
    if len(data) % 4 == 1 or padding not in (0, -len(data) % 4) or not _BASE64.fullmatch(data):
        raise invalid_argument("Unable to base64 decode")
    return binascii.a2b_base64(data + "=" * (-len(data) % 4))


def _type_error(value: Any, dtype: str) -> ServingError:
    return format_error(value, f"Type: {json_type(value)} is not of expected type: {dtype}")


def json_type(value: Any) -> str:
    """Return the name of a JSON value's type as error messages print it."""
    if value is None or isinstance(value, bool):
        return {None: "Null", True: "True", False: "False"}[value]
    kinds: dict[type, str] = {dict: "Object", list: "Array", str: "String"}
    return kinds.get(type(value), "Number")


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _not_convertible(value: Any, dtype: str) -> ServingError:
    return ServingError(Code.UNIMPLEMENTED, f"Conversion of JSON Value: {json_text.dump(value)} to type: {dtype}")
