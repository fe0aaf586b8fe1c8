"""A split: images with labels, read in order or shuffled without end, from memory or from disk.

A `Split` gives its images as they are encoded, of any size. A `SizedSplit` gives pixels, all images of one size: it was
brought to that by a view (`Split.at_size`), or is an array that is stored so.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.images.decoding import decode_image
from keras_convnets.images.resizing import apply_view
from keras_convnets.images.view import View
from keras_convnets.training.data.balanced_sampling import balanced_positions
from keras_convnets.training.data.cached_passes import counted
from keras_convnets.training.data.integrity import broken_kind, broken_positions
from keras_convnets.training.data.parallel import parallel_map, untuned
from keras_convnets.training.seeds import purpose_seed

# Images decoded together when a split is brought into memory.
DECODED_TOGETHER = 64
# Bytes hashed at a time.
HASHED_TOGETHER = 1 << 24
# TensorFlow takes memory as a tensor without a copy if it begins at a multiple of the longest vector's size, in bytes.
ALIGNMENT = 64
# Of images in a split.
Positions = Sequence[int] | np.ndarray


class Split(abc.ABC):
    """Labelled images of one kind, encoded. Sub-classes say where the images come from.

    Attributes:
        size: number of images.
        checked: whether all images are known to decode.
        held_bytes: how many bytes of decoded images it holds in memory.
    """

    size: int
    checked: bool = False
    held_bytes: int = 0

    @property
    def labelled(self) -> bool:
        """Whether the labels are known; some public test sets hide them."""
        return True

    @property
    @abc.abstractmethod
    def labels(self) -> np.ndarray:
        """All labels, int64 [size], in the stored order."""

    @abc.abstractmethod
    def subset(self, positions: Positions) -> Split:
        """Return the images at these positions as a new split."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Return a short text that changes with the images or labels."""

    def ids(self, positions: Positions | None = None) -> list[str]:
        """Return what names each image, the same in every run: below, its place among the stored images.

        Args:
            positions: of which images; by default of all, in the stored order.

        Returns:
            Texts of five digits or more, or paths below the split's folder where the images are files.

        Example:
            >>> load_dataset("digits").split("test").ids([0, 17])
            ['00000', '00017']
        """
        chosen = range(self.size) if positions is None else positions
        return [f"{self._stored_position(int(position)):05d}" for position in chosen]

    def _stored_position(self, position: int) -> int:
        """Return where an image stands among the stored ones, of which the split may be a part."""
        return position

    @abc.abstractmethod
    def encoded_in_order(self) -> tf.data.Dataset:
        """Return one pass in the stored order over single images as they are encoded.

        Returns:
            A dataset of (encoded, a string; label, int64; position in the split, int64), all scalars.
        """

    @abc.abstractmethod
    def encoded_shuffled(self, seed: int, first: int = 0, balanced: bool = False) -> tf.data.Dataset:
        """Return an endless stream of single images as they are encoded, each of them once an epoch.

        The order is a function of the seed and the epoch alone, so that a resumed run sees just the images that
        the uninterrupted one would have seen next.

        Args:
            seed: of the permutations.
            first: how many images of the stream to pass over.
            balanced: draw every class equally often instead: of each run of as many images as there are classes, one
                comes from each, and the images of a class come in turn. An epoch is still as many images as the split
                has; one of a rare class then comes several times in it.

        Returns:
            A dataset of (encoded, a string; label, int64; position in the split, int64), all scalars.

        Raises:
            UserError: if `balanced` is asked of records that can only be read one after the other.
        """

    def state(self) -> str:
        """Return a text that changes if the images may have changed; it is the key of cached results."""
        return self.fingerprint()

    def broken(self) -> list[tuple[int, str, str]]:
        """Return (position, path or what else finds it, reason) of the images that do not decode."""
        return []

    @property
    def originals(self) -> Split:
        """The same images as the data hold them, not yet brought to one size."""
        return self

    def at_size(self, view: View, memory_limit: int) -> SizedSplit:
        """Return the split with images of one size: decoded into memory where they fit, else decoded when read.

        Args:
            view: what they are resized and cropped to.
            memory_limit: how many bytes of decoded images may be held.
        """
        viewed = ViewedSplit(self, view)
        fits = self.size * math.prod(view.crop) * 3 <= memory_limit
        return viewed.in_memory() if fits else viewed


class SizedSplit(Split):
    """A split whose images have one size: it gives pixels too.

    Attributes:
        image_size: (height, width) of every image.
        view: what brought the images to this size, or None of images that are stored so.
    """

    image_size: tuple[int, int]
    view: View | None = None

    @abc.abstractmethod
    def in_order(self, batch_size: int) -> tf.data.Dataset:
        """Return one pass in the stored order: (images uint8 [b, H, W, 3], labels int64 [b]), the last b shorter."""

    @abc.abstractmethod
    def shuffled(self, batch_size: int, seed: int, first: int = 0, balanced: bool = False) -> tf.data.Dataset:
        """Return an endless stream of full batches in the order of `encoded_shuffled`, whose arguments it takes.

        Batches run over the ends of epochs: no image is left out.
        """


def of_one_size(split: Split) -> SizedSplit:
    """Return a split as one that gives pixels.

    Raises:
        UserError: if its images were not brought to one size.
    """
    if not isinstance(split, SizedSplit):
        raise UserError("the images are not of one size; bring them to one with dataset.at_size(height, width).")
    return split


class ViewedSplit(SizedSplit):
    """A split whose images are decoded and brought to one size whenever they are read.

    Args:
        source: the split with the encoded images.
        view: how they are brought to one size.
    """

    view: View

    def __init__(self, source: Split, view: View):
        self._source, self.view = source, view
        self.size, self.checked, self.held_bytes = source.size, source.checked, source.held_bytes
        self.image_size = view.crop

    @property
    def labelled(self) -> bool:
        """Whether the labels are known."""
        return self._source.labelled

    @property
    def labels(self) -> np.ndarray:
        """All labels, int64 [size]."""
        return self._source.labels

    @property
    def originals(self) -> Split:
        """The same images as the data hold them."""
        return self._source.originals

    def ids(self, positions: Positions | None = None) -> list[str]:
        """Return those of the encoded images."""
        return self._source.ids(positions)

    def at_size(self, view: View, memory_limit: int) -> SizedSplit:
        """Return the split in another view of the encoded images."""
        return self._source.at_size(view, memory_limit)

    def subset(self, positions: Positions) -> ViewedSplit:
        """Return the images at these positions, in the same view."""
        return ViewedSplit(self._source.subset(positions), self.view)

    def fingerprint(self) -> str:
        """Return that of the encoded images."""
        return self._source.fingerprint()

    def state(self) -> str:
        """Return that of the encoded images, and the view."""
        return f"{self._source.state()} {self.view}"

    def broken(self) -> list[tuple[int, str, str]]:
        """Return (position, path or what else finds it, reason) of the images that do not decode."""
        return self._source.broken()

    def encoded_in_order(self) -> tf.data.Dataset:
        """Return one pass in the stored order over the encoded images."""
        return self._source.encoded_in_order()

    def encoded_shuffled(self, seed: int, first: int = 0, balanced: bool = False) -> tf.data.Dataset:
        """Return an endless stream of the encoded images."""
        return self._source.encoded_shuffled(seed, first, balanced)

    def in_order(self, batch_size: int) -> tf.data.Dataset:
        """Return one pass in the stored order."""
        return self._decoded(self.encoded_in_order()).batch(batch_size).prefetch(2)

    def shuffled(self, batch_size: int, seed: int, first: int = 0, balanced: bool = False) -> tf.data.Dataset:
        """Return an endless stream in the order of `encoded_shuffled`."""
        return self._decoded(self.encoded_shuffled(seed, first, balanced)).batch(batch_size, drop_remainder=True)

    def in_memory(self) -> ArraySplit:
        """Return the split decoded into one array, which is filled where it lies.

        Raises:
            UserError: if the source gives more or fewer images than it says.
        """
        images, labels = aligned_array((self.size, *self.image_size, 3)), np.empty(self.size, np.int64)
        done = 0
        parts = counted(self.in_order(DECODED_TOGETHER), "decoding into memory", self.size, lambda part: len(part[0]))
        for part, of_part in parts:
            end = done + len(part)
            if end > self.size:
                check_count(end, self.size)
            images[done:end], labels[done:end] = part.numpy(), of_part.numpy()
            done = end
        check_count(done, self.size)
        return ArraySplit(images, labels, self.view, self.originals)

    def _decoded(self, examples: tf.data.Dataset) -> tf.data.Dataset:
        viewed = _viewing(self.view)
        return parallel_map(examples, lambda encoded, label, position: (viewed(encoded), label))


@functools.lru_cache(maxsize=16)
def _viewing(view: View) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return what turns an encoded image into a view; its graph takes half a second to build, so it is kept."""
    return tf.function(
        lambda encoded: apply_view(decode_image(encoded), view),
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
    )


def check_count(found: int, said: int) -> None:
    """Refuse images of which there are more or fewer than their source says.

    Raises:
        UserError: if the numbers differ.
    """
    if found != said:
        raise UserError(
            f"the stored images are {found} where their description says {said}; prepare or download the data again."
        )


class PositionSplit(Split):
    """A split whose images can be reached by position."""

    @abc.abstractmethod
    def _read_encoded(self, positions: tf.data.Dataset) -> tf.data.Dataset:
        """Return (encoded, label, position) at a stream of positions."""

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

        def permutation(epoch: tf.Tensor) -> tf.data.Dataset:
            order = tf.random.experimental.stateless_shuffle(tf.range(self.size, dtype=tf.int64), [stream, epoch])
            return tf.data.Dataset.from_tensor_slices(order)

        return tf.data.Dataset.range(first // self.size, tf.int64.max).flat_map(permutation).skip(first % self.size)


def aligned_array(shape: Sequence[int]) -> np.ndarray:
    """Return an array, uint8 and not yet filled, whose memory TensorFlow takes as a tensor without a copy."""
    count = math.prod(shape)
    raw = np.empty(count + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count].reshape(shape)


def _aligned(images: np.ndarray) -> np.ndarray:
    """Return the array itself where TensorFlow takes its memory without a copy, else one copy that does."""
    images = np.asarray(images)
    flags = images.flags
    if images.dtype == np.uint8 and flags.c_contiguous and flags.writeable and not images.ctypes.data % ALIGNMENT:
        return images
    copy = aligned_array(images.shape)
    copy[...] = images
    return copy


class ArraySplit(PositionSplit, SizedSplit):
    """Images in memory. All streams and all subsets read the same memory; nothing of it is copied for them.

    Args:
        images: uint8 [n, H, W, 3], RGB. An array that does not begin at a multiple of 64 bytes is copied once.
        labels: integers [n].
        view: what brought the images to this size, or None of images that are stored so.
        originals: the same images before they were brought to this size; by default these.
    """

    checked = True

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        view: View | None = None,
        originals: Split | None = None,
    ):
        labels = np.asarray(labels, np.int64)
        shape = np.shape(images)
        if len(shape) != 4 or shape[-1] != 3 or labels.shape != shape[:1] or not labels.size:
            raise UserError(
                f"images have shape {shape} and labels {labels.shape}; "
                "they must be [n, height, width, 3] and [n], n at least 1."
            )
        self._set(_aligned(images), None, labels, view)
        self._originals = originals

    def _set(self, stored: np.ndarray, at: np.ndarray | None, labels: np.ndarray, view: View | None) -> None:
        self._stored, self._at, self._labels, self.view = stored, at, labels, view
        self.size, self.image_size = len(labels), (stored.shape[1], stored.shape[2])
        self.held_bytes = self.size * math.prod(stored.shape[1:])

    @property
    def images(self) -> np.ndarray:
        """All images, uint8 [size, H, W, 3]: the memory itself, or a copy of a subset's part of it."""
        return self._stored if self._at is None else self._stored[self._at]

    @property
    def labels(self) -> np.ndarray:
        """All labels, int64 [size]."""
        return self._labels

    @property
    def labelled(self) -> bool:
        """Whether the labels are known: those that are not are negative."""
        return bool(self._labels.min() >= 0)

    def at_size(self, view: View, memory_limit: int) -> SizedSplit:
        """Return the split resized; itself where it has the size already."""
        if self.image_size == view.crop and (self.view == view or min(view.crop) == view.resize):
            return self
        if self._originals is not None:
            return self._originals.at_size(view, memory_limit)
        return super().at_size(view, memory_limit)

    @property
    def originals(self) -> Split:
        """The same images before they were brought to this size."""
        return self if self._originals is None else self._originals

    def ids(self, positions: Positions | None = None) -> list[str]:
        """Return those of the images before they were brought to this size."""
        return super().ids(positions) if self._originals is None else self._originals.ids(positions)

    def _stored_position(self, position: int) -> int:
        return position if self._at is None else int(self._at[position])

    def subset(self, positions: Positions) -> ArraySplit:
        """Return the images at these positions, in the same memory."""
        positions = np.asarray(positions)
        part = ArraySplit.__new__(ArraySplit)
        at = positions if self._at is None else self._at[positions]
        part._set(self._stored, at, self._labels[positions], self.view)
        part._originals = None if self._originals is None else self._originals.subset(positions)
        return part

    def fingerprint(self) -> str:
        """Return the sha256 of pixels and labels."""
        digest, rows = hashlib.sha256(), max(1, HASHED_TOGETHER // math.prod(self._stored.shape[1:]))
        for start in range(0, self.size, rows):
            part = slice(start, start + rows)
            digest.update(self._stored[part if self._at is None else self._at[part]].data)
        digest.update(self._labels.data)
        return digest.hexdigest()

    def in_order(self, batch_size: int) -> tf.data.Dataset:
        """Return one pass in the stored order."""
        return self._batches(tf.data.Dataset.range(self.size), batch_size, drop_remainder=False).prefetch(2)

    def shuffled(self, batch_size: int, seed: int, first: int = 0, balanced: bool = False) -> tf.data.Dataset:
        """Return an endless stream in the order of `encoded_shuffled`."""
        return self._batches(self._order(seed, first, balanced), batch_size, drop_remainder=True)

    def _batches(self, positions: tf.data.Dataset, batch_size: int, drop_remainder: bool) -> tf.data.Dataset:
        images, labels, stored_at = self._tensors()
        batches = positions.batch(batch_size, drop_remainder=drop_remainder).map(
            lambda chosen: (tf.gather(images, stored_at(chosen)), tf.gather(labels, chosen)), num_parallel_calls=1
        )
        return untuned(batches)

    def _read_encoded(self, positions: tf.data.Dataset) -> tf.data.Dataset:
        images, labels, stored_at = self._tensors()
        return parallel_map(
            positions,
            # Uncompressed, because the image is decoded again immediately.
            lambda position: (
                tf.io.encode_png(images[stored_at(position)], compression=0),
                labels[position],
                position,
            ),
        )

    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        """Return images and labels as tensors, and what turns positions of the split into those of the images."""
        # A constant would be a copy for each stream.
        images = tf.experimental.dlpack.from_dlpack(self._stored.__dlpack__())
        with tf.device("CPU"):
            labels = tf.constant(self._labels)
            at = None if self._at is None else tf.constant(self._at, tf.int64)
        return images, labels, lambda positions: positions if at is None else tf.gather(at, positions)


class FileSplit(PositionSplit):
    """Encoded images in files.

    Args:
        paths: the files.
        labels: integers [n].
        folder: below which the files are named in `ids`; by default the deepest that holds all of them.
    """

    def __init__(self, paths: Sequence[Path], labels: np.ndarray, folder: Path | None = None):
        self.paths = list(paths)
        self._labels = np.asarray(labels, np.int64)
        self._folder = folder
        self.size = len(self.paths)

    @property
    def labels(self) -> np.ndarray:
        """All labels, int64 [size]."""
        return self._labels

    @property
    def folder(self) -> Path:
        """The folder below which `ids` names the files."""
        if self._folder is None:
            self._folder = Path(os.path.commonpath([path.absolute().parent for path in self.paths]))
        return self._folder

    def ids(self, positions: Positions | None = None) -> list[str]:
        """Return the files' paths below the split's folder, with slashes, as a line of text can hold them."""
        paths = self.paths if positions is None else [self.paths[position] for position in positions]
        return [printable(os.path.relpath(path, self.folder).replace(os.sep, "/")) for path in paths]

    def subset(self, positions: Positions) -> FileSplit:
        """Return the files at these positions."""
        part = FileSplit([self.paths[position] for position in positions], self._labels[positions], self._folder)
        part.checked = self.checked
        return part

    def broken(self) -> list[tuple[int, str, str]]:
        """Return (position, path, reason) of the files that do not decode; every file is decoded."""
        encoded = self.encoded_in_order().map(lambda data, label, position: data)
        bad = broken_positions(encoded, self.size, self.state())
        return [(position, str(self.paths[position]), file_reason(self.paths[position])) for position in bad]

    def state(self) -> str:
        """Return the paths of all files with their sizes and times of change."""
        return "\n".join(map(_file_state, self.paths))

    def fingerprint(self) -> str:
        """Return the sha256 of class folders, names, sizes in bytes and labels."""
        lines = (
            f"{path.parent.name}/{path.name} {path.stat().st_size if path.exists() else None} {label}"
            for path, label in zip(self.paths, self._labels, strict=True)
        )
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()

    def _read_encoded(self, positions: tf.data.Dataset) -> tf.data.Dataset:
        # As bytes: a file's name need not be text.
        paths = tf.constant([os.fsencode(path) for path in self.paths], tf.string)
        labels = tf.constant(self._labels)
        return parallel_map(positions, lambda position: (tf.io.read_file(paths[position]), labels[position], position))


def file_reason(path: Path) -> str:
    """Say why a file does not decode."""
    return ": ".join(file_kind(path))


def file_kind(path: Path) -> tuple[str, str]:
    """Return (kind, reason) of a file that does not decode; a file that can't be read is "unreadable"."""
    try:
        return broken_kind(path.read_bytes())
    except OSError as error:
        return "unreadable", error.strerror or str(error)


def _file_state(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError:
        return str(path)
    return f"{path.absolute()} {facts.st_size} {facts.st_mtime_ns}"


def held_out(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose `count` positions, evenly spaced within each class, each class by its fraction.

    Args:
        labels: integers [n].
        count: how many to hold out, between 1 and n - 1.

    Returns:
        (held, kept): positions, each ascending.
    """
    by_class = np.argsort(labels, kind="stable")
    held = by_class[(np.arange(count) * len(labels)) // count]
    return np.sort(held), np.setdiff1d(np.arange(len(labels)), held)
