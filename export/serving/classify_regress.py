"""Classify and Regress: tf.Examples from JSON, the signatures that take them, and the answers.

A signature for either has one input, `inputs`, of serialized tf.Examples. A classifier's outputs are `classes`,
`scores` or both; a regressor's is `outputs`. The method name that the signature carries is not looked at, because what
TensorFlow 2 exports always says "predict".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_convnets.export.serving import codec
from keras_convnets.export.serving.dtypes import NUMBERS, dtype_name
from keras_convnets.export.serving.engine import DEFAULT_SIGNATURE, SavedModelEngine
from keras_convnets.export.serving.limits import NO_LIMITS, Limits
from keras_convnets.export.serving.status import invalid_argument

_INPUTS = "inputs"
_CLASSES = "classes"
_SCORES = "scores"
_OUTPUTS = "outputs"
_INT64 = (-(2**63), 2**63 - 1)
_UINT64_MAX = 2**64 - 1

# A classifier's answer: labels (bytes) and scores, each [examples, classes] or None where the model has no such output.
Classification = tuple[np.ndarray | None, np.ndarray | None]


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
    document, name = codec.parse_request(body)
    context = _example(document["context"]) if "context" in document else b""
    if "examples" not in document:
        # TensorFlow Serving says "classify" for :regress too.
        raise codec.format_error(document, "When method is classify, key 'examples' is expected and was not found")
    examples = document["examples"]
    if not isinstance(examples, list):
        raise codec.format_error(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise codec.format_error(document, "'examples' value is an empty array")
    limits.check_rows(len(examples))
    return name, _with_context(context, [_example(example) for example in examples], limits)


def _with_context(context: bytes, examples: list[bytes], limits: Limits) -> list[bytes]:
    """Return serialized examples, each with the context in front of it; one behind another they read as their merger.

    The context is sent once and kept once for each example.
    """
    size = len(context) * len(examples)
    limits.check_bytes(size, f"The context of {len(context)} bytes for each of {len(examples)} examples makes {size}")
    return [context + example for example in examples]


def serialized_examples(request_input: Any, limits: Limits = NO_LIMITS) -> list[bytes]:
    """Return the serialized tf.Examples of a `tensorflow.serving.Input`, each with the context in front of it.

    Args:
        request_input: the message.
        limits: how many examples there may be.

    Raises:
        ServingError: INVALID_ARGUMENT when there is none.
    """
    context, examples = b"", request_input.example_list.examples
    if request_input.WhichOneof("kind") == "example_list_with_context":
        context = request_input.example_list_with_context.context.SerializeToString()
        examples = request_input.example_list_with_context.examples
    if not examples:
        raise invalid_argument("Input is empty.")
    limits.check_rows(len(examples))
    return _with_context(context, [example.SerializeToString() for example in examples], limits)


def check_classifier(engine: SavedModelEngine, name: str) -> None:
    """Check that a signature classifies examples.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    proto = engine.signature_defs[name]
    if len(proto.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(proto.outputs) not in (1, 2):
        raise invalid_argument(f"Expected one or two output Tensors, found {len(proto.outputs)}")
    if _INPUTS not in proto.inputs:
        raise invalid_argument(f"No classification inputs found in SignatureDef: {proto}")
    if _CLASSES not in proto.outputs and _SCORES not in proto.outputs:
        raise invalid_argument(
            f'Expected classification signature outputs to contain at least one of "{_CLASSES}" or "{_SCORES}". '
            f"Signature was: {proto}"
        )


def check_regressor(engine: SavedModelEngine, name: str) -> None:
    """Check that a signature computes one number for each example.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    proto = engine.signature_defs[name]
    if len(proto.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(proto.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if _INPUTS not in proto.inputs:
        raise invalid_argument(f"No regression inputs found in SignatureDef: {proto}")
    if _OUTPUTS not in proto.outputs:
        raise invalid_argument(f"No regression outputs found in SignatureDef: {proto}")


def resolve(engine: SavedModelEngine, name: str) -> str:
    """Return the name of the signature that is meant.

    Raises:
        ServingError: INVALID_ARGUMENT when the model has none of that name.
    """
    name = name or DEFAULT_SIGNATURE
    if name not in engine.signature_defs:
        raise invalid_argument(f"No signature was found with the name: {name}")
    return name


def classify(engine: SavedModelEngine, name: str, examples: list[bytes]) -> Classification:
    """Run a signature that `check_classifier` passed.

    Raises:
        ServingError: as the engine's, and INVALID_ARGUMENT for outputs that are no classes and scores.
    """
    outputs = _run(engine, name, examples)
    classes, scores = outputs.get(_CLASSES), outputs.get(_SCORES)
    for what, array, dtype in ((_CLASSES, classes, "string"), (_SCORES, scores, "float")):
        if array is None:
            continue
        if array.ndim != 2:
            raise invalid_argument(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
        _check_dtype(array, dtype, what)
        if len(array) != len(examples):
            raise invalid_argument(f"Expected {what} output batch size of {len(examples)}. Got: {len(array)}")
    if classes is not None and scores is not None and classes.shape != scores.shape:
        raise invalid_argument(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    return classes, scores


def regress(engine: SavedModelEngine, name: str, examples: list[bytes]) -> np.ndarray:
    """Run a signature that `check_regressor` passed; returns one float32 for each example.

    Raises:
        ServingError: as the engine's, and INVALID_ARGUMENT for an output that is not one number for each example.
    """
    values = _run(engine, name, examples)[_OUTPUTS]
    if values.ndim != 1 and (values.ndim != 2 or values.shape[1] != 1):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got " + _shape(values)
        )
    if len(values) != len(examples):
        raise invalid_argument(f"Input batch size did not match output batch size: {len(examples)} vs. {len(values)}")
    _check_dtype(values, "float", "output")
    return values.reshape(-1)


def class_rows(classification: Classification) -> list[list[tuple[bytes, float]]]:
    """Return a label and a score for each class of each example; "" and 0.0 stand for what the model does not say."""
    classes, scores = classification
    labels = classes.tolist() if classes is not None else np.full(scores.shape, b"", dtype=object).tolist()
    numbers = scores.tolist() if scores is not None else np.zeros(classes.shape).tolist()
    return [list(zip(*row, strict=True)) for row in zip(labels, numbers, strict=True)]


def encode_classification(classification: Classification) -> bytes:
    """Write a classifier's answer as JSON.

    Example:
        >>> encode_classification((np.array([[b"cat"]], object), np.array([[0.5]], np.float32)))
        b'{"results":[[["cat",0.5]]]}'
    """
    _, scores = classification
    rows = class_rows(classification)
    # The classes of all examples in one list, because numbers are written much faster at once.
    numbers = iter(codec.float_tokens(scores.reshape(-1)) if scores is not None else ["0.0"] * sum(map(len, rows)))
    lists = (",".join(f"[{codec.string_token(label)},{next(numbers)}]" for label, _ in row) for row in rows)
    return _results(",".join(f"[{text}]" for text in lists))


def encode_regression(values: np.ndarray) -> bytes:
    """Write a regressor's answer as JSON.

    Example:
        >>> encode_regression(np.array([0.5, 2.0], np.float32))
        b'{"results":[0.5,2.0]}'
    """
    return _results(",".join(codec.float_tokens(values)))


def _results(text: str) -> bytes:
    return f'{{"results":[{text}]}}'.encode("utf-8", "surrogateescape")


def _run(engine: SavedModelEngine, name: str, examples: list[bytes]) -> dict[str, np.ndarray]:
    tensor = np.empty(len(examples), dtype=object)
    tensor[:] = examples
    return engine.run(name, {_INPUTS: tensor})


def _shape(array: np.ndarray) -> str:
    return f"[{','.join(map(str, array.shape))}]"


def _check_dtype(array: np.ndarray, dtype: str, what: str) -> None:
    from tensorflow.core.framework import types_pb2

    if dtype_name(array) != dtype:
        expected, got = (types_pb2.DataType.Name(NUMBERS[name]) for name in (dtype, dtype_name(array)))
        raise invalid_argument(f"Expected {what} Tensor of {expected}. Got: {got}")


def _example(value: Any) -> bytes:
    """Return the serialized tf.Example of a JSON object."""
    from tensorflow.core.example import example_pb2

    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {codec.json_type(value)}")
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
    if isinstance(value, str) or (isinstance(value, dict) and codec.is_base64(value)):
        return "bytes"
    if isinstance(value, int) and _INT64[0] <= value <= _UINT64_MAX:
        return "int64"
    if isinstance(value, (int, float)):
        # What is beyond 64 bits is a double in TensorFlow Serving.
        return "float"
    raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {codec.json_type(value)}")


def _element(name: str, value: Any, kind: str) -> bytes | float | int:
    """Return a value as it is in a list of its kind."""
    if kind == "float":
        return float(value)
    if kind == "int64":
        if value > _INT64[1]:
            raise invalid_argument(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        return int(value)
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else codec.decode_base64(value["b64"])
