"""`evaluate --classes`: artifacts and endpoints with the 1,000 ImageNet classes on a folder with three of them."""

from __future__ import annotations

import json
import shutil

import keras
import numpy as np
import pytest

from keras_convnets.card import card_of_model
from keras_convnets.classes import imagenet_classes
from keras_convnets.commands.main import main
from keras_convnets.export.folding import inference_network
from keras_convnets.export.formats.onnx import write_onnx
from keras_convnets.export.formats.saved_model import write_saved_model
from keras_convnets.export.serving import ModelServer
from keras_convnets.prediction import view_encoded

CHOSEN = {"n01440764": "tench", "n03417042": "garbage truck", "n02979186": "cassette player"}


@pytest.fixture(scope="module")
def network():
    """A network of two layers for images of 8 x 8 pixels, and its card, with the ImageNet classes."""
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    model = keras.Model(images, keras.layers.Dense(1000, "softmax", name="predictions")(x), name="small")
    # Makes one class of the subset probable enough to be predicted among all classes.
    bias = np.zeros(1000, np.float32)
    bias[0] = 1.0
    model.get_layer("predictions").bias.assign(bias)
    return model, card_of_model(model, imagenet_classes().names)


@pytest.fixture(scope="module")
def version(network, tmp_path_factory):
    """`<repository>/small/1` with SavedModel, ONNX file and card."""
    folder = tmp_path_factory.mktemp("repository") / "small" / "1"
    folder.mkdir(parents=True)
    (folder / "assets.extra").mkdir()
    model, card = network
    inference = inference_network(model)
    write_saved_model(inference, card, folder)
    write_onnx(inference, card, folder / "model.onnx")
    card.write(folder / "assets.extra")
    return folder


@pytest.fixture(scope="module")
def data(photograph_folder, tmp_path_factory):
    """Six photographs, two per class, in folders named by WordNet ids."""
    folder = tmp_path_factory.mktemp("imagenette")
    paths = sorted((photograph_folder / "train").glob("*/*.jpg"))[::4]
    for number, path in enumerate(paths):
        place = folder / list(CHOSEN)[number % 3]
        place.mkdir(exist_ok=True)
        shutil.copy(path, place / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def expected(network, data):
    """Confusion among all classes as {(true, predicted): images}, and among the subset, classes in sorted order."""
    model, card = network
    everything, subset = {}, np.zeros((3, 3), int)
    places = [imagenet_classes().ids.index(wnid) for wnid in sorted(CHOSEN)]
    for label, wnid in enumerate(sorted(CHOSEN)):
        encoded = [path.read_bytes() for path in sorted((data / wnid).iterdir())]
        for row in model.predict(view_encoded(encoded, card), verbose=0):
            pair = (places[label], int(row.argmax()))
            everything[pair] = everything.get(pair, 0) + 1
            subset[label, row[places].argmax()] += 1
    assert len({answer for _, answer in everything}) > 1 and subset.sum() == 6
    return everything, subset.tolist()


@pytest.fixture
def measured(capsys):
    """Evaluate, and return the metrics of each source."""

    def run(*arguments):
        status = main(["evaluate", *map(str, arguments), "--json"])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return list(json.loads(captured.out).values())

    return run


def pairs(figures):
    confusion = np.array(figures["confusion"])
    return {(int(row), int(column)): int(confusion[row, column]) for row, column in np.argwhere(confusion)}


def test_wordnet_ids_are_mapped_for_artifacts_and_endpoints(version, data, expected, measured, tmp_path):
    alone = shutil.copy(version / "model.onnx", tmp_path / "alone.onnx")
    with ModelServer({"small": version.parent}, port=0, rest_api_port=0) as server:
        url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/small"
        results = measured(version, alone, url, "--dataset", data, "--split", "all")
        (subset,) = measured(url, "--dataset", data, "--split", "all", "--answers", "subset")
    assert [pairs(figures) for figures in results] == [expected[0]] * 3
    assert subset["confusion"] == expected[1]


@pytest.mark.parametrize("name_of", [
    CHOSEN.get, lambda wnid: str(imagenet_classes().ids.index(wnid))
], ids=["name", "index"])  # fmt: skip
def test_folders_named_by_class_names_or_indices_are_mapped(version, data, expected, measured, tmp_path, name_of):
    for wnid in CHOSEN:
        shutil.copytree(data / wnid, tmp_path / "photographs" / name_of(wnid))
    flags = ["--dataset", tmp_path / "photographs", "--split", "all", "--classes", "names"]
    (figures,) = measured(version / "model.onnx", *flags)
    assert pairs(figures) == expected[0]


def test_unknown_classes_are_errors_that_name_the_flag(version, photograph_folder, capsys):
    for flags, sentence in (
        ([], "and scenes has china, flower; evaluate on data with the model's classes, or map the data's classes to"),
        (["--classes", "names"], "unknown class of the model 'china'; "),
        (["--classes", "0,crane"], "'crane' is ambiguous: n02012849 (index 134) and n03126707 (index 517)"),
        (["--classes", "0,1", "--answers", "both"], "unknown value of answers 'both'; valid names are all, subset"),
    ):
        assert (
            main(
                [
                    "evaluate",
                    str(version / "model.onnx"),
                    "--dataset",
                    str(photograph_folder),
                    "--split",
                    "train",
                    *flags,
                ]
            )
            == 2
        )
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1
