"""The views of the test protocols, as TensorFlow operations on an image."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from keras_convnets.errors import UserError
from keras_convnets.images.resizing import apply_view, crop_of_resized, resized, scaled_size
from keras_convnets.images.view import View

# Input sizes for which the papers' sides are used unchanged; Caffe's AlexNet crops 227 from the same resized images.
PUBLISHED_INPUTS = (224, 227)
# For inputs smaller than this (CIFAR networks), the papers' sides are not scaled and must be given explicitly.
SMALLEST_INPUT = 64
# Maximum aspect ratio. For longer images, `crops144` resamples each square separately and `whole_images` crops.
LONGEST = 8


def in_proportion(sides: Sequence[int], view: View, protocol: str) -> tuple[int, ...]:
    """Return a paper's lengths of the shorter side, in pixels, scaled to a network's input size.

    They are unchanged for an input of 224 or 227 pixels, and scaled by size / 224 for others.

    Args:
        sides: lengths in the paper.
        view: the network's view.
        protocol: name of the protocol, for the error message.

    Raises:
        UserError: if the network's input is smaller than 64 pixels.
    """
    height, width = view.crop
    size = max(height, width)
    if min(height, width) < SMALLEST_INPUT:
        raise UserError(
            f"protocol {protocol} is defined for network inputs of 224 x 224 pixels, and this network's input is "
            f"{height} x {width}; use protocol cifar or center, or give the shorter side explicitly, as in "
            f"{protocol}({'side' if len(sides) == 1 else 'scales'}={round(sides[0] * size / 224)})."
        )
    return tuple(side if size in PUBLISHED_INPUTS and side >= size else round(side * size / 224) for side in sides)


def check_sides(sides: Sequence[int], view: View, protocol: str) -> None:
    """Check that the network's input can be cropped from images with these shorter sides, in pixels.

    Raises:
        UserError: if a side is smaller than the network's input.
    """
    height, width = view.crop
    if min(sides) < max(height, width):
        raise UserError(
            f"protocol {protocol} resizes the shorter side to {min(sides)} pixels, and the network's input is {height} "
            f"x {width}; give sides of at least {max(height, width)}."
        )


def ten_crop(image: tf.Tensor, view: View, side: int, mirror: bool = True) -> tf.Tensor:
    """Return the four corner crops and the centre crop of the resized central square, and their horizontal flips.

    Krizhevsky et al. 2012, section 4.1: "five 224x224 patches (the four corner patches and the center patch) as well as
    their horizontal reflections (hence ten patches in all)", from the image whose "shorter side was of length 256" and
    of which "the central 256x256 patch" was cropped out (section 2).

    Args:
        image: uint8 [H, W, 3].
        view: the network's view: input size, kernel and antialiasing.
        side: side of the square, in pixels.
        mirror: whether to include the flips.

    Returns:
        uint8 [10, h, w, 3], or [5, h, w, 3] without flips: top left, top right, bottom left, bottom right and centre,
        followed by their flips in the same order.
    """
    square = apply_view(image, View(side, (side, side), view.kernel, view.antialias))
    return _and_mirrored(tf.stack(_corners_and_centre(square, side, view)), mirror)


@tf.autograph.experimental.do_not_convert
def crops144(image: tf.Tensor, view: View, scales: Sequence[int], mirror: bool = True) -> tf.Tensor:
    """Return six views of each of three squares of the image at each scale, and their horizontal flips.

    Szegedy et al. 2014, section 7: "we resize the image to 4 scales where the shorter dimension (height or width) is
    256, 288, 320 and 352 respectively, take the left, center and right square of these resized images (in the case of
    portrait images, we take the top, center and bottom squares). For each square, we then take the 4 corners and the
    center 224x224 crop as well as the square resized to 224x224, and their mirrored versions."

    Args:
        image: uint8 [H, W, 3].
        view: the network's view: input size, kernel and antialiasing.
        scales: lengths of the shorter side, in pixels.
        mirror: whether to include the flips.

    Returns:
        uint8 [36 * len(scales), h, w, 3], or half as many without flips. For each scale and square: the four corners
        and the centre in the order of `ten_crop`, and the resized square. The flips follow in the same order.
    """
    views = []
    for side in scales:
        for square in tf.unstack(_three_squares(image, view, side)):
            views += [*_corners_and_centre(square, side, view), _square_resized(square, side, view)]
    return _and_mirrored(tf.stack(views), mirror)


@tf.autograph.experimental.do_not_convert
def whole_images(image: tf.Tensor, view: View, scales: Sequence[int]) -> tuple[tf.Tensor, ...]:
    """Return the whole image resized to each scale, with its aspect ratio, for a fully convolutional network.

    To bound the memory of the network, an image whose aspect ratio is above `LONGEST` is first cropped to its centre
    with that aspect ratio.

    Args:
        image: uint8 [H, W, 3].
        view: the network's view: kernel and antialiasing.
        scales: lengths of the shorter side, in pixels.

    Returns:
        One tensor per scale, uint8 [h, w, 3].
    """
    height_width = tf.shape(image)[:2]
    kept = tf.minimum(height_width, LONGEST * tf.reduce_min(height_width))
    corner = tf.pad((height_width - kept) // 2, [[0, 1]])
    middle = tf.slice(image, corner, tf.pad(kept, [[0, 1]], constant_values=3))
    return tuple(resized(middle, side, view.kernel, view.antialias) for side in scales)


def _three_squares(image: tf.Tensor, view: View, side: int) -> tf.Tensor:
    """Return the left, centre and right (top, centre and bottom) square of the resized image, [3, side, side, 3].

    The image is resized once. If its aspect ratio is above `LONGEST`, each square is resampled separately to bound the
    memory.
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
