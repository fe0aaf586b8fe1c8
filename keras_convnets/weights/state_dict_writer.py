"""Writes networks as state dictionaries of PyTorch, in .safetensors files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_convnets.card import ModelCard, card_of_model
from keras_convnets.errors import UserError
from keras_convnets.files import atomic_file, path_text
from keras_convnets.networks.graph import leaves
from keras_convnets.weights.assignment import strides_1x1
from keras_convnets.weights.naming import NAMINGS, OURS, TORCHVISION, check_naming, module_names
from keras_convnets.weights.state_dict_reader import COUNTER, EPSILON, METADATA


def save_safetensors(
    model: keras.Model, path: str | os.PathLike, *, naming: str = TORCHVISION, card: ModelCard | None = None
) -> None:
    """Write a network's weights as a state dictionary of PyTorch, which `load_state_dict(strict=True)` takes.

    Kernels are [outputs, inputs, height, width], float32; the columns of the first linear layer behind a feature map
    are in the order of channels, height, width. The file's metadata hold the architecture, preprocessing, class names
    and the network itself, so that `weights=` takes it back with nothing assumed.

    Args:
        model: a network of this package.
        path: the .safetensors file to write; an existing one is replaced once the new one is whole.
        naming: "torchvision", the names of torchvision's ResNets and VGGs, which the usual CIFAR networks share; or
            "keras_convnets", the layers' names here, for every network.
        card: preprocessing and classes; by default the model's own.

    Raises:
        UserError: if the network is none of this package's, torchvision has none like it, or the path is no
            .safetensors file.
        UnwritableError: if the file can't be written.

    Example:
        >>> save_safetensors(model, "resnet18.safetensors")
        >>> torchvision.models.resnet18().load_state_dict(safetensors.torch.load_file("resnet18.safetensors"))
    """
    from safetensors.numpy import save

    target = path_text(path, "path")
    if not target.lower().endswith(".safetensors"):
        raise UserError(f"path is {target!r}; give the path of a .safetensors file.")
    check_naming(naming)
    arrays = state_dict(model, naming)
    facts = _facts(model, naming, card or card_of_model(model))
    with atomic_file(target) as temporary:
        temporary.write_bytes(save(arrays, {METADATA: json.dumps(facts)}))


def state_dict(model: keras.Model, naming: str = TORCHVISION) -> dict[str, np.ndarray]:
    """Return a network's weights by PyTorch's names, in PyTorch's layout.

    Args:
        model: a network of this package.
        naming: a key of `NAMINGS`.

    Raises:
        UserError: if the network is none of this package's, or the naming has none like it.
    """
    if getattr(model, "built_as", None) is None:
        raise UserError(f"{model.name} was made by no builder of this package; save its weights as Keras does.")
    weighted = [layer for layer in leaves(model) if layer.weights]
    names = module_names([layer.name for layer in weighted], naming)
    _check_fits(model, [layer.name for layer in weighted if layer.name not in names], naming)
    found: dict[str, np.ndarray] = {}
    for layer in weighted:
        found |= {f"{names[layer.name]}.{key}": np.asarray(value, order="C") for key, value in _arrays(layer).items()}
    return found


def _check_fits(model: keras.Model, unnamed: list[str], naming: str) -> None:
    """Refuse a network whose weights another one of the naming would take, or none."""
    if naming == OURS:
        return
    blocks = [layer for layer in leaves(model) if "_block" in layer.name]
    why = None
    if unnamed:
        why = f"it has no layer like {unnamed[0]}"
    elif any(strides_1x1(layer) for layer in blocks):
        why = "its networks have stride 2 in the 3x3 convolution of a block, and here the 1x1 before it has"
    elif NAMINGS[naming].rules and blocks and not any(isinstance(layer, layers.Add) for layer in leaves(model)):
        why = "its networks of these layers are residual"
    if why is not None:
        raise UserError(f"{model.name} can't be written with the names of {naming}: {why}; give naming={OURS!r}.")


def _arrays(layer: keras.layers.Layer) -> dict[str, np.ndarray]:
    """Return a layer's arrays by what PyTorch calls them."""
    values = [np.asarray(keras.ops.convert_to_numpy(weight), np.float32) for weight in layer.weights]
    if isinstance(layer, layers.BatchNormalization):
        gamma, beta, mean, variance = values
        variance = variance + np.float32(layer.epsilon - EPSILON)
        counter = {COUNTER: np.array(0, np.int64)}
        return {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": variance, **counter}
    kernel, *bias = values
    biases = {"bias": bias[0]} if bias else {}
    if kernel.ndim == 4:
        return {"weight": kernel.transpose(3, 2, 0, 1), **biases}
    return {"weight": _in_channels_first(layer, kernel).T, **biases}


def _in_channels_first(layer: keras.layers.Layer, kernel: np.ndarray) -> np.ndarray:
    """Return a fully connected kernel with its rows in the C, H, W order of PyTorch's feature maps."""
    before = layer.input._keras_history.operation
    if not isinstance(before, layers.Flatten) or len(before.input.shape) != 4:
        return kernel
    height, width, channels = before.input.shape[1:]
    return kernel.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)


def _facts(model: Any, naming: str, card: ModelCard) -> Mapping[str, Any]:
    """Return what the file says of its network."""
    return {
        "architecture": card.architecture,
        "naming": naming,
        "preprocessing": card.preprocessing.to_dict(),
        "class_names": list(card.class_names),
        "class_ids": list(card.class_ids),
        "config": keras.saving.serialize_keras_object(model)["config"],
    }
