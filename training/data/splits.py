"""A split: images with labels, read in order or shuffled without end, from memory or from disk."""

from __future__ import annotations

import abc
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_convnets._tf_ops import center_view, decode_image
from keras_convnets.errors import UserError


class Split(abc.ABC):
    """Labelled images of one kind. Sub-classes say where the images come from.

    Attributes:
        size: number of images.
        labelled: whether the labels are known (some public test sets hide them).
    """

    size: int
    labelled: bool = True

    @property
    @abc.abstractmethod
    def labels(self) -> np.ndarray:
        """All labels, int64 [size], in the stored order."""

    @abc.abstractmethod
    def at_size(self, view: dict[str, Any], memory_limit: int) -> Split:
        """Return the split with images of one size, by the view that `keras_convnets.card.center_view` describes."""

    @abc.abstractmethod
    def subset(self, positions: np.ndarray) -> Split:
        """Return the images at these positions as a split of their own."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Return a short text that changes with the images or labels."""

    @abc.abstractmethod
    def in_order(self, batch_size: int) -> tf.data.Dataset:
        """Return one pass in the stored order: (images uint8 [b, H, W, 3], labels int64 [b]), the last b shorter."""

    @abc.abstractmethod
    def shuffled(self, batch_size: int, seed: int, first: int = 0) -> tf.data.Dataset:
        """Return an endless stream of full batches in which each image comes once an epoch.

        The order is a function of the seed and the epoch alone, so that a resumed run goes on with just the images
        the unbroken one would have seen next. Batches run over the ends of epochs: no image is left out.

        Args:
            batch_size: number of images in a batch.
            seed: of the permutations.
            first: how many images of the stream to pass over.
        """


class PositionSplit(Split):
    """A split whose images can be reached by position."""

    @abc.abstractmethod
    def _read(self, positions: tf.data.Dataset, batch_size: int, drop_remainder: bool) -> tf.data.Dataset:
        """Return batches of the images and labels at a stream of positions."""

    def in_order(self, batch_size: int) -> tf.data.Dataset:
        """Return one pass in the stored order."""
        return self._read(tf.data.Dataset.range(self.size), batch_size, False).prefetch(2)

    def shuffled(self, batch_size: int, seed: int, first: int = 0) -> tf.data.Dataset:
        """Return an endless stream in the order of one random permutation an epoch."""

        def permutation(epoch):
            order = tf.random.experimental.stateless_shuffle(tf.range(self.size, dtype=tf.int64), [seed, epoch])
            return tf.data.Dataset.from_tensor_slices(order)

        epochs = tf.data.Dataset.range(first // self.size, tf.int64.max)
        positions = epochs.flat_map(permutation).skip(first % self.size)
        return self._read(positions, batch_size, True)


class ArraySplit(PositionSplit):
    """Images in memory.

    Args:
        images: uint8 [n, H, W, 3], RGB.
        labels: integers [n].
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images = np.ascontiguousarray(images, np.uint8)
        self._labels = np.asarray(labels, np.int64)
        self.size = len(self._labels)
        if self.images.ndim != 4 or self.images.shape[-1] != 3 or len(self.images) != self.size or not self.size:
            raise UserError(
                f"images have shape {self.images.shape} and labels {self._labels.shape}; "
                "they must be [n, height, width, 3] and [n], n at least 1."
            )

    @property
    def labels(self) -> np.ndarray:
        """All labels, int64 [size]."""
        return self._labels

    def at_size(self, view: dict[str, Any], memory_limit: int) -> ArraySplit:
        """Return the split resized; itself where it has the size already."""
        if [*self.images.shape[1:3]] == view["crop"] and min(view["crop"]) == view["resize"]:
            return self
        resized = [center_view(tf.constant(image), view["resize"], view["crop"]).numpy() for image in self.images]
        return ArraySplit(np.stack(resized), self._labels)

    def subset(self, positions: np.ndarray) -> ArraySplit:
        """Return the images at these positions."""
        return ArraySplit(self.images[positions], self._labels[positions])

    def fingerprint(self) -> str:
        """Return the sha256 of pixels and labels."""
        return hashlib.sha256(self.images.tobytes() + self._labels.tobytes()).hexdigest()

    def _read(self, positions, batch_size, drop_remainder):
        with tf.device("CPU"):
            images, labels = tf.constant(self.images), tf.constant(self._labels)
        return positions.batch(batch_size, drop_remainder=drop_remainder).map(
            lambda chosen: (tf.gather(images, chosen), tf.gather(labels, chosen)), num_parallel_calls=1
        )


class FileSplit(PositionSplit):
    """Encoded images in files.

    Args:
        paths: the files.
        labels: integers [n].
        view: how the images are brought to one size when read, or None before that is known.
    """

    def __init__(self, paths: Sequence[Path], labels: np.ndarray, view: dict[str, Any] | None = None):
        self.paths = list(paths)
        self._labels = np.asarray(labels, np.int64)
        self.size = len(self.paths)
        self.view = view

    @property
    def labels(self) -> np.ndarray:
        """All labels, int64 [size]."""
        return self._labels

    def at_size(self, view: dict[str, Any], memory_limit: int) -> Split:
        """Return the split decoded into memory where it fits; else as files that are decoded when read."""
        sized = FileSplit(self.paths, self._labels, view)
        return sized if self.size * math.prod(view["crop"]) * 3 > memory_limit else sized._in_memory()

    def subset(self, positions: np.ndarray) -> FileSplit:
        """Return the files at these positions."""
        return FileSplit([self.paths[position] for position in positions], self._labels[positions], self.view)

    def fingerprint(self) -> str:
        """Return the sha256 of class folders, names, sizes in bytes and labels."""
        lines = (
            f"{path.parent.name}/{path.name} {path.stat().st_size} {label}"
            for path, label in zip(self.paths, self._labels, strict=True)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _in_memory(self) -> ArraySplit:
        try:
            images = np.concatenate([batch.numpy() for batch, _ in self.in_order(64)])
        except tf.errors.InvalidArgumentError as error:
            raise self.unreadable() or error from error
        return ArraySplit(images, self._labels)

    def unreadable(self) -> UserError | None:
        """Return the error that names the first file that does not decode, or None if all do."""
        for path in self.paths:
            try:
                decode_image(tf.io.read_file(str(path)))
            except tf.errors.OpError as error:
                reason = error.message.split("\n")[0].split("[Op:")[0].strip()
                return UserError(
                    f"{path} is not a readable image ({reason}); JPEG, PNG, BMP and GIF are: mend or remove the file."
                )
        return None

    def _read(self, positions, batch_size, drop_remainder):
        view = self.view
        paths, labels = tf.constant([str(path) for path in self.paths]), tf.constant(self._labels)

        def load(position):
            image = decode_image(tf.io.read_file(paths[position]))
            return center_view(image, view["resize"], view["crop"]), labels[position]

        images = positions.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return images.batch(batch_size, drop_remainder=drop_remainder)


def held_out(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose `count` positions, evenly spaced within each class, each class by its share.

    Args:
        labels: integers [n].
        count: how many to hold out, between 1 and n - 1.

    Returns:
        (held, kept): positions, each ascending.
    """
    by_class = np.argsort(labels, kind="stable")
    held = by_class[(np.arange(count) * len(labels)) // count]
    return np.sort(held), np.setdiff1d(np.arange(len(labels)), held)
