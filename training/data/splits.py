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
from keras_convnets.training.data.broken import broken_kind, broken_positions
from keras_convnets.training.data.sampling import balanced_positions
from keras_convnets.training.seeds import purpose_seed


class Split(abc.ABC):
    """Labelled images of one kind. Sub-classes say where the images come from.

    Attributes:
        size: number of images.
        labelled: whether the labels are known (some public test sets hide them).
        checked: whether all images are known to decode.
    """

    size: int
    labelled: bool = True
    checked: bool = False

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
    def encoded_in_order(self) -> tf.data.Dataset:
        """Return one pass in the stored order over single images as they are encoded.

        Returns:
            A dataset of (encoded, a string; label, int64; position in the split, int64), all scalars.
        """

    @abc.abstractmethod
    def encoded_shuffled(self, seed: int, first: int = 0, balanced: bool = False) -> tf.data.Dataset:
        """Return an endless stream of single images as they are encoded, in the order of `shuffled`.

        Args:
            seed: of the permutations.
            first: how many images of the stream to pass over.
            balanced: draw every class equally often, as `shuffled` does.

        Returns:
            A dataset of (encoded, a string; label, int64; position in the split, int64), all scalars.
        """

    def broken(self) -> list[tuple[int, str, str]]:
        """Return (position, path or what else finds it, reason) of the images that do not decode."""
        return []

    @abc.abstractmethod
    def shuffled(self, batch_size: int, seed: int, first: int = 0, balanced: bool = False) -> tf.data.Dataset:
        """Return an endless stream of full batches in which each image comes once an epoch.

        The order is a function of the seed and the epoch alone, so that a resumed run goes on with just the images
        the unbroken one would have seen next. Batches run over the ends of epochs: no image is left out.

        Args:
            batch_size: number of images in a batch.
            seed: of the permutations.
            first: how many images of the stream to pass over.
            balanced: draw every class equally often instead: of each run of as many images as there are classes, one
                comes from each, and the images of a class come in turn. An epoch is still as many images as the split
                has; one of a rare class then comes several times in it.

        Raises:
            UserError: if `balanced` is asked of records that can only be read one after the other.
        """


class PositionSplit(Split):
    """A split whose images can be reached by position."""

    @abc.abstractmethod
    def _read(self, positions: tf.data.Dataset, batch_size: int, drop_remainder: bool) -> tf.data.Dataset:
        """Return batches of the images and labels at a stream of positions."""

    def in_order(self, batch_size: int) -> tf.data.Dataset:
        """Return one pass in the stored order."""
        return self._read(tf.data.Dataset.range(self.size), batch_size, False).prefetch(2)

    @abc.abstractmethod
    def _read_encoded(self, positions: tf.data.Dataset) -> tf.data.Dataset:
        """Return (encoded, label, position) at a stream of positions."""

    def shuffled(self, batch_size: int, seed: int, first: int = 0, balanced: bool = False) -> tf.data.Dataset:
        """Return an endless stream in the order of one random permutation an epoch, or balanced."""
        return self._read(self._order(seed, first, balanced), batch_size, True)

    def encoded_in_order(self) -> tf.data.Dataset:
        """Return one pass in the stored order."""
        return self._read_encoded(tf.data.Dataset.range(self.size))

    def encoded_shuffled(self, seed: int, first: int = 0, balanced: bool = False) -> tf.data.Dataset:
        """Return an endless stream in the order of one random permutation an epoch, or balanced."""
        return self._read_encoded(self._order(seed, first, balanced))

    def _order(self, seed: int, first: int, balanced: bool) -> tf.data.Dataset:
        if balanced:
            rounds = tf.data.Dataset.from_generator(
                lambda: balanced_positions(self.labels, seed, first), output_signature=tf.TensorSpec([None], tf.int64)
            )
            return rounds.unbatch()

        stream = tf.constant(purpose_seed(seed, "order"), tf.int64)

        def permutation(epoch):
            order = tf.random.experimental.stateless_shuffle(tf.range(self.size, dtype=tf.int64), [stream, epoch])
            return tf.data.Dataset.from_tensor_slices(order)

        return tf.data.Dataset.range(first // self.size, tf.int64.max).flat_map(permutation).skip(first % self.size)


class ArraySplit(PositionSplit):
    """Images in memory.

    Args:
        images: uint8 [n, H, W, 3], RGB.
        labels: integers [n].
    """

    checked = True

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

    def _read_encoded(self, positions):
        with tf.device("CPU"):
            images, labels = tf.constant(self.images), tf.constant(self._labels)
        return positions.map(
            lambda position: (tf.io.encode_png(images[position]), labels[position], position),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
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
        sized = self._of(range(self.size), view)
        if self.size * math.prod(view["crop"]) * 3 > memory_limit:
            return sized
        return ArraySplit(np.concatenate([batch.numpy() for batch, _ in sized.in_order(64)]), self._labels)

    def subset(self, positions: np.ndarray) -> FileSplit:
        """Return the files at these positions."""
        return self._of(positions, self.view)

    def _of(self, positions: Sequence[int], view: dict[str, Any] | None) -> FileSplit:
        part = FileSplit([self.paths[position] for position in positions], self._labels[positions], view)
        part.checked = self.checked
        return part

    def broken(self) -> list[tuple[int, str, str]]:
        """Return (position, path, reason) of the files that do not decode; every file is decoded."""
        encoded = self.encoded_in_order().map(lambda data, label, position: data)
        bad = broken_positions(encoded, "\n".join(map(_file_state, self.paths)))
        return [(position, str(self.paths[position]), file_reason(self.paths[position])) for position in bad]

    def fingerprint(self) -> str:
        """Return the sha256 of class folders, names, sizes in bytes and labels."""
        lines = (
            f"{path.parent.name}/{path.name} {path.stat().st_size if path.exists() else None} {label}"
            for path, label in zip(self.paths, self._labels, strict=True)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _read(self, positions, batch_size, drop_remainder):
        view = self.view
        paths, labels = tf.constant([str(path) for path in self.paths]), tf.constant(self._labels)

        def load(position):
            image = decode_image(tf.io.read_file(paths[position]))
            return center_view(image, view["resize"], view["crop"]), labels[position]

        images = positions.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return images.batch(batch_size, drop_remainder=drop_remainder)

    def _read_encoded(self, positions):
        paths, labels = tf.constant([str(path) for path in self.paths]), tf.constant(self._labels)
        return positions.map(
            lambda position: (tf.io.read_file(paths[position]), labels[position], position),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )


def file_reason(path: Path) -> str:
    """Say why a file does not decode."""
    return ": ".join(file_kind(path))


def file_kind(path: Path) -> tuple[str, str]:
    """Return (kind, reason) of a file that does not decode; what is no readable file at all is "unreadable"."""
    try:
        return broken_kind(path.read_bytes())
    except OSError as error:
        return "unreadable", error.strerror


def _file_state(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError:
        return str(path)
    return f"{path.absolute()} {facts.st_size} {facts.st_mtime_ns}"


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
