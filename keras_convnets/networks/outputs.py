"""The kind of a network's output: probabilities, logits, or something else."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from keras_convnets.errors import UserError

PROBABILITIES, LOGITS, UNKNOWN = "probabilities", "logits", "unknown"
# Layers whose output is neither probabilities nor logits.
FEATURES = (
    layers.Add,
    layers.BatchNormalization,
    layers.Conv2D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
    layers.MaxPooling2D,
    layers.ReLU,
)
UNCHANGED = (layers.Dropout, layers.Flatten, layers.Identity, layers.Reshape)
# How far from 1 the sum of a row of probabilities may be: half precision rounds each of a thousand.
SUM_TOLERANCE = 1e-2


def main_output(model: keras.Model) -> Any:
    """Return a model's one output, or that which its dictionary calls "probabilities"; None where there is neither."""
    if not getattr(model, "outputs", None):
        return None
    outputs = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
    if isinstance(outputs, dict) and PROBABILITIES in outputs:
        return outputs[PROBABILITIES]
    flat = keras.tree.flatten(outputs)
    return flat[0] if len(flat) == 1 else None


def meaning(model: keras.Model) -> str:
    """Return what a classifier's output is, from the layers that it ends in.

    Returns:
        "probabilities" behind a softmax; "logits" of a linear fully connected layer; "unknown" of what only its numbers
        can tell, such as a mean of several networks.

    Raises:
        UserError: if the model ends in something else: in sigmoids, or in features as a network without its classifier.
    """
    tensor = main_output(model)
    if tensor is None:
        return UNKNOWN
    while True:
        operation = tensor._keras_history.operation
        kind = _activation(operation)
        inner = getattr(operation, "outputs", None) if isinstance(operation, keras.Model) else None
        if inner is not None and len(inner) == 1:
            tensor = inner[0]
        elif isinstance(operation, UNCHANGED) or (isinstance(operation, layers.Activation) and kind == "linear"):
            tensor = _entering(operation, tensor)
        else:
            break
    if kind == "softmax":
        return PROBABILITIES
    if kind == "sigmoid":
        raise UserError(
            f"{model.name} ends in sigmoids, as classifiers do whose classes do not exclude each other; only "
            "probabilities that sum to 1 can be used here: end it in a softmax over the classes."
        )
    if isinstance(operation, layers.Dense) and kind == "linear":
        if tensor.shape[-1] == 1:
            raise UserError(
                f"{model.name} gives one logit, which says nothing through a softmax; give a binary classifier two "
                "classes and a softmax."
            )
        return LOGITS
    if kind not in (None, "linear") or isinstance(operation, FEATURES):
        raise UserError(
            f"{model.name} ends in {operation.name} and gives features, no probabilities of classes; build it with "
            "include_top=True, or end it in a linear layer or a softmax."
        )
    return UNKNOWN


def softmaxed(model: keras.Model) -> keras.Model:
    """Return a model that gives probabilities: the model itself, or of one that gives logits one with a softmax behind.

    The layers are shared. Raises as `meaning` does.
    """
    if meaning(model) != LOGITS:
        return model
    taken = {layer.name for layer in model.layers}
    name = next(name for name in (PROBABILITIES, "softmax", "softmax_of_logits") if name not in taken)
    softmax = layers.Activation("softmax", dtype="float32", name=name)
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    return keras.Model(inputs, softmax(main_output(model)), name=model.name)


def check_probabilities(rows: np.ndarray, name: str) -> None:
    """Refuse numbers that are no probabilities; numbers that are not finite are another matter and pass.

    Args:
        rows: [n, classes].
        name: of the network that gave them.

    Raises:
        UserError: if one is negative, or a row does not sum to 1.
    """
    sums = rows.sum(axis=-1, dtype=np.float64)
    wrong = (rows.min(axis=-1) < 0) | (np.abs(sums - 1) > SUM_TOLERANCE)
    if (wrong & np.isfinite(sums)).any():
        row = rows[int(np.argmax(wrong & np.isfinite(sums)))]
        raise UserError(
            f"{name} gives numbers from {row.min():.3g} to {row.max():.3g} that sum to {row.sum():.3g}, no "
            "probabilities; end it in a softmax over the classes."
        )


def _activation(operation: Any) -> str | None:
    """Return the name of the function that an operation ends in, or None of one that is no such function."""
    if isinstance(operation, layers.Softmax):
        return "softmax" if operation.axis == -1 else None
    function = getattr(operation, "activation", None)
    if function is not None:
        return getattr(function, "__name__", None)
    # keras.ops.softmax and keras.ops.sigmoid called on a tensor.
    name = type(operation).__name__
    return name.lower() if name in ("Softmax", "Sigmoid", "Relu") and not isinstance(operation, layers.Layer) else None


def _entering(operation: Any, tensor: Any) -> Any:
    return operation._inbound_nodes[tensor._keras_history.node_index].input_tensors[0]
