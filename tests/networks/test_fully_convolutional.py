"""Networks over whole images: any classifier of convolutions, borders and rounding at any size, and what is refused.

`test_features.py` compares each family's with NumPy at its own size and at a larger one.
"""

import keras
import numpy as np
import pytest
import reference
from keras import layers

from keras_convnets import AlexNet, GoogLeNet, fully_convolutional
from keras_convnets.errors import UserError
from keras_convnets.networks.outputs import softmaxed


def images_of(*shape):
    return np.random.default_rng(0).integers(0, 256, (2, *shape, 3)).astype(np.float32)


def maps_of(x):
    x = layers.Rescaling(1 / 64, offset=-2)(x)
    return layers.Conv2D(5, 3, strides=2, padding="valid", activation="relu", name="features")(x)


def own(head, name="own"):
    """A functional classifier of 16x16 images, whose layers bear names of its own."""
    images = keras.Input((16, 16, 3))
    return keras.Model(images, head(maps_of(images)), name=name)


HEADS = {
    "average": lambda x: layers.Dense(3, "softmax")(layers.GlobalAveragePooling2D()(x)),
    "maximum": lambda x: layers.Dense(3, "softmax", use_bias=False)(layers.GlobalMaxPooling2D()(x)),
    "kept sides": lambda x: layers.Dense(3, "softmax")(
        layers.Flatten()(layers.GlobalAveragePooling2D(keepdims=True)(x))
    ),
    "flattened": lambda x: layers.Softmax()(layers.Dense(3)(layers.Dense(4, "relu")(layers.Flatten()(x)))),
    "normalised": lambda x: layers.Dense(3, "softmax")(
        layers.BatchNormalization(beta_initializer="ones")(layers.Dense(4)(layers.Flatten()(x)))
    ),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_each_place_is_the_classifier_on_the_window_it_sees(head):
    model = own(head)
    fully = fully_convolutional(model)
    images = images_of(22, 20)
    found = keras.ops.convert_to_numpy(fully(images))
    assert found.shape == (2, 4, 3, 3) and fully.input_shape == (None, None, None, 3)
    for row in range(4):
        for column in range(3):
            # A place is two pixels on, the stride of the features.
            window = images[:, 2 * row : 2 * row + 16, 2 * column : 2 * column + 16]
            expected = keras.ops.convert_to_numpy(model(window))
            np.testing.assert_allclose(found[:, row, column], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


def test_a_sequential_classifier_and_one_of_logits_are_converted():
    layered = [keras.Input((16, 16, 3)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    model = keras.Sequential(layered, name="layered")
    images = images_of(16, 16) / 64
    found = keras.ops.convert_to_numpy(fully_convolutional(softmaxed(model))(images))
    expected = reference.softmax(keras.ops.convert_to_numpy(model(images)))
    np.testing.assert_allclose(found[:, 0, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(41, 52), (46, 47)], ids=str)
def test_googlenets_poolings_round_up_at_odd_and_even_sizes(size):
    model = GoogLeNet(input_shape=(32, 32, 3), classes=3)
    fully = fully_convolutional(model)
    (pool,) = [layer for layer in fully.layers if layer.name == "pool2"]
    (before,) = [layer for layer in fully.layers if layer.name == "norm2"]
    both = keras.Model(fully.input, [before.output, pool.output])
    maps, pooled = (keras.ops.convert_to_numpy(x) for x in both(images_of(*size)))
    np.testing.assert_array_equal(pooled, reference.pool(maps, 3, 2, round_up=True))


def test_alexnets_first_padding_is_that_of_its_own_size():
    model = AlexNet(input_shape=(96, 96, 3), classes=3)
    own_pad, pad = (
        next(layer for layer in network.layers if layer.name == "conv1_pad").padding
        for network in (model, fully_convolutional(model))
    )
    # (11 - 96) % 4 = 3, of which the odd pixel is on the right and below; 98 pixels alone would be padded by 1.
    assert own_pad == pad == ((1, 2), (1, 2))


REFUSED = {
    "attention": (
        lambda x: layers.Dense(3, "softmax")(
            layers.GlobalAveragePooling2D()(layers.Multiply()([x, layers.GlobalAveragePooling2D(keepdims=True)(x)]))
        ),
        "(GlobalAveragePooling2D), which is not supported on images of any size",
    ),
    "reshape": (
        lambda x: layers.Dense(3, "softmax")(layers.GlobalAveragePooling2D()(layers.Reshape((49, 1, 5))(x))),
        "(Reshape), which is not supported",
    ),
    "sequence": (
        lambda x: layers.Dense(3, "softmax")(layers.GlobalAveragePooling1D()(layers.Reshape((49, 5))(x))),
        "no classifier head to convert into convolutions",
    ),
    "pooling alone": (lambda x: layers.GlobalAveragePooling2D()(x), "no classifier head to convert into convolutions"),
}


@pytest.mark.parametrize("head, sentence", REFUSED.values(), ids=REFUSED)
def test_what_needs_one_size_is_refused_in_one_sentence(head, sentence):
    with pytest.raises(UserError) as caught:
        fully_convolutional(own(head, name="other"))
    text = str(caught.value)
    assert text.startswith("other has") and sentence in text and "\n" not in text
