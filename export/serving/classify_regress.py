"""Classify and Regress over REST and gRPC: the signatures that take tf.Examples, and their responses.

A signature for either has one input, `inputs`, of serialized tf.Examples. A classifier's outputs are `classes`,
`scores` or both; a regressor's is `outputs`. The method name that the signature carries is not looked at, because what
TensorFlow 2 exports always says "predict".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_convnets.export.serving.admission.limits import NO_LIMITS, Limits
from keras_convnets.export.serving.engines.engine import Engine
from keras_convnets.export.serving.signatures import DEFAULT_SIGNATURE, NUMBERS, dtype_name
from keras_convnets.export.serving.status import invalid_argument

_INPUTS = "inputs"
_CLASSES = "classes"
_SCORES = "scores"
_OUTPUTS = "outputs"

# A classifier's answer: labels (bytes) and scores, each [examples, classes] or None where the model has no such output.
Classification = tuple[np.ndarray | None, np.ndarray | None]


def with_context(context: bytes, examples: list[bytes], limits: Limits) -> list[bytes]:
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
    return with_context(context, [example.SerializeToString() for example in examples], limits)


def check_classifier(engine: Engine, name: str) -> None:
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


def check_regressor(engine: Engine, name: str) -> None:
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


def resolve(engine: Engine, name: str) -> str:
    """Return the name of the signature that is meant.

    Raises:
        ServingError: INVALID_ARGUMENT when the model has none of that name.
    """
    name = name or DEFAULT_SIGNATURE
    if name not in engine.signature_defs:
        raise invalid_argument(f"No signature was found with the name: {name}")
    return name


def classify(engine: Engine, name: str, examples: list[bytes]) -> Classification:
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


def regress(engine: Engine, name: str, examples: list[bytes]) -> np.ndarray:
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
    """Return a label and a score for each class of each example; "" and 0.0 if the model does not give them."""
    classes, scores = classification
    given = classes if classes is not None else scores
    assert given is not None, "a classifier that was checked gives one of them"
    labels = classes if classes is not None else np.full(given.shape, b"", dtype=object)
    numbers: np.ndarray = scores if scores is not None else np.zeros(given.shape)
    return [list(zip(*row, strict=True)) for row in zip(labels.tolist(), numbers.tolist(), strict=True)]


def _run(engine: Engine, name: str, examples: list[bytes]) -> dict[str, np.ndarray]:
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
