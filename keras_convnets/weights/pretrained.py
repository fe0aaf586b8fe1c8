"""Published weights by name. Imports no Keras and no network.

ImageNet's are files of the ONNX Model Zoo; sizes, sha256 and accuracies are as it states them. What a file does not say
(channel order, means, input size) is recorded here. Those of PyTorch's libraries are in `pytorch_records`. CIFAR-10's
are part of this package, trained by its own recipes: `trained/records.json` describes the files beside it, and
`benchmarks/cifar10.py ship` writes both.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import BGR_MEANS, UNIT_SCALED, Preprocessing
from keras_convnets.networks.registry import get_architecture
from keras_convnets.weights.pytorch_records import PYTORCH_RECORDS
from keras_convnets.weights.record import IMAGENET_VAL, Accuracy, WeightsRecord

ZOO = "the ONNX Model Zoo's table"
CENTRE = "shorter side to 256, centre crop {side}"
# The zoo's files moved to this organisation in 2025; the older address serves them from the repository itself.
LOCATIONS = (
    "https://huggingface.co/onnxmodelzoo/{stem}/resolve/main/{file}",
    "https://media.githubusercontent.com/media/onnx/models/main/validated/vision/classification/{folder}/model/{file}",
)
# Caffe divides alpha by n=5 and starts the sum at 1.
CAFFE_LRN = MappingProxyType({"lrn": MappingProxyType({"n": 5, "k": 1.0, "alpha": 2e-5, "beta": 0.75})})
_CAFFE = {
    "preprocessing": BGR_MEANS,
    "arguments": CAFFE_LRN,
    "license": "unrestricted use (BVLC)",
    "obtained": "trained by the Berkeley Vision and Learning Center in Caffe, converted through Caffe2",
}
_GLUON = {
    "preprocessing": UNIT_SCALED,
    "license": "Apache 2.0",
    "obtained": "trained in MXNet Gluon, exported to ONNX",
}

# (network, folder of the zoo, file, bytes, sha256, zoo's top-1, top-5, what else)
_ROWS = (
    (
        *("AlexNet", "alexnet", "bvlcalexnet-12.onnx", 243_863_787),
        "6b0da9510f27f234ee96a85dc3809dd210150fdefad87f6850f9788513216945",
        *(54.80, 78.23),
        {**_CAFFE, "input_shape": (227, 227, 3), "caffe": (57.1, 80.2)},
    ),
    (
        *("GoogLeNet", "inception_and_googlenet/googlenet", "googlenet-12.onnx", 28_021_836),
        "c99c507058eaf41de8723408fdda7db8325cb57f0a89f2ee07a716d6e963e14e",
        *(67.78, 88.34),
        {
            **_CAFFE,
            "caffe": (68.7, 88.9),
            "same_weights": ("dac1b2f691dffedae9d5c62f23afb58a6970b2cccb93c4809bc5414943d97693",),
        },
    ),
    (
        *("VGG16", "vgg", "vgg16-7.onnx", 553_437_328),
        "f20805a3ecccaa88647bbab4ad011ff2412a9838485ea844de0fcbce349820b9",
        *(72.62, 91.14, _GLUON),
    ),
    (
        *("VGG19", "vgg", "vgg19-7.onnx", 574_677_321),
        "692f9f927f1df1b89033787a77a73eac59fd9b3344f9ecdf0b13221e41c2046f",
        *(73.72, 91.58, _GLUON),
    ),
    (
        *("ResNet18", "resnet", "resnet18-v1-7.onnx", 46_820_737),
        "4e8f8653e7a2222b3904cc3fe8e304cd8b339ce1d05fd24688162f86fb6df52c",
        *(69.93, 89.29, _GLUON),
    ),
    (
        *("ResNet34", "resnet", "resnet34-v1-7.onnx", 87_302_588),
        "883a41b2e30ddc2e422c108b091b5e70b92d37dc5c345a2c563dcae27971e2cc",
        *(73.73, 91.40, _GLUON),
    ),
    (
        *("ResNet50", "resnet", "resnet50-v1-7.onnx", 102_583_340),
        "af16a04a6ec48ac494065d4439fe9dea590d337b9ca6dc328160ccf04a217b9c",
        *(74.93, 92.38, _GLUON),
    ),
    (
        *("ResNet101", "resnet", "resnet101-v1-7.onnx", 178_914_043),
        "760702f6ec0138f71ebac66f4e95d1c72dc9267a8544f4d4667a53075fd0497c",
        *(76.48, 93.20, _GLUON),
    ),
    (
        *("ResNet152", "resnet", "resnet152-v1-7.onnx", 241_816_206),
        "b0ec92437bf8c9d0739bf9bafdea9638e13f9e3c1e2fb766ad546cc182fd3f6d",
        *(77.11, 93.61, _GLUON),
    ),
)


def _record(
    network: str, folder: str, file: str, size: int, sha256: str, top1: float, top5: float, more: Mapping[str, Any]
) -> WeightsRecord:
    facts = dict(more)
    side = facts.get("input_shape", (224,))[0]
    accuracies = [Accuracy(IMAGENET_VAL, 50_000, top1, top5, CENTRE.format(side=224), ZOO)]
    if caffe := facts.pop("caffe", None):
        caffe_top1, caffe_top5 = caffe
        accuracies.append(
            Accuracy(IMAGENET_VAL, 50_000, caffe_top1, caffe_top5, CENTRE.format(side=side), "Caffe's model page")
        )
    fills = {"stem": file.removesuffix(".onnx"), "file": file, "folder": folder}
    return WeightsRecord(
        architecture=network,
        name="imagenet",
        file=file,
        locations=tuple(location.format(**fills) for location in LOCATIONS),
        size=size,
        sha256=sha256,
        accuracies=tuple(accuracies),
        **facts,
    )


def trained_folder() -> Path:
    """Return the folder of the weights that are part of this package, and of their `records.json`."""
    return Path(str(resources.files("keras_convnets") / "weights" / "trained"))


def _trained() -> tuple[WeightsRecord, ...]:
    """Return the records of the weights that are part of this package."""
    rows = json.loads((trained_folder() / "records.json").read_text(encoding="utf-8"))
    return tuple(_from_plain(row) for row in rows)


def _from_plain(row: Mapping[str, Any]) -> WeightsRecord:
    facts: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    facts["preprocessing"] = Preprocessing.from_dict(row["preprocessing"])
    facts["accuracies"] = tuple(
        Accuracy(**{**item, "interval": tuple(item["interval"])} if item.get("interval") else item)
        for item in row["accuracies"]
    )
    return WeightsRecord(**facts)


RECORDS: tuple[WeightsRecord, ...] = (*(_record(*row) for row in _ROWS), *PYTORCH_RECORDS, *_trained())


def list_weights(pattern: str = "*") -> list[WeightsRecord]:
    """Return the records of published weights whose MODEL:WEIGHTS or MODEL matches a shell pattern.

    Args:
        pattern: such as "ResNet*"; capital letters do not matter.

    Example:
        >>> [str(record) for record in list_weights("vgg19")]
        ['VGG19:imagenet', 'VGG19:imagenet1k_v1', 'VGG19:timm/vgg19.tv_in1k']
    """
    pattern = pattern.lower()
    return [
        record
        for record in RECORDS
        if any(fnmatch.fnmatchcase(text.lower(), pattern) for text in (str(record), record.architecture))
    ]


def get_record(architecture: str, name: str) -> WeightsRecord:
    """Return the record of a network's published weights; capital letters do not matter.

    Raises:
        UserError: if there is none of that name; the message says what there is.
    """
    known = get_architecture(architecture).name
    names = [record.name for record in RECORDS if record.architecture == known]
    for record in RECORDS:
        if record.architecture == known and record.name.lower() == name.lower():
            return record
    published = f"there is {', '.join(map(repr, names))}" if names else "none are published"
    raise UserError(
        f"unknown weights {name!r} of {known}; {published}; give one of these, or the path of a weights file."
    )


def record_of_file(architecture: str, sha256: str) -> WeightsRecord | None:
    """Return the record that a file of this sha256 belongs to, or None."""
    for record in RECORDS:
        if record.architecture == architecture and (record.has_sha256(sha256) or sha256 in record.same_weights):
            return record
    return None
