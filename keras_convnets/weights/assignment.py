"""Assignment of stored layers to a network's: paired, converted and checked before any weight is set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import keras
import numpy as np
from keras import layers

from keras_convnets.errors import UserError
from keras_convnets.networks.graph import leaves
from keras_convnets.weights.onnx_reader import StoredLayer, in_graph_order

# The layers whose width is the number of classes.
HEADS = ("predictions", "aux1_predictions", "aux2_predictions")
AUXILIARY = "aux"
NO_NAMES: Mapping[str, str] = MappingProxyType({})
Pair = tuple[keras.layers.Layer, StoredLayer]
Values = list[tuple[keras.layers.Layer, list[np.ndarray]]]


def in_order(model: keras.Model, stored: Sequence[StoredLayer], path: Path) -> list[Pair]:
    """Pair a network's weighted layers with those of a graph, both in the order that the graphs give.

    Auxiliary heads are ignored. Stored layers beyond those of a network without classifier must be fully connected.

    Raises:
        UserError: if the layers are not of the same kinds in the same order.
    """
    main = model.output["probabilities"] if isinstance(model.output, dict) else model.output
    nodes = [(layer, node) for layer in model.operations for node in layer._inbound_nodes]
    found = in_graph_order(
        nodes,
        inputs=lambda item: [id(tensor) for tensor in item[1].input_tensors],
        outputs=lambda item: [id(tensor) for tensor in item[1].output_tensors],
        weighted=lambda item: bool(item[0].weights),
        adds=lambda item: isinstance(item[0], layers.Add),
        result=id(main),
    )
    ours = [layer for layer, _ in found]
    if any(isinstance(layer, keras.Model) for layer in ours):
        raise UserError(f"{model.name} is built of nested models and takes no ONNX file; give a .keras file instead.")
    pairs = list(zip(ours, stored, strict=False))
    for layer, theirs in pairs:
        same_kernel = theirs.kind != "Conv2D" or theirs.arrays["kernel"].shape == tuple(layer.weights[0].shape)
        if theirs.kind != _kind(layer) or not same_kernel:
            raise UserError(
                f"{path} does not hold weights for {model.name}: where the network has {_described(layer)}, "
                f"the file has {theirs.name}, {_stored_described(theirs)}."
            )
    if len(ours) > len(stored):
        raise UserError(
            f"{path} does not hold weights for {model.name}: it ends before {_described(ours[len(stored)])}."
        )
    whole = any(layer.name == "predictions" for layer in ours)
    for theirs in stored[len(ours) :]:
        if whole or theirs.kind != "Dense":
            raise UserError(
                f"{path} does not hold weights for {model.name}: it has {theirs.name} besides, "
                f"{_stored_described(theirs)}."
            )
    return pairs


def is_folded(model: keras.Model, stored: Sequence[StoredLayer]) -> bool:
    """Whether a file has none of a network's batch normalisations: exporters fold them into the convolutions."""
    normalizes = any(isinstance(layer, layers.BatchNormalization) for layer in leaves(model))
    return normalizes and not any(layer.kind == "BatchNormalization" for layer in stored)


def by_name(
    model: keras.Model, stored: Sequence[StoredLayer], path: Path, names: Mapping[str, str] = NO_NAMES
) -> list[Pair]:
    """Pair a network's weighted layers with stored ones of the same names.

    The network may lack the classifier or auxiliary heads of the file, and the file those of the network.

    Args:
        model: the network.
        stored: the file's layers.
        path: of the file.
        names: what the network calls stored layers that the file calls otherwise.

    Raises:
        UserError: if another layer has no partner.
    """
    theirs = {names.get(layer.name, layer.name): layer for layer in stored}
    called = {own: name for name, own in names.items()}
    ours = {layer.name: layer for layer in leaves(model) if layer.weights}
    for name, layer in ours.items():
        if name not in theirs and not is_head(name):
            missing = f"it has no {called[name]}" if name in called else "nothing in it is"
            raise UserError(f"{path} does not hold weights for {model.name}: {missing} for {_described(layer)}.")
    for name, layer in theirs.items():
        beyond = layer.kind == "Dense" and "predictions" not in ours
        if name not in ours and not is_head(name) and not beyond:
            raise UserError(
                f"{path} does not hold weights for {model.name}: it has {layer.name} besides, "
                f"{_stored_described(layer)}."
            )
    return [(layer, theirs[name]) for name, layer in ours.items() if name in theirs]


def is_head(name: str) -> bool:
    """Whether a layer may be missing on either side: the classifier's linear layer, the auxiliary heads."""
    return name in HEADS or name.startswith(AUXILIARY)


def strides_1x1(layer: keras.layers.Layer) -> bool:
    """Whether a layer is a block's first convolution, of 1x1 and stride 2, as in the paper's bottlenecks."""
    return layer.name.endswith("_1_conv") and layer.kernel_size == (1, 1) and layer.strides == (2, 2)


def converted(model: keras.Model, pairs: Sequence[Pair], path: Path) -> Values:
    """Return what `set_weights` takes for every layer that fits; classifiers of another width are left out.

    A convolution's bias that has no place is folded into the batch normalisation after it: the mean it subtracts is
    less by that bias. Another epsilon goes into the variance.

    Raises:
        UserError: if a shape, a stride or a number of groups differs; the message names the layer and both.
    """
    followers = {id(layer.input): layer for layer in leaves(model) if isinstance(layer, layers.BatchNormalization)}
    shifts: dict[str, np.ndarray] = {}
    values = []
    for layer, theirs in sorted(pairs, key=lambda pair: pair[1].kind == "BatchNormalization"):
        arrays = dict(theirs.arrays)
        _check_settings(model, layer, theirs, path)
        if not _fits(layer, theirs):
            # Only the classifier may have another width. Nothing is computed with an array of another shape, which an
            # untrusted file may make arbitrarily large.
            if layer.name in HEADS and _fits(layer, theirs, width=False):
                continue
            raise _misfit(model, layer, theirs, path)
        if theirs.kind == "Dense":
            arrays["kernel"] = _in_channels_last(layer, theirs)
        if theirs.kind == "BatchNormalization":
            arrays["moving_mean"] = arrays["moving_mean"] - shifts.get(layer.name, np.float32(0))
            arrays["moving_variance"] = arrays["moving_variance"] + np.float32(
                theirs.settings.get("epsilon", layer.epsilon) - layer.epsilon
            )
        if "kernel" in arrays:
            bias = arrays.pop("bias", None)
            if layer.use_bias:
                arrays["bias"] = np.zeros(arrays["kernel"].shape[-1:], np.float32) if bias is None else bias
            elif bias is not None:
                shifts[followers[id(layer.output)].name] = bias
        if [tuple(weight.shape) for weight in layer.weights] != [array.shape for array in arrays.values()]:
            raise _misfit(model, layer, theirs, path)
        values.append((layer, list(arrays.values())))
    return values


def _fits(layer: keras.layers.Layer, theirs: StoredLayer, width: bool = True) -> bool:
    """Whether stored arrays have the shape of a layer's first weight, and for each of its outputs one number.

    Args:
        layer: the network's.
        theirs: the file's.
        width: whether the number of outputs counts.
    """
    wanted, *_ = [tuple(weight.shape) for weight in layer.weights]
    given, *others = [array.shape for array in theirs.arrays.values()]
    if not given or any(other != given[-1:] for other in others):
        return False
    return wanted == given if width else wanted[:-1] == given[:-1]


def _misfit(model: keras.Model, layer: keras.layers.Layer, theirs: StoredLayer, path: Path) -> UserError:
    wanted = [tuple(weight.shape) for weight in layer.weights]
    given = [array.shape for array in theirs.arrays.values()]
    return UserError(
        f"{path} does not fit {model.name}: {layer.name} has shapes {_shapes(wanted)} in the "
        f"network, and {theirs.name} has {_shapes(given)} in what is loaded."
    )


def _check_settings(model: keras.Model, layer: keras.layers.Layer, theirs: StoredLayer, path: Path) -> None:
    for setting in ("strides", "groups"):
        wanted, given = getattr(layer, setting, None), theirs.settings.get(setting)
        if given is not None and wanted != given:
            raise UserError(
                f"{path} does not fit {model.name}: {layer.name} has {setting} {wanted} in the network, "
                f"and {theirs.name} has {given} in what is loaded."
            )


def _in_channels_last(layer: keras.layers.Layer, theirs: StoredLayer) -> np.ndarray:
    """Return a fully connected kernel with its rows in the H, W, C order of our feature maps."""
    kernel = theirs.arrays["kernel"]
    before = layer.input._keras_history.operation
    if not theirs.channels_first or not isinstance(before, layers.Flatten) or len(before.input.shape) != 4:
        return kernel
    height, width, channels = before.input.shape[1:]
    if kernel.shape[0] != height * width * channels:
        return kernel
    return kernel.reshape(channels, height, width, -1).transpose(1, 2, 0, 3).reshape(kernel.shape)


def _kind(layer: keras.layers.Layer) -> str:
    for kind in (layers.Conv2D, layers.BatchNormalization, layers.Dense):
        if isinstance(layer, kind):
            return kind.__name__
    return type(layer).__name__


def _described(layer: keras.layers.Layer) -> str:
    return f"{layer.name}, a {_kind(layer)} of {_shapes([tuple(layer.weights[0].shape)])}"


def _stored_described(theirs: StoredLayer) -> str:
    return f"a {theirs.kind} of {_shapes([next(iter(theirs.arrays.values())).shape])}"


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join("x".join(map(str, shape)) or "()" for shape in shapes)
