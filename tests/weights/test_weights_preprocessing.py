"""Which preprocessing comes with weights: the argument's, the record's, the file's convention."""

from __future__ import annotations

import dataclasses
import hashlib

import h5py
import keras
import numpy as np
import pytest
from reference import as_numpy
from weights_files import CLASSES, OTHERS, SIDE, SMALL, SMALL_ALEXNET, images_of, preprocessing_of, unit_scaled

import keras_convnets
from keras_convnets.card import card_of_model
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.weights import pretrained
from keras_convnets.weights.keras_reader import CONFIG

pytestmark = pytest.mark.usefixtures("info_log")


def said_of_preprocessing(caplog):
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("preprocessing by")][-1]


@pytest.fixture
def recorded(monkeypatch):
    """Make a file the published one of a record; returns the record."""

    def record(path, **fields):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        known = dataclasses.replace(
            pretrained.get_record(fields.pop("architecture"), "imagenet"),
            file=path.name,
            size=path.stat().st_size,
            sha256=digest,
            **fields,
        )
        monkeypatch.setattr(pretrained, "RECORDS", (known,))
        return known

    return record


def test_which_preprocessing_a_network_has(resnet18, recorded, caplog):
    of_kind = keras_convnets.ResNet18(weights=resnet18, **SMALL)
    expected = unit_scaled(images_of(32))
    np.testing.assert_allclose(preprocessing_of(of_kind)(images_of(32)), expected, atol=1e-5)
    assert "resnet18.onnx" in said_of_preprocessing(caplog)
    known = recorded(resnet18, architecture="ResNet18", preprocessing=OTHERS)
    assert preprocessing_of(keras_convnets.ResNet18(weights=resnet18, **SMALL)) == OTHERS
    assert str(known) in said_of_preprocessing(caplog)
    given = Preprocessing(mean=(9.0, 8.0, 7.0))
    model = keras_convnets.ResNet18(weights=resnet18, **SMALL, preprocessing=given)
    assert preprocessing_of(model) == given
    assert "argument" in said_of_preprocessing(caplog)
    assert preprocessing_of(keras_convnets.ResNet18(**SMALL)) == Preprocessing((123.68, 116.779, 103.939))
    assert "default" in said_of_preprocessing(caplog)


def test_a_records_sha256_is_looked_up_for_its_own_network_only(resnet18, recorded):
    recorded(resnet18, architecture="ResNet34", preprocessing=OTHERS)
    assert preprocessing_of(keras_convnets.ResNet18(weights=resnet18, **SMALL)) != OTHERS


def test_a_record_gives_its_arguments_and_its_input_size(small_alexnet, recorded):
    constants = {"n": 3, "k": 4.0, "alpha": 3e-5, "beta": 0.5}
    fields = {"arguments": {"lrn": constants}, "input_shape": (SIDE, SIDE, 3), "preprocessing": OTHERS}
    recorded(small_alexnet, architecture="AlexNet", **fields)
    model = keras_convnets.AlexNet(weights=small_alexnet, classes=CLASSES)
    assert model.input_shape == (None, SIDE, SIDE, 3) and preprocessing_of(model) == OTHERS
    norm = model.get_layer("norm1")
    assert {name: getattr(norm, name) for name in constants} == constants
    given = keras_convnets.AlexNet(weights=small_alexnet, **SMALL_ALEXNET, lrn={"k": 6.0})
    assert (given.get_layer("norm1").k, given.get_layer("norm1").n) == (6.0, 5)


def test_a_card_says_of_a_file_what_holds_of_its_weights(resnet18, recorded, caplog):
    known = recorded(resnet18, architecture="ResNet18")
    model = keras_convnets.ResNet18(weights=resnet18, **SMALL)
    card = card_of_model(model)
    assert card.weights == {"file": "resnet18.onnx", "sha256": known.sha256}
    assert card.metrics and card.data == {"name": "ImageNet 2012"} and card.trained
    assert (card.architecture, card.arguments) == ("ResNet18", {"classes": CLASSES, "input_shape": [32, 32, 3]})
    assert "no longer" not in caplog.text
    # A statistic alone, as one step with every layer frozen but the normalisation leaves it.
    mean = model.get_layer("conv1_bn").moving_mean
    before = as_numpy(mean)
    mean.assign(before + np.eye(1, 64, 5)[0])
    later = card_of_model(model)
    assert (later.weights, later.metrics, later.data, later.recipe) == ({}, {}, {}, {})
    assert "resnet18 no longer has the weights of resnet18.onnx" in caplog.text
    assert (later.architecture, later.arguments, later.trained) == (card.architecture, card.arguments, True)
    mean.assign(before)
    assert card_of_model(model).weights == card.weights
    # Another network, or a copy from a file, says nothing of the published one.
    assert card_of_model(keras.Model(model.input, model.output)).weights == {}


def test_a_keras_file_keeps_its_own_preprocessing(tmp_path):
    path = tmp_path / "own.keras"
    keras_convnets.ResNet20(preprocessing=OTHERS).save(path)
    assert preprocessing_of(keras_convnets.ResNet20(weights=path)) == OTHERS
    arrays = tmp_path / "own.weights.h5"
    keras_convnets.ResNet20(preprocessing=OTHERS).save_weights(arrays)
    assert preprocessing_of(keras_convnets.ResNet20(weights=arrays)) == OTHERS
    # As Keras writes it: arrays alone.
    with h5py.File(arrays, "r+") as file:
        del file[CONFIG]
    default = preprocessing_of(keras_convnets.ResNet20())
    assert preprocessing_of(keras_convnets.ResNet20(weights=arrays)) == default
