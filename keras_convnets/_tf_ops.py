"""The TensorFlow ops that layers and rooms share: this module alone of the package may import TensorFlow.

Grouped convolution, response and batch normalisation as single ops: the first two train on every device and convert to
single ONNX operators, the third trains faster. Decoding and the plain view are the same ops in training, in evaluation
and inside an exported SavedModel, so that a picture gives the same numbers everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from keras_convnets.card import DECODED_AT_ONCE, check_view
from keras_convnets.images import READ

# More than cameras take, but for a few of medium format. Decoded they fill 300 MB, and a server decodes several at a
# time; a file of some kilobytes can claim thousands of times as many.
MAX_PIXELS = 100_000_000
# To find the end of a GIF's first frame, so many extensions before it, and so many times so many bytes in blocks that
# are not full, are passed over.
MAX_GIF_LEAPS = 32
GIF_BYTES_AT_ONCE = 2**15
BROKEN_GIF = "the GIF's first frame is not whole, or what lies before and in it is cut into too many short blocks."
UNKNOWN = f"Unknown image file format; {READ} are read."
ANIMATED_WEBP = "animated WebP images are not read; take a still one, such as the first frame"
# What `ScaleAndTranslate` calls the kernels that it has, and how far they reach.
SCALE_AND_TRANSLATE = {"bilinear": "triangle", "bicubic": "keyscubic"}
RADIUS = {"bilinear": 1.0, "bicubic": 2.0}
# A centre that begins at most so many shorter sides from the first pixel is resampled with all that lies before it.
NEAR = 8
# How often a call that reports to have been cancelled is made.
CALLS = 5
# Single precision tells this many pixels apart by a sixteenth.
SINGLE_PRECISION_PIXELS = 2.0**20


def grouped_convolution(x: tf.Tensor, kernel: tf.Tensor, strides: Sequence[int], padding: str) -> tf.Tensor:
    """Convolve with as many groups as the kernel's depth says: [b, H, W, C] with [k, k, C / groups, filters].

    Keras wraps grouped convolutions in a compiled function of its own, which has no ONNX conversion. On a processor
    for which TensorFlow does without oneDNN it computes their outputs but not their gradients, so these are computed
    group by group.
    """
    settings = {"strides": [1, *strides, 1], "padding": padding.upper()}

    @tf.custom_gradient
    def convolved(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        y = tf.nn.conv2d(x, kernel, **settings)
        # Without oneDNN a graph's convolution, bias and ReLU would become one operation that knows no groups. This
        # operation, which costs nothing, keeps them apart.
        y = tf.ensure_shape(y, y.shape)
        return y, lambda of_y: _gradients_by_group(x, kernel, of_y, settings)

    return convolved(tf.convert_to_tensor(x), tf.convert_to_tensor(kernel))


def _gradients_by_group(x: tf.Tensor, kernel: tf.Tensor, of_y: tf.Tensor, settings: Mapping) -> tuple:
    groups = x.shape[-1] // kernel.shape[2]
    of_inputs, of_kernels = [], []
    for maps, filters, given in zip(*(tf.split(tensor, groups, -1) for tensor in (x, kernel, of_y)), strict=True):
        of_inputs.append(
            tf.raw_ops.Conv2DBackpropInput(input_sizes=tf.shape(maps), filter=filters, out_backprop=given, **settings)
        )
        of_kernels.append(
            tf.raw_ops.Conv2DBackpropFilter(input=maps, filter_sizes=tf.shape(filters), out_backprop=given, **settings)
        )
    return tf.concat(of_inputs, -1), tf.concat(of_kernels, -1)


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
    """Decode one JPEG, PNG, GIF (its first frame), BMP or WebP (no animation) to RGB.

    What comes out is what Pillow's `convert("RGB")` gives of the same file, with the exceptions below. Greyscale
    becomes three equal channels, a palette its colours; an alpha channel is dropped, as is EXIF orientation, which
    clients that want it apply before they send.

    JPEG: baseline and progressive, with the accurate integer DCT, as libjpeg and Pillow do it. CMYK and YCCK as Adobe
    writes them, inverted, become (C K, M K, Y K) / 255, without a colour profile. Without the Adobe marker they are
    taken as not inverted, as the standard has it; Pillow takes those as inverted too.
    PNG: of 16 bits the upper 8 remain; Pillow cuts 16-bit greyscale at 255 instead.
    BMP: 8 bits with a palette, 24 and 32 bits, not compressed.
    WebP: TensorFlow decodes it from 2.20 on. An exported graph names no operation that earlier ones lack, so that an
    older TensorFlow Serving loads it too, and answers WebP with an error.

    Args:
        data: the encoded image, a string scalar.

    Returns:
        uint8 [H, W, 3].

    Raises:
        tf.errors.InvalidArgumentError: if it is none of these, is damaged, or has more than `MAX_PIXELS` pixels; the
            last is told from the header, before anything is decoded. Also if the end of a GIF's first frame is not
            found in `MAX_GIF_LEAPS`.
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
                (_is_webp(data), lambda: _decode_webp(data)),
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


def _is_webp(data: tf.Tensor) -> tf.Tensor:
    # Without one of these, libwebp would take what follows for data without a header, whose size stands elsewhere.
    kind = tf.strings.substr(_padded(data, 16), 8, 8)
    return _starts(data, b"RIFF") & tf.reduce_any(kind == tf.constant([b"WEBPVP8 ", b"WEBPVP8L", b"WEBPVP8X"]))


def _decode_webp(data: tf.Tensor) -> tf.Tensor:
    kind = tf.strings.substr(data, 15, 1)
    octets = tf.stack(_numbers(data, 20, 10, tf.uint8))

    def number(low: int, middle: int, high: int) -> tf.Tensor:
        return octets[low] + 256 * octets[middle] + 65536 * octets[high]

    # Of a file with extensions, libwebp refuses an image of another size than that of the canvas.
    extended = [1 + number(4, 5, 6), 1 + number(7, 8, 9)]
    lossless = [1 + number(1, 2, 3) % 2**14, 1 + (octets[2] // 64 + 4 * octets[3] + 1024 * octets[4]) % 2**14]
    lossy = [(octets[6] + 256 * octets[7]) % 2**14, (octets[8] + 256 * octets[9]) % 2**14]
    width, height = tf.unstack(tf.where(kind == b"X", extended, tf.where(kind == b"L", lossless, lossy)))
    # TensorFlow 2.21 writes an animation's four channels into room for three, which damages the process' memory.
    still = (kind != b"X") | (tf.bitwise.bitwise_and(octets[0], 2) == 0)
    data = _required(still, ANIMATED_WEBP, _within_limit(data, width, height))
    # The decoder gives the channels that the file has, and refuses to drop alpha.
    return tf.io.decode_image(data, expand_animations=False)[..., :3]


def _padded(data: tf.Tensor, size: int) -> tf.Tensor:
    """Return the beginning of a file; beyond its end stand zeros."""
    return tf.strings.substr(tf.strings.join([tf.strings.substr(data, 0, size), bytes(size)]), 0, size)


def _numbers(data: tf.Tensor, at: int, count: int, dtype: tf.DType, little_endian: bool = True) -> list[tf.Tensor]:
    """Return int32 numbers that stand in a file from a position on; beyond its end stand zeros."""
    size = count * dtype.size
    header = tf.strings.substr(_padded(data, at + size), at, size)
    numbers = tf.io.decode_raw(header, dtype, little_endian=little_endian)
    return tf.unstack(tf.cast(numbers, tf.int32), count)


def _first_gif_frame(data: tf.Tensor) -> tf.Tensor:
    """Return a GIF file without what follows its first frame."""
    octets = tf.io.decode_raw(data, tf.uint8)

    def number(at: tf.Tensor | int) -> tf.Tensor:
        return tf.cast(octets[tf.minimum(at, tf.size(octets) - 1)], tf.int32)

    def after_palette(flags_at: tf.Tensor | int, at: tf.Tensor | int) -> tf.Tensor:
        flags = number(flags_at)
        return at + tf.where(flags >= 128, tf.bitwise.left_shift(6, flags % 8), 0)

    frame, leaps = tf.while_loop(
        lambda at, leaps: (number(at) == ord("!")) & (at < tf.size(octets)) & (leaps <= MAX_GIF_LEAPS),
        lambda at, leaps: _after_gif_blocks(octets, at + 2, leaps),
        [after_palette(10, 13), 0],
    )
    width, height = (number(frame + at) + 256 * number(frame + at + 1) for at in (5, 7))
    end, _ = _after_gif_blocks(octets, after_palette(frame + 9, frame + 10) + 1, leaps)
    is_whole = (number(frame) == ord(",")) & (end <= tf.size(octets))
    data = _required(is_whole, BROKEN_GIF, _within_limit(data, width, height))
    return tf.strings.join([tf.strings.substr(data, 0, end), b";"])


def _after_gif_blocks(octets: tf.Tensor, at: tf.Tensor, leaps: tf.Tensor) -> list[tf.Tensor]:
    """Follow a chain of blocks, each of which begins with its length; a length of 0 ends it.

    Steps from block to block would take seconds a megabyte. Blocks of 255, which is how encoders write them, are passed
    over together. Of others, every place of some kilobytes is taken for a block's beginning, and it is found where each
    leads after one step, two, four, eight.

    Returns:
        The position after the chain, and the leaps so far, of `MAX_GIF_LEAPS`; a position beyond the octets if the
        chain does not end within them, or too many leaps were made.
    """

    def goes_on(at: tf.Tensor) -> tf.Tensor:
        return (at < tf.size(octets)) & (octets[tf.minimum(at, tf.size(octets) - 1)] > 0)

    def leap(at: tf.Tensor, leaps: tf.Tensor) -> list[tf.Tensor]:
        is_full = tf.concat([octets[at::256] == 255, [False]], 0)
        at += 256 * tf.argmin(tf.cast(is_full, tf.uint8), output_type=tf.int32)
        part = octets[at : at + GIF_BYTES_AT_ONCE]
        # No block leads further than 256 beyond the part, where each place leads to itself, as an end does.
        lengths = tf.pad(tf.cast(part, tf.int32), [[0, 256]])
        to = tf.range(tf.size(lengths)) + tf.where(lengths > 0, lengths + 1, 0)
        (to,) = tf.while_loop(lambda to: lengths[to[0]] > 0, lambda to: [tf.gather(to, to)], [to])
        return [at + to[0], leaps + 1]

    at, leaps = tf.while_loop(
        lambda at, leaps: goes_on(at) & (leaps < MAX_GIF_LEAPS), leap, [at, tf.convert_to_tensor(leaps)]
    )
    return [tf.where(goes_on(at), tf.size(octets), at) + 1, leaps + 1]


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


def apply_view(image: tf.Tensor, view: Mapping[str, Any]) -> tf.Tensor:
    """Bring an image to a network's input as the view of its model card says.

    Args:
        image: uint8 [H, W, 3].
        view: as `keras_convnets.card.center_view` returns it; "kernel" is bilinear and "antialias" true where the view
            does not say.

    Returns:
        uint8 [crop height, crop width, 3].

    Raises:
        UserError: if the view is none that can be applied.
    """
    check_view(view)
    return center_view(image, view["resize"], view["crop"], view.get("kernel", "bilinear"), view.get("antialias", True))


def center_view(
    image: tf.Tensor, resize: int, crop: Sequence[int], kernel: str = "bilinear", antialias: bool = True
) -> tf.Tensor:
    """Resize the shorter side, keeping the aspect ratio, and crop the centre.

    Only the pixels that enter the crop are resampled, so that a narrow image of any length costs no more than a square.
    Where one side is up to about seventeen times the other, every number is that of `tf.image.resize` on the whole
    image. Further out the centre lies so far from the first pixel that positions are counted from nearer by: some
    pixels differ by one level from what single precision counts from the first. An image that has the size already is
    left as it is.

    Args:
        image: uint8 [H, W, 3].
        resize: the shorter side after resizing, in pixels; more where the crop would not fit.
        crop: (height, width) of the centre that is kept.
        kernel: one of `keras_convnets.card.KERNELS`.
        antialias: whether bilinear and bicubic are widened where the image shrinks.

    Returns:
        uint8 [crop height, crop width, 3].
    """
    height_width = tf.shape(image)[:2]

    def read(window: tf.Tensor) -> tf.Tensor:
        return tf.slice(image, tf.pad(window[:2], [[0, 1]]), tf.pad(window[2:], [[0, 1]], constant_values=3))

    def resized_and_cropped():
        scaled = scaled_size(height_width, resize)
        if max(crop) > resize:
            # Of an input that is not square; both sides of the image must cover it.
            sides = tf.cast(height_width, tf.float64)
            larger = tf.cast(tf.round(sides * tf.reduce_max(tf.cast(crop, tf.float64) / sides)), tf.int64)
            scaled = tf.where(tf.reduce_all(scaled >= crop), scaled, tf.maximum(larger, crop))
        corner = (scaled - crop) // 2
        return crop_of_resized(height_width, read, scaled, corner, crop, kernel, antialias, from_first=NEAR * resize)

    as_it_is = tf.reduce_all(height_width == crop) & (min(crop) == resize)
    return tf.ensure_shape(tf.cond(as_it_is, lambda: image, resized_and_cropped), [*crop, 3])


def scaled_size(height_width: tf.Tensor, shorter: tf.Tensor | float) -> tf.Tensor:
    """Return height and width after the shorter side was brought to a length, int64 [2]; the ratio stays.

    Args:
        height_width: int32 [2], of the image.
        shorter: the length of the shorter side, a whole number.
    """
    # In single precision, whose rounding of halves published networks were evaluated with, as far as that can tell
    # pixels apart.
    whole = tf.cast(height_width, tf.float32)
    shorter = tf.cast(shorter, tf.float32)
    single = tf.cast(tf.round(whole * (shorter / tf.reduce_min(whole))), tf.float64)
    exact = tf.cast(height_width, tf.float64)
    exact = tf.round(exact * tf.cast(shorter, tf.float64) / tf.reduce_min(exact))
    scaled = tf.maximum(tf.where(exact < SINGLE_PRECISION_PIXELS, single, exact), tf.cast(shorter, tf.float64))
    return tf.cast(scaled, tf.int64)


def crop_of_resized(
    height_width: tf.Tensor,
    read: Callable[[tf.Tensor], tf.Tensor],
    scaled: tf.Tensor,
    corner: tf.Tensor,
    crop: Sequence[int],
    kernel: str = "bilinear",
    antialias: bool = True,
    from_first: int = 0,
) -> tf.Tensor:
    """Return a rectangle of a resized image; only the pixels that enter it are read and resampled.

    A pixel of the result is a weighted mean of the source's pixels within the kernel's reach. The window that is read
    holds all within reach of the rectangle, so that the weights are those of the whole image resized.

    Args:
        height_width: int32 [2], of the image.
        read: from a window of the image, int32 [4] (top, left, height, width), to its pixels, uint8 [h, w, 3].
        scaled: height and width after resizing, int64 [2].
        corner: top and left of the rectangle in the resized image, int64 [2].
        crop: height and width of the rectangle.
        kernel: one of `keras_convnets.card.KERNELS`.
        antialias: whether bilinear and bicubic are widened where the image shrinks.
        from_first: a rectangle that begins at most so many pixels from the first is resampled with all that lies
            before it, which makes its numbers those of the whole image resized; where a pixel lies is rounded otherwise
            else, and some differ by one level.

    Returns:
        uint8 [*crop, 3].
    """
    side, corner = tf.cast(height_width, tf.float64), tf.cast(corner, tf.float64)
    scale = tf.cast(scaled, tf.float64) / side
    reach = tf.maximum(1.0 / scale, 1.0) * RADIUS.get(kernel, 1.0) + 1.0
    begin = tf.maximum(tf.floor(corner / scale - reach), 0.0)
    end = tf.minimum(tf.math.ceil((corner + crop) / scale + reach), side)
    before = tf.where(corner <= from_first, corner, tf.zeros_like(corner))
    begin = tf.where(before > 0.0, tf.zeros_like(begin), begin)
    window = tf.cast(tf.concat([begin, end - begin], 0), tf.int32)
    # In double precision: of a line of a million pixels, the difference is a millionth of what is subtracted.
    translation = begin * scale - (corner - before)
    size = tf.cast(before, tf.int32) + crop

    image = read(window)
    width = tf.shape(image)[1]
    rows = resample_rows(image, size[0], scale[0], translation[0], kernel, antialias)[-crop[0] :]
    # With columns as rows, of three channels of `crop[0]` numbers: transposing matrices is what TensorFlow does fast.
    turned = tf.reshape(tf.transpose(tf.reshape(rows, [crop[0], width * 3])), [width, 3, crop[0]])
    pixels = resample_rows(turned, size[1], scale[1], translation[1], kernel, antialias)[-crop[1] :]
    pixels = tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)
    return tf.reshape(tf.transpose(tf.reshape(pixels, [crop[1] * 3, crop[0]])), [*crop, 3])


def resample_rows(
    image: tf.Tensor,
    size: tf.Tensor | int,
    scale: tf.Tensor,
    translation: tf.Tensor | float,
    kernel: str,
    antialias: bool = True,
) -> tf.Tensor:
    """Resample [h, a, b] to float32 [size, a, b]; row r comes to row r * scale + translation.

    Bilinear and bicubic give the same sums as `tf.image.resize` in a third of its time: its op walks over rows with
    the processor's vectors but over columns pixel by pixel. A row as one pixel of many channels gives it only the
    former to do.
    """
    shape = tf.shape(image)
    flat = tf.reshape(image, [shape[0], shape[1] * shape[2]])
    if kernel in SCALE_AND_TRANSLATE:
        resampled = tf.raw_ops.ScaleAndTranslate(
            images=flat[None, :, None],
            size=tf.stack([size, 1]),
            scale=tf.stack([tf.cast(scale, tf.float32), 1.0]),
            translation=tf.stack([tf.cast(translation, tf.float32), 0.0]),
            kernel_type=SCALE_AND_TRANSLATE[kernel],
            antialias=antialias,
        )
    else:
        resampled = _rows_of_kernel(flat, size, tf.cast(scale, tf.float64), tf.cast(translation, tf.float64), kernel)
    return tf.reshape(resampled, [size, shape[1], shape[2]])


def _rows_of_kernel(
    rows: tf.Tensor, size: tf.Tensor | int, scale: tf.Tensor, translation: tf.Tensor, kernel: str
) -> tf.Tensor:
    """Resample [h, n] to float32 [size, n] by a kernel that the op lacks, as `tf.image.resize` defines it."""
    height = tf.shape(rows)[0]
    places = tf.cast(tf.range(size), tf.float64) - translation
    if kernel == "nearest":
        nearest = tf.cast(tf.floor((places + 0.5) / scale), tf.int32)
        return tf.cast(tf.gather(rows, tf.clip_by_value(nearest, 0, height - 1)), tf.float32)
    # Area: what share of each row of the source lies in a row of the result.
    source = tf.cast(tf.range(height), tf.float64)
    low, high = places[:, None] / scale, (places[:, None] + 1.0) / scale
    overlap = tf.maximum(tf.minimum(high, source + 1.0) - tf.maximum(low, source), 0.0)
    weights = overlap / tf.reduce_sum(overlap, axis=1, keepdims=True)
    return tf.matmul(tf.cast(weights, tf.float32), tf.cast(rows, tf.float32))


def encoded_views(view: Mapping[str, Any]) -> tf.types.experimental.PolymorphicFunction:
    """Return the function from encoded images, string [batch], to a network's input, uint8 [batch, H, W, 3].

    Args:
        view: as `keras_convnets.card.center_view` returns it.

    Raises:
        UserError: if the view is none that can be applied.
    """

    def viewed(data: tf.Tensor) -> tf.Tensor:
        return apply_view(decode_image(data), view)

    def views(image_bytes: tf.Tensor) -> tf.Tensor:
        pixels = tf.TensorSpec([*view["crop"], 3], tf.uint8)
        return tf.map_fn(viewed, image_bytes, fn_output_signature=pixels, parallel_iterations=DECODED_AT_ONCE)

    check_view(view)
    return tf.function(views, input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")], autograph=False)


def unless_cancelled(call: Callable[[], Any]) -> Any:
    """Return what a call of a graph gives; nobody else may cancel it.

    Where one of several images that are decoded at a time is not readable, TensorFlow cancels the others, and now and
    then reports that instead of the reason. The call is then made again.
    """
    for _ in range(CALLS - 1):
        try:
            return call()
        except tf.errors.CancelledError:
            continue
    return call()


def plain_reason(error: tf.errors.OpError) -> str:
    """Return the sentence of an error that decoding raised, without what TensorFlow puts around it."""
    # Of a graph: where it was defined, then the sentence, then "[[{{node ...}}]]", and where that was called.
    lines = [line.strip() for line in error.message.split("[[{{")[0].split("[Op:")[0].splitlines()]
    sentence = next((line for line in reversed(lines) if line), type(error).__name__)
    return sentence.rpartition("}} ")[2].removeprefix(_REFUSAL_PREFIX).strip()
