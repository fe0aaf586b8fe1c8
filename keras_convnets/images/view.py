"""The `View`: how an image becomes a network's input. A value; `images.resizing` holds the operations that apply it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras_convnets.errors import UserError
from keras_convnets.numbers import whole_number

# How a view may resample, as `tf.image.resize` names it.
KERNELS = ("bilinear", "area", "nearest", "bicubic")
# How many images of a batch are decoded and brought to a view at a time, where there are as many cores.
DECODED_AT_ONCE = 16
# The shorter side before the crop, as the published ImageNet weights were evaluated.
IMAGENET_SIDE = 256
# What JSON calls resize and centre crop.
NAME = "center"


@dataclass(frozen=True)
class View:
    """Resize and centre crop: the shorter side is resized, keeping the aspect ratio, and the centre is cropped.

    Attributes:
        resize: the shorter side after resizing, in pixels.
        crop: (height, width) of the centre that is kept, in pixels: the network's input size.
        kernel: how pixels are resampled, one of `KERNELS`.
        antialias: whether bilinear and bicubic are widened where the image shrinks.

    Raises:
        UserError: if the kernel is unknown, or a size is no length in pixels.

    Example:
        >>> View(resize=256, crop=(224, 224)).to_dict()
        {'name': 'center', 'resize': 256, 'crop': [224, 224], 'kernel': 'bilinear'}
    """

    resize: int
    crop: tuple[int, int]
    kernel: str = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        # NumPy's whole numbers are none in JSON.
        resize, crop = _as_python(self.resize), self.crop
        crop = tuple(map(_as_python, crop)) if isinstance(crop, Sequence) else crop
        _check(resize, crop, self.kernel, self.antialias, "the view")
        object.__setattr__(self, "resize", resize)
        object.__setattr__(self, "crop", crop)

    @classmethod
    def of_size(cls, height: int, width: int, resize: int | None = None) -> View:
        """Return the bilinear, antialiased view at an input size.

        An image of just this size is left as it is where `resize` is not given.

        Args:
            height: of the input, in pixels.
            width: of the input, in pixels.
            resize: the shorter side before the crop; by default the input's own.
        """
        return cls(min(height, width) if resize is None else resize, (height, width))

    @classmethod
    def of_imagenet(cls, height: int, width: int) -> View:
        """Return the view that published ImageNet weights were evaluated with: `IMAGENET_SIDE`, or the input's side."""
        return cls.of_size(height, width, resize=max(IMAGENET_SIDE, height, width))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; antialiasing is named where it is off."""
        plain = {"name": NAME, "resize": self.resize, "crop": list(self.crop), "kernel": self.kernel}
        return plain if self.antialias else {**plain, "antialias": False}

    @classmethod
    def from_dict(cls, plain: Any, where: object = "the view") -> View:
        """Return the view that `to_dict` wrote; it is bilinear and antialiased where the data do not say.

        Args:
            plain: what a model card or an ONNX file's metadata hold.
            where: what to call it in an error.

        Raises:
            UserError: if it is no view, or none that can be applied.
        """
        if not isinstance(plain, Mapping):
            raise UserError(
                f"{where} is {plain!r}; it must say how images are resized and cropped: write the card again."
            )
        resize: Any = plain.get("resize")
        crop: Any = plain.get("crop")
        kernel, antialias = plain.get("kernel", "bilinear"), plain.get("antialias", True)
        _check(resize, crop, kernel, antialias, where)
        return cls(resize, tuple(crop), kernel, antialias)


def _as_python(size: Any) -> Any:
    """Return a whole number as an `int`, and anything else unchanged, for `_check` to refuse."""
    whole = whole_number(size)
    return size if whole is None else whole


def _check(resize: Any, crop: Any, kernel: Any, antialias: Any, where: object) -> None:
    if kernel not in KERNELS:
        raise UserError(f"{where} has the kernel {kernel!r}; images are resampled by one of {', '.join(KERNELS)}.")
    if not isinstance(antialias, bool):
        raise UserError(f"{where} has antialias {antialias!r}; it is true or false.")
    sizes = [*crop, resize] if isinstance(crop, Sequence) and len(crop) == 2 else [None]
    if not all(type(size) is int and size >= 1 for size in sizes):
        shown = list(crop) if isinstance(crop, tuple) else crop
        raise UserError(
            f"{where} has resize {resize!r} and crop {shown!r}; it needs a length and [height, width], in pixels."
        )
