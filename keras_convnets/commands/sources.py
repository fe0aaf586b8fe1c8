"""What a SOURCE names: a run, an exported version, a file, a network with weights, or an endpoint's URL."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from keras_convnets.errors import UserError
from keras_convnets.networks.spec import ModelSpec, model_name, split_weights

if TYPE_CHECKING:
    import keras

    from keras_convnets.prediction import Classifier
    from keras_convnets.training import Run


def is_url(source: str) -> bool:
    """Return whether a SOURCE is an endpoint's URL."""
    return source.lower().startswith(("http://", "https://", "grpc://", "grpcs://"))


def is_predictions(source: str) -> bool:
    """Return whether a SOURCE is a file of predictions that were kept."""
    return source.lower().endswith((".npz", ".csv"))


def is_folder(source: str) -> bool:
    """Whether a SOURCE is a folder. A network's name takes precedence, unless the folder is a run or an export."""
    path = Path(source)
    if not path.is_dir() or model_name(source) is None:
        return path.is_dir()
    from keras_convnets.export.repository import SAVED_MODEL, versions

    return any((path / file).is_file() for file in ("config.json", "model.json", SAVED_MODEL)) or bool(versions(path))


@contextlib.contextmanager
def opened(source: str) -> Iterator[tuple[Classifier, Run | None]]:
    """Give the classifier that a SOURCE names, and its run where it is one."""
    from keras_convnets import export
    from keras_convnets.card import card_of_model
    from keras_convnets.prediction import keras_classifier

    path = Path(source)
    if (path / "config.json").is_file():
        from keras_convnets.training.run import Run

        run = Run.existing(path)
        yield keras_classifier(run.model(), run.card()), run
    elif is_folder(source) or (path.suffix.lower() in (".onnx", ".tflite") and not _weights_of(source)):
        yield export.load(source), None
    else:
        model = open_model(source)
        yield keras_classifier(model, card_of_model(model)), None


def open_model(source: str) -> keras.Model:
    """Return the network of MODEL, MODEL:WEIGHTS or a .keras file."""
    weights = _weights_of(source)
    if source.lower().endswith(".keras") and weights is None:
        from keras_convnets.networks.functional import load_keras

        if not Path(source).is_file():
            raise UserError(f"there is no file {source}; give an existing .keras file.")
        return load_keras(source)
    name = model_name(source)
    if name is None and (os.sep in source or Path(source).exists()):
        state = (
            "is no run directory, exported version, .keras or .onnx file" if Path(source).exists() else "does not exist"
        )
        raise UserError(f"{source} {state}; give one of these, MODEL, MODEL:WEIGHTS or a URL.")
    return ModelSpec.of(name or source).build(weights=weights)


def check_has_weights(source: str, doing: str) -> None:
    """Refuse a network's bare name where answers are wanted: an untrained network's are chance."""
    if model_name(source) is not None and _weights_of(source) is None and not is_folder(source):
        raise UserError(
            f"{source} names a network without weights, whose answers are chance, so there is nothing to {doing}; give "
            f"{source}:WEIGHTS (a name that info lists, or a file), a run directory or an exported version."
        )


def _weights_of(source: str) -> str | None:
    """Return the WEIGHTS of MODEL:WEIGHTS; None of any other source."""
    return split_weights(source)[1] if model_name(source) is not None else None
