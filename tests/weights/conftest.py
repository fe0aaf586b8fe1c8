"""Fixtures of several test modules of weights."""

from __future__ import annotations

import logging
import shutil

import pytest
import zoo
from reference import randomise
from weights_files import CLASSES, HIDDEN, SIDE, once, write_legacy

import keras_convnets
from keras_convnets.networks import alexnet, vgg


@pytest.fixture
def info_log(caplog):
    """The log names the preprocessing that is used."""
    caplog.set_level(logging.INFO, logger="keras_convnets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def resnet18(folder):
    return once(folder, "resnet18.onnx", lambda path: zoo.resnet(path, 18, 32, CLASSES))


@pytest.fixture
def hidden(request, monkeypatch):
    """The units of AlexNet's and VGG's fully connected layers, in files and built: few, or as many as parametrized."""
    units = getattr(request, "param", HIDDEN)
    for module in (zoo, alexnet, vgg):
        monkeypatch.setattr(module, "HIDDEN", units)
    return units


@pytest.fixture
def small_alexnet(folder, hidden):
    return once(folder, "alexnet.onnx", lambda path: zoo.alexnet(path, SIDE, CLASSES, linear="transB=1"))


@pytest.fixture(scope="module")
def googlenet(real_data):
    """The path of the published file, and the network that loaded it."""
    path = real_data.parent / "weights" / "bvlc_googlenet.onnx"
    if not path.is_file():
        pytest.skip("there is no weights/bvlc_googlenet.onnx in the folder of real data")
    return path, keras_convnets.GoogLeNet(weights=path)


@pytest.fixture(scope="module")
def resnet20(folder):
    """A network of random weights, and its files by suffix."""
    model = keras_convnets.ResNet20(classes=CLASSES)
    randomise(model)
    paths = {suffix: folder / f"resnet20{suffix}" for suffix in (".weights.h5", ".keras")}
    model.save_weights(paths[".weights.h5"])
    model.save(paths[".keras"])
    return model, {**paths, ".h5": write_legacy(model, folder / "resnet20.h5")}
