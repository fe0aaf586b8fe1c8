"""An exported artifact back as a callable classifier."""

from __future__ import annotations

import os
from pathlib import Path

from keras_convnets.card import ModelCard
from keras_convnets.errors import UserError
from keras_convnets.export.formats import VERSION_FORMAT, format_of_file, get_format
from keras_convnets.export.repository import EXTRA, SAVED_MODEL, version_folders
from keras_convnets.files import path_text
from keras_convnets.prediction import Classifier


def load(path: str | os.PathLike) -> Classifier:
    """Load an exported version, a model's folder (its highest version), or a `.onnx` or `.tflite` file made here.

    Returns:
        A classifier: called with images of the input's size, uint8 [n, H, W, 3], it gives probabilities.

    Raises:
        UserError: if the path is none of these, or the names of its classes are unknown.

    Example:
        >>> load("saved_models/digits/1").card.class_names[3]
        '3'
    """
    path = Path(path_text(path, "path"))
    form = format_of_file(path)
    if form is not None:
        if not path.is_file():
            raise UserError(f"there is no {form.suffix} file {path}; give the path of an existing one.")
        classifier = form.load(path, None)
        if classifier.known_card is None:
            raise UserError(
                f"{path} has no {EXTRA}/model.json beside it, and the file itself holds no class names; leave it in "
                "the version that keras-convnets export wrote."
            )
        return classifier
    if not (path / SAVED_MODEL).is_file() and path.is_dir() and (found := version_folders(path)):
        path = found[max(found)]
    if not (path / SAVED_MODEL).is_file():
        raise UserError(f"{path} is not an exported version (no {SAVED_MODEL}); give <repository>/<model>/<version>.")
    return get_format(VERSION_FORMAT).load(path, ModelCard.read(path / EXTRA))
