"""The ONNX model: `images`, float32, RGB in 0-255 -> `probabilities`, float32 [batch, classes]."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_convnets.card import ModelCard
from keras_convnets.errors import UserError
from keras_convnets.export.formats.format import (
    FLOAT32_TOLERANCE,
    Artifact,
    Format,
    Job,
    card_beside,
    check_layout,
    check_names,
    foreign_file,
)
from keras_convnets.extras import require
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.images.view import View
from keras_convnets.prediction import Classifier
from keras_convnets.weights.onnx_files import refuse_external_data

if TYPE_CHECKING:
    import keras

FILE = "model.onnx"
# What is read of an ONNX file's metadata.
FACTS = ("architecture", "class_names", "layout", "view")


def write_onnx(network: keras.Model, card: ModelCard, path: Path, layout: str = "nhwc") -> None:
    """Convert a network and write it with names, metadata and a dynamic batch dimension.

    The file takes images of the input's size: ONNX has neither JPEG decoding nor antialiased resizing. Class names,
    preprocessing, view, layout and architecture stand in its metadata as JSON.

    Args:
        network: an inference network: `images` [batch, H, W, 3] -> a dictionary with "probabilities" [batch, classes].
        card: class names, view and architecture.
        path: the file to write.
        layout: "nhwc" takes images [batch, H, W, 3]; "nchw" takes [batch, 3, H, W], without any transposition inside.

    Raises:
        UserError: if there is no such layout.
        RuntimeError: if the conversion leaves operators that no ONNX runtime knows.
    """
    from keras_convnets.export.formats.onnx_conversion import convert

    check_layout(layout)
    height, width = card.view.crop
    shape = {"nhwc": ["batch", height, width, 3], "nchw": ["batch", 3, height, width]}[layout]
    facts = {
        "architecture": card.architecture,
        "class_names": card.class_names,
        "layout": layout,
        "preprocessing": f"inside: images are float32 {shape}, RGB in 0-255",
        "view": card.view.to_dict(),
    }
    convert(network, (height, width), layout, card.architecture, facts, path)


def load_onnx(path: Path, card: ModelCard | None = None) -> Classifier:
    """Load an ONNX file, float32 or int8, with ONNX Runtime.

    Args:
        path: the file, of either layout.
        card: what is known of it; by default the card of the version that contains it, else from its metadata.

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
    card = card or card_beside(path) or _card_of_onnx(facts, path)
    is_nchw = facts.get("layout") == "nchw"

    def predict_images(images: np.ndarray) -> np.ndarray:
        images = np.asarray(images, np.float32)
        # The runtime takes contiguous memory only.
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if is_nchw else images
        return session.run(["probabilities"], {"images": images})[0]

    return Classifier(card, predict_images)


def _facts_of_onnx(session: Any, path: Path) -> dict[str, Any]:
    check_names([value.name for value in (*session.get_inputs(), *session.get_outputs())], path)
    metadata = session.get_modelmeta().custom_metadata_map
    # Other tools may have added metadata that are not JSON.
    return {key: json.loads(metadata[key]) for key in FACTS if key in metadata}


def _card_of_onnx(facts: dict[str, Any], path: Path) -> ModelCard:
    if not {"architecture", "class_names", "view"} <= facts.keys():
        raise foreign_file(path, "has no class names in its metadata")
    view = View.from_dict(facts["view"], f"the view of {path}")
    return ModelCard(
        architecture=facts["architecture"],
        arguments={"classes": len(facts["class_names"]), "input_shape": [*view.crop, 3]},
        class_names=tuple(facts["class_names"]),
        preprocessing=Preprocessing(mean=(0.0, 0.0, 0.0)),
        view=view,
    )


def _write(job: Job, artifact: Artifact, folder: Path) -> None:
    write_onnx(job.network, job.card, folder / artifact.file, job.layout)


FORMAT = Format(
    (Artifact("onnx", FILE, "onnxruntime", "float32", FLOAT32_TOLERANCE),),
    _write,
    load_onnx,
    suffix=".onnx",
)
