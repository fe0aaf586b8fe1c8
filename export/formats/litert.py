"""The LiteRT (TensorFlow Lite) model: `images`, float32, RGB in 0-255 -> `probabilities`, float32."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_convnets.card import ModelCard
from keras_convnets.errors import UserError, unknown_name
from keras_convnets.export.formats.format import (
    FLOAT32_TOLERANCE,
    INT8_TOLERANCE,
    Artifact,
    Format,
    Job,
    card_beside,
    check_names,
)
from keras_convnets.prediction import Classifier

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# Weights rounded to 11 bits, computed in float32.
FLOAT16_TOLERANCE = 1e-2
ARTIFACTS = (
    Artifact("litert", "model.tflite", "tensorflow", "float32", FLOAT32_TOLERANCE),
    Artifact("litert float16", "model.float16.tflite", "tensorflow", "float16", FLOAT16_TOLERANCE),
    Artifact("litert int8", "model.int8.tflite", "tensorflow", "int8", INT8_TOLERANCE),
)
PRECISIONS = tuple(artifact.precision for artifact in ARTIFACTS)


def write_litert(
    network: keras.Model, card: ModelCard, path: Path, precision: str, images: np.ndarray | None = None
) -> None:
    """Convert a network to built-in LiteRT operators and write it, with names and a dynamic batch dimension.

    The signature `serving_default` takes `images`, float32 [batch, H, W, 3], and gives `probabilities`, float32
    [batch, classes]. Class names stand in the card that lies beside the file: the format has no simple place for them.

    Args:
        network: an inference network: `images` [batch, H, W, 3] -> a dictionary with "probabilities" [batch, classes].
        card: its view.
        path: the file to write.
        precision: "float32"; "float16", weights rounded and computed in float32; or "int8", weights and activations
            in eight bits, but for response normalisation, which has no such operator, and `images` and
            `probabilities`, the latter in steps of 1/256.
        images: for int8: uint8 [n, H, W, 3], RGB; the range of every activation is the one that they cause.

    Raises:
        UserError: if there is no such precision, or int8 gets no images of the input's size.
        tensorflow.lite's ConverterError: if the network needs operators that LiteRT does not have.
    """
    import tensorflow as tf

    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    size = card.view.crop
    calibration = _checked_images(images, size) if precision == "int8" else None
    holder, infer = _with_constants(network, size)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([infer.get_concrete_function()], holder)
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if calibration is not None:
        converter.representative_dataset = lambda: _one_by_one(calibration)
        # The second set is for operations without an int8 operator.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
    with warnings.catch_warnings():
        # Calibration runs tf.lite's interpreter; its successor is a separate package, which nothing else here needs.
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated")
        path.write_bytes(converter.convert())


def _checked_images(images: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    if images is None or len(images) == 0 or images.shape[1:] != (*size, 3):
        raise UserError(
            f"calibration images are {'none' if images is None else list(images.shape)}; eight bits need images that "
            f"the network will see: give at least one, as [n, {size[0]}, {size[1]}, 3]."
        )
    return images


def _with_constants(network: keras.Model, size: tuple[int, int]) -> tuple[tf.Module, tf.function]:
    """Return the network as a function whose weights are constants.

    The converter keeps variables as resources without their values, and the file's outputs are silently NaN.
    """
    import tensorflow as tf

    weights = [
        [tf.constant(variable.numpy()) for variable in variables]
        for variables in (network.trainable_variables, network.non_trainable_variables)
    ]

    @tf.function(input_signature=[tf.TensorSpec([None, *size, 3], tf.float32, name="images")])
    def infer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs, _ = network.stateless_call(*weights, images, training=False)
        return {"probabilities": outputs["probabilities"]}

    holder = tf.Module()
    holder.infer = infer
    return holder, infer


def _one_by_one(images: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    for image in images:
        yield {"images": image[None].astype(np.float32)}


def load_litert(path: Path, card: ModelCard | None = None) -> Classifier:
    """Load a LiteRT (TensorFlow Lite) file of any precision with the interpreter that comes with TensorFlow.

    Args:
        path: the file.
        card: what is known of it; by default the card of the version that contains it.

    Returns:
        A classifier: it takes uint8 [n, H, W, 3]. It has no card where none was given and none lies beside the file,
        as in a version that is still being written; it then takes images, but decodes and names nothing.

    Raises:
        UserError: if it is no such file, or was not exported by this package.
    """
    import tensorflow as tf

    card = card or card_beside(path)
    try:
        with warnings.catch_warnings():
            # Its successor is a separate package, which nothing else here needs.
            warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated")
            interpreter = tf.lite.Interpreter(str(path))
        infer = interpreter.get_signature_runner("serving_default")
        names = [*infer.get_input_details(), *infer.get_output_details()]
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} is not a model that LiteRT loads ({str(error).splitlines()[0]}).") from error
    check_names(names, path)

    def predict_images(images: np.ndarray) -> np.ndarray:
        return infer(images=np.asarray(images, np.float32))["probabilities"]

    return Classifier(card, predict_images)


def _write(job: Job, artifact: Artifact, folder: Path) -> None:
    write_litert(job.network, job.card, folder / artifact.file, artifact.precision, job.calibration)


FORMAT = Format(ARTIFACTS, _write, load_litert, suffix=".tflite")
