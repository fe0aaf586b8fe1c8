"""LiteRT files: Keras' numbers at any batch size, in float32, float16 and int8, with built-in operators only."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf
from lively import some_images, trained

import keras_convnets as kc
from keras_convnets.card import card_of_model
from keras_convnets.errors import UserError
from keras_convnets.export import load
from keras_convnets.export.folding import inference_network
from keras_convnets.export.formats.litert import PRECISIONS, load_litert, write_litert
from keras_convnets.images import preprocessing
from keras_convnets.networks import alexnet, vgg
from keras_convnets.prediction import view_encoded

# Sums in another order, and weights of 11 bits; of eight bits, where the probabilities are apart by tenths.
TOLERANCES = {"float32": 1e-5, "float16": 1e-2, "int8": 0.4}
CLASSES = 7
FAMILIES = {
    "AlexNet": (kc.AlexNet, 67, {"preprocessing": preprocessing.BGR_MEANS}),
    "GoogLeNet": (kc.GoogLeNet, 32, {}),
    "VGG11": (kc.VGG11, 32, {"preprocessing": preprocessing.UNIT_SCALED}),
    "ResNet18": (kc.ResNet18, 32, {}),
    "ResNet20": (kc.ResNet20, 16, {}),
}


# Grouped convolutions, response normalisation and fully connected layers; the others are as many minutes more.
QUICK = ("AlexNet",)


@pytest.fixture(
    scope="module", params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.heavy) for name in FAMILIES]
)
def exported(request, tmp_path_factory):
    """A family's network in every precision, its card beside it: folder, images and Keras' probabilities."""
    builder, side, arguments = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("litert")
    images = some_images(side, 8)
    with pytest.MonkeyPatch.context() as patch:
        # The papers' 4096 take most of the time and show nothing more.
        patch.setattr(alexnet, "HIDDEN", 96)
        patch.setattr(vgg, "HIDDEN", 96)
        model = trained(builder(input_shape=(side, side, 3), classes=CLASSES, **arguments), images)
    network, card = inference_network(model), card_of_model(model, tuple("abcdefg"))
    for precision in PRECISIONS:
        write_litert(network, card, folder / f"{precision}.tflite", precision, images)
    (folder / "assets.extra").mkdir()
    card.write(folder / "assets.extra")
    return folder, images, model(images, training=False).numpy()


def interpreter_of(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return tf.lite.Interpreter(str(path))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_gives_keras_numbers_at_any_batch_size(exported, precision):
    folder, images, expected = exported
    assert len(set(expected.argmax(1))) > 2  # the images matter, so the comparison can fail
    classifier = load(folder / f"{precision}.tflite")
    got = {
        batch: np.concatenate([classifier(images[at : at + batch]) for at in range(0, 8, batch)]) for batch in (1, 3)
    }
    for probabilities in got.values():
        assert probabilities.shape == expected.shape and probabilities.dtype == np.float32
        assert np.abs(probabilities - expected).max() <= TOLERANCES[precision]
    if precision == "int8":
        assert np.corrcoef(got[3].ravel(), expected.ravel())[0, 1] > 0.8
        assert np.abs(got[3] - expected).max() > 1e-5  # it is not the float32 network


def test_names_and_card_are_ours(exported):
    folder, images, _ = exported
    for precision in PRECISIONS:
        interpreter = interpreter_of(folder / f"{precision}.tflite")
        names = {"inputs": ["images"], "outputs": ["probabilities"]}
        assert interpreter.get_signature_list() == {"serving_default": names}
        (taken,) = interpreter.get_input_details()
        assert taken["dtype"] == np.float32 and taken["shape_signature"].tolist() == [-1, *images.shape[1:]]
    assert load(folder / "int8.tflite").card.class_names == tuple("abcdefg")


def test_weights_take_half_and_a_quarter(exported):
    folder, _, _ = exported
    sizes = [(folder / f"{precision}.tflite").stat().st_size for precision in PRECISIONS]
    assert sizes[1] < 0.6 * sizes[0] and sizes[2] < 0.4 * sizes[0]


def test_convolutions_are_int8(exported):
    folder, _, _ = exported
    interpreter = interpreter_of(folder / "int8.tflite")
    interpreter.allocate_tensors()
    kernels = [
        item for item in interpreter.get_tensor_details() if len(item["shape"]) == 4 and item["dtype"] == np.int8
    ]
    # Of one scale for each filter.
    assert sum(len(item["quantization_parameters"]["scales"]) > 1 for item in kernels) >= 5


@pytest.mark.parametrize("images", [None, np.zeros((0, 16, 16, 3), np.uint8), np.zeros((2, 16, 8, 3), np.uint8)])
def test_int8_needs_images_of_the_networks_size(tmp_path, images):
    model = kc.ResNet20(input_shape=(16, 16, 3))
    with pytest.raises(UserError, match=r"give at least one, as \[n, 16, 16, 3\]"):
        write_litert(inference_network(model), card_of_model(model), tmp_path / "model.tflite", "int8", images)
    assert not (tmp_path / "model.tflite").exists()


def test_an_unknown_precision_is_refused(tmp_path):
    model = kc.ResNet20(input_shape=(16, 16, 3))
    with pytest.raises(UserError, match="unknown precision 'float61'; the nearest valid name"):
        write_litert(inference_network(model), card_of_model(model), tmp_path / "model.tflite", "float61")


def test_without_a_card_only_numbers_come(exported, tmp_path):
    folder, images, expected = exported
    alone = tmp_path / "moved.tflite"
    alone.write_bytes((folder / "float32.tflite").read_bytes())
    with pytest.raises(UserError, match=r"no assets.extra/model.json beside it"):
        load(alone)
    assert np.abs(load_litert(alone)(images) - expected).max() <= TOLERANCES["float32"]
    assert load_litert(alone, load(folder / "int8.tflite").card).card.class_names == tuple("abcdefg")


def test_what_is_no_litert_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no .tflite file"):
        load(tmp_path / "model.tflite")
    (tmp_path / "model.tflite").write_bytes(b"no model at all, and long enough")
    with pytest.raises(UserError, match="not a model that LiteRT loads"):
        load(tmp_path / "model.tflite")


@pytest.mark.heavy
def test_int8_knows_photographs_as_keras_does(real_data, tmp_path):
    model = kc.GoogLeNet(weights=real_data.parent / "weights" / "bvlc_googlenet.onnx")
    card, network = card_of_model(model), inference_network(model)
    files = sorted((real_data / "imagenet_samples").glob("*.JPEG"))[::4]
    images = view_encoded([path.read_bytes() for path in files], card)
    write_litert(network, card, tmp_path / "model.tflite", "int8", images[::2])
    got = load_litert(tmp_path / "model.tflite", card)(images)
    expected = network(images)["probabilities"].numpy()
    assert len(files) == 25
    assert (got.argmax(1) == expected.argmax(1)).sum() >= 23
