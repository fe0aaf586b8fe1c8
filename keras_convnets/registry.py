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

RESNET_PAPER = "He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385"


@dataclass(frozen=True)
class PublishedError:
    """An error rate as a paper prints it.

    Attributes:
        data: the data set and split it was measured on.
        top1: top-1 error in percent, as printed.
        protocol: how the test images were seen.
        source: the table or figure.
        note: the paper's own remark, such as the spread over several runs.
    """

    data: str
    top1: float
    protocol: str
    source: str
    note: str = ""


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
        module="keras_convnets.resnet_cifar",
        paper=RESNET_PAPER,
        section="4.2",
        depth=int(name.removeprefix("ResNet").removeprefix("PlainNet")),
        parameters=parameters,
        multiply_adds=multiply_adds,
        input_shape=(32, 32, 3),
        classes=10,
        published=published,
    )


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        architecture.name: architecture
        for architecture in (
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
        >>> list_models("plain*0")
        ['PlainNet20', 'PlainNet110']
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
