"""Images in records that can only be read one after the other."""

from __future__ import annotations

import abc
import hashlib
from typing import Any

import numpy as np
import tensorflow as tf

from keras_convnets.errors import UserError
from keras_convnets.training.data.cached_passes import counted, kept
from keras_convnets.training.data.integrity import broken_kind, broken_positions
from keras_convnets.training.data.splits import Positions, Split, check_count
from keras_convnets.training.seeds import purpose_seed

SHUFFLE_BUFFER = 10_000
LABELS_TOGETHER = 1024


class StreamSplit(Split):
    """Encoded images in records that can only be read one after the other. Sub-classes say from where.

    Args:
        positions: which of the stored images, a range or an ascending array.
    """

    def __init__(self, positions: Positions):
        self._positions = positions
        self._labels: np.ndarray | None = None
        self.size = len(positions)

    @abc.abstractmethod
    def _stored(self) -> tf.data.Dataset:
        """Return (encoded image, label) of all stored images."""

    @abc.abstractmethod
    def _of(self, positions: Positions) -> StreamSplit:
        """Return the stored images at these positions."""

    @abc.abstractmethod
    def _state(self) -> str:
        """Return a text that changes with the stored images."""

    @abc.abstractmethod
    def _name_of(self, stored: int) -> str:
        """Return what finds a stored image."""

    @property
    def labels(self) -> np.ndarray:
        """All labels, int64 [size]; the first use reads through the split."""
        if self._labels is None:
            found = kept("labels", self.state(), self.size, self._read_labels, self._are_labels)
            self._labels = np.array(found, np.int64)
        return self._labels

    def _read_labels(self) -> list[int]:
        batches = self.encoded_in_order().map(lambda encoded, label, position: label).batch(LABELS_TOGETHER)
        labels = [label for batch in counted(batches, "reading labels", self.size) for label in batch.numpy().tolist()]
        check_count(len(labels), self.size)
        return labels

    def _are_labels(self, found: Any) -> bool:
        return isinstance(found, list) and len(found) == self.size and all(type(label) is int for label in found)

    def state(self) -> str:
        """Return what changes with the stored images and the choice of them."""
        return self._state() + self._digest()

    def subset(self, positions: Positions) -> StreamSplit:
        """Return the examples at these positions."""
        part = self._of(np.asarray(self._positions)[positions])
        part.checked = self.checked
        if self._labels is not None:
            part._labels = self._labels[positions]
        return part

    def broken(self) -> list[tuple[int, str, str]]:
        """Return (position, record, reason) of the images that do not decode; every image is decoded."""
        encoded = self.encoded_in_order().map(lambda data, label, position: data)
        bad = set(broken_positions(encoded, self.size, self.state()))
        if not bad:
            return []
        return [
            (int(position), self._name_of(self._positions[position]), ": ".join(broken_kind(data)))
            for data, _, position in self.encoded_in_order().as_numpy_iterator()
            if position in bad
        ]

    def encoded_in_order(self) -> tf.data.Dataset:
        """Return one pass in the stored order."""
        examples = self._stored()
        if not isinstance(self._positions, range):
            mask = np.zeros(max(self._positions, default=-1) + 1, bool)
            mask[self._positions] = True
            # The mask ends with the last image that is wanted, and zip with the mask.
            kept = tf.data.Dataset.zip(examples, tf.data.Dataset.from_tensor_slices(mask)).filter(lambda _, keep: keep)
            examples = kept.map(lambda example, _: example)
        return examples.enumerate().map(lambda position, example: (*example, position))

    def encoded_shuffled(self, seed: int, first: int = 0, balanced: bool = False) -> tf.data.Dataset:
        """Return an endless stream; records can't be reached by position, so a buffer shuffles what is read.

        The buffer's order is a function of the seed and the epoch, so this stream too resumes where it was left; it
        reads again what it skips of an epoch.
        """
        if balanced:
            raise UserError(
                "these records can only be read one after the other, and drawing every class equally often needs "
                "images that can be reached singly; give a folder of images, or a size at which they fit into memory."
            )

        examples = self.encoded_in_order()
        first_epoch, passed = divmod(first, self.size)

        def shuffled(epoch: tf.Tensor) -> tf.data.Dataset:
            # `Dataset.shuffle` would mix in TensorFlow's global seed, and takes no number that is known only later.
            # With both seeds zero the operation would choose its own; neither ever is.
            order = tf.raw_ops.ShuffleDataset(
                input_dataset=tf.data.experimental.to_variant(examples),
                buffer_size=SHUFFLE_BUFFER,
                seed=purpose_seed(seed, "order"),
                seed2=epoch + 1,
                output_types=[spec.dtype for spec in examples.element_spec],
                output_shapes=[spec.shape for spec in examples.element_spec],
                reshuffle_each_iteration=False,
            )
            epoch_of = tf.data.experimental.from_variant(order, examples.element_spec)
            return epoch_of.skip(tf.where(epoch == first_epoch, tf.constant(passed, tf.int64), 0))

        return tf.data.Dataset.range(first_epoch, tf.int64.max).flat_map(shuffled)

    def _stored_position(self, position: int) -> int:
        return int(self._positions[position])

    def _digest(self) -> str:
        """Return a short text for the choice of positions."""
        return hashlib.sha256(np.asarray(self._positions, np.int64).tobytes()).hexdigest()
