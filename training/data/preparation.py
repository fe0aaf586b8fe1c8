"""A folder of photographs once made small: upright and no larger than training needs, as files or as shards."""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.files import atomic_file, exclusive_lock, folded_name, sha256, wrap_write_errors, write_json
from keras_convnets.images.decoding import MAX_PIXELS, decode_image
from keras_convnets.images.files import ORIENTATION, OTHER_SUFFIXES
from keras_convnets.numbers import whole_number
from keras_convnets.training.data.folder import load_folder
from keras_convnets.training.data.integrity import (
    BROKEN_FRACTION,
    UNREADABLE,
    BrokenImage,
    check_fraction,
    image_type,
    open_header,
)
from keras_convnets.training.data.shards import FORMATS, INDEX, read_index
from keras_convnets.training.data.splits import FileSplit, Positions, file_reason

# About 200 MB of photographs whose shorter side is 256.
SHARD_IMAGES = 4096
JPEG_QUALITY = 95
ENDINGS = {"JPEG": (".jpg", ".jpeg", ".jpe", ".jif", ".jfif"), "PNG": (".png",)}
# What Pillow may be asked to read where TensorFlow does not: readers in Pillow itself, which start no other program.
CONVERTED = ("TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "DIB", "ICO", "WEBP", "BMP", "GIF", "PNG", "JPEG")


@dataclass(frozen=True)
class Prepared:
    """What `prepare_folder` wrote.

    Attributes:
        folder: where it lies.
        images: number of images written, of this call and earlier ones.
        left_out: the images that can't be read.
    """

    folder: Path
    images: int
    left_out: tuple[BrokenImage, ...]


def prepare_folder(
    folder: str | os.PathLike,
    to: str | os.PathLike,
    shorter_side: int,
    format: str = "folder",
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Write a folder's photographs anew, upright, the larger ones resized; the source stays as it is.

    A photograph whose shorter side is longer than `shorter_side` is resized by Pillow's Lanczos kernel, which is
    antialiased, and written as JPEG of quality 95 without chroma subsampling, or as PNG where it was no JPEG. EXIF
    orientation is applied and dropped. Upright JPEGs and PNGs that are small enough are copied byte by byte. What
    TensorFlow does not decode and Pillow does, such as TIFF, AVIF and the first frame of an animated WebP, becomes PNG.

    The splits are those of `load_dataset(folder)` and become `train/`, `test/` and so on, so that no image changes its
    part. Shards hold the images of a split in a random order that is always the same, because they are read one after
    the other. A second call with the same arguments resumes where the first was stopped.

    Args:
        folder: of images, as `load_dataset` takes it.
        to: the folder to write; empty, new, or begun by an earlier call.
        shorter_side: in pixels, at least 1.
        format: "folder", of files as in the source, or "tfrecord", of shards of tf.train.Example with "image/encoded",
            "image/class/label", "image/class/text" and "image/filename". `load_dataset` reads both.
        progress: called with (images done, images in all).

    Raises:
        UserError: if an argument does not fit, `to` lies in the folder or holds something else, or too many images are
            broken.
    """
    folder, to = Path(folder), Path(to)
    shorter_side = _checked(folder, to, shorter_side, format)
    data = load_folder(folder, convertible=True)
    # A folder's splits are of files.
    splits = cast("dict[str, FileSplit]", dict(data.splits))
    plan = {"source": data.fingerprint(), "shorter_side": shorter_side, "format": format}
    then = "mend that, and the same command resumes, or name another with --to"
    with wrap_write_errors(to, then):
        to.mkdir(parents=True, exist_ok=True)
    with wrap_write_errors(to, then), exclusive_lock(to, "prepared"):
        index = _claimed(to, plan)
        if not index.get("finished"):
            index |= {"name": data.name, "class_names": list(data.class_names), "splits": list(splits)}
            work = _Work(to, index, folder, shorter_side, progress, sum(split.size for split in splits.values()))
            for name, split in splits.items():
                (work.write_files if format == "folder" else work.write_shards)(name, split)
                # Others than those that training reads are a gain, and no loss.
                left_out = [BrokenImage(*item) for item in index["left_out"] if item[0] == name]
                broken = [image for image in left_out if not image.file.lower().endswith(OTHER_SUFFIXES)]
                check_fraction(name, split.size, broken, BROKEN_FRACTION)
            sizes = index.pop("sizes")
            write_json(to / INDEX, {**index, "image_size": sizes[0] if len(sizes) == 1 else None, "finished": True})
    return Prepared(to, index["images"], tuple(BrokenImage(*item) for item in index["left_out"]))


def _checked(folder: Path, to: Path, shorter_side: int, format: str) -> int:
    """Refuse arguments that do not fit; return the shorter side as Python's integer."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give an existing folder of images.")
    side = whole_number(shorter_side)
    if side is None or side < 1:
        raise UserError(f"shorter_side is {shorter_side!r}; give a whole number of at least 1 pixel.")
    if format not in FORMATS:
        raise UserError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}.")
    source, target = folder.resolve(), to.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f"{to} and {folder} lie one in the other; write to a folder outside the source.")
    return side


def _claimed(to: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Return the index of what is done; an empty folder's is new."""
    if (to / INDEX).is_file():
        index = read_index(to)
        if index["plan"] != plan:
            raise UserError(
                f"{to} was prepared from other images or in another way ({_shown(index['plan'])}; now {_shown(plan)}); "
                "delete it or write to another folder."
            )
        return index
    if any(entry.name != ".lock" for entry in to.iterdir()):
        raise UserError(f"{to} holds other files; write to a new or an empty folder.")
    index = {"plan": plan, "finished": False, "images": 0, "left_out": [], "sizes": [], "shards": []}
    write_json(to / INDEX, index)
    return index


def _shown(plan: dict[str, Any]) -> str:
    return f"shorter side {plan['shorter_side']}, {plan['format']}"


@dataclass
class _Work:
    """One call's part of a preparation; `index` grows as images are written."""

    to: Path
    index: dict[str, Any]
    folder: Path
    shorter_side: int
    progress: Callable[[int, int], None] | None
    total: int
    done: int = 0

    def write_files(self, split_name: str, split: FileSplit) -> None:
        """Write a split as files; what is there already is not made again."""
        # Every split has the folders of all classes, also of those that it has no image of.
        folders = [self.to / split_name / name for name in self.index["class_names"]]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        if len({os.stat(folder).st_ino for folder in folders}) < len(folders):
            raise UserError(
                f"the file system of {self.to} takes the names of two classes for one (upper and lower case); rename "
                "one of them, or write to another."
            )
        names = _distinct_names(split.paths, split.labels.tolist())

        def make(path: Path, label: int) -> tuple[int, int] | None:
            target, name = folders[label], names[path]
            with contextlib.suppress(StopIteration):
                return _size(next(found for name in _names(name) if (found := target / name).is_file()))
            made = prepared_image(path, self.shorter_side)
            if made is None:
                return None
            with atomic_file(target / made.name_for(name)) as temporary:
                temporary.write_bytes(made.encoded)
            return made.size

        for path, size in self._each(make, split, range(split.size)):
            self._count(split_name, path, size)

    def write_shards(self, split_name: str, split: FileSplit) -> None:
        """Write a split as shards; those that the index knows are not made again."""
        order = np.random.default_rng(0).permutation(split.size)
        count = math.ceil(split.size / SHARD_IMAGES)
        for number, positions in enumerate(np.array_split(order, count)):
            file = f"{split_name}-{number:05d}-of-{count:05d}.tfrecord"
            if any(shard["file"] == file for shard in self.index["shards"]):
                self._advance(len(positions))
                continue
            images_before = self.index["images"]
            with atomic_file(self.to / file) as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
                results = self._each(lambda path, label: prepared_image(path, self.shorter_side), split, positions)
                for position, (path, made) in zip(positions, results, strict=True):
                    self._count(split_name, path, made and made.size)
                    if made is not None:
                        writer.write(self._example(made.encoded, int(split.labels[position]), path))
            self._add_shard(split_name, file, self.index["images"] - images_before)

    def _add_shard(self, split_name: str, file: str, images: int) -> None:
        path = self.to / file
        facts = {"file": file, "split": split_name, "images": images}
        self.index["shards"].append({**facts, "bytes": path.stat().st_size, "sha256": sha256(path)})
        write_json(self.to / INDEX, self.index)

    def _each(self, make: Callable, split: FileSplit, positions: Positions) -> Iterator[tuple[Path, Any]]:
        """Give (path, what is made of it) in order, made by as many threads as there are processors."""
        workers = os.cpu_count() or 1
        with ThreadPoolExecutor(workers) as pool:
            # Some at a time, so that no more encoded images wait in memory.
            for first in range(0, len(positions), 16 * workers):
                part = positions[first : first + 16 * workers]
                paths = [split.paths[position] for position in part]
                yield from zip(paths, pool.map(make, paths, [split.labels[at] for at in part]), strict=True)

    def _count(self, split_name: str, path: Path, size: tuple[int, int] | None) -> None:
        if size is None:
            is_other = path.suffix.lower() in OTHER_SUFFIXES
            reason = f"Pillow reads no such {path.suffix}" if is_other else file_reason(path)
            self.index["left_out"].append([split_name, printable(path), reason])
        else:
            self.index["images"] += 1
            # Two different sizes say all that is asked: whether the images share one.
            if list(size) not in self.index["sizes"] and len(self.index["sizes"]) < 2:
                self.index["sizes"].append(list(size))
        self._advance(1)

    def _advance(self, images: int) -> None:
        self.done += images
        if self.progress:
            self.progress(self.done, self.total)

    def _example(self, encoded: bytes, label: int, path: Path) -> bytes:
        def texts(value: bytes) -> tf.train.Feature:
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

        features = {
            "image/encoded": texts(encoded),
            "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            "image/class/text": texts(self.index["class_names"][label].encode()),
            "image/filename": texts(os.fsencode(path.relative_to(self.folder).as_posix())),
        }
        return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@dataclass(frozen=True)
class PreparedImage:
    """One image, ready to be written.

    Attributes:
        encoded: JPEG or PNG.
        kind: "JPEG" or "PNG".
        size: (height, width).
    """

    encoded: bytes
    kind: str
    size: tuple[int, int]

    def name_for(self, name: str) -> str:
        """Return the name for a file of this name, with another ending where the type has changed."""
        return name if Path(name).suffix.lower() in ENDINGS[self.kind] else name + ENDINGS[self.kind][0]


def prepared_image(path: Path, shorter_side: int) -> PreparedImage | None:
    """Return a photograph upright and no larger than needed, or None if it does not decode.

    Args:
        path: the file.
        shorter_side: in pixels; an image whose shorter side is no longer keeps its size.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    try:
        image = Image.fromarray(decode_image(tf.constant(data)).numpy())
        orientation = _orientation(data)
    except UNREADABLE:
        converted = _converted(data)
        if converted is None:
            return None
        image, orientation = converted, 1
    if orientation != 1:
        image.getexif()[ORIENTATION] = orientation
        image = ImageOps.exif_transpose(image)
    kind = "JPEG" if image_type(data) == "JPEG" else "PNG"
    shorter = min(image.size)
    if shorter > shorter_side:
        size = [max(shorter_side, round(side * shorter_side / shorter)) for side in image.size]
        image = image.resize(size, Image.Resampling.LANCZOS)
    elif orientation == 1 and image_type(data) == kind:
        return PreparedImage(data, kind, (image.height, image.width))
    buffer = io.BytesIO()
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if kind == "JPEG" else {}
    image.save(buffer, kind, **options, exif=b"")
    return PreparedImage(buffer.getvalue(), kind, (image.height, image.width))


def _converted(data: bytes) -> Image.Image | None:
    """Return what Pillow reads of an image that TensorFlow does not decode, upright and RGB, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=CONVERTED) as image:
                if image.width * image.height > MAX_PIXELS:
                    return None
                image.load()
                turned = ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, IndexError, EOFError, KeyError, struct.error):
        return None
    except Image.DecompressionBombError:
        return None
    if turned.mode.startswith("I;16"):
        # Of 16 bits the upper 8, as of PNG; Pillow would cut at 255.
        turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
    # Numbers of 32 bits have no range that is known.
    return None if turned.mode in ("I", "F") else turned.convert("RGB")


def _orientation(data: bytes) -> int:
    try:
        with open_header(io.BytesIO(data)) as image:
            return image.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 1


def _names(name: str) -> list[str]:
    """Return the names under which an image may be written that is called so."""
    return [name, *(name + endings[0] for endings in ENDINGS.values())]


def _distinct_names(paths: Sequence[Path], labels: Sequence[int]) -> dict[Path, str]:
    """Return a name for each file, its own where no two files of a class could be written under one name.

    "x.gif" may become "x.gif.png", file systems may ignore upper and lower case, and folders below a class are not made
    again; a later file then gets a number.
    """
    chosen: dict[Path, str] = {}
    taken: defaultdict[int, set[str]] = defaultdict(set)
    for path, label in zip(paths, labels, strict=True):
        name, number = path.name, 1
        while taken[label] & set(map(folded_name, _names(name))):
            number += 1
            name = f"{path.stem}%~{number}{path.suffix}"
        taken[label] |= set(map(folded_name, _names(name)))
        chosen[path] = name
    return chosen


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.height, image.width
