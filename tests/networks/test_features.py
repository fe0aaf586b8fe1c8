"""Networks made of networks: stages by the papers' names, and classifiers as convolutions against NumPy."""

import keras
import numpy as np
import pytest

from keras_convnets import (
    CIFARPlainNet,
    CIFARResNet,
    GoogLeNet,
    Preprocessing,
    features,
    fully_convolutional,
    get_model,
    stages,
    without_auxiliary,
)
from keras_convnets.errors import UserError
from keras_convnets.networks import resnet_cifar
from keras_convnets.networks.registry import ARCHITECTURES

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# Maps and stride of each stage: AlexNet figure 2, VGG table 1, GoogLeNet table 1, ResNet table 1 and section 4.2.
ALEXNET = {"conv1": (96, 4), "conv2": (256, 8), "conv3": (384, 16), "conv4": (384, 16), "conv5": (256, 16)}
STAGES = {
    "alexnet": ALEXNET,
    "vgg": {"block1": (64, 1), "block2": (128, 2), "block3": (256, 4), "block4": (512, 8), "block5": (512, 16)},
    "googlenet": {
        "conv1": (64, 2),
        "conv2": (192, 4),
        **{f"inception_3{row}": (maps, 8) for row, maps in zip("ab", (256, 480), strict=True)},
        **{f"inception_4{row}": (maps, 16) for row, maps in zip("abcde", (512, 512, 512, 528, 832), strict=True)},
        **{f"inception_5{row}": (maps, 32) for row, maps in zip("ab", (832, 1024), strict=True)},
    },
    "resnet_cifar": {"conv1": (16, 1), "conv2_x": (16, 1), "conv3_x": (32, 2), "conv4_x": (64, 4)},
}
# The others differ in depth alone; the deepest takes ten seconds to build.
QUICK = ["AlexNet", "AlexNetSixConvs", "VGG11", "GoogLeNet", "ResNet18", "ResNet20"]
over_all = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.heavy) for name in ARCHITECTURES]
)
# (side of training, side of a larger image): two places in the last map, and three; ResNet20 has eight, and ten.
SIDES = {"AlexNet": (96, 128), "ResNet20": (32, 40)}
FAMILIES = ["AlexNet", "VGG11", "GoogLeNet", "ResNet18", "ResNet20"]
HEAVY = [pytest.param(name, marks=pytest.mark.heavy) for name in ("VGG16", "ResNet50", "ResNet50v1_5", "PlainNet18")]
# pytest runs the tests of one network together, so that only one is in memory.
over_families = pytest.mark.parametrize("classifier", FAMILIES + HEAVY, indirect=True)
# Where a larger image shows the same and more of every family.
over_pooled = pytest.mark.parametrize(
    "classifier",
    [*(name if name in ("GoogLeNet", "ResNet20") else pytest.param(name, marks=pytest.mark.heavy) for name in FAMILIES)]
    + HEAVY,
    indirect=True,
)


def as_numpy(x):
    return keras.ops.convert_to_numpy(x)


def family_of(name):
    return ARCHITECTURES[name].module.removeprefix("keras_convnets.networks.")


def wanted_stages(name):
    if name == "AlexNetSixConvs":
        return {**ALEXNET, "conv6": (256, 32)}
    if family_of(name) != "resnet":
        return STAGES[family_of(name)]
    widen = 4 if ARCHITECTURES[name].depth >= 50 else 1
    return {"conv1": (64, 2), **{f"conv{n}_x": (widen * (16 << n), 2**n) for n in (2, 3, 4, 5)}}


def images_of(side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (2, side, side, 3), np.uint8)


def leaves(model):
    for layer in model.layers:
        yield from leaves(layer) if isinstance(layer, keras.Model) else (layer,)


def randomise(model, seed=0):
    """Give biases and normalisation random values, as training would.

    What a residual block adds is scaled down: at 1202 layers an untrained network's output is infinite.
    """
    rng = np.random.default_rng(seed)
    blocks = sum(isinstance(layer, keras.layers.Add) for layer in leaves(model))
    for layer in leaves(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            pixels = 50.0 if layer.name == "conv1_bn" else 1.0
            scale = 1 / blocks if blocks and layer.name.endswith(("_2_bn", "_3_bn")) else 1.0
            layer.gamma.assign(rng.uniform(0.7, 1.3, layer.gamma.shape) * scale)
            layer.beta.assign(rng.normal(0, 0.3, layer.beta.shape) * scale)
            layer.moving_mean.assign(rng.normal(0, 0.3, layer.beta.shape) * pixels)
            layer.moving_variance.assign(rng.uniform(0.7, 2.0, layer.beta.shape) * pixels**2)
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign_add(rng.normal(0, 0.1, layer.bias.shape))


def classifier_of(name, **arguments):
    """A classifier of three classes with random weights, at its side of training."""
    side = SIDES.get(name, (64, 96))[0]
    model = get_model(name, input_shape=(side, side, 3), classes=3, **arguments)
    randomise(model)
    # Saturated probabilities would agree whatever was computed: logits of about one.
    last = model.get_layer("predictions")
    logits = as_numpy(keras.Model(model.input, last.output)(images_of(side)))
    last.kernel.assign(last.kernel * (2 / np.ptp(logits)))
    return model


@pytest.fixture(scope="module")
def classifier(request):
    return request.param, classifier_of(request.param)


def assert_close(result, reference, tolerance=1e-5):
    assert result.shape == reference.shape
    np.testing.assert_allclose(result, reference, rtol=0, atol=tolerance * np.abs(reference).max())


@pytest.fixture
def nested(monkeypatch):
    """Five blocks a stage in inner models of two, two and one, as ResNet1202 has them by the fifty; and one flat."""

    def build(family, **arguments):
        arguments = {"input_shape": (16, 16, 3), "classes": 3, **arguments}
        flat = family(32, **arguments)
        with monkeypatch.context() as patch:
            patch.setattr(resnet_cifar, "DEEPEST_FLAT", 20)
            patch.setattr(resnet_cifar, "BLOCKS_PER_NEST", 2)
            model = family(32, **arguments)
        assert sum(isinstance(layer, keras.Model) for layer in model.layers) == 9
        randomise(model)
        flat.set_weights(model.get_weights())
        return model, flat

    return build


# Stages and features.


@over_all
def test_stages_are_the_papers_and_features_give_them(name):
    model = get_model(name, include_top=False, input_shape=(128, 128, 3))
    randomise(model)
    known, wanted = stages(model), wanted_stages(name)
    assert {name: (stage.channels, stage.stride) for name, stage in known.items()} == wanted
    assert list(known) == list(wanted) == [stage.name for stage in known.values()]
    backbone = features(model, list(wanted))
    # The tensor that the layer gave in this model: a nested model's own `output` belongs to its inner graph.
    ends = {name: model.get_layer(stage.layer)._inbound_nodes[0].output_tensors[0] for name, stage in known.items()}
    probe = keras.Model(model.input, ends)
    images = images_of(128)
    maps, inner = backbone(images), probe(images)
    assert set(maps) == set(wanted)
    for stage, (channels, stride) in wanted.items():
        found = as_numpy(maps[stage])
        # AlexNet's poolings are unpadded and lose the border.
        side = found.shape[1] if family_of(name) == "alexnet" else 128 // stride
        assert found.shape == (2, side, side, channels)
        assert found.std() > 0
        np.testing.assert_array_equal(found, as_numpy(inner[stage]))


def test_a_stage_ends_with_its_last_layer():
    found = {name: stage.layer for name, stage in stages(get_model("ResNet34", include_top=False)).items()}
    assert found == {
        "conv1": "conv1_relu",
        "conv2_x": "conv2_block3_out",
        "conv3_x": "conv3_block4_out",
        "conv4_x": "conv4_block6_out",
        "conv5_x": "conv5_block3_out",
    }
    found = {name: stage.layer for name, stage in stages(get_model("VGG11", include_top=False)).items()}
    assert found == {f"block{n}": f"block{n}_conv{count}" for n, count in enumerate((1, 1, 2, 2, 2), start=1)}


def test_alexnets_stages_have_the_papers_maps():
    model = features(get_model("AlexNet", include_top=False), list(ALEXNET))
    assert {name: tensor.shape[1] for name, tensor in model.output.items()} == {
        "conv1": 55,
        "conv2": 27,
        "conv3": 13,
        "conv4": 13,
        "conv5": 13,
    }


@pytest.mark.parametrize("name, shortcut", [("ResNet18", "A"), ("ResNet18", "C"), ("ResNet50", "A")])
def test_shortcuts_do_not_change_the_stages(name, shortcut):
    model = get_model(name, include_top=False, shortcut=shortcut, input_shape=(32, 32, 3))
    assert {name: (stage.channels, stage.stride) for name, stage in stages(model).items()} == wanted_stages(name)


@over_families
def test_features_of_a_classifier_share_its_weights(classifier):
    name, model = classifier
    last = list(wanted_stages(name))[-1]
    backbone = features(model, last)
    assert list(backbone.output) == [last]
    ours = {id(weight) for weight in model.weights}
    assert backbone.weights and all(id(weight) in ours for weight in backbone.weights)
    # Up to where the stage ends, and no further.
    assert backbone.layers[-1].name == stages(model)[last].layer


@pytest.mark.parametrize("name", ["AlexNet", pytest.param("ResNet18", marks=pytest.mark.heavy)])
def test_features_of_a_loaded_network(name, tmp_path):
    model = get_model(name, include_top=False, input_shape=(64, 64, 3))
    randomise(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert stages(loaded) == stages(model)
    names, images = tuple(wanted_stages(name)), images_of(64)
    found, expected = features(loaded, names)(images), features(model, names)(images)
    for stage in names:
        assert_close(as_numpy(found[stage]), as_numpy(expected[stage]))


@pytest.mark.parametrize("reloaded", [pytest.param(False, marks=pytest.mark.heavy), True], ids=["built", "loaded"])
@pytest.mark.parametrize(
    "family", [CIFARResNet, pytest.param(CIFARPlainNet, marks=pytest.mark.heavy)], ids=["residual", "plain"]
)
def test_features_of_a_nested_network(family, reloaded, nested, tmp_path):
    model, flat = nested(family)
    if reloaded:
        model.save(tmp_path / "nested.keras")
        model = keras.saving.load_model(tmp_path / "nested.keras")
    wanted = STAGES["resnet_cifar"]
    for network in (model, flat):
        found = {name: (stage.channels, stage.stride) for name, stage in stages(network).items()}
        assert found == wanted
    images = images_of(16)
    found, expected = (features(network, tuple(wanted))(images) for network in (model, flat))
    for stage in wanted:
        assert_close(as_numpy(found[stage]), as_numpy(expected[stage]))


def test_an_unknown_stage_names_the_nearest():
    model = get_model("ResNet20")
    with pytest.raises(UserError, match="'conv3'.*conv3_x") as caught:
        features(model, ("conv2_x", "conv3"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="stages are conv1, conv2_x, conv3_x, conv4_x"):
        features(model, ())


# Classifiers as convolutions.


@over_pooled
def test_fully_convolutional_equals_the_classifier_at_its_own_size(classifier):
    _, model = classifier
    side = model.input_shape[1]
    images, before = images_of(side), [weight.copy() for weight in model.get_weights()]
    expected = as_numpy(model(images))
    assert 0.34 < expected.max() < 0.99
    fully = fully_convolutional(model)
    assert fully.output_shape[-1] == 3 and fully.input_shape == (None, None, None, 3)
    found = as_numpy(fully(images))
    assert found.shape == (2, 1, 1, 3)
    np.testing.assert_allclose(found[:, 0, 0], expected, rtol=0, atol=1e-5)
    # The weights are copies: what happens to them leaves the classifier as it was.
    fully.set_weights([np.zeros_like(weight) for weight in fully.get_weights()])
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    np.testing.assert_array_equal(as_numpy(model(images)), expected)


def scores_by_hand(model, maps):
    """The classifier in NumPy and float64 at every place where its training window fits on the last feature maps."""
    weights = [
        [as_numpy(weight).astype(np.float64) for weight in (layer.kernel, layer.bias)]
        for layer in model.layers
        if isinstance(layer, keras.layers.Dense)
    ]
    pooled = any(isinstance(layer, keras.layers.GlobalAveragePooling2D) for layer in model.layers)
    (first,) = [layer for layer in model.layers if layer.name == ("avg_pool" if pooled else "flatten")]
    height, width = first.input.shape[1:3]
    rows, columns = maps.shape[1] - height + 1, maps.shape[2] - width + 1
    result = np.empty((len(maps), rows, columns, 3))
    for row in range(rows):
        for column in range(columns):
            window = maps[:, row : row + height, column : column + width].astype(np.float64)
            x = window.mean((1, 2)) if pooled else window.reshape(len(maps), -1)
            for kernel, bias in weights[:-1]:
                x = np.maximum(x @ kernel + bias, 0)
            logits = x @ weights[-1][0] + weights[-1][1]
            exponentials = np.exp(logits - logits.max(-1, keepdims=True))
            result[:, row, column] = exponentials / exponentials.sum(-1, keepdims=True)
    return result


@over_families
def test_fully_convolutional_on_a_larger_image(classifier):
    name, model = classifier
    side = SIDES.get(name, (64, 96))[1]
    body = get_model(name, include_top=False, input_shape=(side, side, 3))
    # The body's weights are the classifier's first.
    body.set_weights(model.get_weights()[: len(body.get_weights())])
    images = images_of(side, seed=1)
    expected = scores_by_hand(model, as_numpy(body(images)))
    places = 3 if name == "ResNet20" else 2
    assert expected.shape == (2, places, places, 3)
    assert np.abs(expected[:, 0, 0] - expected[:, -1, -1]).max() > 1e-4  # the places see different windows
    found = as_numpy(fully_convolutional(model)(images))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_fully_convolutional_works_on_any_size_and_on_logits():
    model = classifier_of("ResNet20", classifier_activation=None)
    fully = fully_convolutional(model)
    images = images_of(32)
    assert_close(as_numpy(fully(images))[:, 0, 0], as_numpy(model(images)))
    assert as_numpy(fully(np.zeros((1, 44, 33, 3), np.uint8))).shape == (1, 4, 2, 3)
    # Compiled for an unknown size, as predict and export do.
    assert fully.predict(images_of(36), verbose=0).shape == (2, 2, 2, 3)


def test_fully_convolutional_leaves_the_auxiliary_heads_out():
    model = GoogLeNet(auxiliary=True, input_shape=(96, 96, 3), classes=3)
    randomise(model)
    fully = fully_convolutional(model)
    images = images_of(96)
    found = as_numpy(fully(images))
    np.testing.assert_allclose(found[:, 0, 0], as_numpy(model(images)["probabilities"]), rtol=0, atol=1e-5)
    assert not any("aux" in layer.name for layer in fully.layers)
    again = as_numpy(fully_convolutional(without_auxiliary(model))(images))
    np.testing.assert_allclose(again, found, rtol=0, atol=1e-6)


def test_fully_convolutional_of_a_nested_network(nested):
    model, flat = nested(CIFARResNet)
    images = images_of(16)
    np.testing.assert_allclose(
        as_numpy(fully_convolutional(model)(images))[:, 0, 0], as_numpy(model(images)), rtol=0, atol=1e-5
    )
    larger = images_of(24)
    found, expected = (as_numpy(fully_convolutional(network)(larger)) for network in (model, flat))
    assert found.shape == (2, 3, 3, 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_fully_convolutional_survives_saving(tmp_path):
    model = classifier_of("GoogLeNet")
    fully = fully_convolutional(model)
    fully.save(tmp_path / "fully.keras")
    loaded = keras.saving.load_model(tmp_path / "fully.keras")
    images = images_of(96)
    np.testing.assert_allclose(as_numpy(loaded(images)), as_numpy(fully(images)), rtol=0, atol=1e-6)


def test_fully_convolutional_normalises_as_the_classifier_does():
    # A mean image belongs to one size; at that size it is still what is subtracted.
    mean_image = np.random.default_rng(3).uniform(0, 255, (16, 16, 3))
    preset = Preprocessing((100, 110, 120), (50, 60, 70), "BGR", mean_image)
    model = CIFARResNet(8, input_shape=(16, 16, 3), preprocessing=preset, classifier_activation=None)
    images = images_of(16)
    assert_close(as_numpy(fully_convolutional(model)(images))[:, 0, 0], as_numpy(model(images)))


@pytest.mark.parametrize("pooling", [None, "avg", "max"])
@pytest.mark.parametrize("name", ["AlexNet", "GoogLeNet", "ResNet20"])
def test_without_a_classifier_there_is_nothing_to_convert(name, pooling):
    model = get_model(name, include_top=False, pooling=pooling, input_shape=(64, 64, 3))
    with pytest.raises(UserError, match="no classifier.*include_top=True"):
        fully_convolutional(model)


@pytest.mark.parametrize("name", ["GoogLeNet", "ResNet20"])
@pytest.mark.parametrize("shape", [(None, None, 3), (64, None, 3)])
def test_without_a_fixed_size_there_is_no_training_window(name, shape):
    with pytest.raises(UserError, match="no fixed input size"):
        fully_convolutional(get_model(name, input_shape=shape))
