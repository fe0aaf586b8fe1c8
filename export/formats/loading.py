"""An exported artifact back as a callable classifier."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_convnets.card import ModelCard
from keras_convnets.errors import UnreadableImage, UserError
from keras_convnets.export.repository import EXTRA, SAVED_MODEL, version_folders
from keras_convnets.extras import require
from keras_convnets.files import path_text
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.images.view import View
from keras_convnets.prediction import Classifier
from keras_convnets.weights.onnx_files import refuse_external_data

# What the exporter writes into an ONNX file's metadata.
FACTS = ("architecture", "class_names", "layout", "view")


def load(path: str | os.PathLike) -> Classifier:
    """Load an exported version, a model's folder (its highest version), or a `.onnx` or `.tflite` file made here.

    Returns:
        A classifier: called with images of the input's size, uint8 [n, H, W, 3], it gives probabilities.

    Raises:
        UserError: if the path is none of these, or nothing tells the names of its classes.

    Example:
        >>> load("saved_models/digits/1").card.class_names[3]
        '3'
    """
    path = Path(path_text(path, "path"))
    loaders = {".onnx": load_onnx, ".tflite": load_litert}
    suffix = path.suffix.lower()
    if suffix in loaders:
        if not path.is_file():
            raise UserError(f"there is no {suffix} file {path}; give the path of an existing one.")
        classifier = loaders[suffix](path)
        if classifier.card is None:
            raise UserError(
                f"{path} has no {EXTRA}/model.json beside it, and a LiteRT file holds no class names; leave it in the "
                "version that keras-convnets export wrote."
            )
        return classifier
    if not (path / SAVED_MODEL).is_file() and path.is_dir() and (found := version_folders(path)):
        path = found[max(found)]
    if not (path / SAVED_MODEL).is_file():
        raise UserError(f"{path} is not an exported version (no {SAVED_MODEL}); give <repository>/<model>/<version>.")
    return load_saved_model(path, ModelCard.read(path / EXTRA))


def load_saved_model(folder: Path, card: ModelCard | None) -> Classifier:
    """Load a SavedModel with TensorFlow.

    A SavedModel is a program: TensorFlow's operations read and write files. Load only what you trust.
    """
    import tensorflow as tf

    from keras_convnets.tensorflow_errors import plain_reason, unless_cancelled

    loaded = tf.saved_model.load(str(folder))
    by_bytes, by_images = loaded.signatures["serving_default"], loaded.signatures["predict_images"]

    def predict_encoded(encoded: Sequence[bytes]) -> np.ndarray:
        image_bytes = tf.constant(list(encoded), tf.string)
        try:
            return unless_cancelled(lambda: by_bytes(image_bytes=image_bytes))["probabilities"].numpy()
        except tf.errors.InvalidArgumentError as error:
            raise UnreadableImage(f"one of {len(encoded)} images is not readable ({plain_reason(error)}).") from error

    def predict_images(images: np.ndarray) -> np.ndarray:
        return by_images(images=tf.constant(images, tf.uint8))["probabilities"].numpy()

    return Classifier(card, predict_images, predict_encoded)


def load_onnx(path: Path, card: ModelCard | None = None) -> Classifier:
    """Load an ONNX file, float32 or int8, with ONNX Runtime.

    Args:
        path: the file, of either layout.
        card: what is known of it; by default the card of the version it lies in, else what its metadata say.

    Returns:
        A classifier: it takes uint8 [n, H, W, 3], whatever the file's layout.

    Raises:
        UserError: if it is no ONNX file, keeps tensors in other files, or was not exported by this package.
    """
    require("export", "an ONNX file", "onnxruntime")
    import onnxruntime

    refuse_external_data(path, "a model that ONNX Runtime loads")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no public base class
        raise UserError(f"{path} is not a model that ONNX Runtime loads ({str(error).splitlines()[0]}).") from error
    facts = _facts_of_onnx(session, path)
    card = card or _card_beside(path) or _card_of_onnx(facts, path)
    is_nchw = facts.get("layout") == "nchw"

    def predict_images(images: np.ndarray) -> np.ndarray:
        images = np.asarray(images, np.float32)
        # The runtime takes contiguous memory only.
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if is_nchw else images
        return session.run(["probabilities"], {"images": images})[0]

    return Classifier(card, predict_images)


def load_litert(path: Path, card: ModelCard | None = None) -> Classifier:
    """Load a LiteRT (TensorFlow Lite) file of any precision with the interpreter that comes with TensorFlow.

    Args:
        path: the file.
        card: what is known of it; by default the card of the version it lies in.

    Returns:
        A classifier: it takes uint8 [n, H, W, 3]. Its card is None where none was given and none lies beside the file,
        as in a version that is still being written; it then takes images, but decodes and names nothing.

    Raises:
        UserError: if it is no such file, or was not exported by this package.
    """
    import tensorflow as tf

    card = card or _card_beside(path)
    try:
        with warnings.catch_warnings():
            # Its successor is a package of its own, which nothing else here needs.
            warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated")
            interpreter = tf.lite.Interpreter(str(path))
        infer = interpreter.get_signature_runner("serving_default")
        names = [*infer.get_input_details(), *infer.get_output_details()]
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} is not a model that LiteRT loads ({str(error).splitlines()[0]}).") from error
    _check_names(names, path)

    def predict_images(images: np.ndarray) -> np.ndarray:
        return infer(images=np.asarray(images, np.float32))["probabilities"]

    return Classifier(card, predict_images)


def _card_beside(path: Path) -> ModelCard | None:
    beside = path.parent / EXTRA
    return ModelCard.read(beside) if (beside / "model.json").is_file() else None


def _facts_of_onnx(session, path: Path) -> dict[str, Any]:
    _check_names([value.name for value in (*session.get_inputs(), *session.get_outputs())], path)
    metadata = session.get_modelmeta().custom_metadata_map
    # Other tools may have added what is no JSON.
    return {key: json.loads(metadata[key]) for key in FACTS if key in metadata}


def _check_names(names: Sequence[str], path: Path) -> None:
    if list(names) != ["images", "probabilities"]:
        raise _foreign(path, f"takes and gives {', '.join(names)}")


def _card_of_onnx(facts: dict[str, Any], path: Path) -> ModelCard:
    if not {"architecture", "class_names", "view"} <= facts.keys():
        raise _foreign(path, "has no class names in its metadata")
    view = View.from_dict(facts["view"], f"the view of {path}")
    return ModelCard(
        architecture=facts["architecture"],
        arguments={"classes": len(facts["class_names"]), "input_shape": [*view.crop, 3]},
        class_names=tuple(facts["class_names"]),
        preprocessing=Preprocessing(mean=(0.0, 0.0, 0.0)),
        view=view,
    )


def _foreign(path: Path, why: str) -> UserError:
    return UserError(f"{path} {why}; only files that keras-convnets export wrote can be used here.")
