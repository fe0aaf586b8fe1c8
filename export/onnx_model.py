"""The ONNX model: `images`, float32 [batch, H, W, 3], RGB in 0-255 -> `probabilities`, float32 [batch, classes]."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import keras
import onnx
import tensorflow as tf

from keras_convnets.card import ModelCard

OPSET = 17
STANDARD_DOMAINS = ("", "ai.onnx")


def write_onnx(model: keras.Model, card: ModelCard, path: Path) -> None:
    """Convert a network with tf2onnx and write it with names, metadata and a dynamic batch dimension.

    The file takes images of the input's size: ONNX has neither JPEG decoding nor antialiased resizing. Class names,
    preprocessing and view stand in its metadata as JSON.

    Args:
        model: images [batch, H, W, 3] -> probabilities [batch, classes].
        card: class names, preprocessing and view.
        path: the file to write.

    Raises:
        RuntimeError: if the conversion leaves operators that no ONNX runtime knows.
    """
    import tf2onnx

    # tf2onnx logs what it could not convert and writes the file all the same; the check below raises instead.
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    height, width = card.view["crop"]
    signature = [tf.TensorSpec([None, height, width, 3], tf.float32, name="images")]

    @tf.function(input_signature=signature)
    def infer(images):
        return {"probabilities": model(images, training=False)}

    converted, _ = tf2onnx.convert.from_function(infer, input_signature=signature, opset=OPSET)
    _check_operators(converted)
    _name_batch(converted.graph)
    converted.graph.name = card.architecture
    facts = {
        "class_names": card.class_names,
        "preprocessing": "inside: images are RGB in 0-255",
        "view": card.view,
        "architecture": card.architecture,
    }
    onnx.helper.set_model_props(converted, {key: json.dumps(value) for key, value in facts.items()})
    onnx.checker.check_model(converted, full_check=True)
    onnx.save(converted, path)


def _check_operators(converted: onnx.ModelProto) -> None:
    strange = {node.op_type for node in converted.graph.node if node.domain not in STANDARD_DOMAINS}
    strange |= {node.op_type for node in converted.graph.node if not onnx.defs.has(node.op_type)}
    if strange:
        raise RuntimeError(f"the network does not convert to ONNX: no operator for {', '.join(sorted(strange))}")


def _name_batch(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    # Inferred shapes between would carry another name for the same dimension; runtimes infer them again.
    del graph.value_info[:]
