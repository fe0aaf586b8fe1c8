"""What is known of a network without building it: the types of the registry's rows. No Keras, no NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


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
class Convention:
    """How weights files of one kind, which no record describes, are known to have been trained.

    Attributes:
        preprocessing: a constant of `keras_convnets.images.preprocessing`, such as "BGR_MEANS".
        input_shape: (height, width, channels) of the training images where it is not the paper's.
    """

    preprocessing: str
    input_shape: tuple[int, int, int] | None = None


@dataclass(frozen=True, eq=False)
class Family:
    """The networks of one paper that one module builds.

    Attributes:
        module: the module that holds the builders, below `keras_convnets.networks`.
        paper: authors, title, year, identifier.
        section: where the paper describes them.
        input_shape: default (height, width, channels).
        classes: default number of classes.
        errors_on: the data set and split of the published errors.
        recipe: the training recipe of the paper.
        stages: (pattern of a layer's name, name of the stage that this layer ends); "{}" stands for the pattern's first
            group, and of several layers of one stage the last one ends it.
        any_depth: builders that take a depth, and therefore have no row of numbers.
        conventions: of weights files, by kind: ".onnx" (the ONNX Model Zoo's), ".h5" (keras.applications'),
            ".safetensors" and ".pth" (those of PyTorch's libraries).
    """

    module: str
    paper: str
    section: str
    input_shape: tuple[int, int, int]
    classes: int
    errors_on: str
    recipe: str
    stages: tuple[tuple[str, str], ...]
    any_depth: tuple[str, ...] = ()
    conventions: Mapping[str, Convention] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def path(self) -> str:
        """The full name of the module that holds the builders."""
        return f"keras_convnets.networks.{self.module}"


@dataclass(frozen=True)
class Architecture:
    """What is known of one network without building it.

    Attributes:
        name: the builder's name, such as "ResNet20".
        family: the properties common to the networks of its paper.
        depth: weighted layers on the longest path.
        parameters: trainable weights at the default input size and class count.
        multiply_adds: of one image at the default input size and class count.
        published: the paper's error rates.
    """

    name: str
    family: Family
    depth: int
    parameters: int
    multiply_adds: int
    published: tuple[PublishedError, ...] = ()

    @property
    def module(self) -> str:
        """The full name of the module that holds the builder."""
        return self.family.path

    @property
    def paper(self) -> str:
        """Authors, title, year, identifier."""
        return self.family.paper

    @property
    def section(self) -> str:
        """Where the paper describes it."""
        return self.family.section

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Default (height, width, channels)."""
        return self.family.input_shape

    @property
    def classes(self) -> int:
        """Default number of classes."""
        return self.family.classes
