"""Feature extraction by named stages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from keras_convnets.errors import UserError, unknown_name
from keras_convnets.networks.graph import along_paths, output_of
from keras_convnets.networks.table import FAMILIES

# (pattern of a layer's name, name of the stage that the layer ends); the last of several layers counts.
STAGE_ENDS = tuple(dict.fromkeys((re.compile(pattern), name) for family in FAMILIES for pattern, name in family.stages))


@dataclass(frozen=True)
class Stage:
    """A named part of a network.

    Attributes:
        name: the paper's name, such as "conv3_x" or "inception_4a".
        layer: the layer whose output ends it.
        channels: number of maps.
        stride: input pixels between two places of a map.
    """

    name: str
    layer: str
    channels: int
    stride: int


def stages(model: keras.Model) -> dict[str, Stage]:
    """Return the named stages of a network, from the input on.

    Args:
        model: a network of this package, loaded or built, or one that keras.applications names alike.

    Example:
        >>> stages(keras_convnets.ResNet50())["conv4_x"].stride
        16
    """
    strides = along_paths(model, _stride, start=1, join=lambda before, own: before * own)
    found: dict[str, Stage] = {}
    for layer in model.layers:
        for pattern, name in STAGE_ENDS:
            if match := pattern.fullmatch(layer.name):
                tensor = output_of(model, layer)
                stage = Stage(name.format(match[1]), layer.name, tensor.shape[-1], strides[id(tensor)])
                found[stage.name] = stage
    return found


def features(model: keras.Model, names: Sequence[str]) -> keras.Model:
    """Return a model that gives the feature maps of named stages; it shares the network's layers and weights.

    Args:
        model: a network, with or without its classifier.
        names: stages, such as ("conv3_x", "conv5_x"); `stages(model)` gives all with their channels and strides.

    Returns:
        images [batch, H, W, 3] to a dictionary: name to [batch, H / stride, W / stride, channels].

    Raises:
        UserError: if a name is none of the network's stages.

    Example:
        >>> backbone = features(keras_convnets.ResNet50(include_top=False), ("conv3_x", "conv5_x"))
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    known = stages(model)
    for name in names:
        if name not in known:
            raise unknown_name(f"stage of {model.name}", name, known)
    if not names:
        raise UserError(f"no stage of {model.name} was named; its stages are {', '.join(known)}.")
    outputs = {name: output_of(model, model.get_layer(known[name].layer)) for name in names}
    return keras.Model(model.input, outputs, name=f"{model.name}_features")


def _stride(layer: Any) -> int:
    # A convolution's and pooling's attribute, and ShortcutA's.
    stride = getattr(layer, "strides", getattr(layer, "stride", 1))
    return stride[0] if isinstance(stride, (tuple, list)) else stride
