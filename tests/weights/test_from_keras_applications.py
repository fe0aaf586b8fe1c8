"""Trained networks of keras.applications become ours: the same outputs, in whatever way users built them."""

from __future__ import annotations

import logging
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from reference import as_numpy, randomise, relative_difference
from weights_files import OTHERS, preprocessing_of

import keras_convnets
from keras_convnets import from_keras_applications
from keras_convnets.card import card_of_model, view_of_model
from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import CAFFE_MEANS

applications = keras.applications
# Float32 in other orders, another epsilon, through fifty layers.
TOLERANCE = 1e-5
SIDE = 64
IMAGES = np.random.default_rng(5).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)


def caffe(images):
    """What keras.applications' documentation tells users to do."""
    return applications.resnet.preprocess_input(images.astype(np.float32))


def built(name, classes=5, seed=1, **arguments):
    settings = {"input_shape": (SIDE, SIDE, 3), "classes": classes, "classifier_activation": None, **arguments}
    model = getattr(applications, name)(weights=None, **settings)
    randomise(model, seed=seed)
    return model


@pytest.fixture(scope="module")
def base():
    """A ResNet-50 without its top."""
    return built("ResNet50", include_top=False)


@pytest.fixture(scope="module")
def vgg():
    """A VGG-16 with its top: flatten, fc1, fc2, predictions."""
    return built("VGG16")


def head(units=3, seed=2, activation=None, features=2048):
    layer = layers.Dense(units, activation=activation, name="my_head")
    layer.build((None, features))
    rng = np.random.default_rng(seed)
    # The features of the VGG-16 here are a thousand times as large: its softmax must not have decided.
    scale = 0.05 if features == 2048 else 5e-5
    layer.set_weights([rng.normal(0, scale, (features, units)), rng.normal(0, 0.5, units)])
    return layer


def state(model):
    """What of a model must not change: weights, graph, and how often its layers are called."""
    every = list(model._flatten_layers())
    calls = [(layer.name, layer.trainable, len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in every]
    return model.get_weights(), calls, str(model.get_config())


def same_outputs(model, given=caffe, **arguments):
    """Convert a model; both give the same, and the given one is as it was."""
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        network = from_keras_applications(model, **arguments)
    after = state(model)
    assert before[1:] == after[1:]
    for was, now in zip(before[0], after[0], strict=True):
        np.testing.assert_array_equal(was, now)
    expected = as_numpy(keras.Model(model.inputs[0], model.outputs[0])(given(IMAGES), training=False))
    # The two images must be told apart by more than what is allowed.
    assert np.abs(expected[0] - expected[1]).max() > 1e-3 * np.abs(expected).max()
    assert relative_difference(as_numpy(network(IMAGES)), expected) <= TOLERANCE
    return network


@pytest.mark.parametrize("name", ["ResNet50", "VGG16"])
def test_the_network_itself(name, caplog):
    caplog.set_level(logging.INFO, logger="keras_convnets")
    network = same_outputs(built(name))
    assert network.name == name.lower() and network.built_as.architecture == name
    assert preprocessing_of(network) == CAFFE_MEANS
    assert "keras.applications' own is assumed" in caplog.text
    assert card_of_model(network).class_names == tuple("01234")


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["VGG19", "ResNet101", "ResNet152"])
def test_the_deeper_networks(name):
    same_outputs(built(name))


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["VGG16", "VGG19", "ResNet50", "ResNet101", "ResNet152"])
def test_with_the_classifier_of_imagenet(name):
    """1,000 classes at the default size, with the softmax: ImageNet's names and view."""
    model = getattr(applications, name)(weights=None)
    randomise(model, seed=1)
    network = from_keras_applications(model)
    images = np.random.default_rng(5).integers(0, 256, (2, 224, 224, 3), np.uint8)
    expected = as_numpy(model(caffe(images), training=False))
    assert np.abs(as_numpy(network(images)) - expected).max() <= TOLERANCE
    card = card_of_model(network)
    assert card.class_names[1] == "goldfish" and card.class_ids[1] == "n01443537" and card.trained
    assert card.view.resize == 256


@pytest.mark.parametrize(("layer", "second"), [("predictions", "goldfish"), ("my_head", "1")])
def test_only_the_classifier_of_keras_applications_has_the_names_of_imagenet(base, layer, second):
    """A thousand classes of one's own are not ImageNet's."""
    x = layers.Dense(1000, name=layer)(layers.GlobalAveragePooling2D()(base.output))
    network = from_keras_applications(keras.Model(base.input, x))
    card = card_of_model(network)
    assert card.class_names[1] == second
    assert view_of_model(network) == card.view


@pytest.mark.parametrize("pooling", [None, "avg", "max"])
def test_features(base, pooling):
    pool = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}
    model = base if pooling is None else keras.Model(base.input, pool[pooling]()(base.output))
    network = same_outputs(model)
    assert network.output_shape == base.output_shape if pooling is None else network.output_shape == (None, 2048)


def nested(base, before=None, activation=None):
    inputs = keras.Input((SIDE, SIDE, 3))
    x = inputs if before is None else before(inputs)
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(base(x, training=False)))
    return keras.Model(inputs, head(activation=activation, features=x.shape[-1])(x))


def layer_by_layer(model, *before):
    """The layers of a trained network added to a new one, as tutorials do; each is in two graphs then."""
    return keras.Sequential([keras.Input((SIDE, SIDE, 3)), *before, *model.layers[1:]])


def same(images):
    return images


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (nested, caffe),
        (lambda base: nested(base, activation="softmax"), caffe),
        (lambda base: nested(base, applications.resnet.preprocess_input), same),
        (lambda base: nested(base, layers.Rescaling(1 / 127.5, offset=-1)), same),
        (lambda base: nested(base, layers.Lambda(lambda x: x / 255.0 - 0.5)), same),
        (
            lambda base: nested(base, lambda x: applications.imagenet_utils.preprocess_input(x, mode="torch")),
            same,
        ),
        (
            lambda base: nested(base, layers.Normalization(mean=[10, 20, 30], variance=[4, 9, 16])),
            same,
        ),
        (
            lambda base: keras.Sequential(
                [keras.Input((SIDE, SIDE, 3)), layers.RandomFlip(), layers.RandomRotation(0.1), base,
                 layers.GlobalAveragePooling2D(), layers.Dropout(0.2), head()]
            ),
            caffe,
        ),
        (lambda base: keras.Model(base.input, head()(layers.GlobalAveragePooling2D()(base.output))), caffe),
        (lambda base: keras.Sequential([keras.Input((SIDE, SIDE, 3)), nested(base), layers.Softmax()]), caffe),
    ],
    ids=["nested", "softmax", "caffe inside", "rescaling", "lambda", "torch inside", "normalization", "sequential",
         "inlined", "twice nested"],
)  # fmt: skip
def test_fine_tuned_models(base, model, given):
    """With a head of one linear layer, and with normalisation inside or before the model."""
    made = model(base)
    network = same_outputs(made, given, class_names=["cat", "dog", "hen"])
    assert network.output_shape == (None, 3)
    assert card_of_model(network).class_names == ("cat", "dog", "hen")
    # The base can still be used by its owner.
    assert base.layers[-1].output is base.output


@pytest.mark.parametrize(
    ("before", "given", "log"),
    [((), caffe, "own is assumed"), ((layers.Rescaling(1 / 127.5, offset=-1),), same, "normalises its images itself")],
    ids=["bare", "rescaling"],
)
def test_layers_added_one_by_one(vgg, caplog, before, given, log):
    caplog.set_level(logging.INFO, logger="keras_convnets")
    network = same_outputs(layer_by_layer(vgg, *before), given)
    assert network.built_as.architecture == "VGG16" and log in caplog.text


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_pooled_features_of_vgg_with_a_linear_layer(vgg, activation):
    """No builder makes it: the network has the layers of one and another name."""
    base = keras.Model(vgg.input, vgg.get_layer("block5_pool").output)
    model = nested(base, applications.vgg16.preprocess_input, activation)
    network = same_outputs(model, same, class_names=["cat", "dog", "hen"])
    assert network.name == "vgg16_avg_pool" and network.built_as is None
    assert preprocessing_of(network).mean == pytest.approx(CAFFE_MEANS.mean, abs=1e-3)
    assert card_of_model(network).class_names == ("cat", "dog", "hen")
    assert network.layers[-1].name == ("predictions" if activation is None else "probabilities")


def test_other_poolings_before_the_head(base):
    largest = keras.Model(base.input, head()(layers.GlobalMaxPooling2D()(base.output)))
    assert same_outputs(largest, name="mine").name == "mine"
    kept = layers.Flatten()(layers.GlobalAveragePooling2D(keepdims=True)(base.output))
    assert same_outputs(keras.Model([base.input], [head()(kept)])).built_as.architecture == "ResNet50"


def test_what_does_nothing_at_inference_is_left_out(base, caplog):
    caplog.set_level(logging.INFO, logger="keras_convnets")
    augmentation = keras.Sequential([layers.RandomFlip(name="flip"), layers.RandomRotation(0.2, name="rotate")])
    network = same_outputs(
        nested(base, lambda x: applications.resnet.preprocess_input(layers.GaussianNoise(0.1)(augmentation(x)))), same
    )
    assert "left out, as they do nothing at inference: flip, rotate, gaussian_noise" in caplog.text
    assert "Dropout" not in {type(layer).__name__ for layer in network.layers}
    caplog.clear()
    from_keras_applications(keras.Sequential([keras.Input((SIDE, SIDE, 3)), layers.Lambda(lambda x: x - 9), base]))
    assert "left out" not in caplog.text


def test_a_normalisation_inside_is_written_as_means(base):
    network = from_keras_applications(nested(base, applications.resnet.preprocess_input))
    assert preprocessing_of(network).order == "BGR"
    assert preprocessing_of(network).mean == pytest.approx(CAFFE_MEANS.mean, abs=1e-3)
    network = from_keras_applications(nested(base, layers.Rescaling(1 / 127.5, offset=-1)))
    assert (preprocessing_of(network).mean, preprocessing_of(network).std) == ((127.5,) * 3, (127.5,) * 3)


def test_a_normalisation_before_the_model_is_given(base):
    same_outputs(nested(base), OTHERS, preprocessing=OTHERS)
    with pytest.raises(UserError, match="normalises its images itself"):
        from_keras_applications(nested(base, applications.resnet.preprocess_input), preprocessing=OTHERS)


def test_any_size(base):
    model = built("ResNet50", include_top=False, input_shape=(None, None, 3))
    assert same_outputs(model).input_shape == (None, None, None, 3)


def test_training_goes_on(base):
    """A step from the converted weights; the given model does not take part."""
    model = nested(base, activation="softmax")
    network = from_keras_applications(model)
    before, given = network.get_weights(), model.get_weights()
    network.compile("sgd", "sparse_categorical_crossentropy")
    history = network.fit(IMAGES, np.array([0, 2]), batch_size=2, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    changed = [not np.array_equal(was, now) for was, now in zip(before, network.get_weights(), strict=True)]
    assert np.mean(changed) > 0.9
    for was, now in zip(given, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.parametrize("form", ["builder's head", "own head"])
def test_what_is_made_can_be_saved_and_loaded(base, tmp_path, form):
    pooling = layers.GlobalAveragePooling2D() if form == "builder's head" else layers.GlobalMaxPooling2D()
    network = from_keras_applications(keras.Model(base.input, head()(pooling(base.output))))
    network.save(tmp_path / "network.keras")
    again = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(as_numpy(again(IMAGES)), as_numpy(network(IMAGES)))


def test_what_is_made_can_be_named_and_written_for_pytorch(base, tmp_path):
    network = from_keras_applications(nested(base), name="mine", class_names=["a", "b", "c"])
    assert network.name == "mine"
    keras_convnets.save_safetensors(
        network, tmp_path / "mine.safetensors", naming="keras_convnets", card=card_of_model(network)
    )
    assert (
        card_of_model(keras_convnets.ResNet50(weights=tmp_path / "mine.safetensors", classes=3)).class_names[0] == "a"
    )


def changed(*names, **settings):
    """A ResNet-50 with other settings of some layers, and the same weights."""

    def clone(layer):
        config = layer.get_config()
        return layer.from_config({**config, **settings} if layer.name in names else config)

    plain = built("ResNet50")
    model = keras.models.clone_model(plain, clone_function=clone)
    model.set_weights(plain.get_weights())
    return model


def test_another_epsilon_goes_into_the_variance():
    """1.001e-5 in keras.applications and 1e-5 here show only where variances are tiny: of dead channels."""
    model = changed("conv1_bn", epsilon=0.1)
    network = same_outputs(model)
    normalization, own = model.get_layer("conv1_bn"), network.get_layer("conv1_bn")
    raised = as_numpy(normalization.moving_variance) + 0.1 - own.epsilon
    np.testing.assert_allclose(as_numpy(own.moving_variance), raised, rtol=1e-6)
    model = built("ResNet50")
    layer = model.get_layer("conv1_bn")
    layer.moving_variance.assign(np.full(64, 1e-6))
    same_outputs(model)


def in_half_precision(base):
    """The same network, computing in float16."""
    config = base.get_config()
    for layer in config["layers"]:
        if layer["class_name"] != "InputLayer":
            layer["config"]["dtype"] = "mixed_float16"
    return keras.Model.from_config(config)


def called_twice(base):
    inputs = keras.Input((SIDE, SIDE, 3))
    return keras.Model(inputs, layers.Add()([base(inputs), base(inputs)]))


def with_another_head(base):
    x = layers.GlobalAveragePooling2D()(base.output)
    return keras.Model(base.input, layers.Dense(3)(layers.Dense(16, activation="relu")(x)))


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda base: 3, "model is int; give a keras.Model"),
        (lambda base: keras.Sequential([layers.Dense(3)]), "no graph of layers"),
        (lambda base: applications.ResNet50V2(weights=None, input_shape=(64, 64, 3)), r"not built on.*VGG16.*152"),
        (lambda base: applications.MobileNetV2(weights=None, input_shape=(64, 64, 3)), "not built on"),
        (lambda base: keras.Model(base.input, base.get_layer("conv4_block6_out").output), "not built on"),
        (lambda base: keras.Model(base.input, [base.output, base.output]), "gives 2 outputs"),
        (with_another_head, r"goes on behind conv5_block3_out with .*\(Dense\).*ends with avg_pool, predictions"),
        (lambda base: nested(base, activation="sigmoid"), r"my_head \(Dense with sigmoid\).*linear or a softmax"),
        (lambda base: keras.Sequential([keras.Input((96, 96, 3)), layers.CenterCrop(SIDE, SIDE), base]), "center_crop"),
        (lambda base: nested(base, lambda x: x * x), "more than normalise channels"),
        (
            lambda base: changed("conv3_block1_1_conv", "conv3_block1_0_conv", strides=(1, 1)),
            r"conv3_block1_\d_conv has strides \(2, 2\) in the network, and .* \(1, 1\)",
        ),
        (
            lambda base: changed("conv2_block2_out", activation="tanh"),
            r"conv2_block3_1_conv takes .*relu in the network and .*tanh in the model",
        ),
        (
            lambda base: changed("conv1_pad", padding=((2, 4), (2, 4))),
            r"conv1_conv has padding above and on the left 3x3 and the model's has 2x2",
        ),
        (
            lambda base: keras.Model(base.input, layers.Activation("tanh")(base.output)),
            r"goes on behind conv5_block3_out with activation\w* \(Activation with tanh\)",
        ),
        (lambda base: keras.Model(base.input, layers.Softmax()(layers.Dense(3, "softmax")(base.output))), "goes on"),
        (in_half_precision, r"has the dtype policy mixed_float16; it must be float32"),
        (called_twice, "calls conv1_pad 2 times"),
        (lambda base: keras.Sequential([keras.Input((SIDE, SIDE, 3)), layers.Rescaling(255.0), base]), "in 0-1"),
    ],
    ids=["number", "unbuilt", "V2", "MobileNet", "cut", "outputs", "hidden layer", "sigmoid", "crop", "square",
         "strides", "activation", "padding", "activation behind", "two softmaxes", "half precision", "twice",
         "images in 0-1"],
)  # fmt: skip
def test_what_is_refused(base, make, pattern):
    """In one sentence that says what came and what is allowed."""
    with pytest.raises(UserError, match=pattern) as raised:
        from_keras_applications(make(base))
    assert "\n" not in str(raised.value)


def test_a_layer_that_computes_something_else_than_it_says(base):
    """Settings and weights agree; the outputs do not."""
    model = changed("none")
    model.get_layer("conv5_block3_out").activation = keras.activations.tanh
    with pytest.raises(UserError, match="gives other outputs"):
        from_keras_applications(keras.Model(model.input, model.get_layer("conv5_block3_out").output))


def test_under_a_policy_of_half_precision(base):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with pytest.raises(UserError, match=r"dtype_policy\(\) is mixed_float16.*set_dtype_policy\('float32'\) first"):
            from_keras_applications(base)
    finally:
        keras.config.set_dtype_policy("float32")


def test_class_names_that_do_not_fit(base):
    with pytest.raises(UserError, match="3 classes and 2 class names came"):
        from_keras_applications(nested(base), class_names=["a", "b"])
    with pytest.raises(UserError, match="no classes and 2 class names came"):
        from_keras_applications(base, class_names=["a", "b"])
    with pytest.raises(UserError, match="class_names is 'abc'; give a list"):
        from_keras_applications(nested(base), class_names="abc")
