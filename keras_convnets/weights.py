"""Weights into a network: today from a file that Keras wrote."""

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_convnets.errors import UserError
from keras_convnets.preprocessing import Preprocessing

if TYPE_CHECKING:
    import keras

SUFFIXES = (".weights.h5", ".keras")
# These two carry no weights, and a network may come with or without them.
WITHOUT_WEIGHTS = ("InputLayer", "ImageNormalization")
log = logging.getLogger("keras_convnets")


def load_weights(model: keras.Model, weights: str | os.PathLike | None) -> None:
    """Load a weights file into a network; None leaves the network as it was initialised.

    A .keras file says which layers it is of, and those of another network are refused. A .weights.h5 file holds
    arrays only: where all shapes agree, as a plain network's and its residual counterpart's do, it can't be told.

    Args:
        model: the network.
        weights: None, or the path of a .weights.h5 or .keras file of the same network.

    Raises:
        UserError: if there is no such file, or it belongs to another network; the network is then not to be used.
    """
    if weights is None:
        return
    path = _existing(weights, model.name)
    if path.suffix == ".keras":
        theirs, ours = [kind for kind, _ in _layers_in(path)], list(_kinds(model))
        if [kind for kind in theirs if kind not in WITHOUT_WEIGHTS] != ours:
            raise UserError(f"{path} does not hold weights for {model.name}: its layers are those of another network.")
    try:
        model.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path} does not hold weights for {model.name}: {reason}") from error


def choose_preprocessing(
    given: Preprocessing | dict[str, Any] | None, weights: str | os.PathLike | None, default: Preprocessing
) -> Preprocessing:
    """Return the argument's preprocessing, else the one in the weights file, else the default; the log says which.

    Raises:
        UserError: if the argument is no preprocessing, or the file can't be read.
    """
    if given is not None:
        chosen, source = Preprocessing.of(given), "the argument"
    else:
        chosen, source = _preprocessing_in(weights), str(weights)
        if chosen is None:
            chosen, source = default, "the network's default"
    log.info("preprocessing by %s: %s minus %s, divided by %s", source, chosen.order, chosen.mean, chosen.std)
    return chosen


def _existing(weights: str | os.PathLike, name: str) -> Path:
    path = Path(weights)
    if not str(path).endswith(SUFFIXES):
        raise UserError(
            f"weights is {str(weights)!r}; {name} has no published weights here: "
            f"give None or the path of a {' or '.join(SUFFIXES)} file."
        )
    if not path.is_file():
        raise UserError(f"there is no weights file {path}; give the path of an existing {path.suffix} file.")
    return path


def _preprocessing_in(weights: str | os.PathLike | None) -> Preprocessing | None:
    """Return what the first layer of a .keras file does; None for other files and files without such a layer."""
    if weights is None or Path(weights).suffix != ".keras":
        return None
    path = _existing(weights, "the network")
    found = [config["preprocessing"] for kind, config in _layers_in(path) if kind == "ImageNormalization"]
    return Preprocessing.from_dict(found[0]) if found else None


def _layers_in(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return (class, configuration) of every layer of a .keras file, nested models opened."""

    def opened(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        for layer in config["layers"]:
            if "layers" in layer["config"]:
                yield from opened(layer["config"])
            else:
                yield layer["class_name"], layer["config"]

    try:
        with zipfile.ZipFile(path) as archive:
            return list(opened(json.loads(archive.read("config.json"))["config"]))
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a functional model that Keras saved ({error}).") from error


def _kinds(model: keras.Model) -> Iterator[str]:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _kinds(layer)
        elif type(layer).__name__ not in WITHOUT_WEIGHTS:
            yield type(layer).__name__
