"""Resizing and cropping: TensorFlow operations, the same in training, evaluation and an exported SavedModel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_convnets.images.decoding import decode_image
from keras_convnets.images.view import DECODED_AT_ONCE, View

# What `ScaleAndTranslate` calls the kernels that it has, and how far they reach.
SCALE_AND_TRANSLATE = {"bilinear": "triangle", "bicubic": "keyscubic"}
RADIUS = {"bilinear": 1.0, "bicubic": 2.0}
# A centre that begins at most this many shorter sides from the first pixel is resampled with all pixels before it.
NEAR = 8
# Single precision resolves positions up to this many pixels to a sixteenth of a pixel.
SINGLE_PRECISION_PIXELS = 2.0**20
_ENCODED = [tf.TensorSpec([None], tf.string, name="image_bytes")]


@tf.autograph.experimental.do_not_convert
def apply_view(image: tf.Tensor, view: View) -> tf.Tensor:
    """Resize the shorter side, keeping the aspect ratio, and crop the centre.

    Only the pixels that enter the crop are resampled, so that a narrow image of any length costs no more than a square.
    Where one side is up to about seventeen times the other, every number is that of `tf.image.resize` on the whole
    image. Further out the centre lies so far from the first pixel that positions are counted from nearer by: some
    pixels differ by one level from what single precision counts from the first. An image that has the size already is
    left as it is. Where the crop is larger than the shorter side, the image is resized until it covers the crop.

    Args:
        image: uint8 [H, W, 3].
        view: what to resize to, to crop, and how to resample.

    Returns:
        uint8 [crop height, crop width, 3].
    """
    crop = list(view.crop)
    height_width = tf.shape(image)[:2]

    def read(window: tf.Tensor) -> tf.Tensor:
        return tf.slice(image, tf.pad(window[:2], [[0, 1]]), tf.pad(window[2:], [[0, 1]], constant_values=3))

    def resized_and_cropped() -> tf.Tensor:
        scaled, corner = _scaled_and_corner(height_width, view)
        near = NEAR * view.resize
        return crop_of_resized(height_width, read, scaled, corner, crop, view.kernel, view.antialias, near)

    as_it_is = tf.reduce_all(height_width == crop) & (min(crop) == view.resize)
    return tf.ensure_shape(tf.cond(as_it_is, lambda: image, resized_and_cropped), [*crop, 3])


def seen_region(height_width: tf.Tensor, view: View) -> tf.Tensor:
    """Return the part of an image that enters the network.

    Args:
        height_width: int32 [2], of the image.
        view: how it is resized and cropped.

    Returns:
        float32 [4]: top, left, bottom and right of the crop, in fractions of the image's height and width.
    """
    scaled, corner = _scaled_and_corner(height_width, view)
    ends = tf.concat([corner, corner + list(view.crop)], 0)
    return tf.cast(tf.cast(ends, tf.float64) / tf.cast(tf.tile(scaled, [2]), tf.float64), tf.float32)


def _scaled_and_corner(height_width: tf.Tensor, view: View) -> tuple[tf.Tensor, tf.Tensor]:
    """Return an image's size after resizing, and the top and left of the crop in it, both int64 [2]."""
    crop = list(view.crop)
    scaled = scaled_size(height_width, view.resize)
    if max(crop) > view.resize:
        # Of an input that is not square; both sides of the image must cover it.
        sides = tf.cast(height_width, tf.float64)
        larger = tf.cast(tf.round(sides * tf.reduce_max(tf.cast(crop, tf.float64) / sides)), tf.int64)
        scaled = tf.where(tf.reduce_all(scaled >= crop), scaled, tf.maximum(larger, crop))
    return scaled, (scaled - crop) // 2


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


def resized(image: tf.Tensor, shorter: int, kernel: str = "bilinear", antialias: bool = True) -> tf.Tensor:
    """Resize a whole image, its shorter side to a length; the aspect ratio stays.

    Every number is that of `tf.image.resize`, rounded.

    Args:
        image: uint8 [H, W, 3].
        shorter: the length of the shorter side, in pixels.
        kernel: one of `keras_convnets.images.view.KERNELS`.
        antialias: whether bilinear and bicubic are widened where the image shrinks.

    Returns:
        uint8 [h, w, 3].
    """
    height_width = tf.shape(image)[:2]
    scaled = scaled_size(height_width, shorter)
    whole, first = tf.cast(scaled, tf.int32), tf.zeros([2], tf.int64)
    return crop_of_resized(height_width, lambda window: image, scaled, first, whole, kernel, antialias)


def crop_of_resized(
    height_width: tf.Tensor,
    read: Callable[[tf.Tensor], tf.Tensor],
    scaled: tf.Tensor,
    corner: tf.Tensor,
    crop: Sequence[int] | tf.Tensor,
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
        crop: height and width of the rectangle; int32 [2] where they are not known before.
        kernel: one of `keras_convnets.images.view.KERNELS`.
        antialias: whether bilinear and bicubic are widened where the image shrinks.
        from_first: a rectangle that begins at most so many pixels from the first is resampled with all that lies
            before it, which makes its numbers those of the whole image resized; where a pixel lies is rounded otherwise
            else, and some differ by one level.

    Returns:
        uint8 [*crop, 3].
    """
    side, corner = tf.cast(height_width, tf.float64), tf.cast(corner, tf.float64)
    extent = tf.cast(crop, tf.float64)
    scale = tf.cast(scaled, tf.float64) / side
    reach = tf.maximum(1.0 / scale, 1.0) * RADIUS.get(kernel, 1.0) + 1.0
    begin = tf.maximum(tf.floor(corner / scale - reach), 0.0)
    end = tf.minimum(tf.math.ceil((corner + extent) / scale + reach), side)
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
    return tf.reshape(tf.transpose(tf.reshape(pixels, [crop[1] * 3, crop[0]])), [crop[0], crop[1], 3])


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
    # Area: the fraction of each row of the source that lies in a row of the result.
    source = tf.cast(tf.range(height), tf.float64)
    low, high = places[:, None] / scale, (places[:, None] + 1.0) / scale
    overlap = tf.maximum(tf.minimum(high, source + 1.0) - tf.maximum(low, source), 0.0)
    weights = overlap / tf.reduce_sum(overlap, axis=1, keepdims=True)
    return tf.matmul(tf.cast(weights, tf.float32), tf.cast(rows, tf.float32))


def encoded_views(view: View) -> tf.types.experimental.PolymorphicFunction:
    """Return the function from encoded images, string [batch], to a network's input, uint8 [batch, H, W, 3]."""
    views = _views_of([view])
    return tf.function(lambda image_bytes: views(image_bytes)[0], input_signature=_ENCODED, autograph=False)


def encoded_views_and_regions(view: View) -> tf.types.experimental.PolymorphicFunction:
    """Return the function from encoded images, string [batch], to (network's input, seen region of each image).

    The input is uint8 [batch, H, W, 3], the regions float32 [batch, 4] as of `seen_region`.
    """

    def viewed(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = decode_image(data)
        return apply_view(image, view), seen_region(tf.shape(image)[:2], view)

    def views(image_bytes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        given = tf.TensorSpec([*view.crop, 3], tf.uint8), tf.TensorSpec([4], tf.float32)
        return tf.map_fn(viewed, image_bytes, fn_output_signature=given, parallel_iterations=DECODED_AT_ONCE)

    return tf.function(views, input_signature=_ENCODED, autograph=False)


def encoded_in_each(given: Sequence[View]) -> tf.types.experimental.PolymorphicFunction:
    """Return the function from encoded images, string [batch], to a tuple of uint8 [batch, H, W, 3], one for each view.

    Each image is decoded once.
    """
    return tf.function(_views_of(given), input_signature=_ENCODED, autograph=False)


def _views_of(given: Sequence[View]) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
    def viewed(data: tf.Tensor) -> tuple[tf.Tensor, ...]:
        image = decode_image(data)
        return tuple(apply_view(image, view) for view in given)

    def views(image_bytes: tf.Tensor) -> tuple[tf.Tensor, ...]:
        pixels = tuple(tf.TensorSpec([*view.crop, 3], tf.uint8) for view in given)
        return tf.map_fn(viewed, image_bytes, fn_output_signature=pixels, parallel_iterations=DECODED_AT_ONCE)

    return views
