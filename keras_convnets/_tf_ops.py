"""The TensorFlow ops that layers and rooms share: this module alone of the package may import TensorFlow.

Grouped convolution and response normalisation as the single ops that train on every device and convert to single ONNX
operators. Decoding and the plain view are the same ops in training, in evaluation and inside an exported SavedModel, so
that a picture gives the same numbers everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def grouped_convolution(x: tf.Tensor, kernel: tf.Tensor, strides: Sequence[int], padding: str) -> tf.Tensor:
    """Convolve with as many groups as the kernel's depth says: [b, H, W, C] with [k, k, C / groups, filters].

    Keras wraps grouped convolutions in a compiled function of its own, which has no ONNX conversion.
    """
    return tf.nn.conv2d(x, kernel, strides=list(strides), padding=padding.upper())


def response_normalization(x: tf.Tensor, n: int, k: float, alpha: float, beta: float) -> tf.Tensor:
    """Divide by (k + alpha * sum of squares over n neighbouring maps) ** beta, in float32."""
    y = tf.nn.local_response_normalization(tf.cast(x, tf.float32), depth_radius=n // 2, bias=k, alpha=alpha, beta=beta)
    return tf.cast(y, x.dtype)


def decode_image(data: tf.Tensor) -> tf.Tensor:
    """Decode one JPEG, PNG, BMP or GIF (its first frame) to RGB.

    JPEG with the accurate integer DCT, as libjpeg and Pillow do it. Greyscale becomes three equal channels, an alpha
    channel is dropped, EXIF orientation is ignored.

    Args:
        data: the encoded image, a string scalar.

    Returns:
        uint8 [H, W, 3].
    """
    image = tf.cond(
        tf.io.is_jpeg(data),
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
    )
    return tf.ensure_shape(image, [None, None, 3])


def center_view(image: tf.Tensor, resize: int, crop: Sequence[int]) -> tf.Tensor:
    """Resize the shorter side, keeping the aspect ratio, and crop the centre.

    Bilinear with antialiasing. An image that has the size already is left as it is.

    Args:
        image: uint8 [H, W, 3].
        resize: the shorter side after resizing, in pixels.
        crop: (height, width) of the centre that is kept, neither larger than `resize`.

    Returns:
        uint8 [crop height, crop width, 3].
    """
    height_width = tf.shape(image)[:2]

    def resized_and_cropped():
        shorter = tf.cast(tf.reduce_min(height_width), tf.float32)
        scaled = tf.round(tf.cast(height_width, tf.float32) * (resize / shorter))
        size = tf.maximum(tf.cast(scaled, tf.int32), resize)
        resized = tf.image.resize(image, size, method="bilinear", antialias=True)
        top, left = (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2
        cropped = tf.round(resized[top : top + crop[0], left : left + crop[1]])
        return tf.cast(tf.clip_by_value(cropped, 0, 255), tf.uint8)

    as_it_is = tf.reduce_all(height_width == crop) & (min(crop) == resize)
    return tf.ensure_shape(tf.cond(as_it_is, lambda: image, resized_and_cropped), [*crop, 3])
