"""The records of published weights are whole and fit their networks."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
from weights_files import bgr, images_of, unit_scaled

import keras_convnets
from keras_convnets.weights import pretrained

# The others are part of this package: test_trained.py.
PUBLISHED = [record for record in pretrained.RECORDS if record.locations]

pytestmark = pytest.mark.usefixtures("info_log")


def test_the_list_of_published_weights():
    assert pretrained.list_weights() == list(pretrained.RECORDS)
    names = [f"ResNet{depth}:imagenet" for depth in (18, 34, 50, 101, 152)]
    assert [str(record) for record in pretrained.list_weights("resnet*:imagenet")] == names
    assert [str(record) for record in pretrained.list_weights("VGG16:imagenet")] == ["VGG16:imagenet"]
    assert pretrained.list_weights("nothing*") == []
    assert len({(record.architecture, record.name) for record in pretrained.RECORDS}) == len(pretrained.RECORDS)
    stated = [record.sha256 for record in pretrained.RECORDS if record.sha256]
    assert len(set(stated)) == len(stated)


ZOO, TORCHVISION, TIMM = (
    [record for record in PUBLISHED if record.format == kind] for kind in ("onnx", "pth", "safetensors")
)


@pytest.mark.parametrize("record", ZOO, ids=str)
def test_each_record_of_the_zoo_is_whole(record):
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in (record.sha256, *record.same_weights))
    assert record.size > 20e6
    assert pretrained.record_of_file(record.architecture, record.sha256) is record


@pytest.mark.parametrize("record", TORCHVISION, ids=str)
def test_each_record_of_torchvision_is_whole(record):
    """The first eight digits of a file's sha256 are in its name."""
    assert re.fullmatch("[0-9a-f]{8}", record.sha256) and f"-{record.sha256}.pth" in record.file
    assert record.size is None
    assert pretrained.record_of_file(record.architecture, record.sha256 + "0" * 56) is record
    assert pretrained.record_of_file(record.architecture, "0" * 64) is None


def test_torchvisions_second_weights_are_better():
    for name in ("ResNet50v1_5", "ResNet101v1_5", "ResNet152v1_5"):
        first, second = (pretrained.get_record(name, f"IMAGENET1K_V{version}") for version in (1, 2))
        assert second.accuracies[0].top1 > first.accuracies[0].top1 + 3
        assert (first.resize, second.resize) == (256, 232)
    assert len(TORCHVISION) == 12


@pytest.mark.parametrize("record", TIMM, ids=str)
def test_each_record_of_timm_is_whole(record):
    network, _, tag = record.name.removeprefix("timm/").partition(".")
    assert record.architecture.lower().removesuffix("v1_5") == network and tag
    assert record.locations == (f"hf://{record.name}",) and record.on_hub
    side = record.input_shape[0]
    # What share of the shorter side the crop is.
    assert 0.87 <= side / record.resize <= 1
    assert record.accuracies[0].protocol.endswith(f"{record.resize}, {record.kernel}, centre crop {side}")
    assert (record.license == "CC BY-NC 4.0") == tag.startswith("fb_")


def test_the_fifty_networks_of_timm_that_are_the_papers():
    assert len(TIMM) == 50
    assert {record.architecture for record in TIMM} == {
        *("ResNet18", "ResNet34", "ResNet50v1_5", "ResNet101v1_5", "ResNet152v1_5"),
        *("VGG11", "VGG13", "VGG16", "VGG19"),
    }
    centred = [record.name for record in TIMM if record.preprocessing.mean == (127.5,) * 3]
    assert centred == ["timm/resnet34.ra4_e3600_r224_in1k"]


@pytest.mark.parametrize("record", PUBLISHED, ids=str)
def test_each_record_is_whole(record):
    assert pretrained.get_record(record.architecture, record.name) is record
    assert record.locations and all(place.startswith(("https://", "hf://")) for place in record.locations)
    assert record.on_hub or all(place.endswith(record.file) for place in record.locations)
    assert record.license and record.obtained
    assert record.accuracies
    for accuracy in record.accuracies:
        assert accuracy.n == 50_000 and 50 < accuracy.top1 < accuracy.top5 < 100
        assert accuracy.protocol and accuracy.source and "{" not in accuracy.protocol
    assert len(record.class_names) == len(set(record.class_ids)) == 1000
    assert not any("{" in place for place in record.locations)


# Parameters of the networks with 1,000 classes, as torchvision's documentation counts them (Caffe's AlexNet by hand:
# it has two towers); GoogLeNet by hand too, without auxiliary heads and with biases instead of normalisation.
PARAMETERS = {
    "AlexNet": 60_965_224,
    "GoogLeNet": 6_998_552,
    "VGG16": 138_357_544,
    "VGG19": 143_667_240,
    "ResNet18": 11_689_512,
    "ResNet34": 21_797_672,
    "ResNet50": 25_557_032,
    "ResNet101": 44_549_160,
    "ResNet152": 60_192_808,
}


@pytest.mark.parametrize("record", ZOO, ids=str)
def test_each_records_file_has_its_networks_size(record):
    """A float32 for every parameter, and at most 1 % for statistics and graph: the file is not another network's."""
    builder = getattr(keras_convnets, record.architecture)
    assert set(record.arguments) <= set(inspect.signature(builder).parameters)
    arrays = 4 * PARAMETERS[record.architecture]
    assert arrays < record.size < 1.01 * arrays


def test_a_record_preprocesses_for_the_bare_network():
    images = images_of(32)
    kept = images.copy()
    for name, expected in (("GoogLeNet", bgr), ("VGG16", unit_scaled)):
        result = pretrained.get_record(name, "imagenet").preprocess(images)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected(images), atol=1e-5)
        floats = images.astype(np.float32)
        pretrained.get_record(name, "imagenet").preprocess(floats)
        np.testing.assert_array_equal(floats, images)
    np.testing.assert_array_equal(images, kept)
