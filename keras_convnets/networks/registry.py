"""The registry: what each network is, as plain data that needs no Keras.

The parameter counts are of the trainable weights (convolutions, gamma and beta, fully connected layers), the
multiply-adds are of convolutions and fully connected layers without biases, both at the default input size and
class count; tests derive them again from the papers' tables.
"""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from keras_convnets.errors import unknown_name

if TYPE_CHECKING:
    import keras

ALEXNET_PAPER = (
    "Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks, NIPS 2012"
)
VGG_PAPER = (
    "Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, 2014, arXiv:1409.1556"
)
GOOGLENET_PAPER = "Szegedy et al.: Going Deeper with Convolutions, 2014, arXiv:1409.4842"
RESNET_PAPER = "He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385"


@dataclass(frozen=True)
class PublishedError:
    """An error rate as a paper prints it.

    Attributes:
        data: the data set and split it was measured on.
        top1: top-1 error in percent, as printed, or None.
        top5: top-5 error in percent, as printed, or None.
        protocol: how the test images were seen.
        source: the table or figure, of the network's own paper unless another is named.
        note: the paper's own remark, such as the spread over several runs.
    """

    data: str
    top1: float | None
    protocol: str
    source: str
    note: str = ""
    top5: float | None = None

    def figures(self) -> str:
        """Return the figures with their names, such as "top-1 39.0 %, top-5 16.6 %"."""
        known = [(name, error) for name, error in (("top-1", self.top1), ("top-5", self.top5)) if error is not None]
        return ", ".join(f"{name} {error:.{1 if error == round(error, 1) else 2}f} %" for name, error in known)


@dataclass(frozen=True)
class Architecture:
    """What is known of a network without building it.

    Attributes:
        name: the builder's name, such as "ResNet20".
        module: the module that holds the builder.
        paper: authors, title, year, identifier.
        section: where the paper describes it.
        depth: weighted layers on the longest path.
        parameters: trainable weights at the default input size and class count.
        multiply_adds: of one image at the default input size and class count.
        input_shape: default (height, width, channels).
        classes: default number of classes.
        published: the paper's error rates.
    """

    name: str
    module: str
    paper: str
    section: str
    depth: int
    parameters: int
    multiply_adds: int
    input_shape: tuple[int, int, int]
    classes: int
    published: tuple[PublishedError, ...] = ()


def _cifar(name: str, parameters: int, multiply_adds: int, error: float | None = None, note: str = "") -> Architecture:
    single_view = "single view of the 32x32 image"
    published = () if error is None else (PublishedError("CIFAR-10 test", error, single_view, "Table 6", note),)
    return Architecture(
        name=name,
        module="keras_convnets.networks.resnet_cifar",
        paper=RESNET_PAPER,
        section="4.2",
        depth=int(name.removeprefix("ResNet").removeprefix("PlainNet")),
        parameters=parameters,
        multiply_adds=multiply_adds,
        input_shape=(32, 32, 3),
        classes=10,
        published=published,
    )


VAL = "ImageNet 2012 val"
TEN_CROP, ONE_VIEW = "ten crops", "one crop"
SCALES = "fully convolutional at scales 224, 256, 384, 480, 640"
IN_RESNET_PAPER = "He et al. 2015, table 3"

# (network, depth, parameters, multiply-adds, (protocol, top-1, top-5, source, note) ...)
_ALEXNET = (
    ("AlexNet", 8, 60_965_224, 724_406_816, (TEN_CROP, 40.7, 18.2, "Table 2", "1 CNN")),
    ("AlexNetOneTower", 8, 62_378_344, 1_135_256_096),
    (
        *("AlexNetSixConvs", 9, 61_555_304, 745_640_480),
        (TEN_CROP, 39.0, 16.6, "Table 2", "1 CNN*: pre-trained on ImageNet 2011"),
    ),
)
_VGG = (
    ("VGG11", 11, 132_863_336, 7_609_090_048),
    ("VGG13", 13, 133_047_848, 11_308_466_176),
    ("VGG16", 16, 138_357_544, 15_470_264_320, (TEN_CROP, 28.07, 9.33, IN_RESNET_PAPER, "")),
    ("VGG19", 19, 143_667_240, 19_632_062_464),
)
_GOOGLENET = (
    (
        *("GoogLeNet", 22, 6_998_552, 1_582_671_872),
        (ONE_VIEW, None, 10.07, "Table 3", ""),
        (TEN_CROP, None, 9.15, "Table 3", ""),
        ("144 crops", None, 7.89, "Table 3", ""),
    ),
)
_RESNET = (
    ("ResNet18", 18, 11_689_512, 1_814_073_344, (TEN_CROP, 27.88, None, "Table 2", "shortcut A")),
    (
        *("ResNet34", 34, 21_797_672, 3_663_761_408),
        (TEN_CROP, 24.52, 7.46, "Table 3", "shortcut B"),
        (TEN_CROP, 25.03, 7.76, "Table 3", "shortcut A"),
        (TEN_CROP, 24.19, 7.40, "Table 3", "shortcut C"),
        (SCALES, 21.84, 5.71, "Table 4", "shortcut B"),
        (SCALES, 21.53, 5.60, "Table 4", "shortcut C"),
    ),
    (
        *("ResNet50", 50, 25_557_032, 3_857_973_248),
        (TEN_CROP, 22.85, 6.71, "Table 3", ""),
        (SCALES, 20.74, 5.25, "Table 4", ""),
    ),
    (
        *("ResNet101", 101, 44_549_160, 7_570_194_432),
        (TEN_CROP, 21.75, 6.05, "Table 3", ""),
        (SCALES, 19.87, 4.60, "Table 4", ""),
    ),
    (
        *("ResNet152", 152, 60_192_808, 11_282_415_616),
        (TEN_CROP, 21.43, 5.71, "Table 3", ""),
        (SCALES, 19.38, 4.49, "Table 4", ""),
    ),
    ("PlainNet18", 18, 11_515_688, 1_794_805_760, (TEN_CROP, 27.94, None, "Table 2", "")),
    ("PlainNet34", 34, 21_623_848, 3_644_493_824, (TEN_CROP, 28.54, 10.02, "Table 3", "")),
    # Not the paper's: the stride on the 3x3 convolution.
    ("ResNet50v1_5", 50, 25_557_032, 4_089_184_256),
    ("ResNet101v1_5", 101, 44_549_160, 7_801_405_440),
    ("ResNet152v1_5", 152, 60_192_808, 11_513_626_624),
)


def _imagenet(paper: str, section: str, module: str, rows) -> tuple[Architecture, ...]:
    return tuple(
        Architecture(
            name=name,
            module=f"keras_convnets.networks.{module}",
            paper=paper,
            section=section,
            depth=depth,
            parameters=parameters,
            multiply_adds=multiply_adds,
            input_shape=(224, 224, 3),
            classes=1000,
            published=tuple(
                PublishedError(VAL, top1, protocol, source, note, top5) for protocol, top1, top5, source, note in errors
            ),
        )
        for name, depth, parameters, multiply_adds, *errors in rows
    )


_CIFAR = (
    _cifar("ResNet20", 269_722, 40_551_040, 8.75),
    _cifar("ResNet32", 464_154, 68_862_592, 7.51),
    _cifar("ResNet44", 658_586, 97_174_144, 7.17),
    _cifar("ResNet56", 853_018, 125_485_696, 6.97),
    _cifar("ResNet110", 1_727_962, 252_887_680, 6.43, "best of 5 runs; 6.61 +- 0.16"),
    _cifar("ResNet1202", 19_421_274, 2_829_238_912, 7.93),
    _cifar("PlainNet20", 269_722, 40_551_040),
    _cifar("PlainNet32", 464_154, 68_862_592),
    _cifar("PlainNet44", 658_586, 97_174_144),
    _cifar("PlainNet56", 853_018, 125_485_696),
    _cifar("PlainNet110", 1_727_962, 252_887_680),
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        architecture.name: architecture
        for architecture in (
            *_imagenet(ALEXNET_PAPER, "3, figure 2", "alexnet", _ALEXNET),
            *_imagenet(VGG_PAPER, "2, table 1", "vgg", _VGG),
            *_imagenet(GOOGLENET_PAPER, "5, table 1", "googlenet", _GOOGLENET),
            *_imagenet(RESNET_PAPER, "4.1, table 1", "resnet", _RESNET),
            *_CIFAR,
        )
    }
)


def get_architecture(name: str) -> Architecture:
    """Return the registry's entry for a network; capital letters do not matter.

    Raises:
        UserError: if no network bears that name; the sentence gives the nearest names.
    """
    by_lower = {known.lower(): known for known in ARCHITECTURES}
    key = by_lower.get(str(name).lower())
    if key is None:
        raise unknown_name("model", name, ARCHITECTURES, "keras-convnets models lists all")
    return ARCHITECTURES[key]


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the registered networks that match a shell pattern, capital letters aside.

    Example:
        >>> list_models("vgg1?")
        ['VGG11', 'VGG13', 'VGG16', 'VGG19']
    """
    pattern = pattern.lower()
    return [name for name in ARCHITECTURES if fnmatch.fnmatchcase(name.lower(), pattern)]


def get_model(name: str, /, **arguments: Any) -> keras.Model:
    """Build a registered network by its name.

    Args:
        name: a name that `list_models` gives; capital letters do not matter.
        **arguments: what the builder takes, such as `classes=100`.

    Returns:
        The functional Keras model that the builder of that name returns.

    Raises:
        UserError: if the name is unknown.

    Example:
        >>> model = get_model("ResNet20", classes=100)
    """
    architecture = get_architecture(name)
    builder = getattr(importlib.import_module(architecture.module), architecture.name)
    return builder(**arguments)
