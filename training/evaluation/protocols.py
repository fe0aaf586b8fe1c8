"""Protocols: which views of a test image a network sees, and how its answers are averaged."""

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
    """How the probabilities of an image's views become one answer.

    Attributes:
        name: as in "ten_crop(average=max)".
        reduce: (values, axis) -> values without that axis, not yet normalised; of equally many values it can be applied
            part by part.
        normalised: whether what `reduce` gives sums to 1.
    """

    name: str
    reduce: Callable[[np.ndarray, int], np.ndarray]
    normalised: bool = False

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the average over an image's views: float32 [n, views, classes] -> [n, classes]."""
        found = self.reduce(probabilities, 1)
        return found if self.normalised else found / found.sum(axis=-1, keepdims=True)


def _geometric(values: np.ndarray, axis: int) -> np.ndarray:
    # A probability of 0 counts as float32's smallest.
    return np.exp(np.log(np.maximum(values, np.finfo(np.float32).tiny)).mean(axis=axis))


MEAN = Average("mean", lambda values, axis: values.mean(axis=axis), normalised=True)
AVERAGES: Mapping[str, Average] = {
    average.name: average
    for average in (
        MEAN,
        Average("max", lambda values, axis: values.max(axis=axis)),
        # The softmax of mean logits is the geometric mean, normalised: what the two differ by is a factor a view.
        Average("logits", _geometric),
        Average("geometric", _geometric),
    )
}


@dataclass(frozen=True)
class Protocol:
    """How a test image is shown.

    Attributes:
        name: under which figures are kept, as in "imagenet2012/validation/center"; of the protocols of this package
            `get_protocol` reads it again.
        views: (image uint8 [H, W, 3], view of the classifier's card) -> uint8 [views, h, w, 3], in TensorFlow ops. None
            where it is the one view of the card, changed as the other fields say, or whole images.
        average: combines the probabilities of an image's views: float32 [n, views, classes] -> [n, classes].
        sides: view of the classifier -> shorter sides that images are resized to before views are cut, in pixels; it
            raises `UserError` where they don't fit the network's input.
        whole_images: whether whole images, at these sides, are shown to a fully convolutional network.
        mirror: whether images are shown mirrored too.
        stored_size: (height, width) that images and the network's input must have, which are shown as they are stored.
        side: shorter side before the centre is cropped, in pixels; None: the card's.
        kernel: how pixels are resampled; None: the card's.
        antialias: whether the kernel is widened where the image shrinks; None: as the card says.
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
        """Whether a network sees each image once, at its input size: such images can be held in memory."""
        return self.views is None and not self.whole_images

    def view_from(self, view: View) -> View:
        """Return the view of a classifier's card with what the protocol changes of it."""
        changes: dict[str, Any] = {"resize": self.side, "kernel": self.kernel, "antialias": self.antialias}
        if self.side is not None:
            views_of.check_sides([self.side], view, self.name)
        return dataclasses.replace(view, **{key: value for key, value in changes.items() if value is not None})


# The published protocols: each takes its fields by name. Kernel and antialias are the card's where they are None.


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
    """Return what gives a protocol's shorter sides: those that were given, else the paper's in proportion."""

    def sides(view: View) -> tuple[int, ...]:
        found = given or views_of.in_proportion(published, view, name)
        views_of.check_sides(found, view, name)
        return found

    return sides


_MADE_BY: Mapping[str, Callable[..., Protocol]] = {
    # The shorter side is resized and the centre cropped, as the classifier's card says.
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
    """Return a protocol by its name, with fields where they differ; one that is given is returned as it is.

    Fields are `side` (center, ten_crop) or `scales` (crops144, dense), lengths of the shorter side in pixels; `mirror`
    (ten_crop, crops144, dense); `kernel` and `antialias` of the resizing; and `average`.

    Args:
        protocol: such as "center", "ten_crop(side=256)" or "dense(scales=256:384, mirror=false)".
        average: one of `AVERAGES`; by default what the protocol says, which is the mean of the probabilities.

    Raises:
        UserError: if there is no such protocol, field or value.

    Example:
        >>> get_protocol("dense( mirror=false,scales=256:384)").name
        'dense(scales=256:384, mirror=false)'
    """
    if isinstance(protocol, Protocol):
        if average is None:
            return protocol
        if not isinstance(protocol.average, Average) or protocol.name.partition("(")[0] not in _MADE_BY:
            raise UserError(f"protocol {protocol.name} has an average of its own; leave average={average!r} out.")
        protocol = protocol.name
    found = re.fullmatch(r"\s*([^\s()]*)\s*(?:\((.*)\)\s*)?", str(protocol), re.DOTALL)
    if found is None or found[1] not in _MADE_BY:
        raise unknown_name("protocol", protocol if found is None else found[1], _MADE_BY)
    fields = _fields(found[1], found[2] or "")
    if average is not None:
        fields["average"] = _read_average(average)
    return _made(found[1], tuple(_changed(found[1], fields).items()))


def split_protocols(text: str) -> list[str]:
    """Return the protocols of a list with commas, such as "center,dense(scales=256:384, mirror=false)"."""
    return [part.strip() for part in re.findall(r"(?:[^,(]|\([^)]*\)?)+", text)] or [text]


def without_mirror(protocol: Protocol) -> str:
    """Return the text of a protocol with `mirror=false`."""
    name, _, fields = protocol.name.partition("(")
    return f"{name}({', '.join(filter(None, [fields.rstrip(')'), 'mirror=false']))})"


@functools.cache
def _made(name: str, changed: tuple[tuple[str, Any], ...]) -> Protocol:
    """Return a protocol with the fields that are not its defaults; the same fields give the same object."""
    fields = dict(changed)
    shown = [f"{key}={_as_text(value)}" for key, value in fields.items()]
    average = fields.pop("average", MEAN.name)
    full = f"{name}({', '.join(shown)})" if shown else name
    return dataclasses.replace(_MADE_BY[name](**fields), name=full, average=AVERAGES[average])


def _changed(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are not a protocol's defaults, in its order."""
    defaults = {key: item.default for key, item in inspect.signature(_MADE_BY[name]).parameters.items()}
    defaults["average"] = MEAN.name
    return {key: fields[key] for key in defaults if key in fields and fields[key] != defaults[key]}


def _fields(name: str, text: str) -> dict[str, Any]:
    """Read the fields of a protocol from the text between its parentheses."""
    known = [*inspect.signature(_MADE_BY[name]).parameters, "average"]
    fields: dict[str, Any] = {}
    for part in filter(str.strip, text.split(",")):
        key, equals, value = (item.strip() for item in part.partition("="))
        if not equals:
            raise UserError(f"protocol {name} has {part.strip()!r} among its fields; write each as FIELD=VALUE.")
        if key not in known:
            raise unknown_name(f"field of protocol {name}", key, known)
        if key in fields:
            raise UserError(f"protocol {name} has {key} twice; give it once.")
        fields[key] = _READERS[key](value)
    return fields


def _read_side(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 10_000):
        raise UserError(f"a shorter side is {text!r}; it must be a whole number of pixels, at most 10000.")
    return int(text)


def _read_scales(text: str) -> tuple[int, ...]:
    return tuple(_read_side(part.strip()) for part in text.split(":"))


def _read_switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise UserError(f"a switch of a protocol is {text!r}; it must be true or false.")
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


PROTOCOLS: Mapping[str, Protocol] = {name: _made(name, ()) for name in _MADE_BY}
CENTER = PROTOCOLS["center"]
