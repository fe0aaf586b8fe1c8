"""What is known of one file of published weights. Imports no Keras."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from keras_convnets.classes import imagenet_classes
from keras_convnets.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    import numpy as np


IMAGENET_VAL = "ImageNet 2012 val"
# How addresses of repositories on the Hugging Face Hub begin.
HUB = "hf://"


@dataclass(frozen=True)
class Accuracy:
    """A measured accuracy of published weights.

    Attributes:
        data: the data set and split.
        n: number of images; None if it is not stated.
        top1: top-1 accuracy in percent.
        top5: top-5 accuracy in percent; None if it is not stated, as for the ten classes of CIFAR-10.
        protocol: how the images were seen.
        source: who measured it.
        interval: 95 % interval of the top-1 accuracy in percent (Wilson's), or None.
    """

    data: str
    n: int | None
    top1: float
    top5: float | None
    protocol: str
    source: str
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class WeightsRecord:
    """What is known of one file of published weights.

    Attributes:
        architecture: the registered name, such as "AlexNet".
        name: what `weights=` takes, such as "imagenet".
        file: the file's name.
        locations: addresses it is published at, the preferred one first, a hub's as "hf://OWNER/NAME"; () if the file
            is part of this package.
        size: in bytes; None if its publisher does not state it.
        sha256: of the file, or the beginning that its publisher states; nothing else is ever loaded under this record.
            "" if none is stated, as on a hub, whose revision and checksums are checked instead.
        format: "onnx", "weights.h5", "pth" or "safetensors".
        preprocessing: what the weights were trained on.
        arguments: what the builder must be given besides, such as the constants of the response normalisation.
        input_shape: (height, width, channels) of the images they were trained on.
        resize: shorter side, in pixels, before the centre is cropped.
        kernel: how images are resampled, one of `keras_convnets.images.view.KERNELS`.
        data: what they were trained on.
        accuracies: measured by others.
        protocol: the evaluation protocol that they were measured with, as `evaluate` takes it.
        license: of the weights.
        obtained: how they came about.
        same_weights: sha256 of other files that hold the very same numbers.
        own_classes: names of the classes, in the order of the outputs; () if they are ImageNet's.
        training: of weights that this package trained: command, recipe, seed, steps, seconds, hardware, versions.
        revision: commit of the hub's repository that the file is of; "" until it is loaded, and elsewhere.

    Example:
        >>> get_record("GoogLeNet", "imagenet").accuracies[0].top1
        67.78
    """

    architecture: str
    name: str
    file: str
    locations: tuple[str, ...]
    size: int | None
    sha256: str
    preprocessing: Preprocessing
    accuracies: tuple[Accuracy, ...]
    license: str
    obtained: str
    format: str = "onnx"
    arguments: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    input_shape: tuple[int, int, int] = (224, 224, 3)
    resize: int = 256
    kernel: str = "bilinear"
    protocol: str = "center"
    data: str = "ImageNet 2012"
    same_weights: tuple[str, ...] = ()
    own_classes: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    revision: str = ""

    def __str__(self) -> str:
        """Return MODEL:WEIGHTS, as the command line takes it."""
        return f"{self.architecture}:{self.name}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the outputs."""
        return self.own_classes or imagenet_classes().names

    @property
    def class_ids(self) -> tuple[str, ...]:
        """The WordNet ids of ImageNet's classes, in the order of the outputs; () of other classes."""
        return () if self.own_classes else imagenet_classes().ids

    @property
    def on_hub(self) -> bool:
        """Whether the file is in a repository of a hub."""
        return bool(self.locations) and self.locations[0].startswith(HUB)

    def has_sha256(self, sha256: str) -> bool:
        """Whether a file of this sha256 may be loaded under this record."""
        return bool(self.sha256) and sha256.startswith(self.sha256)

    def preprocess(self, images: np.ndarray) -> np.ndarray:
        """Return images as the bare network of `include_preprocessing=False` takes them; the argument stays as it was.

        Args:
            images: RGB in 0-255, any dtype, [..., H, W, 3].

        Returns:
            float32 of the same shape.
        """
        return self.preprocessing(images)
