"""What a network's outputs are: only probabilities are published, named and measured as such."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers
from reference import as_numpy

from keras_convnets import VGG11, CIFARPlainNet, GoogLeNet, export
from keras_convnets.card import card_of_model
from keras_convnets.errors import UserError
from keras_convnets.networks.outputs import check_probabilities, meaning, softmaxed
from keras_convnets.prediction import keras_classifier

SHAPE = (8, 8, 3)


def ended(*behind, classes=3, name="net"):
    """A small network that ends in the given layers or functions."""
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(classes, 3)(inputs)
    for layer in behind:
        x = layer(x)
    return keras.Model(inputs, x, name=name)


def inside(model):
    inputs = keras.Input(model.input_shape[1:])
    return keras.Model(inputs, model(inputs), name="outer")


GAP = layers.GlobalAveragePooling2D
LINEAR = {
    "dense": lambda: ended(GAP(), layers.Dense(4)),
    "activation": lambda: ended(GAP(), layers.Dense(4), layers.Activation("linear")),
    "dropout behind": lambda: ended(GAP(), layers.Dense(4), layers.Dropout(0.1)),
    "nested": lambda: inside(ended(GAP(), layers.Dense(4))),
    "sequential": lambda: keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(4)]),
    "builder": lambda: CIFARPlainNet(8, input_shape=SHAPE, classes=4, classifier_activation=None),
}
SOFTMAX = {
    "layer": lambda: ended(GAP(), layers.Softmax()),
    "activation": lambda: ended(GAP(), layers.Dense(4, "softmax")),
    "function": lambda: ended(GAP(), keras.ops.softmax),
    "flat behind": lambda: ended(GAP(), layers.Softmax(), layers.Reshape((3,))),
    "nested": lambda: inside(ended(GAP(), layers.Softmax())),
    "builder": lambda: CIFARPlainNet(8, input_shape=SHAPE, classes=4),
}
OTHERS = {
    "headless VGG": (lambda: VGG11(include_top=False, pooling="avg", input_shape=(32, 32, 3)), "ends in avg_pool"),
    "headless": (lambda: CIFARPlainNet(8, include_top=False, pooling="max", input_shape=SHAPE), "gives features"),
    "relu": (lambda: ended(GAP(), layers.Dense(4, "relu")), "gives features"),
    "flat map": (lambda: ended(layers.Flatten()), "gives features"),
    "sigmoid": (lambda: ended(GAP(), layers.Dense(4, "sigmoid")), "ends in sigmoids"),
    "sigmoid function": (lambda: ended(GAP(), keras.ops.sigmoid), "ends in sigmoids"),
    "one sigmoid": (lambda: ended(GAP(), layers.Dense(1, "sigmoid")), "ends in sigmoids"),
    "one logit": (lambda: ended(GAP(), layers.Dense(1)), "one logit"),
}


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def images(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, *SHAPE), np.uint8)


@pytest.mark.parametrize("build", LINEAR.values(), ids=LINEAR)
def test_logits_become_probabilities(build):
    model = build()
    logits = as_numpy(model(images().astype(np.float32)))
    assert meaning(model) == "logits" and np.abs(logits.sum(-1) - 1).min() > 1e-3
    whole = softmaxed(model)
    np.testing.assert_allclose(as_numpy(whole(images().astype(np.float32))), softmax(logits), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        keras_classifier(model, card_of_model(model))(images().astype(np.float32)),
        softmax(logits),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("build", SOFTMAX.values(), ids=SOFTMAX)
def test_probabilities_stay(build):
    model = build()
    assert meaning(model) == "probabilities" and softmaxed(model) is model


@pytest.mark.parametrize("build, sentence", OTHERS.values(), ids=OTHERS)
def test_what_is_neither_is_refused(build, sentence, tmp_path):
    model = build()
    for use in (card_of_model, lambda model: export.publish(model, to=tmp_path)):
        with pytest.raises(UserError, match=sentence):
            use(model)
    assert not list(tmp_path.iterdir())


def test_of_several_outputs_the_classifier_counts():
    model = GoogLeNet(input_shape=(79, 79, 3), classes=3, auxiliary=True, classifier_activation=None)
    assert meaning(model) == "logits"
    given = keras_classifier(model, card_of_model(model))(np.zeros((2, 79, 79, 3), np.uint8))
    np.testing.assert_allclose(given.sum(-1), 1, rtol=1e-5)


def test_what_only_numbers_tell():
    """A mean of classifiers is one; a sum of them is not, and nothing in its layers says so."""
    one, two = (ended(GAP(), layers.Softmax(), name=name) for name in ("one", "two"))
    inputs = keras.Input(SHAPE)
    mean = keras.Model(inputs, layers.Average()([one(inputs), two(inputs)]))
    both = keras.Model(inputs, layers.Maximum()([one(inputs), two(inputs)]) * 2.0, name="both")
    assert meaning(mean) == meaning(both) == "unknown"
    shown = images().astype(np.float32)
    np.testing.assert_allclose(keras_classifier(mean, card_of_model(mean))(shown).sum(-1), 1, rtol=1e-5)
    with pytest.raises(UserError, match=r"both gives numbers from .* that sum to .*, no probabilities"):
        keras_classifier(both, card_of_model(both))(shown)


@pytest.mark.parametrize("row, fits", [
    ([0.5, 0.5, 0.0], True), ([0.5, 0.497, 0.0], True), ([0.6, 0.6, -0.2], False), ([0.4, 0.4, 0.1], False),
    ([np.nan, 0.0, 0.0], True),
])  # fmt: skip
def test_rows_of_probabilities(row, fits):
    rows = np.array([[0.2, 0.3, 0.5], row], np.float32)
    if fits:
        check_probabilities(rows, "net")
    else:
        with pytest.raises(UserError, match="no probabilities"):
            check_probabilities(rows, "net")


def test_published_logits_are_probabilities_in_every_runtime(tmp_path, caplog, verified_here):
    model = CIFARPlainNet(8, input_shape=SHAPE, classes=3, classifier_activation=None)
    folder = export.publish(model, name="plain", to=tmp_path)
    assert "plainnet8 gives logits; they are exported followed by a softmax" in caplog.text
    expected = softmax(as_numpy(model(images())))
    for path in (folder, folder / "model.onnx"):
        np.testing.assert_allclose(export.load(path)(images()), expected, atol=1e-4)
    card = export.load(folder).card
    assert card.arguments["classifier_activation"] is None
    # The features stay what enters the linear layer.
    import tensorflow as tf

    assert "features" in tf.saved_model.load(str(folder)).signatures
