"""Test protocols: views compared with coordinates computed by hand from the papers, and averages with NumPy."""

from __future__ import annotations

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import network

from keras_convnets import CIFARResNet, training
from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.images.view import View
from keras_convnets.networks.layers import ImageNormalization
from keras_convnets.prediction import Classifier
from keras_convnets.training.data import ArraySplit, DataSet
from keras_convnets.training.evaluation import AVERAGES, CENTER, PROTOCOLS, get_protocol
from keras_convnets.training.evaluation.prediction import even_batches
from keras_convnets.training.evaluation.protocols import split_protocols
from keras_convnets.training.evaluation.views import LONGEST, crops144, ten_crop, whole_images
from keras_convnets.training.recipes import RECIPES, get_recipe
from keras_convnets.weights.pretrained import RECORDS

VIEW = View(256, (224, 224))


def coordinates(height, width):
    """An image whose pixels encode their position: row and column modulo 251, and both quotients by 251."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows % 251, columns % 251, columns // 251 + 16 * (rows // 251)], -1).astype(np.uint8)


def cut(image, top, left, side=224):
    return image[top : top + side, left : left + side]


# Height and width of an image with shorter side 256, and top and left of its central square.
SHAPES = {"square": (256, 256, 0, 0), "landscape": (256, 400, 0, 72), "portrait": (341, 256, 42, 0)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_ten_crop_is_corners_and_centre_of_the_central_square_with_flips(shape):
    height, width, top, left = shape
    image = coordinates(height, width)
    views = ten_crop(tf.constant(image), VIEW, 256).numpy()
    assert views.shape == (10, 224, 224, 3) and views.dtype == np.uint8
    places = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
    for view, (down, right) in zip(views[:5], places, strict=True):
        np.testing.assert_array_equal(view, cut(image, top + down, left + right))
    np.testing.assert_array_equal(views[5:], views[:5, :, ::-1])
    assert ten_crop(tf.constant(image), VIEW, 256, mirror=False).shape == (5, 224, 224, 3)


def test_ten_crop_upsamples_small_images():
    image = np.full((2, 3, 3), 7, np.uint8)
    assert (ten_crop(tf.constant(image), VIEW, 256).numpy() == 7).all()


# Images with shorter side 288: (height, width), and top-left corners of the three squares along the longer side.
SQUARES = {
    "square": ((288, 288), [(0, 0)] * 3),
    "landscape": ((288, 400), [(0, 0), (0, 56), (0, 112)]),
    "portrait": ((431, 288), [(0, 0), (71, 0), (143, 0)]),
    "long": ((288, 288 * LONGEST + 102), [(0, 0), (0, 1059), (0, 2118)]),
}


@pytest.mark.parametrize("shape, corners", SQUARES.values(), ids=SQUARES)
def test_crops144_is_six_views_of_three_squares_per_scale_with_flips(shape, corners):
    image = coordinates(*shape)
    views = crops144(tf.constant(image), VIEW, (288,)).numpy()
    assert views.shape == (36, 224, 224, 3)
    # 288 - 224 = 64: the corner crops start at 0 or 64, the centre crop at 32.
    places = [(0, 0), (0, 64), (64, 0), (64, 64), (32, 32)]
    for square, (top, left) in enumerate(corners):
        for view, (down, right) in zip(views[6 * square : 6 * square + 5], places, strict=True):
            np.testing.assert_array_equal(view, cut(image, top + down, left + right))
        whole = tf.image.resize(cut(image, top, left, 288), (224, 224), antialias=True)
        assert np.abs(views[6 * square + 5] - np.round(whole.numpy())).max() <= 1
    np.testing.assert_array_equal(views[18:], views[:18, :, ::-1])


@pytest.mark.parametrize("name, count", [("ten_crop", 10), ("crops144", 144)])
def test_the_number_of_views(name, count):
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (3, 2, 3), np.uint8))
    # The number must be known statically, because batches contain views of several images.
    traced = tf.function(lambda image: PROTOCOLS[name].views(image, VIEW))
    known = traced.get_concrete_function(tf.TensorSpec([None, None, 3], tf.uint8)).output_shapes
    assert known == PROTOCOLS[name].views(image, VIEW).shape == (count, 224, 224, 3)


def test_whole_images_are_resized_to_every_scale():
    image = np.random.default_rng(1).integers(0, 256, (61, 80, 3), np.uint8)
    found = [view.numpy() for view in whole_images(tf.constant(image), VIEW, (61, 40, 122))]
    assert [view.shape for view in found] == [(61, 80, 3), (40, 52, 3), (122, 160, 3)]
    np.testing.assert_array_equal(found[0], image)
    for view in found[1:]:
        expected = np.round(tf.image.resize(image, view.shape[:2], antialias=True).numpy())
        np.testing.assert_array_equal(view, expected)
    narrow = whole_images(tf.constant(np.zeros((4, 1000, 3), np.uint8)), VIEW, (8,))[0]
    assert narrow.shape == (8, 8 * LONGEST, 3)


# Protocols as given -> canonical names.
TEXTS = {
    "center": "center",
    " ten_crop() ": "ten_crop",
    "ten_crop(side=256)": "ten_crop(side=256)",
    "dense( mirror=FALSE,scales=256:384)": "dense(scales=256:384, mirror=false)",
    "crops144(mirror=true, average=mean)": "crops144",
    "center(kernel=bicubic, antialias=false, side=300)": "center(side=300, kernel=bicubic, antialias=false)",
    "ten_crop(average=max)": "ten_crop(average=max)",
    "cifar": "cifar",
}


@pytest.mark.parametrize("text", TEXTS)
def test_names_are_canonical_and_can_be_parsed(text):
    protocol = get_protocol(text)
    assert protocol.name == TEXTS[text]
    assert get_protocol(protocol.name) is protocol and get_protocol(protocol) is protocol
    assert get_protocol(protocol, "max").name == get_protocol(text, "max").name
    assert get_protocol(protocol, "max").average is AVERAGES["max"]


def test_lists_of_protocols_are_split_outside_parentheses():
    texts = ["center", "dense(scales=256:384, mirror=false)", "ten_crop"]
    assert split_protocols(",".join(texts)) == split_protocols(" , ".join(texts)) == texts


@pytest.mark.parametrize("text, sentence", [
    ("tencrop", "unknown protocol 'tencrop'; the nearest valid name"),
    ("ten_crop(sid=3)", "unknown field of protocol ten_crop 'sid'; the nearest valid name is side"),
    ("center(mirror=true)", "unknown field of protocol center 'mirror'"),
    ("cifar(side=32)", "unknown field of protocol cifar"),
    ("ten_crop(256)", "got the field '256'; write each field as FIELD=VALUE"),
    ("ten_crop(side=1, side=2)", "got the field side twice"),
    ("ten_crop(side=-1)", "the shorter side is '-1'; it must be a whole number"),
    ("dense(scales=256;384)", "the shorter side is '256;384'"),
    ("dense(mirror=1)", "it must be true or false"),
    ("dense(kernel=lanczos)", "unknown kernel 'lanczos'; valid names are bilinear"),
    ("dense(average=median)", "unknown average 'median'; the nearest valid name is mean"),
    ("dense(scales=256", "unknown protocol"),
])  # fmt: skip
def test_invalid_protocols_are_errors(text, sentence):
    with pytest.raises(UserError) as caught:
        get_protocol(text)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_averages_match_numpy():
    views = np.random.default_rng(2).dirichlet(np.full(4, 0.3), (5, 10)).astype(np.float32)
    views[0, 0] = [1, 0, 0, 0]
    expected = {"mean": views.mean(1), "max": views.max(1)}
    with warnings.catch_warnings(action="ignore"):
        expected["geometric"] = np.exp(np.log(np.maximum(views, np.finfo(np.float32).tiny)).mean(1))
    logits = np.log(np.maximum(views, np.finfo(np.float32).tiny)) + 3.0
    expected["logits"] = np.exp(logits.mean(1))
    for name, average in AVERAGES.items():
        found = average(views)
        np.testing.assert_allclose(found, expected[name] / expected[name].sum(-1, keepdims=True), rtol=1e-4)
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    assert not np.allclose(AVERAGES["mean"](views), AVERAGES["max"](views), atol=1e-2)


def test_even_batches_minimize_padding():
    assert [even_batches(total, 128) for total in (1, 100, 128, 130, 1000, 1001)] == [1, 100, 128, 65, 125, 126]


# Evaluation: networks of a few pixels.

SIDE, CLASSES = 8, 3


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (11, 12, 16, 3), np.uint8)
    split = ArraySplit(images, rng.integers(0, CLASSES, 11))
    return DataSet("made", tuple("abc"), True, {"test": split}, (12, 16))


@pytest.fixture(scope="module")
def model():
    """A strided convolution, global average pooling and a dense layer: dense evaluation is simple in NumPy."""
    keras.utils.set_random_seed(0)
    images = keras.Input((SIDE, SIDE, 3), name="images")
    x = ImageNormalization(Preprocessing(mean=(100, 110, 120), std=(20, 20, 20)))(images)
    x = keras.layers.Conv2D(6, 2, strides=2, activation="relu", bias_initializer="ones")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(CLASSES)(x)
    return keras.Model(images, keras.layers.Activation("softmax")(x), name="little")


def predict(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def answers(predictor, data, protocol, **arguments):
    """The probabilities of an evaluation, float32 [n, classes]."""
    return training.evaluate(predictor, data, protocol=protocol, **arguments).predictions.probabilities


@pytest.mark.parametrize("average, batch_size", [("mean", 1), ("mean", 7), ("max", 128), ("geometric", 30)])
def test_every_view_is_predicted_once_and_averaged(data, model, average, batch_size):
    protocol = f"ten_crop(side=12, average={average})"
    seen = []

    def predictor(images):
        seen.append(len(images))
        return predict(model, images)

    classifier = Classifier(None, predictor, image_size=(SIDE, SIDE))
    found = answers(classifier, data, protocol, batch_size=batch_size)
    images = data.splits["test"].images
    square = images[:, :, 2:14]
    views = [square[:, top : top + 8, left : left + 8] for top, left in [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]]
    views = np.stack(views + [view[:, :, ::-1] for view in views], 1)
    expected = predict(model, views.reshape(-1, 8, 8, 3)).reshape(11, 10, CLASSES)
    np.testing.assert_allclose(found, AVERAGES[average](expected), rtol=1e-5)
    assert sum(seen) == 110 and set(seen[:-1]) <= {seen[0]} and max(seen) <= batch_size


def test_dense_at_the_input_size_equals_center(model):
    images = np.random.default_rng(1).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    data = DataSet("own", tuple("abc"), True, {"test": ArraySplit(images, np.arange(5) % 3)}, (SIDE, SIDE))
    dense = answers(model, data, f"dense(scales={SIDE}, mirror=false)")
    np.testing.assert_allclose(dense, answers(model, data, "center"), rtol=1e-5)
    np.testing.assert_allclose(dense, predict(model, images), rtol=1e-5)


def test_dense_of_a_residual_network_at_its_input_size_equals_center():
    resnet = CIFARResNet(8, input_shape=(16, 16, 3), classes=CLASSES)
    images = np.random.default_rng(2).integers(0, 256, (5, 16, 16, 3), np.uint8)
    data = DataSet("own", tuple("abc"), True, {"test": ArraySplit(images, np.arange(5) % 3)}, (16, 16))
    found = answers(resnet, data, "dense(scales=16, mirror=false)")
    np.testing.assert_allclose(found, answers(resnet, data, "center"), rtol=1e-4)


@pytest.mark.parametrize("average", ["mean", "max", "geometric"])
def test_dense_applies_the_head_at_every_position_of_the_last_feature_map(data, model, average):
    found = answers(model, data, f"dense(scales=12:10, average={average})", batch_size=2)
    kernel, bias = (np.float64(weight) for weight in model.layers[-2].get_weights())
    body = keras.Model(model.input, model.layers[2].output)
    window = SIDE // 2  # size of the feature map at the network's input size
    expected = []
    for image in data.splits["test"].images:
        per_view = []
        for size in ((12, 16), (10, 13)):
            scaled = np.round(tf.image.resize(image, size, antialias=True).numpy())
            for shown in (scaled, scaled[:, ::-1]):
                # The convolution with stride 2 ignores the 13th column.
                conv, x = body.layers[2], np.float64(shown) - (100, 110, 120)
                rows, columns = size[0] // 2, size[1] // 2
                patches = (x / 20)[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, 3).transpose(0, 2, 1, 3, 4)
                weights, offsets = (np.float64(weight) for weight in conv.get_weights())
                maps = np.maximum(np.tensordot(patches, weights, 3) + offsets, 0)
                scores = []
                for row in range(rows - window + 1):
                    for column in range(columns - window + 1):
                        pooled = maps[row : row + window, column : column + window].mean((0, 1))
                        score = np.exp(pooled @ kernel + bias)
                        scores.append(score / score.sum())
                per_view.append(AVERAGES[average].reduce(np.array(scores), 0))
        expected.append(per_view)
    np.testing.assert_allclose(found, AVERAGES[average](np.array(expected)), rtol=1e-4, atol=1e-6)


def test_dense_evaluates_images_of_different_sizes(model):
    rng = np.random.default_rng(3)
    shapes = [(12, 16), (16, 12), (12, 12), (12, 16), (9, 9)] * 4

    def of(images):
        encoded = [tf.io.encode_png(image).numpy() for image in images]
        split = ArraySplit(np.zeros((len(images), SIDE, SIDE, 3), np.uint8), np.arange(len(images)) % 3)
        split.encoded_in_order = lambda: tf.data.Dataset.from_tensor_slices(
            (encoded, split.labels, np.arange(len(images)))
        )
        return DataSet("several", tuple("abc"), True, {"test": split}, None)

    images = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    together = answers(model, of(images), "dense(scales=9:12)")
    for position in (1, 18):
        alone = answers(model, of([images[position]]), "dense(scales=9:12)")
        np.testing.assert_allclose(together[position], alone[0], rtol=1e-4)


def test_protocol_fields_change_the_view(data, model):
    plain, wider = answers(model, data, "center"), answers(model, data, "center(side=12)")
    images = data.splits["test"].images
    np.testing.assert_allclose(wider, predict(model, images[:, 2:10, 4:12]), rtol=1e-5)
    nearest = answers(model, data, "center(kernel=nearest)")
    assert np.abs(plain - wider).max() > 1e-3 and np.abs(plain - nearest).max() > 1e-3
    # For data that were resized before, the original images are used.
    sized = data.at_size(SIDE, SIDE)
    np.testing.assert_array_equal(answers(model, sized, "center(side=12)"), wider)
    np.testing.assert_array_equal(answers(model, sized, "ten_crop(side=12)"), answers(model, data, "ten_crop(side=12)"))


def test_the_key_contains_protocol_and_average(data, model):
    result = training.evaluate(model, data, protocol="ten_crop(side=12)", average="max")
    assert result.key == "made/test/ten_crop(side=12, average=max)" and result.n == 11
    assert json.loads(json.dumps(result.to_dict()))["protocol"] == result.protocol


@pytest.mark.parametrize("protocol", ["ten_crop", "crops144", "dense"])
def test_small_inputs_need_explicit_sides(data, model, protocol):
    with pytest.raises(UserError, match=f"{protocol} is defined for .* this network's input is 8 x 8; use protocol"):
        training.evaluate(model, data, protocol=protocol)


@pytest.mark.parametrize(
    "protocol", ["ten_crop(side=7)", "crops144(scales=9:7)", "dense(scales=9:7)", "center(side=7)"]
)
def test_sides_smaller_than_the_input_are_errors(data, model, protocol):
    with pytest.raises(UserError, match="resizes the shorter side to 7 pixels, and the network's input is 8 x 8"):
        training.evaluate(model, data, protocol=protocol)


def test_flips_that_change_the_label_are_an_error(data, model):
    from dataclasses import replace

    digits = replace(data, flips_keep_labels=False)
    with pytest.raises(UserError, match=r"leave them out with ten_crop\(side=12, mirror=false\)"):
        training.evaluate(model, digits, protocol="ten_crop(side=12)")
    assert training.evaluate(model, digits, protocol="ten_crop(side=12, mirror=false)").n == 11


def test_cifar_uses_stored_images_of_32_x_32_only(data, model):
    with pytest.raises(
        UserError, match="cifar needs stored images and a network input of 32 x 32 pixels; .* use protocol center"
    ):
        training.evaluate(model, data, protocol="cifar")
    images = np.random.default_rng(5).integers(0, 256, (4, 32, 32, 3), np.uint8)
    stored = DataSet("tiny", tuple("abc"), True, {"test": ArraySplit(images, np.arange(4) % 3)}, (32, 32))
    flat = network("Little", classes=CLASSES, input_shape=(32, 32, 3))
    np.testing.assert_array_equal(answers(flat, stored, "cifar"), answers(flat, stored, "center"))


def test_dense_needs_a_convertible_keras_model(data, model):
    guess = Classifier(None, lambda images: np.zeros((len(images), 3)), image_size=(SIDE, SIDE))
    with pytest.raises(UserError, match="needs a Keras model, .*; give a run.* or use protocol ten_crop or crops144"):
        training.evaluate(guess, data, protocol="dense(scales=12)")
    mean_image = Preprocessing((1, 2, 3), mean_image=np.ones((SIDE, SIDE, 3)))
    centred = network("Centred", classes=CLASSES, input_shape=(SIDE, SIDE, 3), preprocessing=mean_image)
    with pytest.raises(UserError, match="centred subtracts a mean image of fixed size"):
        training.evaluate(centred, data, protocol="dense(scales=12)")


def test_the_average_of_a_custom_protocol_is_fixed(data):
    from dataclasses import replace

    own = replace(PROTOCOLS["ten_crop"], name="own", average=lambda views: views[:, 0])
    with pytest.raises(UserError, match="own defines its average"):
        get_protocol(own, "max")


def test_the_papers_sides_are_scaled_to_the_input_size():
    def sides(name, size):
        return get_protocol(name).sides(View.of_size(size, size))

    assert sides("ten_crop", 224) == sides("ten_crop", 227) == (256,)
    assert sides("ten_crop", 112) == (128,) and sides("crops144", 224) == (256, 288, 320, 352)
    assert sides("dense", 224) == (224, 256, 384, 480, 640) and sides("dense", 227) == (227, 256, 384, 480, 640)


def test_recipes_and_records_have_valid_protocols():
    named = {name: get_recipe(name).protocol for name in RECIPES}
    assert named == {
        **dict.fromkeys(("alexnet", "resnet_imagenet"), "ten_crop"),
        **dict.fromkeys(("finetune", "googlenet"), "center"),
        **dict.fromkeys(("fast_cifar", "resnet_cifar"), "cifar"),
        "vgg": "dense(scales=384)",
    }
    for protocol in {*named.values(), *(record.protocol for record in RECORDS)}:
        assert get_protocol(protocol).name == protocol
    assert get_protocol("center") is CENTER
