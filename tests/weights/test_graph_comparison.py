"""What networks do between their weights: arrays that all fit belong to another network all the same."""

from __future__ import annotations

import json
import re
import shutil

import h5py
import keras
import numpy as np
import onnx
import pytest
import zoo
from keras import layers
from onnx import helper, numpy_helper
from reference import randomise

import keras_convnets
from keras_convnets import CIFARPlainNet, CIFARResNet
from keras_convnets.errors import UserError
from keras_convnets.networks import resnet_cifar
from keras_convnets.networks.layers import LRN, GroupedConv2D, ShortcutA
from keras_convnets.weights import graph_comparison
from keras_convnets.weights.loading import load_weights
from keras_convnets.weights.onnx_graph import onnx_steps

SIDE, CLASSES = 31, 3
NAMES = {0: "first", 1: "norm", 2: "second", 3: "third", 4: "last"}


def network():
    """Every kind of step that the package's networks have."""
    images = keras.Input((SIDE, SIDE, 3))
    x = layers.ZeroPadding2D(1)(images)
    x = layers.Conv2D(4, 3, strides=2, name="first")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Activation("relu")(x)
    x = LRN(n=3, k=1.0, alpha=0.01, beta=0.5)(x)
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.MaxPooling2D(3, strides=2)(x)
    y = GroupedConv2D(8, 3, strides=1, padding="same", groups=2, activation="relu", name="second")(x)
    y = layers.Add()([ShortcutA(8)(x), y])
    z = layers.Conv2D(2, 1, activation="relu", name="third")(layers.AveragePooling2D(3, 1, padding="same")(y))
    x = layers.GlobalAveragePooling2D()(layers.Concatenate()([y, z]))
    return keras.Model(images, layers.Dense(CLASSES, activation="softmax", name="last")(x))


def graph(**changes):
    """The same network as an ONNX graph, but for the changes: attributes by the node's name, None to leave it out."""
    shapes = {"first": (4, 3, 3, 3), "second": (8, 2, 3, 3), "third": (2, 8, 1, 1), "last": (10, CLASSES), "norm": (4,)}
    arrays = [numpy_helper.from_array(np.zeros(shape, np.float32), f"{name}_w") for name, shape in shapes.items()]
    arrays.append(numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 4, 0, 0], np.int64), "pads"))
    arrays.append(numpy_helper.from_array(np.array([0, 5, 0, 0, 0, 0, 0, 0], np.int64), "other_pads"))
    rows = [
        ("first", "Conv", "images first_w", {"strides": [2, 2], "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}),
        ("norm", "BatchNormalization", "first norm_w norm_w norm_w norm_w", {}),
        ("relu", "Relu", "norm", {}),
        ("lrn", "LRN", "relu", {"size": 3, "bias": 1.0, "alpha": 0.03, "beta": 0.5}),
        ("pool", "MaxPool", "lrn", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        ("second", "Conv", "pool second_w", {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3], "group": 2}),
        ("relu2", "Relu", "second", {}),
        ("shortcut", "Pad", "pool pads", {}),
        ("add", "Add", "relu2 shortcut", {}),
        ("mean", "AveragePool", "add", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}),
        ("third", "Conv", "mean third_w", {"kernel_shape": [1, 1]}),
        ("relu3", "Relu", "third", {}),
        ("concat", "Concat", "add relu3", {"axis": 1}),
        ("global", "GlobalAveragePool", "concat", {}),
        ("flat", "Flatten", "global", {}),
        ("last", "Gemm", "flat last_w", {}),
    ]
    nodes, instead = [], {}
    for name, kind, inputs, attributes in rows:
        taken = [instead.get(key, key) for key in inputs.split()]
        change = changes.get(name, {})
        if change is None:
            instead[name] = taken[0]
            continue
        change = dict(change)
        kind, taken = change.pop("op_type", kind), change.pop("inputs", taken)
        kept = {key: value for key, value in {**attributes, **change}.items() if value is not None}
        nodes.append(helper.make_node(kind, taken, [name], name, **kept))
    images = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    result = helper.make_tensor_value_info("last", onnx.TensorProto.FLOAT, ["N", CLASSES])
    return helper.make_graph(nodes, "net", [images], [result], arrays)


def compared(**changes):
    """The first difference between the network and the changed graph."""
    net = graph(**changes)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in net.initializer}
    forms, labels = graph_comparison.Forms(), {name: at for at, name in NAMES.items()}
    ours = graph_comparison.places(graph_comparison.keras_steps(network().get_config()), labels, (SIDE, SIDE), forms)
    theirs = graph_comparison.places(onnx_steps(net, constants, {}), labels, (SIDE, SIDE), forms)
    assert ours.keys() == theirs.keys() == NAMES.keys()
    return graph_comparison.difference(ours, theirs, NAMES, forms)


SAME = {
    "nothing": {},
    "padding written out": {"pool": {"ceil_mode": 0, "pads": [0, 0, 1, 1]}},
    "automatic padding": {"second": {"auto_pad": "SAME_UPPER", "pads": None}},
    "automatic padding of odd sides": {"first": {"auto_pad": "SAME_UPPER", "pads": None}},
    "addends in turn": {"add": {"inputs": ["shortcut", "relu2"]}},
    "sum": {"add": {"op_type": "Sum"}},
    "mean as a pooling": {"global": {"op_type": "AveragePool", "kernel_shape": [8, 8]}},
    "mean as a reduction": {"global": {"op_type": "ReduceMean", "axes": [2, 3]}},
}
OTHER = {
    "stride": ({"first": {"strides": [1, 1]}}, r"first has strides 2x2 and the file's has 1x1"),
    "padding": ({"first": {"pads": [0, 0, 2, 2]}}, r"first has padding above and on the left 1x1 .* 0x0"),
    "padding behind": ({"first": {"pads": [1, 1, 3, 3]}}, r"first has places for its kernel 16x16 .* 17x17"),
    "dilation": ({"second": {"dilations": [2, 2]}}, r"second has dilation 1x1 and the file's has 2x2"),
    "groups": ({"second": {"group": 1}}, r"second has groups 2 and the file's has 1"),
    "no activation": ({"relu": None}, r"second takes norm, relu, LRN.* and norm, LRN"),
    "another activation": (
        {"relu2": {"op_type": "LeakyRelu"}},
        r"third takes .*second, relu.* and .*second, LeakyRelu",
    ),
    "no pooling": (
        {"pool": None},
        r"second takes norm, relu, LRN.*, max pooling.* and norm, relu, LRN[^,]* in the file",
    ),
    "pool's kind": (
        {"pool": {"op_type": "AveragePool"}},
        r"second takes .*max pooling 3x3.* and .*average pooling 3x3",
    ),
    "pool's kernel": ({"pool": {"kernel_shape": [2, 2]}}, r"max pooling 3x3 .* and .*max pooling 2x2"),
    "pool's stride": ({"pool": {"strides": [1, 1]}}, r"strides 2x2 .* and .*strides 1x1"),
    "pool's padding": ({"pool": {"pads": [1, 1, 0, 0]}}, r"padding 0x0 .* and .*padding 1x1"),
    "pool rounds down": ({"pool": {"ceil_mode": 0}}, r"to 8x8 .* and .*to 7x7"),
    "mean with its padding": (
        {"mean": {"count_include_pad": 1}},
        r"third takes .*does not count.* and .*padding counts",
    ),
    "constants": ({"lrn": {"alpha": 0.01}}, r"LRN alpha 0.01 .* and .*LRN alpha 0.00333"),
    "no normalisation": ({"lrn": None}, r"second takes norm, relu, LRN.* and norm, relu, max pooling"),
    "no shortcut": ({"add": None}, r"third takes .*sum.* and second, relu, average pooling"),
    "channels before": ({"shortcut": {"inputs": ["pool", "other_pads"]}}, r"third takes .*0x4.* and .*5x0"),
    "other branches": ({"concat": {"inputs": ["relu3", "add"]}}, r"last takes .*concatenation"),
    "transposed": ({"flat": {"op_type": "Transpose", "perm": [0, 2, 3, 1]}}, r"last takes .* and .*Transpose"),
    "preprocessing": ({"first": {"inputs": ["scaled", "first_w"]}}, r"first takes images in the network and"),
}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_the_same_network_however_it_is_written(changes):
    changes = {
        name: {key: value for key, value in change.items() if value is not None} for name, change in changes.items()
    }
    assert compared(**changes) is None


@pytest.mark.parametrize("changes, words", OTHER.values(), ids=OTHER)
def test_another_network_is_told_by_layer_and_values(changes, words):
    found = compared(**changes)
    assert found is not None and re.search(words, found), found


def test_what_a_file_says_is_shown_safely_and_in_bounds():
    """Operators' names are the file's: no escape reaches a terminal, and many branches make no endless sentence."""
    found = compared(relu2={"op_type": "Re\x1b[31mlu\n" + "x" * 5000})
    assert found.isprintable() and r"Re\x1b[31mlu\n" in found and len(found) < 1000
    forms = graph_comparison.Forms()
    number = forms.number("images")
    for depth in range(30):
        number = forms.number("concatenation", depth, [number] * 100)
    assert len(forms.words(number, {})) < 2000


def test_a_stride_of_nothing_is_no_network(tmp_path):
    whole = onnx.load(zoo.resnet(tmp_path / "whole.onnx", 18, 32, CLASSES))
    pool = next(node for node in whole.graph.node if node.op_type == "MaxPool")
    next(item for item in pool.attribute if item.name == "strides").ints[:] = [0, 0]
    onnx.save(whole, tmp_path / "still.onnx")
    refused(
        keras_convnets.ResNet18(input_shape=(32, 32, 3), classes=CLASSES), tmp_path / "still.onnx", "can be compared"
    )


def test_every_other_pixel_however_it_is_taken():
    """Option A: a slice an axis, as PyTorch exports it, and a pooling of one pixel."""
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, layers.Conv2D(2, 1, name="first")(ShortcutA(5, 2)(images)))
    forms = graph_comparison.Forms()
    ours = graph_comparison.places(graph_comparison.keras_steps(model.get_config()), {"first": 0}, (8, 8), forms)
    arrays = {"zero": [0], "end": [2**63 - 1], "rows": [2], "columns": [3], "two": [2], "three": [3]}
    arrays |= {"pads": [0, 0, 0, 0, 0, 2, 0, 0], "split": [0, 1, 0, 0, 0, 1, 0, 0]}
    constants = {name: np.array(value, np.int64) for name, value in arrays.items()} | {"w": np.zeros((2, 5, 1, 1))}

    def theirs(step, pads):
        nodes = [
            helper.make_node("Slice", ["images", "zero", "end", "rows", step], ["a"]),
            helper.make_node("Slice", ["a", "zero", "end", "columns", step], ["b"]),
            helper.make_node("Pad", ["b", pads], ["c"]),
            helper.make_node("Conv", ["c", "w"], ["first"]),
        ]
        value = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, None)
        steps = onnx_steps(helper.make_graph(nodes, "net", [value], []), constants, {})
        return graph_comparison.places(steps, {"first": 0}, (8, 8), forms)

    assert graph_comparison.difference(ours, theirs("two", "pads"), {0: "first"}, forms) is None
    assert "2x2" in graph_comparison.difference(ours, theirs("three", "pads"), {0: "first"}, forms)
    # Half of the new channels before the old ones: the same shapes, another network.
    assert "1x1" in graph_comparison.difference(ours, theirs("two", "split"), {0: "first"}, forms)


def refused(model, path, pattern):
    before = model.get_weights()
    with pytest.raises(UserError, match=pattern):
        load_weights(model, path)
    for ours, was in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, was)


def test_an_onnx_file_without_activations_and_pooling(tmp_path):
    whole = onnx.load(zoo.resnet(tmp_path / "whole.onnx", 18, 32, CLASSES))
    model = keras_convnets.ResNet18(input_shape=(32, 32, 3), classes=CLASSES)
    load_weights(model, tmp_path / "whole.onnx")
    first = next(node for node in whole.graph.node if node.op_type == "MaxPool")
    for node in whole.graph.node:
        node.input[:] = [first.input[0] if name == first.output[0] else name for name in node.input]
    onnx.save(whole, tmp_path / "unpooled.onnx")
    refused(model, tmp_path / "unpooled.onnx", r"conv2_block1_1_conv takes conv1_bn, relu, max.* and conv1_bn, relu in")
    for node in whole.graph.node:
        node.op_type = "Identity" if node.op_type == "Relu" else node.op_type
    onnx.save(whole, tmp_path / "linear.onnx")
    refused(model, tmp_path / "linear.onnx", r"conv2_block1_1_conv takes conv1_bn, relu.* and conv1_bn in the file")


def test_caffes_alexnet_at_a_size_that_the_paper_pads(tmp_path):
    """As the published file, made at 227, at 224: its arrays fit, and conv1 would see other pixels."""
    with zoo.removed_after(zoo.alexnet(tmp_path / "alexnet.onnx", 99, CLASSES)) as path:
        shape = {"input_shape": (96, 96, 3), "classes": CLASSES}
        with pytest.raises(UserError, match=r"conv1 has padding .* 1x1 and the file's has 0x0; its own size is .*227"):
            keras_convnets.AlexNet(weights=path, **shape)
        keras_convnets.AlexNet(weights=path, input_shape=(107, 99, 3), include_top=False)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A plain network and its files."""
    model = CIFARPlainNet(8, classes=CLASSES)
    randomise(model)
    folder = tmp_path_factory.mktemp("plain")
    model.save_weights(folder / "plain.weights.h5")
    model.save(folder / "plain.keras")
    model.save(folder / "plain.h5")
    return model, folder


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras", ".h5"])
def test_a_plain_networks_weights_are_not_a_residual_ones(plain, suffix):
    model, folder = plain
    residual = CIFARResNet(8, classes=CLASSES)
    words = r"conv3_block1_1_conv takes .*sum.* in the network and conv2_block1_2_bn, relu in the file"
    refused(residual, folder / f"plain{suffix}", words)
    again = CIFARPlainNet(8, classes=CLASSES, weights=folder / f"plain{suffix}")
    for ours, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_weights_of_keras_own_tell_names_alone_and_the_log_says_so(plain, tmp_path, caplog):
    model, folder = plain
    shutil.copy(folder / "plain.weights.h5", tmp_path / "bare.weights.h5")
    with h5py.File(tmp_path / "bare.weights.h5", "r+") as file:
        del file["network_config"]
    caplog.clear()
    load_weights(CIFARPlainNet(8, classes=CLASSES), tmp_path / "bare.weights.h5")
    assert "bare.weights.h5 tells names and shapes alone" in caplog.text
    caplog.clear()
    load_weights(CIFARPlainNet(8, classes=CLASSES), folder / "plain.weights.h5")
    assert not caplog.text


def test_keras_reads_weights_files_with_a_configuration(plain):
    model, folder = plain
    own = keras.Model(model.input, model.output)
    own.load_weights(folder / "plain.weights.h5")
    CIFARPlainNet(8, classes=CLASSES).load_weights(folder / "plain.weights.h5")


@pytest.mark.parametrize("change, words", [
    ({"dilation_rate": [2, 2]}, "conv2_block1_1_conv has dilation 1x1 and the file's has 2x2"),
    ({"activation": "relu"}, "conv2_block1_1_bn takes conv2_block1_1_conv in the network and .*, relu in the file"),
    ({"padding": "valid"}, "conv2_block1_1_conv has padding above and on the left 1x1 and the file's has 0x0"),
])  # fmt: skip
def test_a_keras_file_of_other_settings(plain, tmp_path, change, words):
    model, _ = plain
    config = json.loads(json.dumps(model.get_config()))
    layer = next(layer for layer in config["layers"] if layer["config"]["name"] == "conv2_block1_1_conv")
    layer["config"].update(change)
    other = type(model).from_config(config)
    other.set_weights(model.get_weights())
    other.save(tmp_path / "other.keras")
    refused(CIFARPlainNet(8, classes=CLASSES), tmp_path / "other.keras", words)


def test_nested_networks_are_compared_inside(monkeypatch):
    """As the deepest ones are built: models of several blocks."""
    monkeypatch.setattr(resnet_cifar, "DEEPEST_FLAT", 13)
    monkeypatch.setattr(resnet_cifar, "BLOCKS_PER_NEST", 1)
    nested = CIFARResNet(14, classes=CLASSES)
    assert sum(isinstance(layer, keras.Model) for layer in nested.layers) == 6
    steps = list(graph_comparison.keras_steps(nested.get_config()))
    labels = {layer: layer for layer in (step.layer for step in steps) if layer}
    forms = graph_comparison.Forms()
    found = graph_comparison.places(steps, labels, (32, 32), forms)
    assert len(found) == 2 * 13 + 1
    plain_steps = graph_comparison.keras_steps(CIFARPlainNet(14, classes=CLASSES).get_config())
    other = graph_comparison.places(plain_steps, labels, (32, 32), forms)
    words = graph_comparison.difference(found, other, {name: name for name in labels}, forms)
    assert words.startswith("conv2_block2_1_conv takes") and "sum" in words
    again = graph_comparison.places(
        graph_comparison.keras_steps(json.loads(nested.to_json())["config"]), labels, (32, 32), forms
    )
    assert graph_comparison.difference(found, again, {name: name for name in labels}, forms) is None


def test_a_configuration_of_keras_2():
    """As legacy files have it: calls as lists, not as dictionaries."""
    call = lambda *names: [[[name, 0, 0, {}] for name in names]]  # noqa: E731
    entries = [
        ("InputLayer", {"name": "in", "batch_input_shape": [None, 8, 8, 3]}, []),
        ("ZeroPadding2D", {"name": "pad", "padding": [[1, 1], [1, 1]]}, call("in")),
        ("Conv2D", {"name": "a", "filters": 3, "kernel_size": [3, 3], "strides": [2, 2], "padding": "valid",
                    "activation": "relu"}, call("pad")),
        ("Conv2D", {"name": "b", "filters": 3, "kernel_size": [1, 1], "strides": [2, 2]}, call("in")),
        ("Add", {"name": "add"}, call("a", "b")),
        ("Dense", {"name": "c", "units": 2, "activation": "softmax"}, call("add")),
    ]  # fmt: skip
    legacy = {
        "input_layers": [["in", 0, 0]],
        "output_layers": [["c", 0, 0]],
        "layers": [{"class_name": kind, "config": own, "inbound_nodes": nodes} for kind, own, nodes in entries],
    }
    images = keras.Input((8, 8, 3))
    a = layers.Conv2D(3, 3, strides=2, activation="relu", name="a")(layers.ZeroPadding2D(1)(images))
    x = layers.Add()([layers.Conv2D(3, 1, strides=2, name="b")(images), a])
    model = keras.Model(images, layers.Dense(2, name="c")(x))
    forms, labels = graph_comparison.Forms(), {name: name for name in "abc"}
    ours = graph_comparison.places(graph_comparison.keras_steps(model.get_config()), labels, (8, 8), forms)
    theirs = graph_comparison.places(graph_comparison.keras_steps(legacy), labels, (8, 8), forms)
    assert len(theirs) == 3 and graph_comparison.difference(ours, theirs, labels, forms) is None
