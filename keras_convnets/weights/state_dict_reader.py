"""Reads state dictionaries of PyTorch networks: .safetensors without PyTorch, .pth and .pt where it is installed.

A state dictionary holds arrays by names and nothing of what a network does between its layers. Files that this package
writes say it besides, in the header that .safetensors files have for such facts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.weights.keras_reader import checked_configuration, refusing
from keras_convnets.weights.naming import NAMINGS, module_names
from keras_convnets.weights.onnx_reader import StoredLayer

# Where files of this package keep what they say of their network, in the header of a .safetensors file.
METADATA = "keras_convnets"
# Batch normalisation's in PyTorch, unless its network says otherwise; the files do not say it.
EPSILON = 1e-5
# What checkpoints keep the state dictionary under, and what wrappers put before every name.
CONTAINERS = ("state_dict", "model_state_dict", "state_dict_ema", "model", "net")
PREFIXES = ("module.", "model.", "net.", "network.", "_orig_mod.")
# What modules hold besides arrays that layers of ours take.
COUNTER = "num_batches_tracked"
# Traits of networks that are not ours: (pattern of an entry's name, its shape or None, what differs).
ANY = None
VARIANTS: tuple[tuple[str, tuple[int | None, ...] | None, str], ...] = (
    (r".*\.(se|eca|attn|ca|sk)\.", None, "channel attention in its blocks"),
    (
        *(r"conv1\.0\.weight", (ANY, ANY, 3, 3)),
        "a stem of three convolutions (the C, D and S variants) where the paper has one of 7x7",
    ),
    (r".*\.downsample\.1\.weight", (ANY, ANY, 1, 1), "average pooling before its projections (the D variants)"),
    (
        r"features\.\d+\.running_mean",
        None,
        "batch normalisation behind its convolutions (vgg*_bn); the paper's has none",
    ),
    (
        *(r"inception\d[a-e]\.branch", None),
        "batch normalisation, and 3x3 where the paper has 5x5 (torchvision's googlenet)",
    ),
    (
        *(r"features\.0\.weight", (64, 3, 11, 11)),
        "the widths of 'One weird trick' and no response normalisation (torchvision's alexnet)",
    ),
)


@dataclass(frozen=True)
class StateDict:
    """The arrays of a network by their names in PyTorch.

    Attributes:
        arrays: float32, by names such as "layer1.0.conv1.weight", without the prefixes of wrappers.
        metadata: what a file of this package says of its network; {} in files of others.
    """

    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def modules(self) -> dict[str, dict[str, np.ndarray]]:
        """The arrays by module and name in it, such as {"bn1": {"weight": ..., "bias": ...}}."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, array in self.arrays.items():
            module, _, last = name.rpartition(".")
            if last != COUNTER:
                found.setdefault(module, {})[last] = array
        return found


def read_state_dict(path: Path) -> StateDict:
    """Read the state dictionary of a .safetensors, .pth, .pt or .th file, or of a checkpoint around one.

    Nothing is unpickled: PyTorch reads with `weights_only=True`, which refuses files that hold code.

    Raises:
        UserError: if it is no such file, holds no arrays, or needs PyTorch and that is not installed.
    """
    if str(path).lower().endswith(".safetensors"):
        arrays, metadata = _safetensors(path), read_metadata(path)
    else:
        arrays, metadata = _pickled(path), {}
    if not arrays:
        raise UserError(f"{path} holds no state dictionary: no arrays by names; save model.state_dict().")
    return StateDict(_without_prefixes(arrays), metadata)


def read_metadata(path: Path) -> dict[str, Any]:
    """Return what a file of this package says of its network; {} for files of others, and for .pth and .pt.

    Raises:
        UserError: if it is no .safetensors file though its name says so.
    """
    if not str(path).lower().endswith(".safetensors"):
        return {}
    with _opened(path) as file:
        text = (file.metadata() or {}).get(METADATA)
        found = {} if text is None else json.loads(text)
        if not isinstance(found, dict):
            raise TypeError("what its header says of the network is no dictionary")
        if "config" in found:
            checked_configuration(found["config"])
    return found


def stored_layers(state: StateDict, ours: Sequence[str], naming: str) -> tuple[list[StoredLayer], dict[str, str]]:
    """Return the layers of a state dictionary in Keras' layout, and our names of those that have one.

    Args:
        state: the dictionary.
        ours: names of the network's layers that have weights, in its order.
        naming: a key of `NAMINGS`.

    Returns:
        The layers, named by their modules; and module to our name.
    """
    modules = state.modules
    names = {module: layer for layer, module in module_names(ours, naming).items()}
    linear = NAMINGS[naming].linear
    layers = [_stored(module, arrays, names.get(module, module), linear) for module, arrays in modules.items()]
    if NAMINGS[naming].zeros_on_both_sides:
        layers = _with_zeros_behind(layers, names)
    return layers, names


def naming_of(state: StateDict, ours: Sequence[str]) -> str:
    """Return the naming of the most modules: a key of `NAMINGS`."""
    said = state.metadata.get("naming")
    if said in NAMINGS:
        return str(said)
    modules = state.modules.keys()
    return max(NAMINGS, key=lambda naming: len(modules & module_names(ours, naming).values()))


def refuse_variants(state: StateDict, path: Path, network: str) -> None:
    """Refuse the state dictionary of a network that is known not to be one of ours.

    Raises:
        UserError: the message says what differs, and in which layer.
    """
    for name, array in state.arrays.items():
        for pattern, shape, what in VARIANTS:
            if re.match(pattern, name) and (shape is None or _is_of(array, shape)):
                shown = printable(name, 100)
                raise UserError(
                    f"{path} does not hold weights for {network}: its {shown} tells another network, with {what}."
                )


def _is_of(array: np.ndarray, shape: Sequence[int | None]) -> bool:
    """Whether an array has a shape; None in it stands for any length."""
    return array.ndim == len(shape) and all(side in (ANY, own) for side, own in zip(shape, array.shape, strict=True))


def _stored(module: str, arrays: Mapping[str, np.ndarray], ours: str, linear: Sequence[str]) -> StoredLayer:
    """Return one module's arrays as a layer in Keras' layout."""
    name, weight, bias = printable(module, 200), arrays.get("weight"), arrays.get("bias")
    both = {} if bias is None else {"bias": bias}
    if weight is not None and arrays.keys() <= {"weight", "bias"}:
        if module in linear and weight.ndim == 4:
            weight = weight.reshape(len(weight), -1)
        if weight.ndim == 4:
            return StoredLayer(name, "Conv2D", {"kernel": weight.transpose(2, 3, 1, 0), **both}, step=ours)
        if weight.ndim == 2:
            return StoredLayer(name, "Dense", {"kernel": weight.T, **both}, channels_first=True, step=ours)
    statistics = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    if arrays.keys() == set(statistics.values()):
        taken = {key: arrays[theirs] for key, theirs in statistics.items()}
        return StoredLayer(name, "BatchNormalization", taken, {"epsilon": EPSILON}, step=ours)
    return StoredLayer(name, f"module of {printable(', '.join(sorted(arrays)), 100)}", dict(arrays), step=ours)


def _with_zeros_behind(layers: Sequence[StoredLayer], names: Mapping[str, str]) -> list[StoredLayer]:
    """Return the layers of a network whose option A pads channels on both sides, for one that pads behind.

    The sum of a stage has its channels in another order then; all that reads or writes it is put into ours.
    """
    by_name = {names.get(layer.name, layer.name): layer for layer in layers}
    widths: dict[int, int] = {}
    for name, layer in by_name.items():
        if match := re.fullmatch(r"conv(\d)_block1_2_conv", name):
            widths[int(match[1])] = layer.arrays["kernel"].shape[-1]
    orders: dict[int, list[int]] = {}
    for stage, width in sorted(widths.items()):
        before = orders.get(stage - 1)
        if before is None or width != 2 * len(before):
            orders[stage] = list(range(width))
            continue
        padding = width // 4
        added = [*range(padding), *range(width - padding, width)]
        orders[stage] = [padding + channel for channel in before] + added
    found = []
    for name, layer in by_name.items():
        arrays = dict(layer.arrays)
        match = re.fullmatch(r"conv(\d)_block(\d+)_([12])_(conv|bn)", name)
        if match and match[3] == "1" and match[4] == "conv":
            source = int(match[1]) - (match[2] == "1")
            arrays["kernel"] = _reordered(arrays["kernel"], 2, orders.get(source))
        elif match and match[3] == "2":
            arrays = {key: _reordered(array, -1, orders.get(int(match[1]))) for key, array in arrays.items()}
        elif name == "predictions" and orders:
            arrays["kernel"] = _reordered(arrays["kernel"], 0, orders[max(orders)])
        found.append(StoredLayer(layer.name, layer.kind, arrays, layer.settings, layer.channels_first, layer.step))
    return found


def _reordered(array: np.ndarray, axis: int, order: Sequence[int] | None) -> np.ndarray:
    """Return an array with an axis in another order, or as it is if its length differs: it will be refused."""
    if order is None or array.ndim <= axis or array.shape[axis] != len(order):
        return array
    return np.take(array, order, axis)


def _without_prefixes(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays without what wrappers such as DataParallel put before every name."""
    found = dict(arrays)
    while prefix := next((text for text in PREFIXES if all(name.startswith(text) for name in found)), None):
        found = {name.removeprefix(prefix): array for name, array in found.items()}
    return found


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import deserialize

    with _opened(path) as file:
        names = list(file.keys())
        if all(file.get_slice(name).get_dtype() != "BF16" for name in names):
            return {name: np.asarray(file.get_tensor(name), np.float32) for name in names}
        raw = dict(deserialize(path.read_bytes()))
        return {name: _of_bytes(raw[name]) for name in names}


def _of_bytes(tensor: Mapping[str, Any]) -> np.ndarray:
    """Return a tensor of raw bytes as float32."""
    if tensor["dtype"] == "BF16":  # which NumPy does not have: the upper half of a float32
        values = np.frombuffer(tensor["data"], "<u2").astype(np.uint32) << 16
        return values.view(np.float32).reshape(tensor["shape"])
    types = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}
    return np.frombuffer(tensor["data"], types[tensor["dtype"]]).astype(np.float32).reshape(tensor["shape"])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Give an open .safetensors file."""
    from safetensors import SafetensorError, safe_open

    with refusing(path, "a .safetensors file"):
        try:
            with safe_open(path, "numpy") as file:
                yield file
        except SafetensorError as error:
            raise ValueError(str(error)) from error


def check_pytorch(file: object) -> None:
    """Check that PyTorch is installed, which alone reads .pth files.

    Raises:
        UserError: if it is not; the message names the file.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            f"{file} can be read only where PyTorch is installed (pip install torch); without it, give a .safetensors "
            "file: safetensors.torch.save_file(state_dict, path)."
        )


def _pickled(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file that torch.save wrote. Nothing in it is executed."""
    check_pytorch(path)
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, pickle's and zip's among them
        reason = printable(" ".join(str(error).split()), 160)
        raise UserError(
            f"{path} is not read: it is no state dictionary that torch.load(weights_only=True) takes ({reason}); "
            "save model.state_dict() alone."
        ) from error
    for _ in range(2):
        inner = [found[key] for key in CONTAINERS if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)]
        found = inner[0] if inner else found
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds a {type(found).__name__} and no state dictionary; save model.state_dict().")
    return {
        str(name): tensor.detach().to(torch.float32).numpy()
        for name, tensor in found.items()
        if isinstance(tensor, torch.Tensor) and not tensor.is_sparse
    }
