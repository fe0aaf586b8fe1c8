"""Reads the weights of files that Keras wrote: .weights.h5, .keras and the legacy .h5 of keras.applications."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_convnets.errors import UserError
from keras_convnets.onnx_weights import StoredLayer

# What a layer's arrays are, by their number and the rank of the first.
KINDS = {
    (1, 4): ("Conv2D", ("kernel",)),
    (2, 4): ("Conv2D", ("kernel", "bias")),
    (1, 2): ("Dense", ("kernel",)),
    (2, 2): ("Dense", ("kernel", "bias")),
    (4, 1): ("BatchNormalization", ("gamma", "beta", "moving_mean", "moving_variance")),
}
# The legacy files of keras.applications hold no configuration; its ResNets were trained with this one.
LEGACY_EPSILON = 1.001e-5


def read_h5(path: str | os.PathLike) -> list[StoredLayer]:
    """Read a weights file of Keras.

    Args:
        path: of a .weights.h5, a .keras, or a legacy .h5 file, of weights alone or of a whole model.

    Raises:
        UserError: if it is none of these.
    """
    import h5py

    try:
        with h5py.File(_h5_of(Path(path)), "r") as file:
            legacy = file.get("model_weights", file)
            if "layer_names" in legacy.attrs:
                found = list(_legacy(legacy, _epsilons(file)))
            else:
                found = list(_named(file))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a weights file of Keras ({' '.join(str(error).split())[:200]}).") from error
    if not found:
        raise UserError(f"{path} holds no weights by layer names; save them again with this version of Keras.")
    return found


def configuration(path: str | os.PathLike) -> dict[str, Any] | None:
    """Return the configuration of the model in a .keras or whole-model .h5 file; None where there is none.

    Raises:
        UserError: if the file can't be read, or holds no functional model.
    """
    import h5py

    path = Path(path)
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read("config.json"))["config"]
        if path.suffix == ".h5":
            with h5py.File(path, "r") as file:
                text = file.attrs.get("model_config")
                return None if text is None else json.loads(text)["config"]
    except (zipfile.BadZipFile, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a model that Keras saved ({' '.join(str(error).split())[:200]}).") from error
    return None


def layers_in(config: Mapping[str, Any] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (class, configuration) of every layer, nested models opened."""
    for layer in (config or {}).get("layers", ()):
        if "layers" in layer["config"]:
            yield from layers_in(layer["config"])
        else:
            # Legacy files write "keras_convnets>ShortcutA".
            yield layer["class_name"].rpartition(">")[2], layer["config"]


def _h5_of(path: Path) -> Any:
    if path.suffix != ".keras":
        return path
    with zipfile.ZipFile(path) as archive:
        return io.BytesIO(archive.read("model.weights.h5"))


def _legacy(group: Any, epsilons: Mapping[str, float]) -> Iterator[StoredLayer]:
    for name in map(_text, group.attrs["layer_names"]):
        arrays = [np.asarray(group[name][_text(weight)], np.float32) for weight in group[name].attrs["weight_names"]]
        if arrays:
            yield _stored(name, arrays, epsilons.get(name, LEGACY_EPSILON))


def _named(file: Any) -> Iterator[StoredLayer]:
    """Yield the layers of Keras 3's own layout: groups named by class, the layer's name in an attribute."""
    import h5py

    groups: list[Any] = []
    file.visititems(lambda key, item: groups.append(item) if isinstance(item, h5py.Group) else None)
    for group in groups:
        if "name" in group.attrs and len(group) and not group.name.startswith("/optimizer"):
            arrays = [np.asarray(group[key], np.float32) for key in sorted(group, key=int)]
            yield _stored(_text(group.attrs["name"]), arrays, None)


def _stored(name: str, arrays: list[np.ndarray], epsilon: float | None) -> StoredLayer:
    kind, names = KINDS.get((len(arrays), arrays[0].ndim), ("unknown", [str(index) for index in range(len(arrays))]))
    settings = {"epsilon": epsilon} if epsilon is not None and kind == "BatchNormalization" else {}
    return StoredLayer(name, kind, dict(zip(names, arrays, strict=True)), settings)


def _epsilons(file: Any) -> dict[str, float]:
    text = file.attrs.get("model_config")
    layers = layers_in(json.loads(text)["config"]) if text is not None else ()
    return {config["name"]: config["epsilon"] for _, config in layers if "epsilon" in config}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
