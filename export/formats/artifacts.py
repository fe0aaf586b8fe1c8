"""What an exported version can hold: files, the runtimes that read them, and how far each may stray from Keras."""

from __future__ import annotations

from dataclasses import dataclass

# Both sides compute in float32 with other orders of summation; over these networks that has stayed under 1e-6, and
# 1e-5 never changes which of two answers a person would believe.
FLOAT32_TOLERANCE = 1e-5
# Weights rounded to 11 bits, computed in float32.
FLOAT16_TOLERANCE = 1e-2
# Eight bits are judged by what they do to answers, not to single numbers: the mean change of the probability of the
# class that Keras finds likeliest. What lies beyond is no quantised network but a broken one.
INT8_TOLERANCE = 0.25
# An untrained network of many layers gives logits in the hundreds, in which float32's rounding is as many times larger.
UNTRAINED_FACTOR = 10


@dataclass(frozen=True)
class Artifact:
    """One file (or SavedModel) of a version.

    Attributes:
        key: its name in the card, such as "onnx int8".
        format: what `--formats` calls it.
        file: its name in the version's folder; "" for the SavedModel, which is the folder itself.
        runtime: "tensorflow" or "onnxruntime", which loads it for verification.
        precision: "float32", "float16" or "int8".
    """

    key: str
    format: str
    file: str
    runtime: str
    precision: str

    def tolerance(self, trained: bool) -> float:
        """Return the largest difference of a probability from Keras that is allowed.

        Of int8 it is the largest mean change of the probability of the class that Keras finds likeliest.

        Args:
            trained: whether the network is.
        """
        allowed = {"float32": FLOAT32_TOLERANCE, "float16": FLOAT16_TOLERANCE, "int8": INT8_TOLERANCE}[self.precision]
        return allowed if trained else min(allowed * UNTRAINED_FACTOR, 1.0)


ARTIFACTS = (
    Artifact("saved_model", "saved_model", "", "tensorflow", "float32"),
    Artifact("onnx", "onnx", "model.onnx", "onnxruntime", "float32"),
    Artifact("onnx int8", "int8", "model.int8.onnx", "onnxruntime", "int8"),
    Artifact("litert", "litert", "model.tflite", "tensorflow", "float32"),
    Artifact("litert float16", "litert", "model.float16.tflite", "tensorflow", "float16"),
    Artifact("litert int8", "litert", "model.int8.tflite", "tensorflow", "int8"),
)
FORMATS = ("saved_model", "onnx", "int8", "litert")
DEFAULT_FORMATS = ("saved_model", "onnx")
