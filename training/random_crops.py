"""Random crops of single photographs, from the encoded file to a square of one size.

Functions of an encoded photograph and a seed, for the `map` of a tf.data pipeline. Each draws its window from the size
that stands in the header and decodes only what the window shows; what comes out is what decoding the whole photograph
first would give. JPEGs are decoded as `decode_image` does it: accurate integer DCT, smooth chroma.

Resizing is bilinear with antialiasing unless it is said otherwise; of the other kernels bicubic is antialiased, nearest
and area are what they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_convnets.errors import UserError
from keras_convnets.images.decoding import MAX_PIXELS, decode_image
from keras_convnets.images.resizing import crop_of_resized, scaled_size
from keras_convnets.images.view import KERNELS

TRIES = 10
# The decoder smooths chroma, which may have half the resolution, with what it decodes: at the sides of a window it
# lacks the neighbours that the whole photograph has. Two columns more on each side give it those.
CHROMA_BORDER = 2


@tf.autograph.experimental.do_not_convert
def random_area_crop(
    encoded: tf.Tensor,
    seed: tf.Tensor,
    size: int,
    area: Sequence[float] = (0.08, 1.0),
    aspect: Sequence[float] = (3 / 4, 4 / 3),
    kernels: Sequence[str] = ("bilinear",),
) -> tf.Tensor:
    """Crop a window of random area and aspect ratio and resize it to a square.

    Szegedy et al. 2014, section 6: "sampling of various sized patches of the image whose size is distributed evenly
    between 8% and 100% of the image area and whose aspect ratio is chosen randomly between 3/4 and 4/3", and "random
    interpolation methods (bilinear, area, nearest neighbor and cubic, with equal probability)" with `kernels=KERNELS`.
    See `area_window` for how the window is drawn. The window is resized alone: no pixel outside it is used.

    Args:
        encoded: JPEG, PNG, GIF, BMP or WebP, a string scalar.
        seed: int [2]; the same seed gives the same crop.
        size: side of the square, in pixels.
        area: smallest and largest area of the window, as a fraction of the photograph's.
        aspect: smallest and largest width / height of the window.
        kernels: names of `KERNELS`, one of which is drawn for each photograph.

    Returns:
        uint8 [size, size, 3], RGB.

    Raises:
        UserError: if an argument is out of range.
        tf.errors.InvalidArgumentError: if the photograph is damaged or too large, as from `decode_image`.
    """
    _check_size(size)
    _check_range("area", area, 0.0, 1.0)
    _check_range("aspect", aspect, 0.0, math.inf)
    if not kernels or not set(kernels) <= set(KERNELS):
        raise UserError(f"kernels are {list(kernels)}; give one or more of {', '.join(KERNELS)}.")
    height_width, read = _opened(encoded)
    window = area_window(height_width, seed, area, aspect)
    image = read(window)
    ways = [lambda kernel=kernel: _resized(image, size, kernel) for kernel in kernels]
    if len(ways) == 1:
        return ways[0]()
    # A separate seed, so that the window does not depend on the kernels.
    drawn = tf.random.stateless_uniform([], tf.random.experimental.stateless_fold_in(seed, 1), 0, len(ways), tf.int32)
    return tf.ensure_shape(tf.switch_case(drawn, ways), [size, size, 3])


@tf.autograph.experimental.do_not_convert
def random_scale_crop(encoded: tf.Tensor, seed: tf.Tensor, size: int, shorter: Sequence[int] = (256, 480)) -> tf.Tensor:
    """Resize the shorter side to a random length and take a random square.

    He et al. 2015, section 3.4: "The image is resized with its shorter side randomly sampled in [256, 480] for scale
    augmentation. A 224x224 crop is randomly sampled". Simonyan and Zisserman 2014, section 3.1: [256, 512].

    Args:
        encoded: JPEG, PNG, GIF, BMP or WebP, a string scalar.
        seed: int [2]; the same seed gives the same crop.
        size: side of the square, in pixels.
        shorter: least and greatest length of the shorter side after resizing, in pixels; every whole number from one
            to the other is equally likely.

    Returns:
        uint8 [size, size, 3], RGB.

    Raises:
        UserError: if the square is larger than the least shorter side, or the range is none.
        tf.errors.InvalidArgumentError: if the photograph is damaged or too large, as from `decode_image`.
    """
    _check_range("shorter", shorter, 0, math.inf)
    _check_size(size, shorter[0])
    height_width, read = _opened(encoded)
    scaled, corner = scale_corner(height_width, seed, size, shorter)
    return crop_of_resized(height_width, read, scaled, corner, [size, size])


@tf.autograph.experimental.do_not_convert
def random_square_crop(encoded: tf.Tensor, seed: tf.Tensor, size: int = 224, square: int = 256) -> tf.Tensor:
    """Bring the photograph to a square, by its centre, and take a random smaller square of that.

    Krizhevsky et al. 2012, section 2: "we first rescaled the image such that the shorter side was of length 256, and
    then cropped out the central 256x256 patch from the resulting image"; section 4.1: "extracting random 224x224
    patches". All 33 x 33 places are equally likely; the paper's count of 2048 patches with their reflections, 32 x 32
    x 2, leaves one row and one column of them out.

    Args:
        encoded: JPEG, PNG, GIF, BMP or WebP, a string scalar.
        seed: int [2]; the same seed gives the same crop.
        size: side of the square that is returned, in pixels.
        square: side of the central square, in pixels.

    Returns:
        uint8 [size, size, 3], RGB.

    Raises:
        UserError: if `size` is larger than `square`.
        tf.errors.InvalidArgumentError: if the photograph is damaged or too large, as from `decode_image`.
    """
    _check_size(size, square)
    height_width, read = _opened(encoded)
    scaled, corner = square_corner(height_width, seed, size, square)
    return crop_of_resized(height_width, read, scaled, corner, [size, size])


@tf.autograph.experimental.do_not_convert
def area_window(height_width: tf.Tensor, seed: tf.Tensor, area: Sequence[float], aspect: Sequence[float]) -> tf.Tensor:
    """Draw a window by area and aspect ratio, at a random place.

    The area is uniform. The paper leaves the law of the aspect ratio open: its logarithm is uniform here, so that a
    window and the same window lying on its side are equally likely. A window that is wider or higher than the
    photograph is drawn again, nine times at most; then it is the largest at the centre whose aspect ratio is allowed.
    All this as torchvision's `RandomResizedCrop` does it.

    Args:
        height_width: int32 [2], of the photograph.
        seed: int [2].
        area: smallest and largest fraction of the photograph's area.
        aspect: smallest and largest width / height.

    Returns:
        int32 [4]: top, left, height, width.
    """
    low = [area[0], math.log(aspect[0]), 0.0, 0.0]
    span = [area[1] - area[0], math.log(aspect[1]) - math.log(aspect[0]), 1.0, 1.0]
    drawn = tf.random.stateless_uniform([TRIES, 4], seed) * span + low
    whole = tf.cast(height_width, tf.float32)
    # Half the logarithm on the width, half off the height; [TRIES, 2] of (height, width).
    sides = tf.sqrt(drawn[:, :1] * tf.reduce_prod(whole)) * tf.exp(drawn[:, 1:2] * [[-0.5, 0.5]])
    sides = tf.maximum(tf.round(sides), 1.0)
    fits = tf.reduce_all(sides <= whole, axis=1)
    first = tf.argmax(fits)
    height, width = tf.unstack(whole)
    fallback = tf.stack(
        [tf.minimum(height, tf.round(width / aspect[0])), tf.minimum(width, tf.round(height * aspect[1]))]
    )
    fallback = tf.maximum(fallback, 1.0)
    found = fits[first]
    side = tf.where(found, sides[first], fallback)
    corner = tf.where(found, tf.floor(drawn[first, 2:] * (whole - side + 1.0)), tf.floor((whole - side) / 2.0))
    return tf.cast(tf.concat([corner, side], 0), tf.int32)


@tf.autograph.experimental.do_not_convert
def scale_corner(
    height_width: tf.Tensor, seed: tf.Tensor, size: int, shorter: Sequence[int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draw the size to resize to, and the corner of a square in the resized photograph.

    Args:
        height_width: int32 [2], of the photograph.
        seed: int [2].
        size: side of the square.
        shorter: least and greatest length of the shorter side, both possible.

    Returns:
        Height and width after resizing, and top and left of the square: int64 [2] each.
    """
    drawn = tf.random.stateless_uniform([3], seed)
    side = shorter[0] + tf.floor(drawn[0] * float(shorter[1] - shorter[0] + 1))
    scaled = scaled_size(height_width, side)
    return scaled, tf.cast(tf.floor(drawn[1:] * tf.cast(scaled - size + 1, tf.float32)), tf.int64)


@tf.autograph.experimental.do_not_convert
def square_corner(height_width: tf.Tensor, seed: tf.Tensor, size: int, square: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the size to resize to, and draw the corner of a square within the central one.

    Args:
        height_width: int32 [2], of the photograph.
        seed: int [2].
        size: side of the square that is drawn.
        square: side of the central square, and length of the shorter side after resizing.

    Returns:
        Height and width after resizing, and top and left of the square: int64 [2] each.
    """
    scaled = scaled_size(height_width, square)
    within = tf.random.stateless_uniform([2], seed, 0, square - size + 1, tf.int32)
    return scaled, (scaled - square) // 2 + tf.cast(within, tf.int64)


def _opened(encoded: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Return height and width, int32 [2], and a function from a window (top, left, height, width) to its pixels."""
    nothing = tf.zeros([0, 0, 3], tf.uint8)
    in_header = tf.cond(
        tf.io.is_jpeg(encoded), lambda: tf.io.extract_jpeg_shape(encoded)[:2], lambda: tf.zeros([2], tf.int32)
    )
    pixels = tf.reduce_prod(tf.cast(in_header, tf.int64))
    # What isn't JPEG is decoded as a whole; so is what has too many pixels, which `decode_image` refuses by its rule.
    fused = (pixels > 0) & (pixels <= MAX_PIXELS)
    image = tf.cond(fused, lambda: nothing, lambda: decode_image(encoded))
    height_width = tf.where(fused, in_header, tf.shape(image)[:2])

    def read(window: tf.Tensor) -> tf.Tensor:
        part = tf.cond(
            fused,
            lambda: _decode_window(encoded, in_header, window),
            lambda: tf.slice(image, tf.pad(window[:2], [[0, 1]]), tf.pad(window[2:], [[0, 1]], constant_values=3)),
        )
        return tf.ensure_shape(part, [None, None, 3])

    return height_width, read


def _decode_window(encoded: tf.Tensor, height_width: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Decode a window of a JPEG: the pixels that decoding all of it would give."""
    top, left, height, width = tf.unstack(window)
    begin = tf.maximum(left - CHROMA_BORDER, 0)
    end = tf.minimum(left + width + CHROMA_BORDER, height_width[1])
    bordered = tf.stack([top, begin, height, end - begin])
    decoded = tf.image.decode_and_crop_jpeg(encoded, bordered, channels=3, dct_method="INTEGER_ACCURATE")
    return decoded[:, left - begin : left - begin + width]


def _resized(image: tf.Tensor, size: int, kernel: str) -> tf.Tensor:
    """Resize a whole window to uint8 [size, size, 3]."""
    if kernel in ("nearest", "area"):
        return tf.cast(tf.round(tf.image.resize(image, [size, size], kernel)), tf.uint8)
    height_width = tf.shape(image)[:2]
    square = tf.constant([size, size], tf.int64)
    return crop_of_resized(height_width, lambda _: image, square, tf.zeros_like(square), [size, size], kernel)


def _check_size(size: int, largest: float = math.inf) -> None:
    if not 1 <= size <= largest:
        most = "" if largest == math.inf else f" and at most {largest}, the shorter side it is cropped from"
        raise UserError(f"size is {size}; it must be at least 1{most}.")


def _check_range(name: str, bounds: Sequence[float], above: float, most: float) -> None:
    if len(bounds) != 2 or not above < bounds[0] <= bounds[1] <= most:
        upto = "" if most == math.inf else f" and at most {most:g}"
        raise UserError(f"{name} is {tuple(bounds)}; give the least and the greatest, above {above:g}{upto}.")
