"""Every registered network is the papers': parameters, layers, maps, initial values."""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
import re
from unittest import mock

import keras
import numpy as np
import pytest
from network_checks import CIFAR, DEEPEST, IMAGENET, QUICK, as_numpy, both_families, built, family_of, leaves, smallest

from keras_convnets import (
    get_model,
    model_info,
)
from keras_convnets.errors import UserError
from keras_convnets.networks.registry import ARCHITECTURES

deepest_is_heavy = (pytest.mark.heavy, pytest.mark.timeout(300))
# The smallest of both families and the deepest that is not nested; the others differ from these in depth alone.
ENDS = ("ResNet20", "ResNet110", "PlainNet20")
ALL_CIFAR = [
    *(name if name in ENDS else pytest.param(name, marks=pytest.mark.heavy) for name in QUICK),
    pytest.param(DEEPEST, marks=deepest_is_heavy),
]
# Deeper than ResNet50 and its v1_5; test_registry.py checks what the table says of them.
BETWEEN = ("ResNet101", "ResNet152", "ResNet101v1_5", "ResNet152v1_5")
ALL_IMAGENET = [pytest.param(name, marks=pytest.mark.heavy) if name in BETWEEN else name for name in IMAGENET]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is kept of a network at its default size: half a gigabyte of weights is not."""

    info: object
    trainable: int
    counted: int
    name: str
    input_name: str
    output_names: list
    layers: dict  # by name, in order: class name, configuration, output shape, names of the layers before
    built_as: object


@functools.cache
def facts(name):
    """A registered network's facts, built once; its memory is given back.

    Counting needs no random numbers, and drawing 144 million takes seconds.
    """
    if name in CIFAR:
        model = built(name)
    else:
        zeros = functools.partialmethod(lambda self, shape, dtype=None: keras.ops.zeros(shape, dtype))
        with (
            mock.patch.object(keras.initializers.VarianceScaling, "__call__", zeros),
            mock.patch.object(keras.initializers.RandomNormal, "__call__", zeros),
        ):
            model = get_model(name)
    layers = {}
    for layer in leaves(model):
        before = [tensor._keras_history.operation.name for tensor in layer._inbound_nodes[0].input_tensors]
        layers[layer.name] = (type(layer).__name__, layer.get_config(), layer.output.shape[1:], before)
    found = Facts(
        info=model_info(model),
        trainable=sum(math.prod(weight.shape) for weight in model.trainable_weights),
        counted=model.count_params(),
        name=model.name,
        input_name=model.input.name,
        # A plain list: Keras' own knows the model's layers, and with them the weights stay.
        output_names=list(model.output_names),
        layers=layers,
        built_as=model.built_as,
    )
    del model, layer, before
    gc.collect()
    return found


@pytest.mark.parametrize("name", [*ALL_IMAGENET, *ALL_CIFAR])
def test_what_is_built_is_what_the_registry_says(name):
    entry, found = ARCHITECTURES[name], facts(name)
    info = found.info
    assert (info.parameters, info.multiply_adds, info.depth) == (entry.parameters, entry.multiply_adds, entry.depth)
    assert (info.input_shape, info.output_shape) == (entry.input_shape, (entry.classes,))
    # Keras' own counting.
    assert found.trainable == entry.parameters
    assert info.parameters + info.statistics == found.counted
    assert (found.name, found.input_name, found.output_names) == (name.lower(), "images", ["probabilities"])
    expected = {"classes": entry.classes, "input_shape": list(entry.input_shape)}
    assert (found.built_as.architecture, dict(found.built_as.arguments)) == (name, expected)
    dtypes = {name: str(found.layers[name][1]["dtype"]) for name in ("predictions", "probabilities")}
    assert all("float32" in dtype for dtype in dtypes.values())


@pytest.mark.parametrize("name", ALL_CIFAR)
def test_a_network_has_the_layers_of_the_papers_table(name):
    depth = int(re.sub(r"\D", "", name))
    n = (depth - 2) // 6
    found = {}
    for layer in leaves(built(name)):
        if isinstance(layer, keras.layers.Conv2D):
            assert layer.kernel_size == (3, 3) and not layer.use_bias and layer.groups == 1
            key = (layer.output.shape[1:3], layer.filters)
            found[key] = found.get(key, 0) + 1
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon, layer.center, layer.scale) == (0.9, 1e-5, True, True)
    assert found == {((32, 32), 16): 1 + 2 * n, ((16, 16), 32): 2 * n, ((8, 8), 64): 2 * n}
    # "totally 3n shortcuts"
    additions = sum(isinstance(layer, keras.layers.Add) for layer in leaves(built(name)))
    assert additions == (3 * n if name.startswith("ResNet") else 0)


@pytest.mark.parametrize("name", ALL_CIFAR)
def test_stages_and_outputs_bear_the_papers_names(name):
    n = (int(re.sub(r"\D", "", name)) - 2) // 6
    model = built(name)
    assert model.name == name.lower()
    assert model.input.name == "images"
    assert model.output_names == ["probabilities"]
    assert keras.backend.standardize_dtype(model.output.dtype) == "float32"
    wanted = ["conv1_conv"]
    for stage in ("conv2", "conv3", "conv4"):
        wanted += [f"{stage}_block{block}_{layer}_conv" for block in range(1, n + 1) for layer in (1, 2)]
    convolutions = [layer.name for layer in leaves(model) if isinstance(layer, keras.layers.Conv2D)]
    assert convolutions == wanted
    names = [layer.name for layer in leaves(model) if not isinstance(layer, keras.layers.InputLayer)]
    assert len(set(names)) == len(names)
    normalisations = [layer.name for layer in leaves(model) if isinstance(layer, keras.layers.BatchNormalization)]
    assert normalisations == [re.sub("_conv$", "_bn", layer) for layer in wanted]
    assert {"conv1_relu", f"conv4_block{n}_out", "avg_pool", "predictions"} <= set(names)


# Side and number of maps where the papers print them: figure 2 of AlexNet, table 1 of the others.
MAPS = {
    "alexnet": {"conv1": (55, 96), "pool1": (27, 96), "conv2": (27, 256), "pool2": (13, 256), "pool5": (6, 256)},
    "vgg": {f"block{block}_pool": (224 >> block, min(32 << block, 512)) for block in range(1, 6)},
    "googlenet": {
        "conv1": (112, 64),
        "pool1": (56, 64),
        "conv2": (56, 192),
        "pool2": (28, 192),
        **{f"inception_{row}": (28, maps) for row, maps in (("3a", 256), ("3b", 480))},
        **{f"inception_4{row}": (14, maps) for row, maps in zip("abcde", (512, 512, 512, 528, 832), strict=True)},
        **{f"inception_{row}": (7, maps) for row, maps in (("5a", 832), ("5b", 1024))},
    },
    "resnet": {"conv1_relu": (112, 64), "pool1_pool": (56, 64)},
}
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@pytest.mark.parametrize("name", ALL_IMAGENET)
def test_maps_have_the_papers_sizes(name):
    wanted = dict(MAPS[family_of(name)])
    if family_of(name) == "resnet":
        counts = BLOCKS[ARCHITECTURES[name].depth]
        widen = 4 if ARCHITECTURES[name].depth >= 50 else 1
        for stage, count in enumerate(counts, start=2):
            wanted |= {f"conv{stage}_block{n}_out": (224 >> stage, widen * (16 << stage)) for n in range(1, count + 1)}
        assert f"conv5_block{counts[-1] + 1}_out" not in facts(name).layers
    found = {layer: facts(name).layers[layer][2] for layer in wanted}
    assert found == {layer: (side, side, maps) for layer, (side, maps) in wanted.items()}


@pytest.mark.parametrize("name", ALL_IMAGENET)
def test_a_bottlenecks_stride_is_on_its_first_layer_unless_the_name_says_otherwise(name):
    convolutions = {layer: config for layer, (_, config, _, _) in facts(name).layers.items() if "strides" in config}
    strides = {layer: config["strides"][0] for layer, config in convolutions.items() if "_block" in layer}
    halving = {layer for layer, stride in strides.items() if stride == 2}
    if family_of(name) != "resnet":
        assert not halving
        return
    layer = 2 if name.endswith("v1_5") else 1
    wanted = {f"conv{stage}_block1_{layer}_conv" for stage in (3, 4, 5)}
    if name.startswith("ResNet"):
        wanted |= {f"conv{stage}_block1_0_conv" for stage in (3, 4, 5)}
    assert halving == wanted


@pytest.mark.parametrize("name", ALL_IMAGENET)
def test_dropout_is_where_the_paper_has_it(name):
    found = [(config["rate"], before) for kind, config, _, before in facts(name).layers.values() if kind == "Dropout"]
    wanted = {"alexnet": ("fc6", "fc7"), "vgg": ("fc1", "fc2")}.get(family_of(name), ())
    if name == "GoogLeNet":
        assert found == [(0.4, ["avg_pool"])]
    else:
        assert found == [(0.5, [layer]) for layer in wanted]


@pytest.mark.parametrize(
    "name",
    ["AlexNet", "VGG11", "ResNet18", *(pytest.param(n, marks=pytest.mark.heavy) for n in ("VGG16", "ResNet50"))],
)
def test_initial_values_are_the_papers(name):
    # Small, because only the fans count.
    model = get_model(name, input_shape=(smallest(name), smallest(name), 3))
    ones = {"conv2", "conv4", "conv5", "fc6", "fc7"} if name == "AlexNet" else set()
    for layer in model.layers:
        if not hasattr(layer, "kernel"):
            continue
        has_bias = family_of(name) != "resnet" or layer.name == "predictions"
        assert layer.use_bias == has_bias
        assert not has_bias or (as_numpy(layer.bias) == (layer.name in ones)).all(), layer.name
        kernel = as_numpy(layer.kernel)
        gaussian = name == "AlexNet" or (family_of(name) == "vgg" and isinstance(layer, keras.layers.Dense))
        # The fan-in is of Gaussians that are not cut off: He et al. 2015, equation 10.
        wanted = 0.01 if gaussian else np.sqrt(2 / math.prod(kernel.shape[:-1]))
        # Five times the spread of a standard deviation over so many draws.
        assert kernel.std() == pytest.approx(wanted, rel=5 / np.sqrt(2 * kernel.size)), layer.name
        assert abs(kernel.mean()) < 5 * wanted / np.sqrt(kernel.size), layer.name


@pytest.mark.parametrize("size, pad", [(224, ((1, 2), (1, 2))), (227, ((0, 0), (0, 0)))])
@pytest.mark.parametrize("name", [name for name in IMAGENET if family_of(name) == "alexnet"])
def test_alexnet_has_55x55_maps_from_224_and_227(name, size, pad):
    model = get_model(name, input_shape=(size, size, 3), include_top=False)
    assert model.get_layer("conv1").output.shape[1:] == (55, 55, 96)
    assert model.get_layer("conv1_pad").padding == pad
    assert model.output_shape == (None, 6, 6, 256)


@pytest.mark.parametrize(
    # The number of places in each stage's maps, by hand: strides of 2 round up.
    "size, classes, places",
    [((8, 8), 10, (64, 16, 4)), ((9, 5), 7, (45, 15, 6)), ((4, 4), 1, (16, 4, 1))],
)
@both_families
def test_model_info_at_another_size(family, size, classes, places):
    info = model_info(family(8, input_shape=(*size, 3), classes=classes))
    kernels = (9 * (3 * 16 + 2 * 16 * 16), 9 * (16 * 32 + 32 * 32), 9 * (32 * 64 + 64 * 64))
    channels = 3 * 16 + 2 * 32 + 2 * 64
    assert info.multiply_adds == np.dot(kernels, places) + 64 * classes
    assert info.parameters == sum(kernels) + 2 * channels + 64 * classes + classes
    assert info.statistics == 2 * channels
    assert info.depth == 8 and info.output_shape == (classes,)


def test_model_info_takes_a_name_and_refuses_an_unknown_size():
    assert model_info("resnet20", classes=3).output_shape == (3,)
    with pytest.raises(UserError, match="fixed height and width"):
        model_info("ResNet20", input_shape=(None, 32, 3))
