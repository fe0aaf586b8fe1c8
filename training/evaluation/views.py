"""The views of each protocol, as TensorFlow operations: from an image to all that a network sees of it."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from keras_convnets.errors import UserError
from keras_convnets.images.resizing import apply_view, crop_of_resized, resized, scaled_size
from keras_convnets.images.view import View

# The papers' lengths belong to networks of this input; the 227 pixels of Caffe's AlexNet are cut from the same images.
PUBLISHED_INPUTS = (224, 227)
# A smaller input is not one of photographs: to such a network the papers' protocols are shown only as somebody says.
SMALLEST_INPUT = 64
# Of an image that is longer, squares are resampled one by one, and a fully convolutional network sees the middle.
LONGEST = 8


def in_proportion(sides: Sequence[int], view: View, protocol: str) -> tuple[int, ...]:
    """Return a paper's shorter sides, in pixels, for a network's input.

    They are as printed for an input of 224 or 227 pixels, and in proportion for others.

    Args:
        sides: as the paper prints them.
        view: of the network.
        protocol: its name, for the error.

    Raises:
        UserError: if the network's input is too small to be one of photographs.
    """
    height, width = view.crop
    size = max(height, width)
    if min(height, width) < SMALLEST_INPUT:
        raise UserError(
            f"protocol {protocol} cuts views from photographs with a shorter side of {sides[0]} pixels, for networks "
            f"that take 224 x 224, and this one takes {height} x {width}; evaluate it by cifar or center, or say the "
            f"size, as in {protocol}({'side' if len(sides) == 1 else 'scales'}={round(sides[0] * size / 224)})."
        )
    return tuple(side if size in PUBLISHED_INPUTS and side >= size else round(side * size / 224) for side in sides)


def check_sides(sides: Sequence[int], view: View, protocol: str) -> None:
    """Refuse images from which the network's input can't be cut.

    Raises:
        UserError: if a shorter side is less than the input's.
    """
    height, width = view.crop
    if min(sides) < max(height, width):
        raise UserError(
            f"protocol {protocol} resizes the shorter side to {min(sides)} pixels, and the network takes {height} x "
            f"{width}; give sides of at least {max(height, width)}."
        )


def ten_crop(image: tf.Tensor, view: View, side: int, mirror: bool = True) -> tf.Tensor:
    """Return the corners and the centre of the centre square, and their mirror images.

    Krizhevsky et al. 2012, section 4.1: "five 224x224 patches (the four corner patches and the center patch) as well as
    their horizontal reflections (hence ten patches in all)", from the image whose "shorter side was of length 256" and
    of which "the central 256x256 patch" was cropped out (section 2).

    Args:
        image: uint8 [H, W, 3].
        view: of the network: its input size and how pixels are resampled.
        side: of the square, in pixels.
        mirror: whether the mirror images are there.

    Returns:
        uint8 [10, h, w, 3], without mirror images [5, h, w, 3]: top left, top right, bottom left, bottom right, centre.
    """
    square = apply_view(image, View(side, (side, side), view.kernel, view.antialias))
    return _and_mirrored(tf.stack(_corners_and_centre(square, side, view)), mirror)


@tf.autograph.experimental.do_not_convert
def crops144(image: tf.Tensor, view: View, scales: Sequence[int], mirror: bool = True) -> tf.Tensor:
    """Return six views of each of three squares of the image at each scale, and their mirror images.

    Szegedy et al. 2014, section 7: "we resize the image to 4 scales where the shorter dimension (height or width) is
    256, 288, 320 and 352 respectively, take the left, center and right square of these resized images (in the case of
    portrait images, we take the top, center and bottom squares). For each square, we then take the 4 corners and the
    center 224x224 crop as well as the square resized to 224x224, and their mirrored versions."

    Args:
        image: uint8 [H, W, 3].
        view: of the network: its input size and how pixels are resampled.
        scales: lengths of the shorter side, in pixels.
        mirror: whether the mirror images are there.

    Returns:
        uint8 [36 * scales, h, w, 3], without mirror images half as many: by scale, by square, then as `ten_crop`, then
        the square resized.
    """
    views = []
    for side in scales:
        for square in tf.unstack(_three_squares(image, view, side)):
            views += [*_corners_and_centre(square, side, view), _square_resized(square, side, view)]
    return _and_mirrored(tf.stack(views), mirror)


@tf.autograph.experimental.do_not_convert
def whole_images(image: tf.Tensor, view: View, scales: Sequence[int]) -> tuple[tf.Tensor, ...]:
    """Return the whole image at each scale, its aspect ratio kept, for a fully convolutional network.

    Of an image more than `LONGEST` times as long as wide it is the middle: what the network needs of memory grows with
    the image's length.

    Args:
        image: uint8 [H, W, 3].
        view: of the network: how pixels are resampled.
        scales: lengths of the shorter side, in pixels.

    Returns:
        uint8 [h, w, 3] for each scale.
    """
    height_width = tf.shape(image)[:2]
    kept = tf.minimum(height_width, LONGEST * tf.reduce_min(height_width))
    corner = tf.pad((height_width - kept) // 2, [[0, 1]])
    middle = tf.slice(image, corner, tf.pad(kept, [[0, 1]], constant_values=3))
    return tuple(resized(middle, side, view.kernel, view.antialias) for side in scales)


def _three_squares(image: tf.Tensor, view: View, side: int) -> tf.Tensor:
    """Return left, centre and right square, or top, centre and bottom, of the image resized: uint8 [3, side, side, 3].

    The image is resized once. One so long that this would take much memory is resampled for each square by itself.
    """
    height_width = tf.shape(image)[:2]
    scaled = scaled_size(height_width, side)
    room = scaled - side
    corners = [tf.zeros_like(room), room // 2, room]

    def sliced() -> tf.Tensor:
        whole = resized(image, side, view.kernel, view.antialias)
        size = [side, side, 3]
        return tf.stack([tf.slice(whole, tf.pad(tf.cast(corner, tf.int32), [[0, 1]]), size) for corner in corners])

    def read(window: tf.Tensor) -> tf.Tensor:
        return tf.slice(image, tf.pad(window[:2], [[0, 1]]), tf.pad(window[2:], [[0, 1]], constant_values=3))

    def one_by_one() -> tf.Tensor:
        square, sampling = (side, side), (view.kernel, view.antialias)
        return tf.stack([crop_of_resized(height_width, read, scaled, corner, square, *sampling) for corner in corners])

    is_long = tf.reduce_max(height_width) > LONGEST * tf.reduce_min(height_width)
    return tf.ensure_shape(tf.cond(is_long, one_by_one, sliced), [3, side, side, 3])


def _corners_and_centre(square: tf.Tensor, side: int, view: View) -> list[tf.Tensor]:
    height, width = view.crop
    bottom, right = side - height, side - width
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    return [square[top : top + height, left : left + width] for top, left in places]


def _square_resized(square: tf.Tensor, side: int, view: View) -> tf.Tensor:
    scaled, first = tf.constant(view.crop, tf.int64), tf.zeros([2], tf.int64)
    side_side = tf.constant([side, side], tf.int32)
    return crop_of_resized(side_side, lambda window: square, scaled, first, view.crop, view.kernel, view.antialias)


def _and_mirrored(views: tf.Tensor, mirror: bool) -> tf.Tensor:
    return tf.concat([views, tf.reverse(views, [2])], 0) if mirror else views
