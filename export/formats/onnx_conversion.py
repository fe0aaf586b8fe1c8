"""A Keras network as an ONNX model, by tf2onnx.

tf2onnx copies every constant in each of its passes: with the weights as constants it took seventy times their memory.
It is therefore given a function that takes the weights as arguments, and converts a graph without them. What the graph
then computes from weights alone, such as a kernel's transposition, is computed once, here, and the results become the
file's initializers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from keras_convnets.export.formats.onnx_simplification import as_input, replace, simplify

# Every operator needed is there, and runtimes of 2022 and later read it.
OPSET = 17
STANDARD_DOMAINS = ("", "ai.onnx")


def convert(
    network: keras.Model, size: tuple[int, int], layout: str, name: str, facts: Mapping[str, Any], path: Path
) -> None:
    """Convert a network, simplify the result and write it.

    Args:
        network: `images` [batch, H, W, 3] -> a dictionary with "probabilities" [batch, classes].
        size: (height, width) of the images.
        layout: of the file's input, "nhwc" or "nchw".
        name: the graph's.
        facts: the file's metadata, written as JSON.
        path: the file to write.

    Raises:
        RuntimeError: if the conversion leaves operators that no ONNX runtime knows.
    """
    converted, weights = _converted(network, size, layout)
    _check_operators(converted)
    arrays = _take_out_constants(converted, weights)
    simplify(converted, arrays)
    _name_batch(converted.graph)
    converted.graph.name = name
    helper.set_model_props(converted, {key: json.dumps(value) for key, value in facts.items()})
    # While the weights are inputs: the checker would copy them.
    onnx.checker.check_model(converted, full_check=True)
    _write(converted, arrays, path)


def _converted(
    network: keras.Model, size: tuple[int, int], layout: str
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return a model that takes images and weights, and the weights by the names of its inputs."""
    trainable, others = network.trainable_variables, network.non_trainable_variables
    variables = {f"weight_{number}": variable for number, variable in enumerate((*trainable, *others))}
    signature = [
        tf.TensorSpec([None, *size, 3], tf.float32, name="images"),
        *(tf.TensorSpec(variable.shape, variable.dtype, name=name) for name, variable in variables.items()),
    ]

    @tf.function(input_signature=signature, autograph=False)
    def infer(images: tf.Tensor, *weights: tf.Tensor) -> dict[str, tf.Tensor]:
        first, second = weights[: len(trainable)], weights[len(trainable) :]
        outputs, _ = network.stateless_call(first, second, images, training=False)
        return {"probabilities": outputs["probabilities"]}

    # A variable's `numpy()` would be a copy; this shares its memory.
    weights = {name: np.asarray(variable.value.read_value()) for name, variable in variables.items()}
    return _without_weights(infer.get_concrete_function(), ["images"] if layout == "nchw" else []), weights


def _without_weights(infer: Any, inputs_as_nchw: Sequence[str]) -> onnx.ModelProto:
    """Convert a function that holds no weights: tf2onnx's `from_function`, but for copies of the graph.

    Before each of its passes over the graph `from_function` copies it, to continue without the pass if it fails. That
    took longer than the passes themselves; here a pass that fails ends the conversion.
    """
    from tf2onnx import optimizer, tf_loader, tfonnx

    # tf2onnx logs operations that it could not convert and continues; `_check_operators` raises instead.
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    inputs, outputs = [tensor.name for tensor in infer.inputs], [tensor.name for tensor in infer.outputs]
    specifications = tf.nest.flatten(infer.structured_input_signature)
    names = dict(zip(inputs, (specification.name for specification in specifications), strict=True))
    names |= {tensor.name: name for name, tensor in infer.structured_outputs.items()}
    with tf.device("CPU"), tf.Graph().as_default() as graph:
        tf.import_graph_def(tf_loader.from_function(infer, inputs, outputs), name="")
        converted = tfonnx.process_tf_graph(
            graph,
            continue_on_error=True,
            opset=OPSET,
            inputs_as_nchw=inputs_as_nchw,
            input_names=inputs,
            output_names=outputs,
            tensors_to_rename=names,
        )
        return optimizer.optimize_graph(converted, catch_errors=False).make_model("keras_convnets")


def _check_operators(converted: onnx.ModelProto) -> None:
    strange = {node.op_type for node in converted.graph.node if node.domain not in STANDARD_DOMAINS}
    strange |= {node.op_type for node in converted.graph.node if not onnx.defs.has(node.op_type)}
    if strange:
        raise RuntimeError(f"the network does not convert to ONNX: no operator for {', '.join(sorted(strange))}")


def _take_out_constants(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Fold computations on weights and constants, and take all these tensors out of a model.

    Those of floating point become inputs of the model. Integers stay in it, as shapes are inferred from them.

    Args:
        model: takes images and weights.
        weights: the weights by the names of the inputs.

    Returns:
        The values of all inputs but the images, by name.
    """
    graph = model.graph
    arrays = {**weights, **{tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}}
    names = set(arrays)
    foldable: list[onnx.NodeProto] = []
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        is_constant = names.issuperset(name for name in node.input if name)
        names.update(node.output if is_constant else ())
        (foldable if is_constant else kept).append(node)
    wanted = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    results = [name for node in foldable for name in node.output if name in wanted]
    computation = helper.make_graph(
        foldable,
        "constants",
        [helper.make_empty_tensor_value_info(name) for name in arrays],
        [helper.make_empty_tensor_value_info(name) for name in results],
    )
    computed: Any = ReferenceEvaluator(computation, opsets={"": OPSET}).run(None, arrays) if results else []
    arrays |= zip(results, computed, strict=True)
    used = {name: array for name, array in arrays.items() if name in wanted}
    taken_out = {name: array for name, array in used.items() if np.issubdtype(array.dtype, np.floating)}
    integers = [numpy_helper.from_array(array, name) for name, array in used.items() if name not in taken_out]
    images = [value for value in graph.input if value.name not in weights]
    replace(graph.node, kept)
    replace(graph.initializer, integers)
    replace(graph.input, [*images, *map(as_input, taken_out, taken_out.values())])
    return taken_out


def _name_batch(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    for value in graph.output:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    # Inferred shapes between would carry another name for the same dimension; runtimes infer them again.
    del graph.value_info[:]


def _write(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a model with some of its inputs as initializers."""
    graph = model.graph
    replace(graph.input, [value for value in graph.input if value.name not in arrays])
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(model, path)
