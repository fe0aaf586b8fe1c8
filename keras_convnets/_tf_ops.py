"""The TensorFlow ops that layers and rooms share: this module alone of the package may import TensorFlow.

Grouped convolution, response and batch normalisation as single ops: the first two train on every device and convert to
single ONNX operators, the third trains faster. Decoding and the plain view are the same ops in training, in evaluation
and inside an exported SavedModel, so that a picture gives the same numbers everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

# More than cameras take, but for a few of medium format. Decoded they fill 300 MB, and a server decodes several at a
# time; a file of some kilobytes can claim thousands of times as many.
MAX_PIXELS = 100_000_000
UNKNOWN = "Unknown image file format; JPEG, PNG, GIF and BMP are read."


def grouped_convolution(x: tf.Tensor, kernel: tf.Tensor, strides: Sequence[int], padding: str) -> tf.Tensor:
    """Convolve with as many groups as the kernel's depth says: [b, H, W, C] with [k, k, C / groups, filters].

    Keras wraps grouped convolutions in a compiled function of its own, which has no ONNX conversion.
    """
    return tf.nn.conv2d(x, kernel, strides=list(strides), padding=padding.upper())


def response_normalization(x: tf.Tensor, n: int, k: float, alpha: float, beta: float) -> tf.Tensor:
    """Divide by (k + alpha * sum of squares over n neighbouring maps) ** beta, in float32."""
    y = tf.nn.local_response_normalization(tf.cast(x, tf.float32), depth_radius=n // 2, bias=k, alpha=alpha, beta=beta)
    return tf.cast(y, x.dtype)


def fused_batch_normalization(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalise a batch of maps [b, H, W, C] by its own statistics, which are computed in float32.

    Returns:
        The maps in x's dtype, and the mean and the variance [C] of each channel over its n numbers, float32; the
        variance is the mean of the squared differences from the mean.
    """
    gamma, beta = tf.cast(gamma, tf.float32), tf.cast(beta, tf.float32)
    none = tf.constant([], tf.float32)
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=none, variance=none, epsilon=epsilon, is_training=True
    )
    numbers = tf.cast(tf.size(x) // tf.shape(x)[-1], tf.float32)
    # The operation divides by n - 1, except where n is 1.
    return y, mean, variance * (tf.maximum(numbers - 1, 1) / numbers)


def decode_image(data: tf.Tensor) -> tf.Tensor:
    """Decode one JPEG, PNG, GIF (its first frame) or BMP to RGB.

    What comes out is what Pillow's `convert("RGB")` gives of the same file, with the exceptions below. Greyscale
    becomes three equal channels, a palette its colours; an alpha channel is dropped, as is EXIF orientation, which
    clients that want it apply before they send.

    JPEG: baseline and progressive, with the accurate integer DCT, as libjpeg and Pillow do it. CMYK and YCCK as Adobe
    writes them, inverted, become (C K, M K, Y K) / 255, without a colour profile. Without the Adobe marker they are
    taken as not inverted, as the standard has it; Pillow takes those as inverted too.
    PNG: of 16 bits the upper 8 remain; Pillow cuts 16-bit greyscale at 255 instead.
    BMP: 8 bits with a palette, 24 and 32 bits, not compressed.

    Args:
        data: the encoded image, a string scalar.

    Returns:
        uint8 [H, W, 3].

    Raises:
        tf.errors.InvalidArgumentError: if it is none of these, is damaged, or has more than `MAX_PIXELS` pixels; the
            last is told from the header, before anything is decoded.
    """
    image = tf.cond(
        tf.io.is_jpeg(data),
        lambda: _decode_jpeg(data),
        lambda: tf.cond(_starts(data, b"\x89PNG\r\n\x1a\n"), lambda: _decode_png(data), lambda: _decode_rarer(data)),
    )
    return tf.ensure_shape(image, [None, None, 3])


def _decode_rarer(data: tf.Tensor) -> tf.Tensor:
    def decode(data: tf.Tensor) -> tf.Tensor:
        return tf.case(
            [
                (_starts(data, b"GIF8"), lambda: _decode_gif(data)),
                (_starts(data, b"BM"), lambda: _decode_bmp(data)),
            ],
            default=lambda: tf.io.decode_png(_required(False, UNKNOWN, data), channels=3),
        )

    if tf.executing_eagerly():
        return decode(data)
    # As a function that is not inlined, it is set up when it is first needed: inside the graph of the usual images it
    # doubled what a small one costs.
    signature = [tf.TensorSpec([], tf.string)]
    return tf.function(decode, input_signature=signature, experimental_attributes={"_noinline": True})(data)


def _starts(data: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.strings.substr(data, 0, len(magic)) == magic


def _decode_jpeg(data: tf.Tensor) -> tf.Tensor:
    height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(data))
    return tf.io.decode_jpeg(_within_limit(data, width, height), channels=3, dct_method="INTEGER_ACCURATE")


def _decode_png(data: tf.Tensor) -> tf.Tensor:
    width, height = _numbers(data, 16, 2, tf.int32, little_endian=False)
    return tf.io.decode_png(_within_limit(data, width, height), channels=3)


def _decode_gif(data: tf.Tensor) -> tf.Tensor:
    width, height = _numbers(data, 6, 2, tf.uint16)
    # The decoder unpacks every frame before it drops all but one, so it gets no more than one.
    first = _first_gif_frame(_within_limit(data, width, height))
    return tf.io.decode_image(first, channels=3, expand_animations=False)


def _decode_bmp(data: tf.Tensor) -> tf.Tensor:
    pixels_at, header_size, width, height = _numbers(data, 10, 4, tf.int32)
    bits, compression = _numbers(data, 28, 1, tf.uint16)[0], _numbers(data, 30, 1, tf.int32)[0]
    # Compression 3 names the bits of each colour: these are the places where they are without it.
    usual = tf.reduce_all(tf.stack(_numbers(data, 54, 3, tf.int32)) == [0xFF0000, 0xFF00, 0xFF])
    plain = (header_size >= 40) & ((compression == 0) | ((compression == 3) & usual))
    data = _required(plain, "only uncompressed BMP images of 8, 24 and 32 bits a pixel are read.", data)
    decoded = tf.io.decode_bmp(_within_limit(data, width, height))

    def coloured() -> tf.Tensor:
        # The decoder leaves the palette's indices as they are.
        start = 14 + header_size
        palette = tf.io.decode_raw(tf.strings.substr(data, start, (pixels_at - start) // 4 * 4), tf.uint8)
        return tf.gather(tf.reshape(palette, [-1, 4])[:, 2::-1], tf.cast(decoded[..., 0], tf.int32))

    return tf.cond(bits == 8, coloured, lambda: decoded[..., :3])


def _numbers(data: tf.Tensor, at: int, count: int, dtype: tf.DType, little_endian: bool = True) -> list[tf.Tensor]:
    """Return int32 numbers that stand in a file from a position on; beyond its end stand zeros."""
    size = count * dtype.size
    header = tf.strings.join([tf.strings.substr(data, 0, at + size), bytes(at + size)])
    numbers = tf.io.decode_raw(tf.strings.substr(header, at, size), dtype, little_endian=little_endian)
    return tf.unstack(tf.cast(numbers, tf.int32), count)


def _first_gif_frame(data: tf.Tensor) -> tf.Tensor:
    """Return a GIF file without what follows its first frame."""
    octets = tf.io.decode_raw(data, tf.uint8)

    def number(at: tf.Tensor | int) -> tf.Tensor:
        return tf.cast(octets[at], tf.int32)

    def after_palette(flags_at: tf.Tensor | int, at: tf.Tensor | int) -> tf.Tensor:
        flags = number(flags_at)
        return at + tf.where(flags >= 128, tf.bitwise.left_shift(6, flags % 8), 0)

    def after_blocks(at: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(lambda at: number(at) > 0, lambda at: [at + number(at) + 1], [at])[0] + 1

    (frame,) = tf.while_loop(
        lambda at: number(at) == ord("!"), lambda at: [after_blocks(at + 2)], [after_palette(10, 13)]
    )
    width, height = (number(frame + at) + 256 * number(frame + at + 1) for at in (5, 7))
    end = after_blocks(after_palette(frame + 9, frame + 10) + 1)
    return tf.strings.join([tf.strings.substr(_within_limit(data, width, height), 0, end), b";"])


def _within_limit(data: tf.Tensor, width: tf.Tensor, height: tf.Tensor) -> tf.Tensor:
    """Return the data, which then can't be decoded before its size is known to be allowed."""
    pixels = tf.abs(tf.cast(width, tf.int64) * tf.cast(height, tf.int64))
    size = [tf.strings.as_string(width), " x ", tf.strings.as_string(height)]
    message = tf.strings.join(["the image has ", *size, f" pixels; at most {MAX_PIXELS} are decoded."])
    return _required(pixels <= MAX_PIXELS, message, data)


# What `tf.strings.to_number` puts before the message that `_required` makes it fail with.
_REFUSAL_PREFIX = "StringToNumberOp could not correctly convert string: "


def _required(condition: tf.Tensor, message: tf.Tensor | str, data: tf.Tensor) -> tf.Tensor:
    """Return the data if the condition holds, else raise InvalidArgumentError with the message."""
    # A sentence is no number: that fails as tf.debugging.Assert does, but without a side effect. An operation with one
    # in the body of a loop makes its rounds wait for each other, and a batch would be decoded on one core.
    zero = tf.strings.to_number(tf.where(condition, "0", message), tf.int32)
    return tf.strings.substr(data, zero, tf.strings.length(data))


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


def plain_reason(error: tf.errors.OpError) -> str:
    """Return the sentence of an error that decoding raised, without what TensorFlow puts around it."""
    # Of a graph: where it was defined, then the sentence, then "[[{{node ...}}]]".
    lines = [line.strip() for line in error.message.split("[[{{node")[0].split("[Op:")[0].splitlines()]
    sentence = next((line for line in reversed(lines) if line), type(error).__name__)
    return sentence.rpartition("}} ")[2].removeprefix(_REFUSAL_PREFIX).strip()
