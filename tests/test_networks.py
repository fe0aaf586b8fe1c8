"""The networks of the registry as they are built: their size, their shapes, their arithmetic, and what is saved."""

import dataclasses
import functools
import gc
import hashlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest

import keras_convnets
from keras_convnets import (
    CIFARPlainNet,
    CIFARResNet,
    GoogLeNet,
    Preprocessing,
    get_model,
    model_info,
    without_auxiliary,
)
from keras_convnets.errors import UserError
from keras_convnets.networks import resnet_cifar
from keras_convnets.networks.registry import ARCHITECTURES

# Keras' own reading of its variables into NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

DEEPEST = "ResNet1202"
CIFAR = [name for name, entry in ARCHITECTURES.items() if entry.module == "keras_convnets.networks.resnet_cifar"]
IMAGENET = [name for name in ARCHITECTURES if name not in CIFAR]
# ResNet1202 takes half a minute to build, so it is built once and only in the heavy run; a network just deep enough to
# be nested stands for it in the quick one.
QUICK = [name for name in CIFAR if name != DEEPEST]
deepest_is_heavy = (pytest.mark.heavy, pytest.mark.timeout(300))
ALL_CIFAR = [*QUICK, pytest.param(DEEPEST, marks=deepest_is_heavy)]
# The smallest side that leaves every layer a pixel, by hand: AlexNet's three unpadded poolings need 15 places after
# conv1, VGG halves five times, GoogLeNet's poolings round up. ResNet and plain nets ask for their five halvings.
SMALLEST = {"alexnet": 64, "vgg": 32, "googlenet": 31, "resnet": 32, "resnet_cifar": 4}
FAMILIES = {"residual": CIFARResNet, "plain": CIFARPlainNet}
both_families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@functools.cache
def built(name):
    """A CIFAR network as its builder gives it; tests that change its weights randomise them."""
    return get_model(name)


def family_of(name):
    return ARCHITECTURES[name].module.removeprefix("keras_convnets.networks.")


def smallest(name):
    return SMALLEST[family_of(name)]


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
        output_names=model.output_names,
        layers=layers,
        built_as=model.built_as,
    )
    del model, layer, before
    gc.collect()
    return found


@pytest.fixture(scope="module")
def small(request):
    """An ImageNet network at its smallest size with three classes.

    pytest runs the tests of one network together, so that only one is in memory.
    """
    name = request.param
    model = get_model(name, input_shape=(smallest(name), smallest(name), 3), classes=3)
    randomise(model)
    unsaturate(model)
    return name, model


def over_imagenet(quick):
    """Run a test with `small` over the networks named, and in the heavy run over all."""
    names = [name if name in quick else pytest.param(name, marks=pytest.mark.heavy) for name in IMAGENET]
    return pytest.mark.parametrize("small", names, indirect=True)


# The others differ from these in depth alone.
FEW = ("ResNet20", "PlainNet20")
ONE_OF_EACH = ["AlexNet", "VGG11", "GoogLeNet", "ResNet18", "ResNet50", "PlainNet18"]


def as_numpy(x):
    return keras.ops.convert_to_numpy(x)


def images_of(height, width, count=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def leaves(model):
    """The layers of a network, those of the models inside it included, in order."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer)
        else:
            yield layer


def randomise(model, seed=0):
    """Give every weight but the convolutions' a random value, statistics included, as training would.

    The second batch normalisation of a residual block, and the third, is scaled down: what the blocks add grows with
    their number, and at 1202 layers an untrained network's output is infinite. Networks without normalisation keep
    their kernels, whose scale they depend on.
    """
    rng = np.random.default_rng(seed)
    normalised = any(isinstance(layer, keras.layers.BatchNormalization) for layer in leaves(model))
    blocks = sum(isinstance(layer, keras.layers.Add) for layer in leaves(model))
    for layer in leaves(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            last = layer.name.endswith(("_2_bn", "_3_bn"))
            scale = min(1.0, 2.0 / blocks) if blocks and last else 1.0
            layer.gamma.assign(rng.uniform(0.7, 1.3, size) * scale)
            layer.beta.assign(rng.normal(0, 0.3, size) * scale)
            # The first one sees pixels.
            pixels = 50.0 if layer.name == "conv1_bn" else 1.0
            layer.moving_mean.assign(rng.normal(0, 0.3, size) * pixels)
            layer.moving_variance.assign(rng.uniform(0.5, 2.0, size) * pixels**2)
        elif isinstance(layer, keras.layers.Dense) and normalised:
            layer.kernel.assign(rng.normal(0, min(0.3, 2.4 / np.sqrt(layer.kernel.shape[0])), layer.kernel.shape))
            layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign_add(rng.normal(0, 0.1, layer.bias.shape))


def unsaturate(model):
    """Scale every head's logits to about one: saturated probabilities do not show the image and have no gradient."""
    images = images_of(*model.input_shape[1:3])
    for head in [layer for layer in model.layers if layer.name.endswith("predictions")]:
        logits = as_numpy(keras.Model(model.input, head.output)(images))
        head.kernel.assign(head.kernel * (2 / np.ptp(logits)))


def digest(model):
    """One number for all weights, in order."""
    return hashlib.sha256(b"".join(weight.tobytes() for weight in model.get_weights())).hexdigest()


# The size of each network, counted from what was built.


@pytest.mark.parametrize("name", [*IMAGENET, *ALL_CIFAR])
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


@pytest.mark.parametrize("name", IMAGENET)
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


@pytest.mark.parametrize("name", IMAGENET)
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


@pytest.mark.parametrize("name", IMAGENET)
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


# Arguments.


FEATURES = {"alexnet": 256, "vgg": 512, "googlenet": 1024, "resnet_cifar": 64}


@pytest.mark.parametrize(
    "name",
    [name if name in (*FEW, *ONE_OF_EACH) else pytest.param(name, marks=pytest.mark.heavy) for name in ARCHITECTURES],
)
def test_every_builder_passes_its_arguments_on(name):
    builder = getattr(keras_convnets, name)
    side = smallest(name)
    model = builder(
        input_shape=(side + 5, side, 3),
        classes=7,
        classifier_activation=None,
        name="mine",
        preprocessing=Preprocessing((1, 2, 3)),
    )
    assert (model.name, model.input_shape, model.output_shape) == ("mine", (None, side + 5, side, 3), (None, 7))
    assert model.get_layer("preprocessing").preprocessing == Preprocessing((1, 2, 3))
    assert model.layers[-1].name == "predictions"
    model = builder(include_top=False, pooling="max", input_shape=(None, None, 5), include_preprocessing=False)
    maps = FEATURES.get(family_of(name), 2048 if ARCHITECTURES[name].depth >= 50 else 512)
    assert (model.name, model.input_shape, model.output_shape) == (name.lower(), (None, None, None, 5), (None, maps))


@over_imagenet(ONE_OF_EACH)
def test_the_smallest_size_works(small):
    name, model = small
    side = smallest(name)
    assert (model.input_shape, model.output_shape) == ((None, side, side, 3), (None, 3))
    images = images_of(side, side)
    probabilities = as_numpy(model(images))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=0, atol=1e-5)
    # It looks at the image. In 34 untrained plain layers the image fades on the way, which is the paper's point: there
    # the fourth stage shows it.
    seen = (
        as_numpy(keras_convnets.features(model, "conv4_x")(images)["conv4_x"])
        if name == "PlainNet34"
        else probabilities
    )
    assert np.abs(seen[0] - seen[1]).max() > max(1e-5, 1e-5 * np.abs(seen).max())
    np.testing.assert_allclose(as_numpy(model(images.astype(np.float32))), probabilities, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("include_top", [True, False])
@pytest.mark.parametrize("name", IMAGENET)
def test_a_smaller_size_is_refused(name, include_top):
    side = smallest(name)
    for shape in ((side - 1, side, 3), (None, side - 1, 3)):
        with pytest.raises(UserError, match=f"at least {side}x{side}") as caught:
            get_model(name, input_shape=shape, include_top=include_top)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in IMAGENET if family_of(name) in ("alexnet", "vgg")])
def test_fully_connected_layers_need_a_fixed_size(name):
    with pytest.raises(UserError, match="fixed input size.*fully_convolutional"):
        get_model(name, input_shape=(None, None, 3))


@over_imagenet(["GoogLeNet", "ResNet18", "PlainNet18"])
def test_without_fully_connected_layers_any_size_works(small):
    name, model = small
    if family_of(name) in ("alexnet", "vgg"):
        return  # the test above
    of_any_size = get_model(name, input_shape=(None, None, 3), classes=3)
    of_any_size.set_weights(model.get_weights())
    images = images_of(*model.input_shape[1:3])
    np.testing.assert_allclose(as_numpy(of_any_size(images)), as_numpy(model(images)), rtol=1e-4, atol=1e-6)
    assert as_numpy(of_any_size(images_of(45, 38))).shape == (2, 3)


@over_imagenet(["AlexNet", "VGG11", "GoogLeNet", "ResNet18"])
def test_without_top_and_pooled(small):
    name, model = small
    # Twice the smallest side, so that there is more than one place to pool.
    shape = (2 * smallest(name), 2 * smallest(name) + 3, 3)
    maps = get_model(name, include_top=False, input_shape=shape)
    # They are the weights of the classifier but its fully connected layers, which come last.
    maps.set_weights(model.get_weights()[: len(maps.get_weights())])
    images = images_of(*shape[:2])
    values = as_numpy(maps(images))
    assert values.shape == (2, *maps.output_shape[1:]) and values.shape[1] * values.shape[2] > 1
    for pooling, reduce in (("avg", np.mean), ("max", np.max)):
        pooled = get_model(name, include_top=False, pooling=pooling, input_shape=shape)
        pooled.set_weights(maps.get_weights())
        expected = reduce(values, axis=(1, 2))
        np.testing.assert_allclose(as_numpy(pooled(images)), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@over_imagenet(ONE_OF_EACH)
def test_logits_instead_of_probabilities(small):
    name, model = small
    side = smallest(name)
    logits = get_model(name, input_shape=(side, side, 3), classes=3, classifier_activation=None)
    assert logits.output_names == ["predictions"]
    logits.set_weights(model.get_weights())
    images = images_of(side, side)
    values = as_numpy(logits(images)).astype(np.float64)
    softmax = np.exp(values - values.max(-1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    np.testing.assert_allclose(as_numpy(model(images)), softmax, rtol=1e-4, atol=1e-6)


@pytest.fixture
def mixed_float16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


@over_imagenet(ONE_OF_EACH)
def test_mixed_precision_gives_float32_probabilities(small, mixed_float16):
    name, model = small
    side = smallest(name)
    mixed = get_model(name, input_shape=(side, side, 3), classes=3)
    mixed.set_weights(model.get_weights())
    kernels = [layer for layer in mixed.layers if hasattr(layer, "kernel") and layer.name != "predictions"]
    assert {layer.compute_dtype for layer in kernels} == {"float16"}
    images = images_of(side, side)
    probabilities = as_numpy(mixed(images))
    assert probabilities.dtype == np.float32
    # In half precision a sum of three would be off by about 1e-3.
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=0, atol=1e-6)
    # Eleven bits a product, over as many layers as there are.
    np.testing.assert_allclose(probabilities, as_numpy(model(images)), rtol=0, atol=0.05)


# The deepest take ten seconds and more to trace.
@over_imagenet(["AlexNet", "VGG11", "GoogLeNet", "ResNet18"])
def test_plain_compile_fit_evaluate(small):
    name, model = small
    model = keras.models.clone_model(model)  # the other tests want the weights as they were
    model.set_weights(small[1].get_weights())
    # Behind a sixth convolution, 1e-3 of the gradient is too small to move conv2's biases of 1 in float32.
    rate = 1e-1 if name == "AlexNetSixConvs" else 1e-3
    model.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    images, labels = images_of(smallest(name), smallest(name), count=4), np.array([0, 1, 2, 0])
    history = model.fit(images, labels, batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert [weight.path for weight in model.weights if not np.isfinite(weight.numpy()).all()] == []
    # Every weight learns: what a layer lost on the way would stay.
    pairs = zip(model.weights, small[1].get_weights(), strict=True)
    assert [weight.path for weight, old in pairs if "seed" not in weight.path and (weight.numpy() == old).all()] == []
    loss, accuracy = model.evaluate(images, labels, batch_size=4, verbose=0)
    assert np.isfinite(loss) and 0 <= accuracy <= 1


# GoogLeNet's auxiliary heads.

HEADS = {"probabilities": 1.0, "aux1": 0.3, "aux2": 0.3}


@pytest.fixture(scope="module")
def auxiliary():
    model = GoogLeNet(auxiliary=True, input_shape=(79, 79, 3), classes=3)
    randomise(model)
    unsaturate(model)
    return model


def test_auxiliary_heads_are_the_papers(auxiliary):
    assert {name: tensor.shape for name, tensor in auxiliary.output.items()} == dict.fromkeys(HEADS, (None, 3))
    for head, stage in (("aux1", "inception_4a"), ("aux2", "inception_4d")):
        pool, fc = auxiliary.get_layer(f"{head}_pool"), auxiliary.get_layer(f"{head}_fc")
        assert pool.input is auxiliary.get_layer(stage).output
        assert (pool.pool_size, pool.strides, pool.padding) == ((5, 5), (3, 3), "valid")
        assert (auxiliary.get_layer(f"{head}_conv").filters, fc.units) == (128, 1024)
        assert auxiliary.get_layer(f"{head}_dropout").rate == 0.7
        assert auxiliary.get_layer(f"{head}_dropout").input is fc.output
    assert auxiliary.get_layer("dropout").rate == 0.4
    # "resulting in an 4x4x512 output for the (4a), and 4x4x528 for the (4d) stage"
    at_224 = GoogLeNet(auxiliary=True)
    sizes = [at_224.get_layer(f"{head}_pool").output.shape[1:] for head in ("aux1", "aux2")]
    assert sizes == [(4, 4, 512), (4, 4, 528)]


def test_auxiliary_heads_need_larger_images():
    with pytest.raises(UserError, match="at least 79x79"):
        GoogLeNet(auxiliary=True, input_shape=(78, 79, 3))
    # Without the classifier there are no heads and no such need.
    assert GoogLeNet(auxiliary=True, include_top=False, input_shape=(31, 31, 3)).output_shape == (None, 1, 1, 1024)


def test_auxiliary_heads_train_with_the_papers_weights(auxiliary):
    model = keras.models.clone_model(auxiliary)
    model.set_weights(auxiliary.get_weights())
    model.compile(
        keras.optimizers.SGD(1e-3),
        loss=dict.fromkeys(HEADS, "sparse_categorical_crossentropy"),
        loss_weights=HEADS,
    )
    images, labels = images_of(79, 79), np.array([0, 2])
    before = {head: model.get_layer(f"{head}_fc").kernel.numpy() for head in ("aux1", "aux2")}
    # Each head's loss of the network as it is, dropout off.
    outputs = {head: as_numpy(output) for head, output in model(images).items()}
    targets = dict.fromkeys(HEADS, labels)
    found = model.evaluate(images, targets, verbose=0, return_dict=True)
    wanted = {head: -np.log(output[[0, 1], labels]).mean() for head, output in outputs.items()}
    for head, loss in wanted.items():
        assert found[f"{head}_loss"] == pytest.approx(loss, rel=1e-4)
    total = wanted["probabilities"] + 0.3 * wanted["aux1"] + 0.3 * wanted["aux2"]
    assert found["loss"] == pytest.approx(total, rel=1e-4)
    history = {key: values[0] for key, values in model.fit(images, targets, verbose=0).history.items()}
    assert history["loss"] == pytest.approx(
        sum(weight * history[f"{head}_loss"] for head, weight in HEADS.items()), rel=1e-4
    )
    assert all((model.get_layer(f"{head}_fc").kernel.numpy() != old).any() for head, old in before.items())


@pytest.mark.parametrize("reloaded", [False, True], ids=["built", "loaded"])
def test_without_auxiliary_is_the_main_output(auxiliary, reloaded, tmp_path):
    model = auxiliary
    if reloaded:
        auxiliary.save(tmp_path / "auxiliary.keras")
        model = keras.saving.load_model(tmp_path / "auxiliary.keras")
    single = without_auxiliary(model)
    images = images_of(79, 79)
    np.testing.assert_array_equal(as_numpy(single(images)), as_numpy(model(images)["probabilities"]))
    plain = GoogLeNet(input_shape=(79, 79, 3), classes=3)
    assert single.count_params() == plain.count_params()
    assert single.name == plain.name and single.output_names == plain.output_names
    assert not any("aux" in layer.name for layer in single.layers)


def test_get_model_passes_every_argument_on():
    model = get_model("ResNet20", name="mine", classes=4)
    assert (model.name, model.output_shape) == ("mine", (None, 4))


@both_families
@pytest.mark.parametrize("size", [(4, 4), (8, 8), (32, 32), (40, 24), (33, 35), (5, 7)])
def test_any_size_at_least_4(family, size):
    of_any_size = any_size_network(family)
    fixed = family(8, input_shape=(*size, 3))
    fixed.set_weights(of_any_size.get_weights())
    images = images_of(*size)
    probabilities = as_numpy(fixed(images))
    assert probabilities.shape == (2, 10) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=0, atol=1e-5)
    assert np.abs(probabilities[0] - probabilities[1]).max() > 1e-5  # it looks at the image
    np.testing.assert_allclose(as_numpy(of_any_size(images)), probabilities, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(as_numpy(fixed(images.astype(np.float32))), probabilities, rtol=1e-5, atol=1e-7)


@functools.cache
def any_size_network(family):
    model = family(8, input_shape=(None, None, 3))
    assert model.input_shape == (None, None, None, 3)
    randomise(model)
    return model


@both_families
@pytest.mark.parametrize("size", [(8, 8), (33, 35), (4, 40)])
def test_without_top(family, size):
    shape = (*size, 3)
    maps = family(8, include_top=False, input_shape=shape)
    randomise(maps)
    # Strides of 2 with padding 1 round up.
    height, width = (math.ceil(math.ceil(side / 2) / 2) for side in size)
    assert maps.output_shape == (None, height, width, 64)
    images = images_of(*size)
    values = as_numpy(maps(images))
    assert values.shape == (2, height, width, 64) and values.max() > 0
    for pooling, reduce in (("avg", np.mean), ("max", np.max)):
        pooled = family(8, include_top=False, pooling=pooling, input_shape=shape)
        pooled.set_weights(maps.get_weights())
        assert pooled.output_shape == (None, 64)
        np.testing.assert_allclose(as_numpy(pooled(images)), reduce(values, axis=(1, 2)), rtol=1e-4, atol=1e-5)


@both_families
@pytest.mark.parametrize("activation", [None, "linear", "sigmoid"])
def test_classifier_activation(family, activation):
    shape = (8, 8, 3)
    reference = family(8, input_shape=shape)
    randomise(reference)
    logits = keras.Model(reference.input, reference.get_layer("predictions").output)
    model = family(8, input_shape=shape, classifier_activation=activation)
    model.set_weights(reference.get_weights())
    images = images_of(8, 8)
    expected = as_numpy(logits(images))
    softmax = np.exp(expected - expected.max(-1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    np.testing.assert_allclose(as_numpy(reference(images)), softmax, rtol=1e-4, atol=1e-6)
    if activation == "sigmoid":
        expected = 1 / (1 + np.exp(-expected))
    np.testing.assert_allclose(as_numpy(model(images)), expected, rtol=1e-4, atol=1e-6)


def test_networks_of_two_families_on_one_tensor():
    images = keras.Input((32, 32, 3))
    small = {"include_top": False, "pooling": "avg"}
    one = CIFARResNet(8, input_tensor=images, **small)
    other = keras_convnets.VGG11(input_tensor=one.input, **small)
    both = keras.Model(images, [one.output, other.output])
    names = [layer.name for layer in both.layers if hasattr(layer, "preprocessing")]
    assert names == ["resnet8_preprocessing", "vgg11_preprocessing"]
    # Without a tensor to share, the name stays what it is in files.
    assert CIFARResNet(8, **small).get_layer("preprocessing")


@both_families
def test_input_tensor(family):
    images = keras.Input((16, 12, 3), name="mine")
    model = family(8, input_tensor=images)
    assert model.input_shape == (None, 16, 12, 3) and model.inputs[0] is images
    # On top of layers of the user's own, which become part of the network.
    halved = keras.layers.AveragePooling2D(2, name="halve")(images)
    longer = family(8, input_tensor=halved)
    assert longer.input_shape == (None, 16, 12, 3) and longer.get_layer("halve")
    short = family(8, input_shape=(8, 6, 3))
    randomise(short)
    longer.set_weights(short.get_weights())
    # Whole numbers after halving, so that both see the same.
    small = images_of(8, 6)
    large = small.repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(as_numpy(longer(large)), as_numpy(short(small)), rtol=1e-4, atol=1e-6)


@both_families
def test_a_bare_network_takes_any_channels(family):
    model = family(8, input_shape=(8, 8, 5), include_preprocessing=False)
    assert model.get_layer("conv1_conv").kernel.shape == (3, 3, 5, 16)
    assert as_numpy(model(np.zeros((1, 8, 8, 5), np.float32))).shape == (1, 10)


@both_families
@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"input_shape": (3, 32, 3)}, "at least 4x4"),
        ({"input_shape": (32, 3, 3)}, "at least 4x4"),
        ({"input_shape": (None, 3, 3)}, "at least 4x4"),
        ({"input_shape": (0, 0, 3)}, "at least 4x4"),
        ({"input_shape": (32, 32)}, r"\(height, width, channels\)"),
        ({"input_shape": (1, 32, 32, 3)}, r"\(height, width, channels\)"),
        ({"input_shape": (32, 32, None)}, r"\(height, width, channels\)"),
        ({"input_shape": (32.0, 32.0, 3)}, r"\(height, width, channels\)"),
        ({"input_shape": (32, 32, 1)}, "3 channels"),
        ({"input_shape": (3, 32, 32)}, "at least 4x4"),
        ({"include_top": False, "pooling": "mean"}, "'mean'; it must be None, 'avg' or 'max'"),
        ({"classes": 0}, "classes is 0"),
        ({"classes": -1}, "classes is -1"),
        ({"classes": 2.5}, "classes is 2.5"),
        ({"classes": True}, "classes is True"),
        ({"classes": "10"}, "classes is '10'"),
        ({"classes": None}, "classes is None"),
        ({"weights": "imagenet"}, "'imagenet'.*no published weights"),
        ({"weights": "nowhere.keras"}, "no weights file nowhere.keras"),
        ({"weights": "nowhere.weights.h5"}, "no weights file nowhere.weights.h5"),
        ({"include_preprocessing": False, "preprocessing": Preprocessing((0, 0, 0))}, "one of the two"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_told_in_one_sentence(family, arguments, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        family(8, **arguments)
    assert "\n" not in str(caught.value)


@both_families
def test_numpys_whole_numbers_are_taken_as_pythons(family):
    model = family(np.int64(8), input_shape=np.array([8, 8, 3]), classes=np.int32(3))
    assert model.output_shape == (None, 3) and model.name.endswith("8")
    assert json.loads(json.dumps(model.get_config()["built_as"]))["arguments"]["classes"] == 3


@both_families
@pytest.mark.parametrize("depth", [0, 1, 2, -4, 3, 18, 21, 34, 49, 51, 8.0, "20", None, True])
def test_depth_is_6n_plus_2(family, depth):
    with pytest.raises(UserError, match=re.escape(f"depth is {depth!r}") + ".*6n\\+2"):
        family(depth)


@both_families
@pytest.mark.parametrize("depth", [8, 14, 26])
def test_depths_the_paper_does_not_use(family, depth):
    model = family(depth)
    assert model_info(model).depth == depth
    assert model.name == {CIFARResNet: "resnet", CIFARPlainNet: "plainnet"}[family] + str(depth)


def test_channels_first_is_refused():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(UserError, match="channels_last"):
            CIFARResNet(8)
    finally:
        keras.config.set_image_data_format("channels_last")


# The arithmetic, against the paper.


def convolve(x, kernel, stride):
    """3x3 cross-correlation with one row or column of zeros on every side."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1] - 2, x.shape[2] - 2
    places = [
        x[:, row : row + height : stride, column : column + width : stride] @ kernel[row, column]
        for row in range(3)
        for column in range(3)
    ]
    return sum(places)


def paper_network(weights, images, *, residual, preset):
    """Section 4.2 in NumPy and float64: the feature maps after each stage, the logits and the probabilities.

    `weights` has the convolutions of the network in order, each with its batch normalisation, then the linear layer.
    """
    weights = list(weights)

    def layer(x, stride=1):
        kernel, gamma, beta, mean, variance = weights.pop(0)
        return (convolve(x, kernel, stride) - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def relu(x):
        return np.maximum(x, 0)

    x = images.astype(np.float64)
    if preset.order == "BGR":
        x = x[..., ::-1]
    same_size = preset.mean_image is not None and preset.mean_image.shape == x.shape[1:]
    x = (x - (preset.mean_image.astype(np.float64) if same_size else np.array(preset.mean))) / np.array(preset.std)
    x = relu(layer(x))
    n = (len(weights) - 1) // 6
    results = []
    for filters, first_stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(n):
            stride = first_stride if block == 0 else 1
            shortcut = x[:, ::stride, ::stride]
            shortcut = np.concatenate([shortcut, np.zeros((*shortcut.shape[:3], filters - x.shape[3]))], axis=3)
            x = layer(relu(layer(x, stride)))
            x = relu(x + shortcut if residual else x)
        results.append(x)
    kernel, bias = weights.pop(0)
    assert not weights
    logits = x.mean((1, 2)) @ kernel + bias
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return [*results, logits, exponentials / exponentials.sum(-1, keepdims=True)]


def weights_in_order(model):
    """The weights as `paper_network` takes them."""
    convolutions, normalisations = [], []
    for layer in leaves(model):
        if isinstance(layer, keras.layers.Conv2D):
            convolutions.append(layer.kernel)
        elif isinstance(layer, keras.layers.BatchNormalization):
            normalisations.append((layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance))
        elif isinstance(layer, keras.layers.Dense):
            linear = (layer.kernel, layer.bias)
    groups = [(kernel, *rest) for kernel, rest in zip(convolutions, normalisations, strict=True)]
    return [[as_numpy(weight).astype(np.float64) for weight in group] for group in (*groups, linear)]


def assert_close(results, references):
    """Within 1e-4 of the largest value.

    A float32 sum of 9 * 64 products is off by about 6e-8 * sqrt(576) = 1.4e-6 of its size; 20 layers add up to at
    most 3e-5. A wrong epsilon, stride or border shows at 1e-3 and more.
    """
    for result, reference in zip(results, references, strict=True):
        assert result.shape == reference.shape
        np.testing.assert_allclose(result, reference, rtol=0, atol=1e-4 * np.abs(reference).max())


def own_preset(kind, size):
    mean_image = np.random.default_rng(3).uniform(80, 160, (*size, 3))
    return {
        "means": Preprocessing((120.0, 110.0, 100.0)),
        "mean image": Preprocessing((120.0, 110.0, 100.0), mean_image=mean_image),
        "BGR, std and mean image": Preprocessing((120.0, 110.0, 100.0), (2.0, 1.5, 3.0), "BGR", mean_image),
    }[kind]


@both_families
@pytest.mark.parametrize("depth", [8, 20])
# An even side that gets odd half-way, and odd ones: where to pad at stride 2 differs between them.
@pytest.mark.parametrize("size", [(8, 8), (9, 11), (10, 6)])
@pytest.mark.parametrize("kind", ["means", "mean image", "BGR, std and mean image"])
def test_forward_pass_is_the_papers(family, depth, size, kind):
    preset = own_preset(kind, size)
    model = family(depth, input_shape=(*size, 3), preprocessing=preset)
    randomise(model, seed=depth)
    last = (depth - 2) // 6
    names = [*(f"conv{stage}_block{last}_out" for stage in (2, 3, 4)), "predictions", "probabilities"]
    probe = keras.Model(model.input, [model.get_layer(name).output for name in names])
    images = images_of(*size)
    references = paper_network(weights_in_order(model), images, residual=family is CIFARResNet, preset=preset)
    # The comparison must not be one of dead feature maps or of saturated probabilities.
    assert all((reference > 0).mean() > 0.05 for reference in references[:3])
    assert references[4].max() < 0.9999
    assert_close([as_numpy(output) for output in probe(images)], references)


@both_families
def test_a_nested_network_computes_the_same(family, monkeypatch, tmp_path):
    # Five blocks a stage in inner models of two, two and one, as ResNet1202 has them by the fifty.
    monkeypatch.setattr(resnet_cifar, "DEEPEST_FLAT", 20)
    monkeypatch.setattr(resnet_cifar, "BLOCKS_PER_NEST", 2)
    model = family(32, input_shape=(8, 8, 3), classifier_activation=None)
    assert sum(isinstance(layer, keras.Model) for layer in model.layers) == 9
    randomise(model)
    preset = model.get_layer("preprocessing").preprocessing
    images = images_of(8, 8)
    logits = paper_network(weights_in_order(model), images, residual=family is CIFARResNet, preset=preset)[3]
    assert_close([as_numpy(model(images))], [logits])
    assert model_info(model).depth == 32
    model.save_weights(tmp_path / "nested.weights.h5")
    copy = family(32, weights=tmp_path / "nested.weights.h5", input_shape=(8, 8, 3), classifier_activation=None)
    assert digest(copy) == digest(model)
    monkeypatch.undo()
    flat = family(32, input_shape=(8, 8, 3), classifier_activation=None)
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
    assert dataclasses.replace(model_info(model), name="") == dataclasses.replace(model_info(flat), name="")


# Initialisation.


@both_families
def test_he_initialisation(family):
    model = family(20)
    kernels = {layer.name: layer.kernel for layer in model.layers if hasattr(layer, "kernel")}
    assert len(kernels) == 20
    for name, kernel in kernels.items():
        values = as_numpy(kernel)
        fan_in = values.size // values.shape[-1]
        std = np.sqrt(2 / fan_in)
        # The spread of a standard deviation over N draws is 1 / sqrt(2N) of it: five times that, 2 % at 36,864 draws.
        assert values.std() == pytest.approx(std, rel=5 / np.sqrt(2 * values.size)), name
        assert abs(values.mean()) < 5 * std / np.sqrt(values.size), name
    # A Gaussian that is not cut off has values beyond 3 standard deviations; Keras' he_normal ends at 2.3.
    large = as_numpy(kernels["conv4_block2_1_conv"])
    assert np.abs(large).max() > 3 * large.std()


@both_families
def test_layers_of_one_shape_get_different_weights(family):
    kernels = [as_numpy(layer.kernel) for layer in family(20).layers if isinstance(layer, keras.layers.Conv2D)]
    first_values = [kernel.flat[0] for kernel in kernels]
    assert len(set(first_values)) == len(kernels) == 19


@both_families
def test_a_seed_makes_builds_equal(family):
    digests = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        digests.append(digest(family(14)))
    assert digests[0] == digests[1] != digests[2]


# Saving and loading.

LOAD = """
import hashlib, json, sys
import {first}
import {second}
import numpy as np
images = np.load(sys.argv[1])
found = {{}}
for path in sys.argv[2:]:
    model = keras.saving.load_model(path)
    weights = b"".join(weight.tobytes() for weight in model.get_weights())
    height, width = model.input_shape[1:3]
    outputs = np.asarray(model(images[:, :height, :width])).tolist()
    structure = hashlib.sha256(model.to_json().encode()).hexdigest()
    found[path] = [hashlib.sha256(weights).hexdigest(), outputs, structure]
print(json.dumps([found, sys.getrecursionlimit()]))
"""


def load_in_a_fresh_process(images, paths, first="keras_convnets", second="keras"):
    """Return by .keras file its weights' digest, its outputs, its structure's digest; and the recursion limit."""
    images_file = paths[0].with_name("images.npy")
    np.save(images_file, images)
    command = [sys.executable, "-c", LOAD.format(first=first, second=second), str(images_file), *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "names", [FEW, pytest.param([name for name in QUICK if name not in FEW], marks=pytest.mark.heavy)], ids="-".join
)
def test_keras_files_in_a_fresh_process(names, tmp_path):
    """Networks with random weights, saved and loaded in a process that knows nothing of them."""
    images, paths = images_of(32, 32), [tmp_path / f"{name}.keras" for name in names]
    for seed, path in enumerate(paths):
        randomise(built(path.stem), seed)
        built(path.stem).save(path)
    found, _ = load_in_a_fresh_process(images, paths)
    for path in paths:
        model, (weights, outputs, structure) = built(path.stem), found[str(path)]
        assert weights == digest(model)
        assert structure == hashlib.sha256(model.to_json().encode()).hexdigest()
        np.testing.assert_allclose(outputs, as_numpy(model(images)), rtol=1e-4, atol=1e-6)


# Files of a hundred megabytes, but for one with groups of convolutions, are for the heavy run.
FILES = ["AlexNet", "GoogLeNet", "ResNet18"]


@pytest.mark.parametrize(
    "names",
    [FILES, *(pytest.param([name], marks=pytest.mark.heavy) for name in IMAGENET if name not in FILES)],
    ids="-".join,
)
def test_keras_files_of_imagenet_networks_in_a_fresh_process(names, tmp_path):
    images, expected = images_of(64, 64), {}
    for name in names:
        side = smallest(name)
        model = get_model(name, input_shape=(side, side, 3), classes=3)
        randomise(model)
        unsaturate(model)
        path = tmp_path / f"{name}.keras"
        model.save(path)
        structure = hashlib.sha256(model.to_json().encode()).hexdigest()
        expected[str(path)] = (digest(model), as_numpy(model(images[:, :side, :side])), structure)
    found, _ = load_in_a_fresh_process(images, [Path(path) for path in expected])
    for path, (weights, outputs, structure) in expected.items():
        assert found[path][0] == weights, path
        assert found[path][2] == structure, path
        np.testing.assert_allclose(found[path][1], outputs, rtol=1e-4, atol=1e-6, err_msg=path)
        Path(path).unlink()  # pytest keeps what is left


def test_keras_imported_first_finds_the_layers_too(tmp_path):
    model = CIFARResNet(8, input_shape=(8, 8, 3), preprocessing=own_preset("BGR, std and mean image", (8, 8)))
    randomise(model)
    model.save(tmp_path / "model.keras")
    images = images_of(8, 8)
    found, _ = load_in_a_fresh_process(images, [tmp_path / "model.keras"], first="keras", second="keras_convnets")
    weights, outputs, _ = found[str(tmp_path / "model.keras")]
    assert weights == digest(model)
    np.testing.assert_allclose(outputs, as_numpy(model(images)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.heavy) for name in QUICK]
)
@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
@pytest.mark.parametrize("kind", [str, Path])
def test_weights_argument(name, suffix, kind, tmp_path):
    path = tmp_path / f"file{suffix}"
    (built(name).save if suffix == ".keras" else built(name).save_weights)(path)
    assert digest(get_model(name, weights=kind(path))) == digest(built(name))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files that are not what ResNet20 with ten classes wants."""
    folder = tmp_path_factory.mktemp("files")
    built("ResNet32").save_weights(folder / "deeper.weights.h5")
    CIFARResNet(14).save_weights(folder / "shallower.weights.h5")
    built("ResNet32").save(folder / "deeper.keras")
    # It has the same weights, but adds no shortcuts.
    built("PlainNet20").save(folder / "plain.keras")
    for name in ("broken.weights.h5", "broken.keras"):
        (folder / name).write_bytes(b"this is no weights file")
    (folder / "folder.keras").mkdir()
    (folder / "other.txt").write_text("text")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "deeper.weights.h5",
        "shallower.weights.h5",
        "deeper.keras",
        "plain.keras",
        "broken.weights.h5",
        "broken.keras",
        "folder.keras",
        "other.txt",
    ],
)
@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_another_networks_weights_are_refused(files, name):
    with pytest.raises(UserError) as caught:
        get_model("ResNet20", weights=files / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_keras_files_preprocessing_comes_with_its_weights(tmp_path):
    preset = own_preset("BGR, std and mean image", (8, 8))
    model = CIFARResNet(8, input_shape=(8, 8, 3), preprocessing=preset)
    model.save(tmp_path / "model.keras")

    def loaded(**arguments):
        return CIFARResNet(8, weights=tmp_path / "model.keras", input_shape=(8, 8, 3), **arguments)

    assert loaded().get_layer("preprocessing").preprocessing == preset
    # Unless another is asked for.
    own = Preprocessing((1, 2, 3))
    assert loaded(preprocessing=own).get_layer("preprocessing").preprocessing == own
    assert digest(loaded(include_preprocessing=False)) == digest(model)


# Networks of networks. ResNet1202: once for all its tests, because building it takes half a minute.


def test_a_network_beyond_110_layers_is_nested():
    before = sys.getrecursionlimit()
    model = CIFARResNet(116)
    inner = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    assert [layer.name for layer in inner] == [f"{stage}_blocks1_19" for stage in ("conv2", "conv3", "conv4")]
    assert model_info(model).depth == 116
    # 1000 is Python's own; what another library may have set, we must not have raised.
    assert sys.getrecursionlimit() == before <= 1000


@dataclasses.dataclass(frozen=True)
class Step:
    loss: float
    unchanged: list[str]
    not_finite: list[str]


@pytest.fixture(scope="module")
def trained_1202():
    """ResNet1202 after one step of training from its initialisation, as it comes; and what the step did.

    Eagerly: tracing and compiling 1202 layers takes minutes, and gives the same step.
    """
    model = built(DEEPEST)
    before = [weight.numpy() for weight in model.weights]
    model.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy", run_eagerly=True)
    loss = float(model.train_on_batch(images_of(32, 32), np.array([3, 8])))
    after = [weight.numpy() for weight in model.weights]
    paths = [weight.path for weight in model.weights]
    return model, Step(
        loss,
        [path for path, old, new in zip(paths, before, after, strict=True) if np.array_equal(old, new)],
        [path for path, new in zip(paths, after, strict=True) if not np.isfinite(new).all()],
    )


@pytest.fixture(scope="module")
def saved_1202(trained_1202, tmp_path_factory):
    model, _ = trained_1202
    randomise(model)
    path = tmp_path_factory.mktemp("deepest") / "resnet1202.keras"
    model.save(path)
    return model, path


@pytest.mark.heavy
def test_1202_is_nested():
    model = built(DEEPEST)
    inner = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    # 200 blocks a stage, fifty to an inner model.
    assert [layer.name for layer in inner] == [
        f"{stage}_blocks{first}_{first + 49}" for stage in ("conv2", "conv3", "conv4") for first in (1, 51, 101, 151)
    ]
    for layer in inner:
        assert sum(isinstance(part, keras.layers.Add) for part in layer.layers) == 50
        assert not any(isinstance(part, keras.Model) for part in layer.layers)
    assert len(model.layers) < 30


@pytest.mark.parametrize("name", QUICK)
def test_the_others_are_flat(name):
    assert not any(isinstance(layer, keras.Model) for layer in built(name).layers)


@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_1202_takes_a_training_step(trained_1202):
    _, step = trained_1202
    assert np.isfinite(step.loss)
    assert step.not_finite == []
    # Kernels, gamma, beta and statistics of 1201 convolutions, and the linear layer.
    assert step.unchanged == []


@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_1202_loads_in_a_fresh_process(saved_1202):
    model, path = saved_1202
    images = images_of(32, 32)
    found, recursion_limit = load_in_a_fresh_process(images, [path])
    weights, outputs, _ = found[str(path)]
    assert recursion_limit == 1000
    assert weights == digest(model)
    expected = as_numpy(model(images))
    assert np.isfinite(expected).all() and np.abs(expected[0] - expected[1]).max() > 1e-3
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-5)
