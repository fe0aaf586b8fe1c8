"""Preprocessing as a value and as a network's first layer, and the package's other layers, against NumPy."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from keras_convnets import CIFARResNet, Preprocessing, get_model, preprocess_input
from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import CIFAR10, IMAGENET
from keras_convnets.networks.layers import LRN, BatchNormalization, GroupedConv2D, ImageNormalization, ShortcutA

MEAN = (120.5, 110.25, 100.75)
STD = (60.0, 50.0, 40.0)
MEAN_IMAGE = np.random.default_rng(0).uniform(90, 130, (6, 5, 3)).astype(np.float32)
OWN_SIZE, OTHER_SIZE = (6, 5), (5, 6)

PRESETS = {
    "means": Preprocessing(MEAN),
    "means and std": Preprocessing(MEAN, STD),
    "BGR": Preprocessing(MEAN, order="BGR"),
    "BGR and std": Preprocessing(MEAN, STD, "BGR"),
    "mean image": Preprocessing(MEAN, mean_image=MEAN_IMAGE),
    "all": Preprocessing(MEAN, STD, "BGR", MEAN_IMAGE),
}


def random_images(size, dtype, seed=1):
    """Images in 0-255; the float ones have fractions that half precision cannot hold."""
    rng = np.random.default_rng(seed)
    if dtype == "uint8":
        return rng.integers(0, 256, (2, *size, 3), np.uint8)
    return rng.uniform(0, 255, (2, *size, 3)).astype(dtype)


def by_hand(images, preset):
    """What a preset means, in float64 and channel by channel."""
    result = np.empty(images.shape, np.float64)
    for channel in range(3):
        source = 2 - channel if preset.order == "BGR" else channel
        mean = preset.mean[channel]
        if preset.mean_image is not None and images.shape[1:3] == preset.mean_image.shape[:2]:
            mean = preset.mean_image[:, :, channel]
        result[..., channel] = (images[..., source].astype(np.float64) - mean) / preset.std[channel]
    return result


@pytest.fixture
def mixed_float16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("size", [OWN_SIZE, OTHER_SIZE])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_value_and_layer_compute_what_the_preset_says(preset, dtype, size):
    images = random_images(size, dtype)
    layer = ImageNormalization(preset)
    for result in (preset(images), keras.ops.convert_to_numpy(layer(images))):
        assert result.dtype == np.float32
        # float32 keeps 255 to 1.5e-5, and a subtraction rounds once more.
        np.testing.assert_allclose(result, by_hand(images, preset), rtol=0, atol=5e-5)
    assert tuple(layer.compute_output_shape(images.shape)) == images.shape


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_uint8_and_float_images_agree(preset):
    images = random_images(OWN_SIZE, "uint8")
    layer = ImageNormalization(preset)
    as_bytes, as_floats = (keras.ops.convert_to_numpy(layer(x)) for x in (images, images.astype(np.float32)))
    np.testing.assert_array_equal(as_bytes, as_floats)
    np.testing.assert_array_equal(preset(images), preset(images.astype(np.float32)))


def test_the_mean_image_is_used_at_its_own_size_only():
    preset = PRESETS["mean image"]
    at_own_size, at_other_size = (preset(np.zeros((1, *size, 3), np.uint8))[0] for size in (OWN_SIZE, OTHER_SIZE))
    np.testing.assert_array_equal(at_own_size, -MEAN_IMAGE)
    np.testing.assert_array_equal(at_other_size, np.broadcast_to(-np.float32(MEAN), (*OTHER_SIZE, 3)))


def test_a_single_image_and_a_batch_get_the_same():
    images = random_images(OWN_SIZE, "uint8")
    preset = PRESETS["all"]
    np.testing.assert_array_equal(preset(images)[1], preset(images[1]))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("preset", [*PRESETS.values(), Preprocessing((0, 0, 0))])
def test_the_argument_stays_as_it_was(preset, dtype):
    images = random_images(OWN_SIZE, dtype)
    before = images.copy()
    result = preset(images)
    result += 1.0
    np.testing.assert_array_equal(images, before)


def test_the_mean_image_is_a_copy_that_nobody_changes():
    source = MEAN_IMAGE.copy()
    preset = Preprocessing(MEAN, mean_image=source)
    source += 1.0
    np.testing.assert_array_equal(preset.mean_image, MEAN_IMAGE)
    with pytest.raises(ValueError):
        preset.mean_image[0] = 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset.mean = STD


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_json_round_trip_is_exact(preset):
    back = Preprocessing.from_dict(json.loads(json.dumps(preset.to_dict())))
    assert back == preset and hash(back) == hash(preset)
    for field in ("mean", "std", "order"):
        assert getattr(back, field) == getattr(preset, field)
    if preset.mean_image is None:
        assert back.mean_image is None
    else:
        np.testing.assert_array_equal(back.mean_image, preset.mean_image)


def test_presets_that_differ_are_not_equal():
    presets = list(PRESETS.values())
    assert all((one == other) == (one is other) for one in presets for other in presets)
    assert Preprocessing(MEAN, mean_image=MEAN_IMAGE) != Preprocessing(MEAN, mean_image=MEAN_IMAGE + 1)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"mean": MEAN, "order": "GRB"}, "'RGB' or 'BGR'"),
        ({"mean": (1.0,)}, "mean has 1 values"),
        ({"mean": MEAN, "std": (1.0, 2.0)}, "std has 2 values"),
        ({"mean": MEAN, "std": (1.0, 0.0, 1.0)}, "must be positive"),
        ({"mean": MEAN, "std": (1.0, float("nan"), 1.0)}, "must be positive"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "mean is .* must be finite"),
        ({"mean": MEAN, "std": (1.0, float("inf"), 1.0)}, "must be positive and finite"),
        ({"mean": None}, "mean is None; give one number"),
        ({"mean": "RGB"}, "mean is 'RGB'; give one number"),
        ({"mean": MEAN, "mean_image": np.full((4, 4, 3), np.nan)}, "mean image holds values that are not finite"),
        ({"mean": MEAN, "mean_image": np.zeros((4, 4))}, r"\(height, width, 3\)"),
        ({"mean": MEAN, "mean_image": np.zeros((4, 4, 1))}, r"\(height, width, 3\)"),
    ],
)
def test_a_wrong_preset_is_refused(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        Preprocessing(**arguments)


def test_preprocess_input_changes_nothing():
    images = random_images(OWN_SIZE, "float32")
    before = images.copy()
    assert preprocess_input(images) is images
    assert preprocess_input(images, data_format="channels_last") is images
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_normalisation_is_float32_under_mixed_precision(preset, mixed_float16):
    images = random_images(OWN_SIZE, "float32")
    # The images must be such that rounding them to half precision would show.
    assert np.abs(images.astype(np.float16).astype(np.float32) - images).max() > 0.01
    network = CIFARResNet(8, input_shape=(*OWN_SIZE, 3), preprocessing=preset)
    first = network.get_layer("preprocessing")
    for compute in (first, keras.Model(network.input, first.output)):
        result = keras.ops.convert_to_numpy(compute(images))
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, by_hand(images, preset), rtol=0, atol=5e-5)


def test_head_is_float32_under_mixed_precision(mixed_float16):
    network = CIFARResNet(8, input_shape=(*OWN_SIZE, 3))
    assert network.get_layer("conv4_block1_2_conv").compute_dtype == "float16"
    for name in ("predictions", "probabilities"):
        assert network.get_layer(name).compute_dtype == "float32"
        assert keras.backend.standardize_dtype(network.get_layer(name).output.dtype) == "float32"
    probabilities = keras.ops.convert_to_numpy(network(random_images(OWN_SIZE, "uint8")))
    assert probabilities.dtype == np.float32
    # In half precision a sum of ten would be off by about 1e-3.
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=0, atol=1e-6)


def test_a_network_normalises_with_cifar10s_means_unless_told():
    network = CIFARResNet(8)
    assert network.get_layer("preprocessing").preprocessing == CIFAR10
    assert CIFAR10.order == "RGB" and CIFAR10.std == (1.0, 1.0, 1.0)
    # The means of CIFAR-10's training images, as fractions of 255, are known to everyone as .4914 .4822 .4465.
    np.testing.assert_allclose(np.array(CIFAR10.mean) / 255, (0.4914, 0.4822, 0.4465), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["AlexNet", "VGG11", "GoogLeNet", "ResNet18", "PlainNet18"])
def test_imagenet_networks_normalise_with_imagenets_means(name):
    first = get_model(name, include_top=False).get_layer("preprocessing").preprocessing
    assert first == IMAGENET and (first.order, first.std) == ("RGB", (1.0, 1.0, 1.0))
    # The means of ImageNet's training images, as fractions of 255, are known to everyone as .485 .456 .406.
    np.testing.assert_allclose(np.array(first.mean) / 255, (0.485, 0.456, 0.406), rtol=0, atol=3e-3)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_bare_network_takes_what_the_preset_gives(preset):
    # Logits, because an untrained network's softmax is 0 or 1 whatever it sees.
    arguments = {"input_shape": (*OWN_SIZE, 3), "classifier_activation": None}
    whole = CIFARResNet(8, preprocessing=preset, **arguments)
    bare = CIFARResNet(8, include_preprocessing=False, **arguments)
    assert not any(isinstance(layer, ImageNormalization) for layer in bare.layers)
    bare.set_weights(whole.get_weights())
    images = random_images(OWN_SIZE, "uint8")
    from_images, from_preset, without = (
        keras.ops.convert_to_numpy(x) for x in (whole(images), bare(preset(images)), bare(images.astype(np.float32)))
    )
    scale = np.abs(from_images).max()
    np.testing.assert_allclose(from_images, from_preset, rtol=0, atol=1e-5 * scale)
    # Without its preset the bare network must see something else, else the comparison above shows nothing.
    assert np.abs(without - from_images).max() > 1e-2 * scale


def round_trip(layer):
    """Return the layer that its configuration, sent through JSON, gives."""
    plain = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    assert plain["registered_name"] == f"keras_convnets>{type(layer).__name__}"
    return keras.saving.deserialize_keras_object(plain)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_image_normalization_round_trip(preset, policy, request):
    if policy == "mixed_float16":
        request.getfixturevalue("mixed_float16")
    layer = ImageNormalization(preset, name="mine")
    back = round_trip(layer)
    assert isinstance(back, ImageNormalization)
    assert (back.name, back.compute_dtype, back.preprocessing) == ("mine", "float32", preset)
    images = random_images(OWN_SIZE, "uint8")
    np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(one(images)) for one in (layer, back)))


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 1)])
@pytest.mark.parametrize("filters, stride", [(4, 2), (7, 2), (7, 1), (4, 1), (9, 3)])
def test_shortcut_a_subsamples_and_appends_zero_channels(size, filters, stride):
    x = np.random.default_rng(2).normal(size=(2, *size, 4)).astype(np.float32)
    layer = ShortcutA(filters, stride, name="mine")
    back = round_trip(layer)
    assert isinstance(back, ShortcutA) and (back.name, back.filters, back.stride) == ("mine", filters, stride)
    wanted = np.zeros((2, -(-size[0] // stride), -(-size[1] // stride), filters), np.float32)
    for row in range(wanted.shape[1]):
        for column in range(wanted.shape[2]):
            wanted[:, row, column, :4] = x[:, row * stride, column * stride]
    for one in (layer, back):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(one(x)), wanted)
        assert tuple(one.compute_output_shape(x.shape)) == wanted.shape
    assert tuple(layer.compute_output_shape((None, None, None, 4))) == (None, None, None, filters)
    assert layer.count_params() == 0


# The paper's constants, Caffe's of AlexNet, and ones whose every part shows.
@pytest.mark.parametrize("constants", [{}, {"k": 1, "alpha": 2e-5}, {"n": 3, "k": 0.5, "alpha": 0.1, "beta": 0.6}])
@pytest.mark.parametrize("maps", [1, 3, 8])
def test_lrn_is_the_papers_formula(constants, maps):
    x = np.random.default_rng(4).normal(0, 30, (2, 3, 4, maps)).astype(np.float32)
    layer = LRN(**constants, name="mine")
    n, k, alpha, beta = ({"n": 5, "k": 2, "alpha": 1e-4, "beta": 0.75} | constants).values()
    wanted = np.empty(x.shape)
    for i in range(maps):
        near = x[..., max(0, i - n // 2) : min(maps - 1, i + n // 2) + 1].astype(np.float64)
        wanted[..., i] = x[..., i] / (k + alpha * (near**2).sum(-1)) ** beta
    back = round_trip(layer)
    assert isinstance(back, LRN) and back.get_config() == layer.get_config()
    for one in (layer, back):
        result = keras.ops.convert_to_numpy(one(x))
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)
    assert tuple(layer.compute_output_shape((None, None, None, maps))) == (None, None, None, maps)


def test_lrn_sums_in_float32_under_mixed_precision(mixed_float16):
    # 300 squared is more than half precision holds.
    x = np.full((1, 2, 2, 5), 300, np.float16)
    result = keras.ops.convert_to_numpy(LRN()(x))
    assert result.dtype == np.float16
    assert result[0, 0, 0, 2] == pytest.approx(300 / (2 + 1e-4 * 5 * 300**2) ** 0.75, rel=1e-3)


@pytest.mark.parametrize("n", [0, 4, -1])
def test_lrn_refuses_an_even_number_of_maps(n):
    with pytest.raises(UserError, match=f"n is {n}; it must be an odd number"):
        LRN(n=n)


@pytest.mark.parametrize("strides, padding", [(1, "same"), (1, "valid"), (2, "valid")])
def test_a_grouped_convolution_is_one_convolution_a_tower(strides, padding):
    x = np.random.default_rng(5).normal(size=(2, 7, 6, 8)).astype(np.float32)
    layer = GroupedConv2D(6, 3, strides=strides, padding=padding, groups=2, activation="relu", name="mine")
    layer.build(x.shape)
    assert layer.kernel.shape == (3, 3, 4, 6) and layer.count_params() == 3 * 3 * 4 * 6 + 6
    layer.bias.assign(np.linspace(-1, 1, 6))
    kernel, bias = layer.get_weights()
    towers = []
    for tower in range(2):
        own = slice(3 * tower, 3 * tower + 3)
        towers.append(keras.ops.conv(x[..., 4 * tower : 4 * tower + 4], kernel[..., own], strides, padding) + bias[own])
    wanted = np.maximum(np.concatenate([keras.ops.convert_to_numpy(tower) for tower in towers], -1), 0)
    back = round_trip(layer)
    assert isinstance(back, GroupedConv2D) and back.groups == 2
    back.set_weights(layer.get_weights())
    for one in (layer, back):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(one(x)), wanted, rtol=1e-5, atol=1e-5)
    assert tuple(layer.compute_output_shape(x.shape)) == wanted.shape


def normalization_pair(**arguments):
    """Return this package's batch normalisation, and Keras' with the same weights."""
    pair = [
        kind(momentum=0.9, epsilon=1e-5, **arguments) for kind in (BatchNormalization, keras.layers.BatchNormalization)
    ]
    rng = np.random.default_rng(6)
    weights = [rng.uniform(0.5, 2, 4), rng.normal(size=4), rng.normal(size=4), rng.uniform(0.5, 2, 4)]
    for layer in pair:
        layer.build((None, None, None, 4))
        layer.set_weights(weights)
    return pair


@pytest.mark.parametrize("size", [(6, 5, 5), (2, 1, 1), (1, 1, 1)])
def test_fused_batch_normalization_trains_as_the_formula_and_as_keras(size):
    import tensorflow as tf

    x = np.random.default_rng(7).normal(3, 2, (*size, 4)).astype(np.float32)
    mean, variance = x.astype(np.float64).mean((0, 1, 2)), x.astype(np.float64).var((0, 1, 2))
    results = []
    for layer in normalization_pair():
        gamma, beta, moving_mean, moving_variance = layer.get_weights()
        inputs = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = layer(inputs, training=True)
            loss = tf.reduce_sum(y * tf.cos(inputs))
        results.append([y, *tape.gradient(loss, [inputs, layer.gamma, layer.beta]), *layer.non_trainable_variables])
        np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(layer.moving_mean, 0.9 * moving_mean + 0.1 * mean, rtol=1e-5)
        np.testing.assert_allclose(layer.moving_variance, 0.9 * moving_variance + 0.1 * variance, rtol=1e-5)
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_a_batch_normalization_takes_the_fused_operation_and_keeps_the_policys_dtypes(policy):
    import tensorflow as tf

    layer, _ = normalization_pair(dtype=policy)
    graph = tf.function(lambda x: layer(x, training=True)).get_concrete_function(
        tf.TensorSpec((None, 5, 5, 4), layer.compute_dtype)
    )
    assert "FusedBatchNormV3" in {operation.type for operation in graph.graph.get_operations()}
    assert graph.output_dtypes == layer.compute_dtype and layer.gamma.dtype == layer.moving_mean.dtype == "float32"


def test_a_batch_normalization_is_keras_own_outside_training_and_where_it_can_not_be_fused():
    x = np.random.default_rng(8).normal(size=(3, 4, 4, 4)).astype(np.float32)
    ours, theirs = normalization_pair(name="mine")
    back = round_trip(ours)
    back.set_weights(ours.get_weights())
    assert type(back) is BatchNormalization and back.get_config() == ours.get_config() == theirs.get_config()
    for one in (ours, back):
        np.testing.assert_array_equal(one(x), theirs(x))
    ours.trainable = False
    np.testing.assert_array_equal(ours(x, training=True), theirs(x))
    for shape, arguments in [((3, 4), {}), ((3, 4, 2, 2), {"axis": 1}), ((3, 2, 2, 4), {"scale": False})]:
        values = np.random.default_rng(9).normal(size=shape).astype(np.float32)
        pair = [kind(**arguments) for kind in (BatchNormalization, keras.layers.BatchNormalization)]
        np.testing.assert_array_equal(*(layer(values, training=True) for layer in pair))


def test_a_size_known_only_at_run_time_chooses_the_mean_too():
    """Compiled for any size: the mean image at its own size, the channel means at another."""
    import tensorflow as tf

    from keras_convnets import Preprocessing
    from keras_convnets.networks.layers import ImageNormalization

    rng = np.random.default_rng(0)
    preprocessing = Preprocessing(mean=(10.0, 20.0, 30.0), mean_image=rng.uniform(0, 255, (6, 5, 3)))
    layer = ImageNormalization(preprocessing)
    compiled = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32)])
    for size in ((6, 5), (5, 6), (8, 8)):
        images = rng.uniform(0, 255, (2, *size, 3)).astype(np.float32)
        np.testing.assert_allclose(compiled(images).numpy(), preprocessing(images), atol=1e-4)
