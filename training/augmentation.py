"""Augmentations: pure functions of a batch and a seed; the same in eager mode and inside tf.data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from keras_convnets.errors import UserError

# ITU-R 601-2, as Pillow makes greyscale.
LUMA = (0.299, 0.587, 0.114)


@tf.autograph.experimental.do_not_convert
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


@tf.autograph.experimental.do_not_convert
def random_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirror each image left to right with probability one half.

    Args:
        images: [b, H, W, C].
        seed: int [2]; the same seed flips the same images.

    Returns:
        The same shape and dtype.
    """
    images = tf.convert_to_tensor(images)
    flipped = tf.random.stateless_uniform([tf.shape(images)[0]], seed) < 0.5
    # The op that takes one truth value an image copies whole images; tf.where would spread it over every value first,
    # which takes three times as long.
    return tf.raw_ops.Select(condition=flipped, x=tf.reverse(images, axis=[2]), y=images)


def pixel_components(batches: Iterable[tf.Tensor | np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the principal components of the RGB values of all pixels, in one pass.

    Krizhevsky et al. 2012, section 4.1: "we perform PCA on the set of RGB pixel values throughout the ImageNet training
    set". Values are scaled to 0-1 first; see `pca_colour_shift` for why.

    Args:
        batches: the training images, in batches of any size: [b, H, W, 3], 0-255.

    Returns:
        The components as the columns of a matrix [3, 3], the largest eigenvalue's first, each with its largest entry
        positive; the eigenvalues of the covariance [3]; the mean [3]. All float64, of values in 0-1.

    Raises:
        UserError: if there is no pixel.
    """
    count, total, products = 0, np.zeros(3), np.zeros((3, 3))
    for batch in batches:
        # An image at a time, so that the float64 values stay in the processor's cache.
        for image in np.asarray(batch):
            pixels = image.reshape(-1, 3).astype(np.float64)
            count += len(pixels)
            # Of uint8 values these are whole numbers, exact up to 10 ** 11 pixels: nothing cancels below.
            total += pixels.sum(axis=0)
            products += pixels.T @ pixels
    if not count:
        raise UserError("there are no images to compute the principal components of; give at least one batch.")
    mean = total / count
    eigenvalues, components = np.linalg.eigh((products / count - np.outer(mean, mean)) / 255**2)
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=0)[None], axis=0)
    return (components * np.sign(largest))[:, ::-1], np.maximum(eigenvalues[::-1], 0.0), mean / 255


@tf.autograph.experimental.do_not_convert
def pca_colour_shift(
    images: tf.Tensor,
    components: np.ndarray | tf.Tensor,
    eigenvalues: np.ndarray | tf.Tensor,
    seed: tf.Tensor,
    deviation: float = 0.1,
) -> tf.Tensor:
    """Add to all pixels of an image one random colour, along the principal components of the training set's pixels.

    Krizhevsky et al. 2012, section 4.1: "To each training image, we add multiples of the found principal components,
    with magnitudes proportional to the corresponding eigenvalues times a random variable drawn from a Gaussian with
    mean zero and standard deviation 0.1": [p1, p2, p3] [a1 l1, a2 l2, a3 l3]^T, where "each a_i is drawn only once for
    all the pixels of a particular training image".

    The paper does not say in which units. An eigenvalue is a variance, so the formula depends on them: of values in
    0-255 the first one is near 10 000, and a shift of a tenth of that leaves no image. With values in 0-1 the shift is
    of a few levels in 255, a change of illumination as the paper wants it.

    Args:
        images: [b, H, W, 3], 0-255, any numeric dtype.
        components: [3, 3], the eigenvectors as columns, of values in 0-1, as from `pixel_components`.
        eigenvalues: [3], of values in 0-1.
        seed: int [2]; the same seed gives the same shifts.
        deviation: standard deviation of the a_i.

    Returns:
        float32 [b, H, W, 3]; not clipped, so values may lie a little outside of 0-255.
    """
    scaled = tf.cast(components, tf.float32) * tf.cast(eigenvalues, tf.float32) * 255.0
    alpha = tf.random.stateless_normal([tf.shape(images)[0], 3], seed, stddev=deviation)
    shift = tf.linalg.matmul(alpha, scaled, transpose_b=True)
    return _add_colours(tf.cast(images, tf.float32), shift)


@tf.autograph.experimental.do_not_convert
def photometric_distortion(images: tf.Tensor, seed: tf.Tensor, amount: Sequence[float] = (0.5, 1.5)) -> tf.Tensor:
    """Change brightness, contrast and colour of each image, in a random order per image.

    Howard 2013, arXiv:1312.5402, which Szegedy et al. 2014, section 6, found "useful to combat overfitting to some
    extent": contrast, brightness and colour as Pillow's `ImageEnhance` has them, in random order, each by an amount
    between 0.5 and 1.5, where 1 changes nothing. His lighting noise after that is `pca_colour_shift`.

    Each is a mean of the image with another, amount * image + (1 - amount) * other, cut to 0-255: brightness with
    black, contrast with the grey of its mean luminance, colour with its own greyscale. Pillow rounds to whole levels in
    between; nothing is rounded here.

    Args:
        images: [b, H, W, 3], 0-255, any numeric dtype.
        seed: int [2]; the same seed gives the same distortions.
        amount: least and greatest amount, uniform between them.

    Returns:
        float32 [b, H, W, 3], 0-255.
    """
    shape = tf.shape(images)
    drawn = tf.random.stateless_uniform([2, shape[0], 3], seed)
    amounts = amount[0] + drawn[0] * (amount[1] - amount[0])
    # 0 brightness, 1 contrast, 2 colour: the places of three random numbers in order are a random permutation.
    order = tf.argsort(drawn[1], axis=1)
    distorted = tf.cast(images, tf.float32)
    for step in range(3):
        factor, kind = amounts[:, step, None], order[:, step, None]
        # A pixel's own greyscale is linear in it: brightness and colour are one matrix an image, contrast one more
        # summand.
        own_grey = tf.where(kind == 2, 1.0 - factor, 0.0)[..., None] * (tf.constant(LUMA)[:, None] * tf.ones([1, 3]))
        matrices = factor[..., None] * tf.eye(3) + own_grey
        grey = tf.reduce_sum(_mean_colours(distorted) * LUMA, axis=1, keepdims=True)
        added = tf.where(kind == 1, 1.0 - factor, 0.0) * grey * tf.ones([1, 3])
        turned = tf.reshape(tf.matmul(tf.reshape(distorted, [shape[0], -1, 3]), matrices), shape)
        distorted = tf.clip_by_value(_add_colours(turned, added), 0.0, 255.0)
    return distorted


# Ops that spread or sum over an innermost dimension of three are several times slower than over whole rows.


def _add_colours(images: tf.Tensor, colours: tf.Tensor) -> tf.Tensor:
    """Add one colour [b, 3] to all pixels of each image, float32 [b, H, W, 3]."""
    shape = tf.shape(images)
    rows = tf.tile(colours, [1, shape[2]])[:, None]
    return tf.reshape(tf.reshape(images, [shape[0], shape[1], shape[2] * 3]) + rows, shape)


def _mean_colours(images: tf.Tensor) -> tf.Tensor:
    """Return the mean colour of each image, [b, 3], of float32 [b, H, W, 3]."""
    shape = tf.shape(images)
    row = tf.reduce_mean(tf.reshape(images, [shape[0], shape[1], shape[2] * 3]), axis=1)
    return tf.reduce_mean(tf.reshape(row, [shape[0], shape[2], 3]), axis=1)
