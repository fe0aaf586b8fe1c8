"""ONNX in eight bits: static quantisation, calibrated on images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_convnets.errors import UserError
from keras_convnets.export.formats.format import INT8_TOLERANCE, Artifact, Format, Job
from keras_convnets.export.formats.onnx import FILE, load_onnx

if TYPE_CHECKING:
    import onnx
    from onnxruntime import quantization

# Softmax stays in float32: a 256th is too coarse for the probabilities of a thousand classes. So do the mean's
# subtraction, whose input has eight bits already, and the response normalisation, whose squares need more.
OPERATORS = ("Add", "Concat", "Conv", "Gemm", "GlobalAveragePool", "MaxPool", "Relu")
NORMALIZATION = "response_normalization"


def quantize_onnx(path: Path, quantized: Path, images: np.ndarray | None) -> None:
    """Quantise an ONNX file that was exported here to int8 weights and uint8 activations, for ONNX Runtime.

    Names, the dynamic batch dimension, layout and metadata are those of the float32 file.

    Args:
        path: the float32 file.
        quantized: the file to write.
        images: uint8 [n, H, W, 3], RGB, of the input's size, whatever the file's layout: the range of every activation
            is the one that they cause.

    Raises:
        UserError: if there is no image, or they are of another size.
    """
    import onnx
    from onnx import helper
    from onnxruntime import quantization

    model = onnx.load(path)
    facts = {item.key: item.value for item in model.metadata_props}
    is_nchw = json.loads(facts.get("layout", "null")) == "nchw"
    sides = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    height, width = sides[2:] if is_nchw else sides[1:3]
    if images is None or images.ndim != 4 or len(images) == 0 or images.shape[1:] != (height, width, 3):
        came = "none" if images is None else f"an array {list(images.shape)}"
        raise UserError(
            f"calibration images are {came}; eight bits need images that the network will see: give at least one, as "
            f"[n, {height}, {width}, 3]."
        )
    _open_normalizations(model)
    # The mark of onnxruntime's own preparation: the exporter has folded all that it would fold.
    helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    # Weights get 7 bits: processors without VNNI instructions sum products of 8 bits in 16 bits, which overflow.
    # Measured with GoogLeNet on 100 photographs, of which 25 calibrate it: on such a processor 96 answers are those of
    # float32 with 7 bits and 80 with 8 bits; on one with VNNI it is 96 and 100. Percentiles and entropy answer alike
    # within one photograph and take longer to find; one scale for all filters changes 2 answers, symmetric activations
    # 3, ReLUs apart from their convolutions 5. Pairs of QuantizeLinear and DequantizeLinear give the same answers in
    # half as long again.
    quantization.quantize_static(
        model,
        quantized,
        _one_by_one(images.transpose(0, 3, 1, 2) if is_nchw else images),
        quant_format=quantization.QuantFormat.QOperator,
        op_types_to_quantize=list(OPERATORS),
        nodes_to_exclude=[node.name for node in model.graph.node if node.name.startswith(NORMALIZATION)],
        per_channel=True,
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )
    written = onnx.load(quantized)
    helper.set_model_props(written, facts)
    onnx.save(written, quantized)


def _one_by_one(images: np.ndarray) -> quantization.CalibrationDataReader:
    """Return what gives images one at a time, which keeps the activations of one in memory."""
    from onnxruntime import quantization

    waiting = iter(images)

    class Images(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(waiting, None)
            return None if image is None else {"images": image[None].astype(np.float32)}

    return Images()


def _open_normalizations(model: onnx.ModelProto) -> None:
    """Write LRN as a sum over neighbouring maps and two square roots: x / s ** 0.75 is x / (s ** 0.5 * s ** 0.25).

    ONNX Runtime raises to the power number by number, which in GoogLeNet takes longer than all convolutions together
    in float32, and three times as long as they do in eight bits.
    """
    import onnx
    from onnx import helper, numpy_helper

    inferred = onnx.shape_inference.infer_shapes(model).graph
    maps = {value.name: value.type.tensor_type.shape.dim[1].dim_value for value in inferred.value_info}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == "LRN" and attributes["beta"] == 0.75:
            name = f"{NORMALIZATION}_{len(nodes)}"
            weights = _neighbour_sum(maps[node.input[0]], attributes)
            model.graph.initializer.extend(
                numpy_helper.from_array(value, f"{name}_{what}") for what, value in weights.items()
            )
            nodes += _square_roots(node.input[0], node.output[0], name)
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _neighbour_sum(maps: int, attributes: dict) -> dict[str, np.ndarray]:
    """Return the 1x1 convolution of squares that gives k + alpha / n * (sum over n neighbouring maps)."""
    places = np.arange(maps)
    near = np.abs(places[:, None] - places) <= attributes["size"] // 2
    kernel = near * (attributes["alpha"] / attributes["size"])
    bias = np.full(maps, attributes["bias"])
    return {"kernel": kernel[..., None, None].astype(np.float32), "bias": bias.astype(np.float32)}


def _square_roots(x: str, result: str, name: str) -> list[onnx.NodeProto]:
    from onnx import helper

    steps = (
        ("Mul", (x, x), f"{name}_squares"),
        ("Conv", (f"{name}_squares", f"{name}_kernel", f"{name}_bias"), f"{name}_sum"),
        ("Sqrt", (f"{name}_sum",), f"{name}_root"),
        ("Sqrt", (f"{name}_root",), f"{name}_fourth_root"),
        ("Mul", (f"{name}_root", f"{name}_fourth_root"), f"{name}_divisor"),
        ("Div", (x, f"{name}_divisor"), result),
    )
    return [
        helper.make_node(kind, inputs, [output], name=f"{name}_{number}")
        for number, (kind, inputs, output) in enumerate(steps)
    ]


def _write(job: Job, artifact: Artifact, folder: Path) -> None:
    quantize_onnx(folder / FILE, folder / artifact.file, job.calibration)


FORMAT = Format(
    (Artifact("onnx int8", "model.int8.onnx", "onnxruntime", "int8", INT8_TOLERANCE),),
    _write,
    load_onnx,
    suffix=".onnx",
    requires=("onnx",),
)
