"""What `weights=` takes: names, records, paths; and one sentence for what is none."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
from weights_files import SMALL

import keras_convnets
from keras_convnets.errors import UserError
from keras_convnets.networks.functional import load_keras
from keras_convnets.weights import keras_reader, pretrained
from keras_convnets.weights.loading import find_weights, load_weights

pytestmark = pytest.mark.usefixtures("info_log")


def broken(folder, wholes):
    """Paths, named by what is wrong with them; `wholes` are files that lose their second half."""
    made = {
        **{f"truncated{whole.name}": whole.read_bytes()[: whole.stat().st_size // 2] for whole in wholes},
        "text.onnx": b"this is no graph",
        "empty.onnx": b"",
        "text.h5": b"this is no HDF5",
        "empty.weights.h5": b"",
        "text.keras": b"this is no archive",
        "no_weights.txt": b"1 2 3",
    }
    for name, data in made.items():
        (folder / name).write_bytes(data)
    for name in ("folder.onnx", "folder.keras"):
        (folder / name).mkdir()
    for name in ("no_layers.h5", "no_layers.weights.h5"):
        with h5py.File(folder / name, "w") as file:
            file["array"] = np.zeros(3)
    with zipfile.ZipFile(folder / "no_model.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"config": {"layers": []}}))
    return [*sorted(folder.iterdir()), folder / "missing.onnx", folder / "missing.h5"]


def test_files_that_hold_no_weights_are_named_in_one_sentence(tmp_path, resnet18, resnet20):
    model = keras_convnets.ResNet18(**SMALL)
    before = model.get_weights()
    loads = (lambda path: keras_convnets.ResNet18(weights=path, **SMALL), lambda path: load_weights(model, path))
    for path in broken(tmp_path, [resnet18, *resnet20[1].values()]):
        # A builder of its own for the files of each kind that lost their second half.
        for load in loads if path.name.startswith("truncated") else loads[1:]:
            with pytest.raises(UserError) as raised:
                load(path)
            text = str(raised.value)
            assert path.name in text and "\n" not in text and text.endswith("."), text
    for ours, was in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, was)


def test_a_graph_without_stored_weights(tmp_path):
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "nothing", [], []))
    onnx.save(empty, tmp_path / "nothing.onnx")
    with pytest.raises(UserError, match=r"nothing\.onnx"):
        keras_convnets.ResNet18(weights=tmp_path / "nothing.onnx", **SMALL)


def test_names_that_no_weights_have():
    with pytest.raises(UserError, match=r"'imagenette'.*'imagenet'"):
        keras_convnets.ResNet18(weights="imagenette")
    with pytest.raises(UserError, match=r"none are published"):
        keras_convnets.PlainNet18(weights="imagenet")
    with pytest.raises(UserError, match=r"VGG16"):
        keras_convnets.ResNet18(weights=pretrained.get_record("VGG16", "imagenet"))


def test_a_name_is_a_name_whatever_lies_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_CONVNETS_OFFLINE", "1")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "imagenet").mkdir()
    for name in ("imagenet", "ImageNet"):
        with pytest.raises(UserError, match=r"resnet18-v1-7\.onnx can't be downloaded"):
            find_weights(name, "ResNet18")
        with pytest.raises(UserError, match=r"none are published"):
            find_weights(name, "PlainNet18")
    for path in ("./imagenet", Path("imagenet"), b"imagenet"):
        with pytest.raises(UserError, match=r"imagenet'; give the path of a \.onnx"):
            find_weights(path, "ResNet18")


@pytest.mark.parametrize("weights", [5, True, 0.5, ["a.h5"], np.zeros(3), "", b""], ids=repr)
def test_what_are_no_weights(weights):
    with pytest.raises(UserError, match=r"^weights is .*; it takes None, the name of published weights,.* file\.$"):
        find_weights(weights, "ResNet18")


@pytest.mark.parametrize("weights", ["https://host/a/b.h5", b"HTTP://host/b.onnx", "gs://bucket/imagenet"])
def test_a_url_is_no_file(weights):
    with pytest.raises(UserError, match=rf"^weights is '{os.fsdecode(weights)}', a URL, .*: download it first\.$"):
        find_weights(weights, "ResNet18")


@pytest.mark.parametrize("kind, suffix", [
    (".onnx", ".ONNX"), (".h5", ".H5"), (".h5", ".hdf5"), (".weights.h5", ".Weights.H5"),
    (".weights.h5", ".weights.hdf5"), (".keras", ".KERAS"),
])  # fmt: skip
def test_files_are_known_by_their_ends_in_capital_letters_too(kind, suffix, request, tmp_path):
    whole, name = (request.getfixturevalue("resnet18"), "ResNet18") if kind == ".onnx" else (None, "ResNet20")
    model, paths = (None, {kind: whole}) if whole else request.getfixturevalue("resnet20")
    path = shutil.copy(paths[kind], tmp_path / f"weights{suffix}")
    found, usual = (find_weights(place, name) for place in (os.fsencode(path), paths[kind]))
    assert found.suffix == kind and found.preprocessing == usual.preprocessing
    if model is not None:
        load_weights(model, path)
        assert keras_reader.configuration(path) == keras_reader.configuration(paths[kind])
    if kind == ".keras":
        np.testing.assert_array_equal(load_keras(path).get_weights()[0], model.get_weights()[0])
