"""The engine that runs an exported version's ONNX file with ONNX Runtime.

Images are decoded and viewed by the same TensorFlow operations as inside the SavedModel, so that the answers agree.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_convnets import tensorflow_errors
from keras_convnets.card import ModelCard
from keras_convnets.errors import UserError
from keras_convnets.export.formats.onnx import FILE as ONNX
from keras_convnets.export.repository import EXTRA
from keras_convnets.export.serving.admission.admission import Admission
from keras_convnets.export.serving.engines.engine import Engine, load_error, run_error
from keras_convnets.export.serving.engines.saved_model import read_signature_defs
from keras_convnets.export.serving.scheduling.batching import graph_of
from keras_convnets.export.serving.scheduling.scheduler import Scheduler
from keras_convnets.export.serving.status import Code, ServingError, invalid_argument
from keras_convnets.images import resizing
from keras_convnets.weights.onnx_files import refuse_external_data

SIGNATURES = ("serving_default", "predict_images", "top_k", "classify")


class OnnxEngine(Engine):
    """An exported version's `model.onnx`, under the signatures of its SavedModel.

    `features` is not among them: the ONNX file gives probabilities only.

    Args:
        path: the version's directory.
        scheduler: runs the requests; by default without batching, with a concurrency limit.
        admission: bounds the pixels that are decoded at a time.

    Raises:
        ServingError: the directory holds no version that was exported with an ONNX file, or it does not load.

    Example:
        >>> engine = OnnxEngine("saved_models/digits/1")
        >>> engine.run("serving_default", {"image_bytes": np.array([png], object)})["probabilities"].shape
        (1, 10)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        scheduler: Scheduler | None = None,
        admission: Admission | None = None,
    ):
        import onnxruntime

        path = Path(path)
        if not (path / ONNX).is_file():
            raise ServingError(
                Code.NOT_FOUND,
                f"{path} has no {ONNX}; export it with --formats onnx, or serve it with --engine tensorflow",
            )
        try:
            card = ModelCard.read(path / EXTRA)
            known = read_signature_defs(str(path))
            refuse_external_data(path / ONNX)
            self._session = onnxruntime.InferenceSession(str(path / ONNX), providers=["CPUExecutionProvider"])
        except UserError as error:
            raise ServingError(Code.FAILED_PRECONDITION, str(error)) from error
        except Exception as error:
            raise load_error(error, str(path)) from error
        super().__init__({name: proto for name, proto in known.items() if name in SIGNATURES}, scheduler, admission)
        # A run uses a thread per core, and concurrent runs would contend for them. Decoding continues meanwhile.
        self._one_run = threading.Lock()
        self._channels_first = self._session.get_inputs()[0].shape[1] == 3
        self._names = np.array([name.encode() for name in card.class_names], object)
        self._views = resizing.encoded_views(card.view)

    def _call(self, name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import tensorflow as tf

        ((alias, given),) = inputs.items()
        info = self.signatures[name].inputs[alias]
        if not info.fits(given.shape):
            # The network in the file takes images of one shape; the preprocessing is done here.
            shape = ",".join(map(str, given.shape))
            raise invalid_argument(
                f"Input {alias} has shape [{shape}], which does not fit the signature's {info.shape_text}"
            )
        if name != "predict_images":
            try:
                encoded = tf.constant(given, tf.string)
                given = tensorflow_errors.unless_cancelled(lambda: self._viewed(name, encoded)).numpy()
            except (tf.errors.OpError, TypeError, ValueError) as error:
                raise run_error(error) from error
        return self._answers(name, given)

    def _graph(self, name: str, **tensors: Any) -> Mapping[str, Any]:
        # Images are decoded inside the graph: operations that a Python function called from there would wait for
        # the threads that wait for it.
        ((alias, given),) = tensors.items()
        images = given if name == "predict_images" else self._viewed(name, given)
        answers = functools.partial(self._answers, name)
        return graph_of(lambda inputs: answers(inputs[alias]), self.signatures[name])(**{alias: images})

    def _viewed(self, name: str, encoded: Any) -> Any:
        """Return the network's input, uint8 [batch, H, W, 3], for a tensor of what a signature takes."""
        import tensorflow as tf

        if name == "classify":
            feature = tf.io.FixedLenFeature([], tf.string)
            encoded = tf.io.parse_example(encoded, {"image/encoded": feature})["image/encoded"]
        return self._views(encoded)

    def _answers(self, name: str, images: np.ndarray) -> dict[str, np.ndarray]:
        pixels = np.asarray(images, np.float32)
        if self._channels_first:
            pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        try:
            with self._one_run:
                (probabilities,) = self._session.run(["probabilities"], {"images": pixels})
        except Exception as error:  # onnxruntime's errors share no public base class
            raise ServingError(Code.INTERNAL, str(error)) from error
        if name in ("serving_default", "predict_images"):
            return {"probabilities": probabilities}
        (k,) = (
            info.shape[-1] for info in self.signatures[name].outputs.values() if info.shape and info.dtype == "float"
        )
        # Of equal scores the lower class comes first, as it does in TensorFlow.
        indices = np.argsort(-probabilities, axis=1, kind="stable")[:, : k or 5]
        return {"classes": self._names[indices], "scores": np.take_along_axis(probabilities, indices, axis=1)}
