"""ONNX files: plain graphs, and Keras' numbers in three runtimes, in both layouts and in eight bits."""

from __future__ import annotations

import json
from collections import Counter

import cv2
import keras
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from lively import some_images, trained
from onnx import helper, numpy_helper
from tf2onnx import tfonnx

import keras_convnets as kc
from keras_convnets.card import card_of_model
from keras_convnets.errors import UserError
from keras_convnets.export import load
from keras_convnets.export.folding import inference_network
from keras_convnets.export.formats.onnx import load_onnx, write_onnx
from keras_convnets.export.formats.onnx_int8 import quantize_onnx
from keras_convnets.images import preprocessing
from keras_convnets.networks import alexnet, vgg
from keras_convnets.prediction import view_encoded

# Sums in another order, in float32: what the exporter allows, and what other makers' kernels need.
TOLERANCE, FOREIGN_TOLERANCE = 1e-5, 1e-4
CLASSES = 7
COMMON = {"Sub": 1, "Softmax": 1}
POOLED = {**COMMON, "GlobalAveragePool": 1, "Squeeze": 1, "Gemm": 1}

# name: (builder, side, further arguments, operators besides the input's transposition)
FAMILIES = {
    "AlexNet": (
        *(kc.AlexNet, 99, {"preprocessing": preprocessing.BGR_MEANS}),
        {**COMMON, "Conv": 5, "Relu": 7, "LRN": 2, "MaxPool": 3, "Flatten": 1, "Gemm": 3},
    ),
    "AlexNet of one pixel": (
        *(kc.AlexNetOneTower, 67, {}),
        {**COMMON, "Conv": 5, "Relu": 7, "LRN": 2, "MaxPool": 3, "Flatten": 1, "Gemm": 3},
    ),
    "VGG11": (
        *(kc.VGG11, 64, {"preprocessing": preprocessing.UNIT_SCALED}),
        {**COMMON, "Conv": 8, "Relu": 10, "MaxPool": 5, "Flatten": 1, "Gemm": 3},
    ),
    "GoogLeNet": (
        *(kc.GoogLeNet, 64, {}),
        {**POOLED, "Conv": 57, "Relu": 57, "LRN": 2, "MaxPool": 13, "Concat": 9},
    ),
    "ResNet18": (*(kc.ResNet18, 48, {}), {**POOLED, "Conv": 20, "Relu": 17, "MaxPool": 1, "Add": 8}),
    "ResNet18 A": (
        *(kc.ResNet18, 48, {"shortcut": "A"}),
        {**POOLED, "Conv": 17, "Relu": 17, "MaxPool": 1, "Add": 8, "AveragePool": 3, "Pad": 3},
    ),
    "ResNet20": (*(kc.ResNet20, 16, {}), {**POOLED, "Conv": 19, "Relu": 19, "Add": 9, "AveragePool": 2, "Pad": 2}),
    "PlainNet20": (*(kc.PlainNet20, 16, {}), {**POOLED, "Conv": 19, "Relu": 19}),
    "ResNet50": (*(kc.ResNet50, 48, {}), {**POOLED, "Conv": 53, "Relu": 49, "MaxPool": 1, "Add": 16}),
}


# Grouped convolutions, response normalisation, fully connected layers, shortcuts; the others take minutes more.
QUICK = ("AlexNet", "ResNet20")


@pytest.fixture(
    scope="module", params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.heavy) for name in FAMILIES]
)
def exported(request, tmp_path_factory):
    """A family's network in both layouts: name, paths, images and Keras' probabilities."""
    builder, side, arguments, _ = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("onnx")
    images = some_images(side, 4)
    with pytest.MonkeyPatch.context() as patch:
        # The papers' 4096 take most of the time and show nothing more.
        patch.setattr(alexnet, "HIDDEN", 96)
        patch.setattr(vgg, "HIDDEN", 96)
        model = trained(builder(input_shape=(side, side, 3), classes=CLASSES, **arguments), images)
    network, card = inference_network(model), card_of_model(model, tuple("abcdefg"))
    # A second layout of the largest network would test nothing new.
    paths = {layout: folder / f"{layout}.onnx" for layout in ("nhwc", "nchw")[: 1 if builder is kc.ResNet50 else 2]}
    for layout, path in paths.items():
        write_onnx(network, card, path, layout)
    return request.param, paths, images, model(images, training=False).numpy()


def laid_out(images, layout):
    images = images.astype(np.float32)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if layout == "nchw" else images


def test_a_graph_has_one_operator_for_each_step_of_the_paper(exported):
    name, paths, images, _ = exported
    expected = FAMILIES[name][3]
    for layout, path in paths.items():
        model = onnx.load(path)
        counts = Counter(node.op_type for node in model.graph.node)
        assert counts == {**expected, **({"Transpose": 1} if layout == "nhwc" else {})}
        assert [(opset.domain, opset.version) for opset in model.opset_import if opset.domain == ""] == [("", 17)]
        shapes = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*model.graph.input, *model.graph.output)
        }
        assert shapes == {
            "images": ["batch", *laid_out(images, layout).shape[1:]],
            "probabilities": ["batch", CLASSES],
        }
        used = {name for node in model.graph.node for name in node.input}
        assert {tensor.name for tensor in model.graph.initializer} <= used


def test_metadata_tell_a_client_all_it_needs(exported):
    name, paths, images, _ = exported
    side = images.shape[1]
    for layout, path in paths.items():
        facts = {item.key: json.loads(item.value) for item in onnx.load(path).metadata_props}
        assert facts["class_names"] == list("abcdefg")
        assert facts["layout"] == layout
        assert facts["architecture"].lower() == FAMILIES[name][0].__name__.lower()
        assert facts["view"]["crop"] == [side, side]
        assert "RGB in 0-255" in facts["preprocessing"] and str(side) in facts["preprocessing"]


def test_three_runtimes_give_keras_numbers(exported):
    _, paths, images, expected = exported
    assert len(set(expected.argmax(1))) > 1  # the images matter, so the comparison can fail
    for layout, path in paths.items():
        inputs = laid_out(images, layout)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        by_onnx = session.run(["probabilities"], {"images": inputs})[0]
        one = session.run(["probabilities"], {"images": inputs[:1]})[0]
        # On some CPUs OpenVINO would compute in bfloat16 by default.
        precision = {"INFERENCE_PRECISION_HINT": "f32"}
        by_openvino = openvino.Core().compile_model(path, "CPU", precision)({"images": inputs})["probabilities"]
        by_opencv = cv2.dnn.readNetFromONNX(str(path))
        by_opencv.setInput(inputs, "images")
        assert np.abs(by_onnx - expected).max() <= TOLERANCE
        assert np.abs(one - expected[:1]).max() <= TOLERANCE
        assert np.abs(by_openvino - expected).max() <= FOREIGN_TOLERANCE
        assert np.abs(by_opencv.forward("probabilities") - expected).max() <= FOREIGN_TOLERANCE


def test_loading_takes_either_layout(exported):
    _, paths, images, expected = exported
    for path in paths.values():
        classifier = load(path)
        assert classifier.image_size == images.shape[1:3] and classifier.card.class_names == tuple("abcdefg")
        assert np.abs(classifier(images) - expected).max() <= TOLERANCE


def test_int8_keeps_names_layout_and_answers(exported, tmp_path):
    _, paths, images, expected = exported
    for path in paths.values():
        small = tmp_path / path.name
        quantize_onnx(path, small, images)
        before, after = onnx.load(path), onnx.load(small)
        assert {item.key: item.value for item in after.metadata_props} == {
            item.key: item.value for item in before.metadata_props
        }
        assert (after.graph.input, after.graph.output) == (before.graph.input, before.graph.output)
        counts = Counter(node.op_type for node in after.graph.node)
        convolutions = Counter(node.op_type for node in before.graph.node)["Conv"]
        assert counts["QLinearConv"] == convolutions and counts["QGemm"] > 0 and counts["LRN"] == 0
        assert {tensor.data_type for tensor in after.graph.initializer} >= {onnx.TensorProto.INT8}
        assert small.stat().st_size < 0.5 * path.stat().st_size
        got = load(small)(images)
        # Random networks are not sure of much; that a trained one keeps its answers is shown on photographs below.
        assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.8
        assert np.abs(got - expected).max() > 1e-5


@pytest.mark.parametrize("images", [np.zeros((0, 16, 16, 3), np.uint8), np.zeros((2, 16, 8, 3), np.uint8)])
def test_calibration_needs_images_of_the_networks_size(tmp_path, images):
    model = kc.ResNet20(input_shape=(16, 16, 3))
    write_onnx(inference_network(model), card_of_model(model), tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"give at least one, as \[n, 16, 16, 3\]"):
        quantize_onnx(tmp_path / "model.onnx", tmp_path / "small.onnx", images)
    assert not (tmp_path / "small.onnx").exists()


def test_zeros_go_into_a_pooling_only_where_nothing_is_negative(tmp_path):
    inputs = keras.Input((8, 8, 3), name="images")
    x = keras.layers.Conv2D(4, 3, bias_initializer=keras.initializers.Constant(-500))(inputs)
    x = keras.layers.ZeroPadding2D(1)(x)
    x = keras.layers.MaxPooling2D(3, strides=2)(x)
    x = keras.layers.Dense(3, activation="softmax")(keras.layers.GlobalAveragePooling2D()(x))
    network = keras.Model(inputs, {"probabilities": x})
    images = some_images(8, 4)
    card = card_of_model(keras.Model(inputs, x))
    write_onnx(network, card, tmp_path / "model.onnx")
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert counts["Pad"] == 1
    # onnxruntime 1.31 itself folds the padding into the pooling, wrongly; what the file says is asked here.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    got = session.run(None, {"images": images.astype(np.float32)})[0]
    assert np.abs(got - network(images)["probabilities"]).max() <= TOLERANCE


def test_the_converter_gets_a_graph_without_weights(tmp_path, monkeypatch):
    """It copies all that a graph holds in each of its passes."""
    monkeypatch.setattr(vgg, "HIDDEN", 96)
    graphs, convert = [], tfonnx.process_tf_graph

    def looking(graph, **arguments):
        graphs.append(graph.as_graph_def().ByteSize())
        return convert(graph, **arguments)

    monkeypatch.setattr(tfonnx, "process_tf_graph", looking)
    model = kc.VGG11(input_shape=(32, 32, 3), classes=CLASSES)
    write_onnx(inference_network(model), card_of_model(model), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size > 4 * model.count_params()
    assert len(graphs) == 1 and graphs[0] < 0.01 * 4 * model.count_params()


def test_what_is_computed_from_weights_alone_is_computed_once(tmp_path):
    """A batch normalisation that no convolution stands before is left a product and a sum."""
    inputs = keras.Input((8, 8, 3), name="images")
    x = keras.layers.MaxPooling2D(2)(inputs)
    normalization = keras.layers.BatchNormalization()
    x = keras.layers.GlobalAveragePooling2D()(normalization(x))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    rng = np.random.default_rng(0)
    normalization.set_weights([rng.uniform(0.5, 2, 3) for _ in range(4)])
    write_onnx(inference_network(model), card_of_model(model), tmp_path / "model.onnx")
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert not {"Sqrt", "Reciprocal", "Div", "Sub"} & set(counts), counts
    images = some_images(8, 4)
    assert np.abs(load(tmp_path / "model.onnx")(images) - model(images).numpy()).max() <= TOLERANCE


def test_an_unknown_layout_is_refused(tmp_path):
    model = kc.ResNet20(input_shape=(16, 16, 3))
    with pytest.raises(UserError, match="unknown layout 'nchv'; the nearest valid names are nchw, nhwc"):
        write_onnx(inference_network(model), card_of_model(model), tmp_path / "model.onnx", "nchv")


def test_files_of_others_are_refused(tmp_path):
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    values = [helper.make_tensor_value_info(name, 1, [1]) for name in ("images", "probabilities")]
    for output, sentence in (("probabilities", "has no class names"), ("scores", "takes and gives images, scores")):
        values[1].name = output
        node = helper.make_node("Add", ["images", "one"], [output])
        graph = helper.make_graph([node], "other", values[:1], values[1:], [one])
        opset = helper.make_opsetid("", 17)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "other.onnx")
        with pytest.raises(UserError, match=sentence):
            load_onnx(tmp_path / "other.onnx")
    (tmp_path / "other.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="not a model that ONNX Runtime loads"):
        load(tmp_path / "other.onnx")


@pytest.mark.heavy
def test_int8_knows_photographs_as_float32_does(real_data, tmp_path):
    model = kc.GoogLeNet(weights=real_data.parent / "weights" / "bvlc_googlenet.onnx")
    card = card_of_model(model)
    files = sorted((real_data / "imagenet_samples").glob("*.JPEG"))
    images = view_encoded([path.read_bytes() for path in files], card)
    labels = np.array([card.class_ids.index(path.name.split("_")[0]) for path in files])
    full, small = tmp_path / "model.onnx", tmp_path / "model.int8.onnx"
    write_onnx(inference_network(model), card, full)
    quantize_onnx(full, small, images[::4])
    answers = {path: np.concatenate([load(path)(batch) for batch in np.split(images, 10)]) for path in (full, small)}
    correct = {path: int((answer.argmax(1) == labels).sum()) for path, answer in answers.items()}
    assert len(files) == 100 and correct[full] == 76
    assert abs(correct[small] - correct[full]) <= 3
    assert (answers[small].argmax(1) == answers[full].argmax(1)).sum() >= 95
    assert np.abs(answers[full][:5] - model(images[:5], training=False).numpy()).max() <= TOLERANCE
