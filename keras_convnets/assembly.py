"""What every builder does before and after its own table: the input, the head, and the weights."""

from __future__ import annotations

import operator
from typing import Any

import keras
from keras import layers

from keras_convnets.errors import UserError
from keras_convnets.layers import ImageNormalization
from keras_convnets.preprocessing import Preprocessing


def image_input(
    input_tensor: Any,
    input_shape: tuple[int | None, ...] | None,
    default_shape: tuple[int, int, int],
    minimum: int,
    preprocessing: Preprocessing | None,
) -> tuple[Any, Any]:
    """Return the model's input tensor, and the normalised tensor that the network starts from.

    Args:
        input_tensor: a Keras tensor to build on, or None.
        input_shape: (height, width, channels), sides may be None; None takes the default.
        default_shape: the input size of the paper.
        minimum: the smallest side the network accepts.
        preprocessing: what the first layer does; None builds the bare network.

    Raises:
        UserError: if the shape is not three numbers, too small, or not RGB where RGB is normalised.
    """
    if keras.config.image_data_format() != "channels_last":
        raise UserError(
            "keras.config.image_data_format() is 'channels_first'; these networks are NHWC only: "
            "call keras.config.set_image_data_format('channels_last') first."
        )
    if input_tensor is not None:
        images = input_tensor if keras.backend.is_keras_tensor(input_tensor) else keras.Input(tensor=input_tensor)
        shape = tuple(images.shape[1:])
    else:
        shape = _as_shape(input_shape) if input_shape is not None else default_shape
        images = None
    _check_shape(shape, minimum, preprocessing)
    if images is None:
        images = keras.Input(shape, name="images")
    if preprocessing is None:
        return images, images
    return images, ImageNormalization(preprocessing, name="preprocessing")(images)


def source_input(inputs: Any) -> Any:
    """Return the input tensor that a tensor goes back to; a list only where there are several."""
    sources = keras.utils.get_source_inputs(inputs)
    return sources[0] if len(sources) == 1 else sources


def _as_shape(input_shape: Any) -> tuple[int | None, ...]:
    """Return a shape with its sides as Python integers, whatever kind of integers came."""
    try:
        return tuple(None if side is None else operator.index(side) for side in input_shape)
    except TypeError:
        raise UserError(
            f"input_shape is {input_shape!r}; it must be (height, width, channels), such as (32, 32, 3)."
        ) from None


def _check_shape(shape: tuple[int | None, ...], minimum: int, preprocessing: Preprocessing | None) -> None:
    if len(shape) != 3 or not shape[2] or shape[2] < 1:
        raise UserError(f"input_shape is {shape}; it must be (height, width, channels), such as (32, 32, 3).")
    if any(side is not None and side < minimum for side in shape[:2]):
        raise UserError(
            f"input_shape is {shape}; this network needs at least {minimum}x{minimum} pixels: use larger images."
        )
    if preprocessing is not None and shape[2] != 3:
        raise UserError(
            f"input_shape is {shape}; images are RGB, 3 channels. For {shape[2]} channels "
            "build with include_preprocessing=False and normalise them yourself."
        )


def classifier(
    x: Any,
    *,
    include_top: bool,
    pooling: str | None,
    classes: int,
    activation: Any,
    initializer: Any,
) -> Any:
    """Add global average pooling, the linear layer and the softmax; or, without top, what `pooling` says.

    The linear layer and the softmax are layers of their own, in float32 under every policy: `predictions` gives the
    logits (training works on them), `probabilities` the softmax.
    """
    if not include_top:
        if pooling not in (None, "avg", "max"):
            raise UserError(f"pooling is {pooling!r}; it must be None, 'avg' or 'max'.")
        pools = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}
        return pools[pooling](name=f"{pooling}_pool")(x) if pooling else x
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise UserError(f"classes is {classes!r}; it must be a whole number of at least 1.")
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dense(classes, kernel_initializer=initializer, dtype="float32", name="predictions")(x)
    if activation in (None, "linear"):
        return x
    return layers.Activation(activation, dtype="float32", name="probabilities")(x)
