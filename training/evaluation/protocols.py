"""Test protocols: the views of a test image and the averaging of their probabilities."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_convnets.errors import UserError, unknown_name
from keras_convnets.images.view import KERNELS, View
from keras_convnets.training.evaluation import views as views_of

# (image uint8 [H, W, 3], view of the classifier's card) -> uint8 [views, h, w, 3], in TensorFlow ops.
Views = Callable[[tf.Tensor, View], tf.Tensor]
Sides = Callable[[View], tuple[int, ...]]

# Krizhevsky et al. 2012, section 2; Szegedy et al. 2014, section 7; He et al. 2015, section 3.4.
TEN_CROP_SIDE = 256
CROPS144_SCALES = (256, 288, 320, 352)
DENSE_SCALES = (224, 256, 384, 480, 640)


@dataclass(frozen=True)
class Average:
    """How the probabilities of an image's views are combined.

    Attributes:
        name: name of the average, as in "ten_crop(average=max)".
        reduce: (values, axis) -> values reduced over that axis, not necessarily normalised. A reduction in groups of
            equal size, followed by one over the groups, must give the same result.
        normalised: whether the result of `reduce` sums to 1.
    """

    name: str
    reduce: Callable[[np.ndarray, int], np.ndarray]
    normalised: bool = False

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Combine the probabilities of the views, float32 [n, views, classes] -> [n, classes], with sum 1 per image."""
        found = self.reduce(probabilities, 1)
        return found if self.normalised else found / found.sum(axis=-1, keepdims=True)


def _geometric(values: np.ndarray, axis: int) -> np.ndarray:
    # Clipped from below at float32's smallest normal, to avoid log(0).
    return np.exp(np.log(np.maximum(values, np.finfo(np.float32).tiny)).mean(axis=axis))


MEAN = Average("mean", lambda values, axis: values.mean(axis=axis), normalised=True)
AVERAGES: Mapping[str, Average] = {
    average.name: average
    for average in (
        MEAN,
        Average("max", lambda values, axis: values.max(axis=axis)),
        # The softmax of the mean logits is the normalised geometric mean: each view's softmax denominator cancels.
        Average("logits", _geometric),
        Average("geometric", _geometric),
    )
}


@dataclass(frozen=True)
class Protocol:
    """A test protocol: the views of an image that a network sees, and the average of their probabilities.

    Attributes:
        name: name of the protocol, part of the key of an evaluation, as in "imagenet2012/validation/center".
            `get_protocol` accepts the names of this package's protocols.
        views: (image uint8 [H, W, 3], view of the classifier's card) -> uint8 [views, h, w, 3], in TensorFlow ops. None
            for a protocol with the single view of the card, modified by the other fields, or with whole images.
        average: float32 [n, views, classes] -> [n, classes].
        sides: view of the classifier's card -> lengths in pixels to which the shorter side is resized before cropping;
            raises `UserError` if they are incompatible with the network's input size.
        whole_images: whether whole images, resized to `sides`, are evaluated by the fully convolutional network.
        mirror: whether horizontally flipped views are included.
        stored_size: (height, width) that stored images and the network's input must have; images are not resized.
        side: length in pixels to which the shorter side is resized before the centre crop; None: as in the card.
        kernel: resampling kernel; None: as in the card.
        antialias: whether downsampling is antialiased, by widening the kernel; None: as in the card.
    """

    name: str
    views: Views | None = None
    average: Callable[[np.ndarray], np.ndarray] = MEAN
    sides: Sides | None = None
    whole_images: bool = False
    mirror: bool = False
    stored_size: tuple[int, int] | None = None
    side: int | None = None
    kernel: str | None = None
    antialias: bool | None = None

    @property
    def is_one_view(self) -> bool:
        """Whether the protocol has a single view of each image, at the network's input size."""
        return self.views is None and not self.whole_images

    def view_from(self, view: View) -> View:
        """Return the view of a classifier's card, with the protocol's side, kernel and antialias where given."""
        changes: dict[str, Any] = {"resize": self.side, "kernel": self.kernel, "antialias": self.antialias}
        if self.side is not None:
            views_of.check_sides([self.side], view, self.name)
        return dataclasses.replace(view, **{key: value for key, value in changes.items() if value is not None})


# Functions that create the protocols. The keyword arguments are the fields of their names.


def _center(*, side: int | None = None, kernel: str | None = None, antialias: bool | None = None) -> Protocol:
    return Protocol("", side=side, kernel=kernel, antialias=antialias)


def _cifar() -> Protocol:
    return Protocol("", stored_size=(32, 32))


def _ten_crop(
    *, side: int | None = None, mirror: bool = True, kernel: str | None = None, antialias: bool | None = None
) -> Protocol:
    sides = _sides("ten_crop", None if side is None else (side,), (TEN_CROP_SIDE,))

    def shown(image: tf.Tensor, view: View) -> tf.Tensor:
        return views_of.ten_crop(image, view, sides(view)[0], mirror)

    return Protocol("", shown, sides=sides, mirror=mirror, kernel=kernel, antialias=antialias)


def _crops144(
    *,
    scales: tuple[int, ...] | None = None,
    mirror: bool = True,
    kernel: str | None = None,
    antialias: bool | None = None,
) -> Protocol:
    sides = _sides("crops144", scales, CROPS144_SCALES)

    def shown(image: tf.Tensor, view: View) -> tf.Tensor:
        return views_of.crops144(image, view, sides(view), mirror)

    return Protocol("", shown, sides=sides, mirror=mirror, kernel=kernel, antialias=antialias)


def _dense(
    *,
    scales: tuple[int, ...] | None = None,
    mirror: bool = True,
    kernel: str | None = None,
    antialias: bool | None = None,
) -> Protocol:
    sides = _sides("dense", scales, DENSE_SCALES)
    return Protocol("", sides=sides, whole_images=True, mirror=mirror, kernel=kernel, antialias=antialias)


def _sides(name: str, given: tuple[int, ...] | None, published: tuple[int, ...]) -> Sides:
    """Return the function for `Protocol.sides`: the given sides, or the paper's scaled to the network's input size."""

    def sides(view: View) -> tuple[int, ...]:
        found = given or views_of.in_proportion(published, view, name)
        views_of.check_sides(found, view, name)
        return found

    return sides


_FACTORIES: Mapping[str, Callable[..., Protocol]] = {
    # Resized shorter side and centre crop, as in the classifier's model card.
    "center": _center,
    # Krizhevsky et al. 2012, section 4.1.
    "ten_crop": _ten_crop,
    # Szegedy et al. 2014, section 7.
    "crops144": _crops144,
    # He et al. 2015, section 3.4; Simonyan and Zisserman 2014, section 3.2.
    "dense": _dense,
    # He et al. 2015, section 4.2: "we only evaluate the single view of the original 32x32 image".
    "cifar": _cifar,
}


def get_protocol(protocol: str | Protocol, average: str | None = None) -> Protocol:
    """Return a protocol by its name, optionally with fields; a `Protocol` is returned unchanged.

    The fields are `side` (center, ten_crop) or `scales` (crops144, dense), lengths of the shorter side in pixels;
    `mirror` (ten_crop, crops144, dense); `kernel` and `antialias` of the resizing (all but cifar); and `average`.

    Args:
        protocol: name, such as "center", "ten_crop(side=256)" or "dense(scales=256:384, mirror=false)".
        average: one of `AVERAGES`; by default as the protocol defines it, which is the mean of the probabilities.

    Raises:
        UserError: if the protocol, field or value is unknown.

    Example:
        >>> get_protocol("dense( mirror=false,scales=256:384)").name
        'dense(scales=256:384, mirror=false)'
    """
    if isinstance(protocol, Protocol):
        if average is None:
            return protocol
        if not isinstance(protocol.average, Average) or protocol.name.partition("(")[0] not in _FACTORIES:
            raise UserError(f"protocol {protocol.name} defines its average; leave average={average!r} out.")
        protocol = protocol.name
    found = re.fullmatch(r"\s*([^\s()]*)\s*(?:\((.*)\)\s*)?", str(protocol), re.DOTALL)
    if found is None or found[1] not in _FACTORIES:
        raise unknown_name("protocol", protocol if found is None else found[1], _FACTORIES)
    fields = _fields(found[1], found[2] or "")
    if average is not None:
        fields["average"] = _read_average(average)
    return _made(found[1], tuple(_changed(found[1], fields).items()))


def split_protocols(text: str) -> list[str]:
    """Split a comma-separated list of protocols, such as "center,dense(scales=256:384, mirror=false)"."""
    return [part.strip() for part in re.findall(r"(?:[^,(]|\([^)]*\)?)+", text)] or [text]


def without_mirror(protocol: Protocol) -> str:
    """Return the name of a protocol with `mirror=false` added."""
    name, _, fields = protocol.name.partition("(")
    return f"{name}({', '.join(filter(None, [fields.rstrip(')'), 'mirror=false']))})"


@functools.cache
def _made(name: str, changed: tuple[tuple[str, Any], ...]) -> Protocol:
    """Create a protocol with the given non-default fields; cached, so equal fields give the same object."""
    fields = dict(changed)
    shown = [f"{key}={_as_text(value)}" for key, value in fields.items()]
    average = fields.pop("average", MEAN.name)
    full = f"{name}({', '.join(shown)})" if shown else name
    return dataclasses.replace(_FACTORIES[name](**fields), name=full, average=AVERAGES[average])


def _changed(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that differ from a protocol's defaults, in the order of its signature."""
    defaults = {key: item.default for key, item in inspect.signature(_FACTORIES[name]).parameters.items()}
    defaults["average"] = MEAN.name
    return {key: fields[key] for key in defaults if key in fields and fields[key] != defaults[key]}


def _fields(name: str, text: str) -> dict[str, Any]:
    """Parse the fields of a protocol, the text between the parentheses."""
    known = [*inspect.signature(_FACTORIES[name]).parameters, "average"]
    fields: dict[str, Any] = {}
    for part in filter(str.strip, text.split(",")):
        key, equals, value = (item.strip() for item in part.partition("="))
        if not equals:
            raise UserError(f"protocol {name} got the field {part.strip()!r}; write each field as FIELD=VALUE.")
        if key not in known:
            raise unknown_name(f"field of protocol {name}", key, known)
        if key in fields:
            raise UserError(f"protocol {name} got the field {key} twice; give it once.")
        fields[key] = _READERS[key](value)
    return fields


def _read_side(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 10_000):
        raise UserError(f"the shorter side is {text!r}; it must be a whole number of pixels from 1 to 10000.")
    return int(text)


def _read_scales(text: str) -> tuple[int, ...]:
    return tuple(_read_side(part.strip()) for part in text.split(":"))


def _read_switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise UserError(f"a boolean field of the protocol is {text!r}; it must be true or false.")
    return text.lower() == "true"


def _read_kernel(text: str) -> str:
    if text not in KERNELS:
        raise unknown_name("kernel", text, KERNELS)
    return text


def _read_average(text: str) -> str:
    if text not in AVERAGES:
        raise unknown_name("average", text, AVERAGES)
    return text


_READERS: Mapping[str, Callable[[str], Any]] = {
    "side": _read_side,
    "scales": _read_scales,
    "mirror": _read_switch,
    "kernel": _read_kernel,
    "antialias": _read_switch,
    "average": _read_average,
}


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ":".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


PROTOCOLS: Mapping[str, Protocol] = {name: _made(name, ()) for name in _FACTORIES}
CENTER = PROTOCOLS["center"]
