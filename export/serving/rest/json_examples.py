"""The bodies of `:classify` and `:regress`: tf.Examples from JSON, and the answers as JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_convnets.export.serving.admission.limits import NO_LIMITS, Limits
from keras_convnets.export.serving.classify_regress import Classification, class_rows, with_context
from keras_convnets.export.serving.rest import json_tensors
from keras_convnets.export.serving.rest.json_answers import float_tokens, string_token
from keras_convnets.export.serving.rest.json_tensors import decode_base64, format_error, is_base64, json_type
from keras_convnets.export.serving.status import invalid_argument

_INT64 = (-(2**63), 2**63 - 1)
_UINT64_MAX = 2**64 - 1


def parse_request(body: bytes, limits: Limits = NO_LIMITS) -> tuple[str, list[bytes]]:
    """Read the body of a `:classify` or `:regress` request.

    Args:
        body: the JSON text.
        limits: how many examples there may be.

    Returns:
        The signature name asked for ("" for none) and the serialized tf.Examples, each with the request's context in
        front of it.

    Raises:
        ServingError: INVALID_ARGUMENT, in the order and with the texts of TensorFlow Serving.

    Example:
        >>> parse_request(b'{"examples": [{"age": 3}]}')
        ('', [b'\\n\\x0e\\n\\x0c\\n\\x03age\\x12\\x05\\x1a\\x03\\n\\x01\\x03'])
    """
    document, name = json_tensors.parse_request(body)
    context = _example(document["context"]) if "context" in document else b""
    if "examples" not in document:
        # TensorFlow Serving says "classify" for :regress too.
        raise format_error(document, "When method is classify, key 'examples' is expected and was not found")
    examples = document["examples"]
    if not isinstance(examples, list):
        raise format_error(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise format_error(document, "'examples' value is an empty array")
    limits.check_rows(len(examples))
    return name, with_context(context, [_example(example) for example in examples], limits)


def encode_classification(classification: Classification) -> bytes:
    """Write a classifier's answer as JSON.

    Example:
        >>> encode_classification((np.array([[b"cat"]], object), np.array([[0.5]], np.float32)))
        b'{"results":[[["cat",0.5]]]}'
    """
    _, scores = classification
    rows = class_rows(classification)
    # The classes of all examples in one list, because numbers are serialised much faster in bulk.
    numbers = iter(float_tokens(scores.reshape(-1)) if scores is not None else ["0.0"] * sum(map(len, rows)))
    lists = (",".join(f"[{string_token(label)},{next(numbers)}]" for label, _ in row) for row in rows)
    return _results(",".join(f"[{text}]" for text in lists))


def encode_regression(values: np.ndarray) -> bytes:
    """Write a regressor's answer as JSON.

    Example:
        >>> encode_regression(np.array([0.5, 2.0], np.float32))
        b'{"results":[0.5,2.0]}'
    """
    return _results(",".join(float_tokens(values)))


def _results(text: str) -> bytes:
    return f'{{"results":[{text}]}}'.encode("utf-8", "surrogateescape")


def _example(value: Any) -> bytes:
    """Return the serialized tf.Example of a JSON object."""
    from tensorflow.core.example import example_pb2

    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {json_type(value)}")
    example = example_pb2.Example()
    for name, values in value.items():
        # A protocol buffer's string takes no bytes that are not UTF-8.
        key = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        feature = example.features.feature[key]
        kind = None
        for item in values if isinstance(values, list) else [values]:
            item_kind = _kind(name, item)
            if kind not in (None, item_kind):
                raise invalid_argument(f"Unexpected element type in feature: {name} expecting type: {kind}")
            kind = item_kind
            getattr(feature, f"{kind}_list").value.append(_element(name, item, kind))
    return example.SerializeToString()


def _kind(name: str, value: Any) -> str:
    """Return the kind of list that a value belongs to: "bytes", "float" or "int64"."""
    if isinstance(value, str) or (isinstance(value, dict) and is_base64(value)):
        return "bytes"
    if isinstance(value, int) and _INT64[0] <= value <= _UINT64_MAX:
        return "int64"
    if isinstance(value, (int, float)):
        # What is beyond 64 bits is a double in TensorFlow Serving.
        return "float"
    raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {json_type(value)}")


def _element(name: str, value: Any, kind: str) -> bytes | float | int:
    """Return a value as an element of a list of its kind."""
    if kind == "float":
        return float(value)
    if kind == "int64":
        if value > _INT64[1]:
            raise invalid_argument(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        return int(value)
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else decode_base64(value["b64"])
