"""Preparation of image folders for training: upright and downscaled once, written as files or TFRecord shards."""

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

# About 200 MB per shard for photographs with a shorter side of 256 pixels.
SHARD_IMAGES = 4096
JPEG_QUALITY = 95
SUFFIXES = {"JPEG": (".jpg", ".jpeg", ".jpe", ".jif", ".jfif"), "PNG": (".png",)}
# Formats that Pillow decodes if TensorFlow can't: only decoders in Pillow itself, which run no external program.
CONVERTED = ("TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "DIB", "ICO", "WEBP", "BMP", "GIF", "PNG", "JPEG")


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare_folder`.

    Attributes:
        folder: the folder that was written.
        images: number of images written, including those of earlier calls.
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
    """Write upright, downscaled copies of a folder's photographs; the source is not changed.

    A photograph whose shorter side exceeds `shorter_side` is resized with Pillow's antialiased Lanczos filter and
    written as JPEG of quality 95 without chroma subsampling, or as PNG if the source is not a JPEG. The EXIF
    orientation is applied and removed. Upright JPEGs and PNGs that are small enough are copied byte by byte. Images
    that Pillow decodes and TensorFlow does not, such as TIFF, AVIF and the first frame of an animated WebP, become PNG.

    The splits of `load_dataset(folder)` are kept and written as `train/`, `test/` and so on. Shards hold the images of
    a split in a fixed random order, because they are read sequentially. A second call with the same arguments resumes
    an interrupted one.

    Args:
        folder: a folder of images, as accepted by `load_dataset`.
        to: the folder to write: new, empty, or of an interrupted call.
        shorter_side: maximum shorter side in pixels, at least 1.
        format: "folder", of files as in the source, or "tfrecord", of shards of tf.train.Example with "image/encoded",
            "image/class/label", "image/class/text" and "image/filename". `load_dataset` reads both.
        progress: called with (images done, total images).

    Raises:
        UserError: if an argument is invalid, `to` is inside `folder` (or the reverse) or holds other files, or too many
            images are broken.
    """
    folder, to = Path(folder), Path(to)
    shorter_side = _check_arguments(folder, to, shorter_side, format)
    data = load_folder(folder, convertible=True)
    # `load_folder` returns splits of files.
    splits = cast("dict[str, FileSplit]", dict(data.splits))
    plan = {"source": data.fingerprint(), "shorter_side": shorter_side, "format": format}
    advice = "fix that, and the same command resumes, or give another folder with --to"
    with wrap_write_errors(to, advice):
        to.mkdir(parents=True, exist_ok=True)
    with wrap_write_errors(to, advice), exclusive_lock(to, "prepared"):
        index = _load_or_create_index(to, plan)
        if not index.get("finished"):
            index |= {"name": data.name, "class_names": list(data.class_names), "splits": list(splits)}
            preparation = _Preparation(
                to, index, folder, shorter_side, progress, sum(split.size for split in splits.values())
            )
            for name, split in splits.items():
                (preparation.write_files if format == "folder" else preparation.write_shards)(name, split)
                # Formats that training does not read (TIFF, AVIF ...) do not count as broken.
                left_out = [BrokenImage(*item) for item in index["left_out"] if item[0] == name]
                broken = [image for image in left_out if not image.file.lower().endswith(OTHER_SUFFIXES)]
                check_fraction(name, split.size, broken, BROKEN_FRACTION)
            sizes = index.pop("sizes")
            write_json(to / INDEX, {**index, "image_size": sizes[0] if len(sizes) == 1 else None, "finished": True})
    return Prepared(to, index["images"], tuple(BrokenImage(*item) for item in index["left_out"]))


def _check_arguments(folder: Path, to: Path, shorter_side: int, format: str) -> int:
    """Validate the arguments; return the shorter side as an `int`."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give an existing folder of images.")
    side = whole_number(shorter_side)
    if side is None or side < 1:
        raise UserError(f"shorter_side is {shorter_side!r}; give a whole number of at least 1 pixel.")
    if format not in FORMATS:
        raise UserError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}.")
    source, target = folder.resolve(), to.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f"one of {to} and {folder} is inside the other; write to a folder outside the source.")
    return side


def _load_or_create_index(to: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Return the index of the work done so far, creating it in an empty folder."""
    if (to / INDEX).is_file():
        index = read_index(to)
        if index["plan"] != plan:
            raise UserError(
                f"{to} was prepared from other images or with other arguments ({_plan_text(index['plan'])}; now "
                f"{_plan_text(plan)}); delete it or write to another folder."
            )
        return index
    if any(entry.name != ".lock" for entry in to.iterdir()):
        raise UserError(f"{to} holds other files; write to a new or an empty folder.")
    index = {"plan": plan, "finished": False, "images": 0, "left_out": [], "sizes": [], "shards": []}
    write_json(to / INDEX, index)
    return index


def _plan_text(plan: dict[str, Any]) -> str:
    return f"shorter side {plan['shorter_side']}, {plan['format']}"


@dataclass
class _Preparation:
    """The state of one call of `prepare_folder`; `index` is updated as images are written."""

    to: Path
    index: dict[str, Any]
    folder: Path
    shorter_side: int
    progress: Callable[[int, int], None] | None
    total: int
    done: int = 0

    def write_files(self, split_name: str, split: FileSplit) -> None:
        """Write a split as files; files that exist already are kept."""
        # Every split has a folder for every class, even without images.
        folders = [self.to / split_name / name for name in self.index["class_names"]]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        if len({os.stat(folder).st_ino for folder in folders}) < len(folders):
            raise UserError(
                f"the file system of {self.to} does not distinguish the names of two classes (upper and lower case); "
                "rename one of them, or write to another file system."
            )
        names = _distinct_names(split.paths, split.labels.tolist())

        def make(path: Path, label: int) -> tuple[int, int] | None:
            target, name = folders[label], names[path]
            with contextlib.suppress(StopIteration):
                return _size(next(found for name in _possible_names(name) if (found := target / name).is_file()))
            made = prepared_image(path, self.shorter_side)
            if made is None:
                return None
            with atomic_file(target / made.name_for(name)) as temporary:
                temporary.write_bytes(made.encoded)
            return made.size

        for path, size in self._map(make, split, range(split.size)):
            self._count(split_name, path, size)

    def write_shards(self, split_name: str, split: FileSplit) -> None:
        """Write a split as shards; shards in the index are kept."""
        order = np.random.default_rng(0).permutation(split.size)
        count = math.ceil(split.size / SHARD_IMAGES)
        for number, positions in enumerate(np.array_split(order, count)):
            file = f"{split_name}-{number:05d}-of-{count:05d}.tfrecord"
            if any(shard["file"] == file for shard in self.index["shards"]):
                self._advance(len(positions))
                continue
            images_before = self.index["images"]
            with atomic_file(self.to / file) as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
                results = self._map(lambda path, label: prepared_image(path, self.shorter_side), split, positions)
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

    def _map(self, make: Callable, split: FileSplit, positions: Positions) -> Iterator[tuple[Path, Any]]:
        """Yield (path, result of `make`) in order, computed by a thread per processor."""
        workers = os.cpu_count() or 1
        with ThreadPoolExecutor(workers) as pool:
            # In chunks, to limit the encoded images in memory.
            for first in range(0, len(positions), 16 * workers):
                chunk = positions[first : first + 16 * workers]
                paths = [split.paths[position] for position in chunk]
                yield from zip(
                    paths, pool.map(make, paths, [split.labels[position] for position in chunk]), strict=True
                )

    def _count(self, split_name: str, path: Path, size: tuple[int, int] | None) -> None:
        if size is None:
            is_other = path.suffix.lower() in OTHER_SUFFIXES
            reason = f"Pillow can't read this {path.suffix}" if is_other else file_reason(path)
            self.index["left_out"].append([split_name, printable(path), reason])
        else:
            self.index["images"] += 1
            # Two sizes are enough to know that the images do not all have the same one.
            if list(size) not in self.index["sizes"] and len(self.index["sizes"]) < 2:
                self.index["sizes"].append(list(size))
        self._advance(1)

    def _advance(self, images: int) -> None:
        self.done += images
        if self.progress:
            self.progress(self.done, self.total)

    def _example(self, encoded: bytes, label: int, path: Path) -> bytes:
        def bytes_feature(value: bytes) -> tf.train.Feature:
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

        features = {
            "image/encoded": bytes_feature(encoded),
            "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            "image/class/text": bytes_feature(self.index["class_names"][label].encode()),
            "image/filename": bytes_feature(os.fsencode(path.relative_to(self.folder).as_posix())),
        }
        return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@dataclass(frozen=True)
class PreparedImage:
    """An encoded image to write.

    Attributes:
        encoded: JPEG or PNG.
        kind: "JPEG" or "PNG".
        size: (height, width).
    """

    encoded: bytes
    kind: str
    size: tuple[int, int]

    def name_for(self, name: str) -> str:
        """Return the file name to write for a source file's name, with a suffix added if the format has changed."""
        return name if Path(name).suffix.lower() in SUFFIXES[self.kind] else name + SUFFIXES[self.kind][0]


def prepared_image(path: Path, shorter_side: int) -> PreparedImage | None:
    """Return a photograph upright and downscaled, or None if it can't be decoded.

    Args:
        path: the file.
        shorter_side: maximum shorter side in pixels; smaller images keep their size.
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
    """Decode an image with Pillow, upright and RGB, or return None if it can't."""
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
        # Keep the upper 8 of 16 bits, as for PNG; Pillow would clip at 255.
        turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
    # 32-bit integer and float images have no known range.
    return None if turned.mode in ("I", "F") else turned.convert("RGB")


def _orientation(data: bytes) -> int:
    try:
        with open_header(io.BytesIO(data)) as image:
            return image.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 1


def _possible_names(name: str) -> list[str]:
    """Return the file names under which an image of this name may be written."""
    return [name, *(name + endings[0] for endings in SUFFIXES.values())]


def _distinct_names(paths: Sequence[Path], labels: Sequence[int]) -> dict[Path, str]:
    """Return the name to write for each file: its own, with a number added where names in a class would collide.

    Names may collide because "x.gif" may become "x.gif.png", file systems may be case-insensitive, and sub-folders of a
    class are flattened.
    """
    chosen: dict[Path, str] = {}
    taken: defaultdict[int, set[str]] = defaultdict(set)
    for path, label in zip(paths, labels, strict=True):
        name, number = path.name, 1
        while taken[label] & set(map(folded_name, _possible_names(name))):
            number += 1
            name = f"{path.stem}%~{number}{path.suffix}"
        taken[label] |= set(map(folded_name, _possible_names(name)))
        chosen[path] = name
    return chosen


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.height, image.width
