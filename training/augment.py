"""Augmentations: pure functions of a batch and a seed; the same in eager mode and inside tf.data."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def pad_and_crop(images: tf.Tensor, pad: int, fill: Sequence[float], seed: tf.Tensor) -> tf.Tensor:
    """Pad each side and take a random crop of the original size, one an image.

    He et al. 2015, section 4.2: "4 pixels are padded on each side, and a 32x32 crop is randomly sampled".

    Args:
        images: [b, H, W, C], any numeric dtype.
        pad: pixels added on each side.
        fill: the colour of the padding, [C].
        seed: int [2]; the same seed gives the same crops.

    Returns:
        float32 [b, H, W, C].
    """
    shape = tf.shape(images)
    count, height, width = shape[0], shape[1], shape[2]
    # tf.pad pads with one number for all channels; taking the fill out first and adding it again gives each its own.
    around = tf.constant(fill, tf.float32)
    padded = tf.pad(tf.cast(images, tf.float32) - around, [[0, 0], [pad, pad], [pad, pad], [0, 0]]) + around
    corners = tf.random.stateless_uniform([2, count, 1], seed, 0, 2 * pad + 1, tf.int32)
    rows = corners[0] + tf.range(height)
    columns = corners[1] + tf.range(width)
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def random_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirror each image left to right with probability one half.

    Args:
        images: [b, H, W, C].
        seed: int [2]; the same seed flips the same images.

    Returns:
        The same shape and dtype.
    """
    flipped = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seed) < 0.5
    return tf.where(flipped, tf.reverse(images, axis=[2]), images)
