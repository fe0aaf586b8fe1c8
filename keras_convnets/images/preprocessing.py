"""`Preprocessing`, a value: channel order, mean and standard deviation, from RGB in 0-255. NumPy only."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_convnets.errors import UserError


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """Channel order, mean and standard deviation that a network expects to be taken out of RGB 0-255 images.

    The network sees `(x - mean) / std`, where x has its channels in `order`. Where `mean_image` is given and the
    image has its size, the mean image is subtracted instead of the channel means.

    Attributes:
        mean: one mean a channel, in `order`, in the images' units (0-255).
        std: one standard deviation a channel, in `order`, in the same units.
        order: "RGB" or "BGR": the channel order the network takes.
        mean_image: float32 [H, W, 3], in `order`, or None: the per-pixel mean (AlexNet section 2, ResNet section 4.2).

    Raises:
        UserError: if the order or a shape is not one of these.

    Example:
        >>> Preprocessing(mean=(125.3, 123.0, 113.9))(np.zeros((1, 32, 32, 3), np.uint8))[0, 0, 0]
        array([-125.3, -123. , -113.9], dtype=float32)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    order: str = "RGB"
    mean_image: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.order not in ("RGB", "BGR"):
            raise UserError(f"preprocessing order is {self.order!r}; it must be 'RGB' or 'BGR'.")
        for field in ("mean", "std"):
            object.__setattr__(self, field, _channel_values(field, getattr(self, field)))
        if not all(value > 0 for value in self.std):
            raise UserError(f"preprocessing std is {self.std}; every value must be positive.")
        if self.mean_image is not None:
            image = np.array(self.mean_image, np.float32)
            if image.ndim != 3 or image.shape[-1] != 3:
                raise UserError(f"the mean image has shape {image.shape}; it must be (height, width, 3).")
            if not np.isfinite(image).all():
                raise UserError("the mean image holds values that are not finite; compute it again.")
            image.flags.writeable = False
            object.__setattr__(self, "mean_image", image)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return preprocessed images; the argument is left as it was.

        Args:
            images: RGB in 0-255, any dtype, [..., H, W, 3].

        Returns:
            float32 of the same shape, channels in `order`.
        """
        x = np.asarray(images).astype(np.float32)
        if self.order == "BGR":
            x = x[..., ::-1]
        return (x - self.mean_for(x.shape[-3:-1])) / np.asarray(self.std, np.float32)

    def mean_for(self, size: Sequence[int | None]) -> np.ndarray:
        """Return what is subtracted from an image of (height, width): the mean image if it has that size, else [3]."""
        if self.mean_image is not None and tuple(size) == self.mean_image.shape[:2]:
            return self.mean_image
        return np.asarray(self.mean, np.float32)

    @classmethod
    def of(cls, value: Preprocessing | Mapping[str, Any]) -> Preprocessing:
        """Return a preprocessing, or what `to_dict` made of one, as a preprocessing.

        Raises:
            UserError: if it is neither.
        """
        if isinstance(value, Preprocessing):
            return value
        if not isinstance(value, Mapping):
            raise UserError(f"preprocessing is {value!r}; give a keras_convnets.Preprocessing.")
        return cls.from_dict(value)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; the mean image as base64 of little-endian float32."""
        plain: dict[str, Any] = {"order": self.order, "mean": list(self.mean), "std": list(self.std)}
        if self.mean_image is not None:
            data = base64.b64encode(self.mean_image.astype("<f4").tobytes()).decode()
            plain["mean_image"] = {"shape": list(self.mean_image.shape), "float32_base64": data}
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing that `to_dict` wrote."""
        image = plain.get("mean_image")
        if image is not None:
            image = np.frombuffer(base64.b64decode(image["float32_base64"]), "<f4").reshape(image["shape"])
        return cls(tuple(plain["mean"]), tuple(plain["std"]), plain["order"], image)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Preprocessing) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.mean, self.std, self.order))


def _channel_values(field: str, given: Any) -> tuple[float, ...]:
    """Return one finite number a channel as Python's."""
    try:
        values = tuple(float(value) for value in given)
    except (TypeError, ValueError):
        raise UserError(f"preprocessing {field} is {given!r}; give one number for each of 3 channels.") from None
    if len(values) != 3:
        raise UserError(f"preprocessing {field} has {len(values)} values; give one for each of 3 channels.")
    if not np.isfinite(values).all():
        allowed = "positive and finite" if field == "std" else "finite"
        raise UserError(f"preprocessing {field} is {values}; every value must be {allowed}.")
    return values


# The channel means of ImageNet's training images that VGG and ResNet subtract, RGB.
IMAGENET = Preprocessing(mean=(123.68, 116.779, 103.939))
# As the Caffe networks of the Berkeley Vision and Learning Center take them.
BGR_MEANS = Preprocessing(mean=(104.0, 117.0, 123.0), order="BGR")
# As keras.applications' "caffe" mode, of VGG and ResNet.
CAFFE_MEANS = Preprocessing(mean=(103.939, 116.779, 123.68), order="BGR")
# Scaled to 0-1, minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225): as MXNet Gluon and torchvision.
UNIT_SCALED = Preprocessing(
    mean=tuple(255 * value for value in (0.485, 0.456, 0.406)),
    std=tuple(255 * value for value in (0.229, 0.224, 0.225)),
)
# The channel means of CIFAR-10's 50,000 training images, RGB.
CIFAR10 = Preprocessing(mean=(125.30691805, 122.95039414, 113.86538318))


def preprocess_input(x: Any, data_format: str | None = None) -> Any:
    """Return `x` unchanged: normalisation is each network's own first layer.

    It exists for code written against keras.applications, whose functions of this name differ by network.

    Args:
        x: images, RGB in 0-255.
        data_format: ignored.
    """
    return x
