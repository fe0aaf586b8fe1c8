"""An exported artifact back as a callable classifier."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_convnets.card import ModelCard, center_view
from keras_convnets.classifier import Classifier
from keras_convnets.errors import UserError
from keras_convnets.export.repository import EXTRA, SAVED_MODEL, versions
from keras_convnets.preprocessing import Preprocessing


def load(path: str | os.PathLike) -> Classifier:
    """Load an exported version, a model's folder (its highest version) or a `.onnx` file that was exported here.

    Returns:
        A classifier: called with images of the input's size, uint8 [n, H, W, 3], it gives probabilities.

    Raises:
        UserError: if the path is none of these.

    Example:
        >>> load("saved_models/digits/1").card.class_names[3]
        '3'
    """
    path = Path(path)
    if path.suffix == ".onnx":
        if not path.is_file():
            raise UserError(f"there is no ONNX file {path}; give the path of an existing one.")
        return load_onnx(path)
    if not (path / SAVED_MODEL).is_file() and versions(path):
        path = path / str(versions(path)[-1])
    if not (path / SAVED_MODEL).is_file():
        raise UserError(f"{path} is not an exported version (no {SAVED_MODEL}); give <repository>/<model>/<version>.")
    return load_saved_model(path, ModelCard.read(path / EXTRA))


def load_saved_model(folder: Path, card: ModelCard) -> Classifier:
    """Load a SavedModel with TensorFlow."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))
    by_bytes, by_images = loaded.signatures["serving_default"], loaded.signatures["predict_images"]

    def predict_encoded(encoded: Sequence[bytes]) -> np.ndarray:
        try:
            return by_bytes(image_bytes=tf.constant(list(encoded), tf.string))["probabilities"].numpy()
        except tf.errors.InvalidArgumentError as error:
            reason = error.message.split("\n")[0]
            raise UserError(f"one of {len(encoded)} images is not readable ({reason}).") from error

    def predict_images(images: np.ndarray) -> np.ndarray:
        return by_images(images=tf.constant(images, tf.uint8))["probabilities"].numpy()

    return Classifier(card, predict_images, predict_encoded)


def load_onnx(path: Path, card: ModelCard | None = None) -> Classifier:
    """Load an ONNX file with ONNX Runtime; what is known of it comes from its metadata unless a card is given.

    Raises:
        UserError: if it is no ONNX file, or was not exported by this package.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no public base class
        raise UserError(f"{path} is not a model that ONNX Runtime loads ({str(error).splitlines()[0]}).") from error
    card = card or _card_of_onnx(session, path)

    def predict_images(images: np.ndarray) -> np.ndarray:
        return session.run(["probabilities"], {"images": np.asarray(images, np.float32)})[0]

    return Classifier(card, predict_images)


def _card_of_onnx(session, path: Path) -> ModelCard:
    beside = path.parent / EXTRA
    if (beside / "model.json").is_file():
        return ModelCard.read(beside)
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
    if names != ["images", "probabilities"] or "class_names" not in facts:
        raise UserError(
            f"{path} takes and gives {', '.join(names)}, without class names in its metadata; "
            "only files that keras-convnets export wrote can be used here."
        )
    height, width = facts["view"]["crop"]
    return ModelCard(
        architecture=facts["architecture"],
        arguments={"classes": len(facts["class_names"]), "input_shape": [height, width, 3]},
        class_names=tuple(facts["class_names"]),
        preprocessing=Preprocessing(mean=(0.0, 0.0, 0.0)),
        view=center_view(height, width),
    )
