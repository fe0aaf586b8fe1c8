"""Encoded images to pixels: TensorFlow operations, the same in training, evaluation and an exported SavedModel."""

from __future__ import annotations

import functools

import tensorflow as tf

from keras_convnets.images.files import READ

# More than cameras take, but for a few of medium format. Decoded they fill 300 MB, and a server decodes several at a
# time; a file of some kilobytes can claim thousands of times as many.
MAX_PIXELS = 100_000_000
# Bounds of the search for the end of a GIF's first frame: the number of extensions before it, and of steps of this many
# bytes over blocks that are not full.
MAX_GIF_LEAPS = 32
GIF_BYTES_AT_ONCE = 2**15
BROKEN_GIF = "the GIF's first frame is not whole, or what lies before and in it is cut into too many short blocks."
UNKNOWN = f"Unknown image file format; {READ} are read."
ANIMATED_WEBP = "animated WebP images are not read; take a still one, such as the first frame"
# What `tf.strings.to_number` puts before the message that `_required` makes it fail with.
REFUSAL_PREFIX = "StringToNumberOp could not correctly convert string: "


@tf.autograph.experimental.do_not_convert
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
            last is read from the header, before anything is decoded. Also if the end of a GIF's first frame is not
            found in `MAX_GIF_LEAPS`.
    """
    image = tf.cond(
        tf.io.is_jpeg(data),
        lambda: _decode_jpeg(data),
        lambda: tf.cond(_starts(data, b"\x89PNG\r\n\x1a\n"), lambda: _decode_png(data), lambda: _decode_rarer(data)),
    )
    return tf.ensure_shape(image, [None, None, 3])


def _decode_rarer(data: tf.Tensor) -> tf.Tensor:
    return _decode_by_header(data) if tf.executing_eagerly() else _rarer_function()(data)


def _decode_by_header(data: tf.Tensor) -> tf.Tensor:
    return tf.case(
        [
            (_starts(data, b"GIF8"), lambda: _decode_gif(data)),
            (_starts(data, b"BM"), lambda: _decode_bmp(data)),
            (_is_webp(data), lambda: _decode_webp(data)),
        ],
        default=lambda: tf.io.decode_png(_required(False, UNKNOWN, data), channels=3),
    )


@functools.cache
def _rarer_function() -> tf.types.experimental.PolymorphicFunction:
    """Return the decoder of the rarer formats as a function, traced once in a process: that takes half a second.

    It is not inlined, and so set up when it is first needed: inside the graph of the usual images it doubled what a
    small one costs.
    """
    signature = [tf.TensorSpec([], tf.string)]
    attributes = {"_noinline": True}
    return tf.function(
        _decode_by_header, input_signature=signature, autograph=False, experimental_attributes=attributes
    )


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
    # TensorFlow 2.21 writes an animation's four channels into a buffer for three, which corrupts the process' memory.
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


def _required(condition: tf.Tensor, message: tf.Tensor | str, data: tf.Tensor) -> tf.Tensor:
    """Return the data if the condition holds, else raise InvalidArgumentError with the message."""
    # A sentence is no number: that fails as tf.debugging.Assert does, but without a side effect. An operation with one
    # in the body of a loop makes its rounds wait for each other, and a batch would be decoded on one core.
    zero = tf.strings.to_number(tf.where(condition, "0", message), tf.int32)
    return tf.strings.substr(data, zero, tf.strings.length(data))
