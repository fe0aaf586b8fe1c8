"""The networks without a Keras twin, and the custom layers, against NumPy implementations of the papers.

Float32 sums of n products are off by about 6e-8 * sqrt(n) of their size: 4e-6 for the widest layer (4608 products). The
errors of up to 53 layers in a row are independent, so they add up to some 3e-5 at most, and to a few 1e-6 in practice.
A wrong border, stride, order of two layers or constant shows at 1e-3 and more.
"""

import functools
import os
import subprocess
import sys

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
import tf2onnx
from reference import (
    Weights,
    as_numpy,
    convolve,
    pool,
    randomise,
    relative_difference,
    relu,
    response_normalization,
    softmax,
    two_towers,
)

import keras_convnets
from keras_convnets.networks.layers import LRN, GroupedConv2D

TOLERANCE = 1e-4


def images_of(height, width, scale, seed=0):
    """Images minus their mean: `scale` 60 is pixels', which the response normalisation answers to."""
    return np.random.default_rng(seed).normal(0, scale, (2, height, width, 3)).astype(np.float32)


def compare(model, images, network, *, every_weight=True):
    """Assert that the model gives what the paper's network, a function of weights and maps, gives."""
    weights = Weights(model)
    reference = network(weights, images.astype(np.float64))
    if every_weight:
        assert not weights.left
    outputs = model(images)
    if not isinstance(reference, dict):
        outputs, reference = {"": outputs}, {"": reference}
    assert outputs.keys() == reference.keys()
    for name, values in reference.items():
        assert relative_difference(as_numpy(outputs[name]), values) <= TOLERANCE, name


def built(name, size, seed=1, bias=0.3, **arguments):
    builder = getattr(keras_convnets, name)
    model = builder(input_shape=(*size, 3), classes=7, include_preprocessing=False, **arguments)
    randomise(model, seed, bias)
    return model


logits_of = functools.partial(built, classifier_activation=None)


def linear(weights, name, x):
    kernel, bias = weights(name)
    return x @ kernel + bias


# AlexNet (Krizhevsky et al. 2012), figure 2 and section 3.5.


def alexnet_maps(w, x, *, pad, towers=True, sixth=False, **lrn):
    grouped = two_towers if towers else convolve
    x = relu(convolve(x, *w("conv1"), stride=4, pad=pad))
    x = pool(response_normalization(x, **lrn), 3, 2)
    x = relu(grouped(x, *w("conv2")))
    x = pool(response_normalization(x, **lrn), 3, 2)
    x = relu(convolve(x, *w("conv3")))
    x = relu(grouped(x, *w("conv4")))
    x = pool(relu(grouped(x, *w("conv5"))), 3, 2)
    return relu(convolve(x, *w("conv6"))) if sixth else x


def alexnet(w, x, **arguments):
    x = alexnet_maps(w, x, **arguments)
    x = x.reshape(len(x), -1)
    x = relu(linear(w, "fc6", x))
    x = relu(linear(w, "fc7", x))
    return linear(w, "predictions", x)


# Sides like 224 and like 227, in steps of 32: 32 is a multiple of all strides together.
ALEXNET_SIZES = pytest.mark.parametrize("size, pad", [((64, 96), ((1, 2), (1, 2))), ((67, 99), 0)], ids=["224", "227"])
ALEXNET_VARIANTS = {
    "AlexNet": {},
    "AlexNetOneTower": {"towers": False},
    "AlexNetSixConvs": {"sixth": True},
}


# The padding is the same code in all three.
@ALEXNET_SIZES
@pytest.mark.parametrize(
    "name",
    ["AlexNet", *(pytest.param(name, marks=pytest.mark.heavy) for name in ALEXNET_VARIANTS if name != "AlexNet")],
)
def test_alexnet(name, size, pad):
    model = logits_of(name, size, bias=3)
    compare(model, images_of(*size, 60), functools.partial(alexnet, pad=pad, **ALEXNET_VARIANTS[name]))


@pytest.mark.parametrize("side, pad", [(224, ((1, 2), (1, 2))), (227, 0)])
def test_alexnets_maps_at_the_papers_size(side, pad):
    # Without the fully connected layers: they are the same at any size and would take 0.5 GB in float64.
    constants = {"k": 1.0, "alpha": 2e-5}
    model = built("AlexNet", (side, side), bias=3, include_top=False, lrn=constants)
    assert model.output.shape[1:] == (6, 6, 256)
    compare(model, images_of(side, side, 60), functools.partial(alexnet_maps, pad=pad, **constants))


# GoogLeNet (Szegedy et al. 2014), table 1, figure 3, section 5.

# type, #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj
GOOGLENET = """
    3a    64  96 128 16  32  32
    3b   128 128 192 32  96  64
    max pool
    4a   192  96 208 16  48  64
    4b   160 112 224 24  64  64
    4c   128 128 256 24  64  64
    4d   112 144 288 32  64  64
    4e   256 160 320 32 128 128
    max pool
    5a   256 160 320 32 128 128
    5b   384 192 384 48 128 128
"""


def inception(w, x, row, sizes):
    def layer(x, kind):
        kernel, bias = w(f"inception_{row}_{kind}")
        assert kernel.shape[:2] == ((5, 5) if kind == "5x5" else (3, 3) if kind == "3x3" else (1, 1))
        return relu(convolve(x, kernel, bias))

    reduced3, reduced5 = layer(x, "3x3_reduce"), layer(x, "5x5_reduce")
    projection = layer(pool(x, 3, 1, pad=1), "pool_proj")
    branches = [layer(x, "1x1"), reduced3, layer(reduced3, "3x3"), reduced5, layer(reduced5, "5x5"), projection]
    assert [branch.shape[3] for branch in branches] == sizes
    # Figure 2b's order, without the reductions inside a branch.
    return np.concatenate([branches[place] for place in (0, 2, 4, 5)], axis=3)


def auxiliary_head(w, x, name):
    x = relu(convolve(pool(x, 5, 3, np.mean), *w(f"{name}_conv")))
    assert x.shape[3] == 128
    x = relu(linear(w, f"{name}_fc", x.reshape(len(x), -1)))
    assert x.shape[1] == 1024
    return linear(w, f"{name}_predictions", x)


def googlenet(w, x, *, auxiliary=False, **lrn):
    x = relu(convolve(x, *w("conv1"), stride=2))
    x = response_normalization(pool(x, 3, 2, round_up=True), **lrn)
    x = relu(convolve(x, *w("conv2_reduce")))
    x = relu(convolve(x, *w("conv2")))
    x = pool(response_normalization(x, **lrn), 3, 2, round_up=True)
    results = {}
    for line in GOOGLENET.strip().splitlines():
        row, *sizes = line.split()
        if row == "max":
            x = pool(x, 3, 2, round_up=True)
            continue
        x = inception(w, x, row, [int(size) for size in sizes])
        if auxiliary and row in ("4a", "4d"):
            results["aux1" if row == "4a" else "aux2"] = auxiliary_head(w, x, "aux1" if row == "4a" else "aux2")
    results["probabilities"] = linear(w, "predictions", x.mean((1, 2)))
    return results if auxiliary else results["probabilities"]


# Rounding up makes one window more where an even side is pooled: in 37 (19 9 4 2 1) and 45 (23 11 5 2 1) at the end,
# in 64 (32 16 8 4 2) and in 31, the smallest (16 8 4 2 1), always, in 48 and 100 now and then.
@pytest.mark.parametrize("size", [(37, 45), (64, 48), (31, 100)])
def test_googlenet(size):
    compare(logits_of("GoogLeNet", size, bias=3), images_of(*size, 60), googlenet)


def test_googlenet_with_other_constants():
    constants = {"n": 3, "k": 1.0, "alpha": 3e-5, "beta": 0.5}
    model = logits_of("GoogLeNet", (33, 40), bias=3, lrn=constants)
    compare(model, images_of(33, 40, 60), functools.partial(googlenet, **constants))


# 79 is the smallest; at 130 the heads have two places side by side, whose order the fully connected layer sees.
@pytest.mark.parametrize("size", [(79, 130), (96, 96)])
def test_googlenets_auxiliary_heads(size):
    model = logits_of("GoogLeNet", size, bias=3, auxiliary=True)
    compare(model, images_of(*size, 60), functools.partial(googlenet, auxiliary=True))


def test_softmax_in_every_head():
    # At 60 the logits saturate: small images keep the probabilities apart.
    model = built("GoogLeNet", (79, 79), seed=2, bias=0.1, auxiliary=True)
    images = images_of(79, 79, 1)

    def network(w, x):
        return {name: softmax(logits) for name, logits in googlenet(w, x, auxiliary=True).items()}

    compare(model, images, network)
    assert as_numpy(model(images)["probabilities"]).max() < 0.99


@pytest.mark.parametrize("size", [(31, 45), (64, 48)])
def test_an_inception_row_alone(size):
    model = built("GoogLeNet", size, include_top=False)
    probe = keras.Model(model.input, [model.get_layer(name).output for name in ("pool2", "inception_3a")])
    before, after = (as_numpy(maps) for maps in probe(images_of(*size, 60)))
    reference = inception(Weights(model), before.astype(np.float64), "3a", [64, 96, 128, 16, 32, 32])
    assert relative_difference(after, reference) <= TOLERANCE


# Residual and plain networks (He et al. 2015), table 1, sections 3.3 and 4.1.

BASIC, BOTTLENECK = "basic", "bottleneck"
RESNET = {18: (BASIC, 2, 2, 2, 2), 34: (BASIC, 3, 4, 6, 3), 50: (BOTTLENECK, 3, 4, 6, 3)}


def resnet(w, x, *, depth, shortcut, stride_on_3x3=False):
    def layer(x, name, size, filters, stride=1):
        (kernel,) = w(f"{name}_conv")
        gamma, beta, mean, variance = w(f"{name}_bn")
        assert kernel.shape == (size, size, x.shape[3], filters)
        return (convolve(x, kernel, stride=stride) - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def around(x, name, filters, stride):
        grows = stride == 2 or x.shape[3] != filters
        if shortcut == "C" or (shortcut == "B" and grows):
            return layer(x, f"{name}_0", 1, filters, stride)
        x = x[:, ::stride, ::stride]
        return np.concatenate([x, np.zeros((*x.shape[:3], filters - x.shape[3]))], axis=3)

    x = pool(relu(layer(x, "conv1", 7, 64, 2)), 3, 2, pad=1)
    kind, *counts = RESNET[depth]
    for stage, (count, filters) in enumerate(zip(counts, (64, 128, 256, 512), strict=True), start=2):
        for block in range(1, count + 1):
            name, stride = f"conv{stage}_block{block}", 2 if stage > 2 and block == 1 else 1
            if kind == BASIC:
                y = relu(layer(x, f"{name}_1", 3, filters, stride))
                y = layer(y, f"{name}_2", 3, filters)
            else:
                first, second = (1, stride) if stride_on_3x3 else (stride, 1)
                y = relu(layer(x, f"{name}_1", 1, filters, first))
                y = relu(layer(y, f"{name}_2", 3, filters, second))
                y = layer(y, f"{name}_3", 1, 4 * filters)
            x = relu(y if shortcut is None else y + around(x, name, y.shape[3], stride))
    return linear(w, "predictions", x.mean((1, 2)))


RESIDUAL = [(f"ResNet{depth}", depth, {"shortcut": option}) for depth in (18, 34, 50) for option in "ABC"] + [
    ("ResNet50v1_5", 50, {"shortcut": "A", "stride_on_3x3": True}),
    ("ResNet50v1_5", 50, {"shortcut": "B", "stride_on_3x3": True}),
    ("PlainNet18", 18, {"shortcut": None}),
    ("PlainNet34", 34, {"shortcut": None}),
]


# Every shortcut, and every kind of block; below, ResNet50's with its default shortcut.
QUICK = {"ResNet18-A", "ResNet18-B", "ResNet18-C", "ResNet50v1_5-B", "PlainNet18-None"}


def residual_networks():
    for name, depth, options in RESIDUAL:
        case = f"{name}-{options['shortcut']}"
        yield pytest.param(name, depth, options, id=case, marks=[pytest.mark.heavy] if case not in QUICK else [])


@pytest.mark.parametrize("name, depth, options", residual_networks())
def test_residual_and_plain_networks(name, depth, options):
    chosen = {"shortcut": options["shortcut"]} if options["shortcut"] else {}
    # One side is odd before every stride of 2, 33 17 9 5 3 2; the other is even before all but one, 48 24 12 6 3 2.
    model = logits_of(name, (33, 48), **chosen)
    compare(model, images_of(33, 48, 1), functools.partial(resnet, depth=depth, **options))


@pytest.mark.parametrize("name, depth", [("ResNet18", 18), pytest.param("ResNet50", 50, marks=pytest.mark.heavy)])
def test_projections_where_the_dimensions_grow_are_the_default(name, depth):
    compare(logits_of(name, (47, 32)), images_of(47, 32, 1), functools.partial(resnet, depth=depth, shortcut="B"))


# The layers alone.


@pytest.fixture(params=["eager", "graph", "XLA"])
def mode(request):
    if request.param == "eager":
        return lambda function: function
    return functools.partial(tf.function, jit_compile=request.param == "XLA")


def grouped_layer(**arguments):
    layer = GroupedConv2D(6, 3, groups=2, bias_initializer="random_normal", name="grouped", **arguments)
    layer.build((None, None, None, 8))
    return layer


@pytest.mark.parametrize("strides, padding", [(1, "same"), (1, "valid"), (2, "valid"), (2, "same")])
def test_grouped_convolution_is_two_convolutions(mode, strides, padding):
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(2, 9, 8, 8)).astype(np.float32))
    layer = grouped_layer(strides=strides, padding=padding)
    kernel, bias = layer.kernel.value, layer.bias.value

    def halves(x):
        parts = zip(tf.split(x, 2, axis=3), tf.split(kernel, 2, axis=3), strict=True)
        return tf.concat([tf.nn.conv2d(maps, half, strides, padding.upper()) for maps, half in parts], axis=3) + bias

    def with_gradients(network):
        def run(x, upstream):
            with tf.GradientTape() as tape:
                tape.watch(x)
                result = network(x)
                loss = tf.reduce_sum(result * upstream)
            return result, *tape.gradient(loss, [x, kernel, bias])

        return run

    upstream = tf.constant(rng.normal(size=layer.compute_output_shape(x.shape)).astype(np.float32))
    results = mode(with_gradients(layer))(x, upstream)
    references = with_gradients(halves)(x, upstream)
    for result, reference in zip(results, references, strict=True):
        # Sums of at most 9 * 8 products and 2 * 9 * 8 places in another order.
        assert relative_difference(result.numpy(), reference.numpy()) <= 1e-5


GROUPED_TRAINING = """
import keras, numpy as np, tensorflow as tf
from keras_convnets.networks.layers import GroupedConv2D
images = keras.Input((9, 9, 8))
maps = GroupedConv2D(6, 3, groups=2, padding="same", activation="relu", name="grouped")(images)
model = keras.Model(images, keras.layers.Dense(3)(keras.layers.Flatten()(maps)))
x = np.random.default_rng(0).normal(size=(2, 9, 9, 8)).astype(np.float32)
difference = np.abs(model.predict(x, verbose=0) - model(x).numpy()).max()
assert difference < 1e-5, difference
model.compile("sgd", "mse")
before = model.get_layer("grouped").kernel.numpy()
model.fit(x, np.ones((2, 3)), verbose=0)
assert np.abs(model.get_layer("grouped").kernel.numpy() - before).max() > 0
"""


@pytest.mark.parametrize("onednn", ["0", pytest.param("1", marks=pytest.mark.heavy)])
def test_grouped_convolutions_predict_and_train_on_any_processor(onednn):
    """TensorFlow does without oneDNN on older ones, and its own kernels know no groups in gradients and with a ReLU."""
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": onednn}
    done = subprocess.run([sys.executable, "-c", GROUPED_TRAINING], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_group_sees_its_own_maps_only():
    x = np.random.default_rng(0).normal(size=(1, 5, 5, 8)).astype(np.float32)
    other = x.copy()
    other[..., 4:] += 1
    layer = grouped_layer(padding="same")
    before, after = as_numpy(layer(x)), as_numpy(layer(other))
    np.testing.assert_array_equal(before[..., :3], after[..., :3])
    assert (before[..., 3:] != after[..., 3:]).all()
    kernel, bias = (as_numpy(weight).astype(np.float64) for weight in layer.weights)
    assert relative_difference(before, two_towers(x.astype(np.float64), kernel, bias)) <= 1e-6


LRN_CONSTANTS = [{}, {"n": 3}, {"n": 5, "k": 1.0, "alpha": 0.01, "beta": 0.5}, {"n": 1}]
lrn_constants = pytest.mark.parametrize("constants", LRN_CONSTANTS, ids=["paper", "n=3", "all", "n=1"])


@pytest.fixture(params=["tensorflow", "another backend"])
def branch(request, monkeypatch):
    """LRN as one TensorFlow op, and as the keras.ops that other backends get, here run by TensorFlow."""
    if request.param != "tensorflow":
        monkeypatch.setattr(keras.backend, "backend", lambda: "jax")


def maps_of(count, scale=60):
    return np.random.default_rng(0).normal(0, scale, (2, 3, 4, count)).astype(np.float32)


@lrn_constants
# With 4 maps no window of 5 is whole.
@pytest.mark.parametrize("count", [4, 12])
def test_response_normalization_is_the_papers(branch, constants, count):
    x = maps_of(count)
    reference = response_normalization(x.astype(np.float64), **constants)
    result = as_numpy(LRN(**constants)(x))
    assert result.dtype == np.float32
    # Each value by itself, so that the first and last maps hide behind no larger ones; a power costs some roundings.
    np.testing.assert_allclose(result, reference, rtol=1e-5)


def test_response_normalization_in_half_precision(branch):
    # 300 squared overflows float16, so the sum must not be in it.
    x = maps_of(12, scale=300).astype(np.float16)
    result = as_numpy(LRN(dtype="mixed_float16")(x))
    assert result.dtype == np.float16
    # The result is rounded to 11 bits, at most 2**-11 of it; subnormal numbers have fewer.
    np.testing.assert_allclose(result, response_normalization(x.astype(np.float64)), rtol=1e-3, atol=1e-6)


def test_response_normalizations_gradient(branch):
    x = tf.constant(maps_of(6))
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(LRN(n=3)(x) * maps_of(6, 1))
    gradient = tape.gradient(loss, x).numpy()
    # Central differences in float64; their own error is the step squared.
    numeric, step = np.empty_like(gradient), 1e-3
    for place in np.ndindex(gradient.shape):
        shift = np.zeros(gradient.shape)
        shift[place] = step
        up, down = (response_normalization(x.numpy() + sign * shift, n=3) for sign in (1, -1))
        numeric[place] = ((up - down) * maps_of(6, 1)).sum() / (2 * step)
    assert relative_difference(gradient, numeric) <= 1e-5


OWN_LAYERS = {
    "GroupedConv2D": (
        GroupedConv2D,
        {"filters": 6, "kernel_size": (3, 3), "strides": (2, 2), "padding": "valid", "groups": 2, "activation": "relu"},
    ),
    "LRN": (LRN, {"n": 3, "k": 1.5, "alpha": 0.02, "beta": 0.6}),
}
own_layers = pytest.mark.parametrize("kind, arguments", OWN_LAYERS.values(), ids=OWN_LAYERS)


@own_layers
def test_layers_round_trip(kind, arguments, tmp_path):
    layer = kind(**arguments, name="own")
    config = layer.get_config()
    assert {key: config[key] for key in arguments} == arguments
    again = kind.from_config(config)
    assert type(again) is kind and again.get_config() == config
    assert keras.saving.get_registered_name(kind) == f"keras_convnets>{kind.__name__}"

    x = maps_of(8)
    inputs = keras.Input((3, 4, 8))
    model = keras.Model(inputs, layer(inputs))
    randomise(model)
    model.save(tmp_path / "layer.keras")
    loaded = keras.saving.load_model(tmp_path / "layer.keras")
    assert type(loaded.get_layer("own")) is kind and loaded.get_layer("own").get_config() == config
    np.testing.assert_array_equal(as_numpy(loaded(x)), as_numpy(model(x)))


@pytest.mark.parametrize(
    "layer, operator, wanted",
    [
        (lambda: GroupedConv2D(6, 3, padding="same", groups=2, activation="relu"), "Conv", {"group": 2}),
        # ONNX divides alpha by the size.
        (lambda: LRN(), "LRN", {"size": 5, "alpha": 5e-4, "beta": 0.75, "bias": 2.0}),
        (lambda: LRN(n=3, k=1.0, alpha=0.01, beta=0.5), "LRN", {"size": 3, "alpha": 0.03, "beta": 0.5, "bias": 1.0}),
    ],
    ids=["GroupedConv2D", "LRN", "LRN of other constants"],
)
def test_layers_convert_to_one_onnx_operator(layer, operator, wanted):
    inputs = keras.Input((7, 6, 8))
    model = keras.Model(inputs, layer()(inputs))
    randomise(model)
    signature = [tf.TensorSpec((None, 7, 6, 8), tf.float32, name="maps")]
    proto, _ = tf2onnx.convert.from_function(tf.function(model), input_signature=signature, opset=17)
    # tf2onnx writes an invalid file without a word where it knows no operator.
    onnx.checker.check_model(proto, full_check=True)
    found = [node for node in proto.graph.node if node.op_type == operator]
    assert len(found) == 1
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in found[0].attribute}
    assert {key: attributes[key] for key in wanted} == pytest.approx(wanted)
    assert {node.op_type for node in proto.graph.node} <= {operator, "Transpose", "Relu", "Add", "Reshape"}

    x = np.random.default_rng(0).normal(0, 60, (3, 7, 6, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: x})
    # ONNX Runtime's power is good to some 5e-6 here; alpha divided by n twice or never would show at 1e-1.
    assert relative_difference(result, as_numpy(model(x))) <= 2e-5
