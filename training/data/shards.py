"""A folder of TFRecord shards with an index, as `prepare` writes it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_convnets.classes import check_class_names
from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.files import read_json
from keras_convnets.training.data.dataset import DataSet
from keras_convnets.training.data.sequential import StreamSplit
from keras_convnets.training.data.splits import Positions

INDEX = "prepared.json"
FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/class/label": tf.io.FixedLenFeature([], tf.int64),
}


FORMATS = ("folder", "tfrecord")
SPLITS = ("train", "val", "validation", "test")
# A record's length, its checksums and its label are no less than this, in bytes.
LEAST_RECORD = 16


def read_index(folder: Path) -> dict[str, Any]:
    """Return what `prepare` wrote of a folder, after a look at everything that is used of it.

    Raises:
        UserError: if it is missing, or anything in it is not as `prepare` writes it.
    """
    path = folder / INDEX
    index = read_json(path, "index of prepared images")

    def require(condition: bool, what: str) -> None:
        if not condition:
            raise UserError(f"{path} is not as keras-convnets data prepare writes it ({what}); prepare the data again.")

    require(isinstance(index, dict) and isinstance(index.get("plan"), dict), "it has no plan")
    plan = index["plan"]
    require(plan.get("format") in FORMATS, f"its format is not one of {', '.join(FORMATS)}")
    require(_is_count(plan.get("shorter_side"), 1), "its shorter side is no number of pixels")
    require(isinstance(plan.get("source"), str), "it does not say what it was made of")
    require(isinstance(index.get("finished"), bool), "it does not say whether it is finished")
    require(_is_count(index.get("images")), "its number of images is none")
    require(_are_lists(index.get("left_out"), 3, str), "the images left out are no lists of split, file and reason")
    require(_are_facts(index.get("shards")), "a shard's file, split, images, bytes or sha256 is missing or wrong")
    files = [shard["file"] for shard in index["shards"]]
    require(len(set(files)) == len(files), "a shard is listed twice")
    if not index["finished"]:
        require(_are_lists(index.get("sizes"), 2, int), "its image sizes are no pairs of pixels")
        return index
    require(isinstance(index.get("name"), str) and index["name"] != "", "it has no name")
    names = index.get("class_names")
    require(isinstance(names, list), "its class names are no list")
    check_class_names(names, str(path))
    splits = index.get("splits")
    require(isinstance(splits, list) and len(set(map(str, splits))) == len(splits), "its splits are no list of names")
    is_known = bool(splits) and all(name in SPLITS for name in splits)
    require(is_known, f"its splits are not some of {', '.join(SPLITS)}")
    require(index.get("image_size") is None or _are_lists([index["image_size"]], 2, int), "its image size is no pair")
    listed = sum(shard["images"] for shard in index["shards"])
    require(plan["format"] == "folder" or listed == index["images"], "its shards do not add up to its images")
    return index


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**53


def _are_lists(value: Any, length: int, kind: type) -> bool:
    """Return whether a value is a list of lists of this length, of strings or positive numbers."""
    return isinstance(value, list) and all(
        isinstance(row, list)
        and len(row) == length
        and all(_is_count(item, 1) if kind is int else isinstance(item, kind) for item in row)
        for row in value
    )


def _are_facts(value: Any) -> bool:
    """Return whether a value is a list of shard descriptions whose files are directly in the folder."""
    return isinstance(value, list) and all(
        isinstance(shard, dict)
        and shard.get("split") in SPLITS
        and isinstance(shard.get("file"), str)
        and re.fullmatch(rf"{shard['split']}-[0-9]{{5,}}-of-[0-9]{{5,}}\.tfrecord", shard["file"]) is not None
        and isinstance(shard.get("sha256"), str)
        and re.fullmatch("[0-9a-f]{64}", shard["sha256"]) is not None
        and _is_count(shard.get("images"))
        and _is_count(shard.get("bytes"), LEAST_RECORD * shard["images"])
        for shard in value
    )


def holds_shards(folder: Path) -> bool:
    """Return whether a folder was written by `prepare` as shards.

    Raises:
        UserError: if it was begun by `prepare`, in whatever format, and is not finished, or its index is damaged.
    """
    if not (folder / INDEX).is_file():
        return False
    index = read_index(folder)
    if not index["finished"]:
        raise UserError(f"{folder} is not finished; run the same keras-convnets data prepare again, which resumes.")
    return index["plan"]["format"] == "tfrecord"


def load_shards(folder: Path) -> DataSet:
    """Return the data set of a folder of shards. Its images were decoded when it was written.

    Raises:
        UserError: if the index is damaged, or a shard is missing, lies elsewhere or has another size than it was
            written with.
    """
    index = read_index(folder)
    splits = {}
    for name in index["splits"]:
        shards = [shard for shard in index["shards"] if shard["split"] == name]
        for shard in shards:
            path = folder / shard["file"]
            # A link could lead to any file of the machine.
            if path.is_symlink() or not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise UserError(f"{path} is missing or not as it was written; delete {folder} and prepare it again.")
        images = sum(shard["images"] for shard in shards)
        if not images:
            raise UserError(f"{folder / INDEX} lists no images of {name}; delete {folder} and prepare it again.")
        splits[name] = ShardSplit(folder, shards, range(images), len(index["class_names"]))
    size = index["image_size"]
    return DataSet(
        name=printable(index["name"]),
        class_names=tuple(index["class_names"]),
        flips_keep_labels=True,
        splits=splits,
        image_size=tuple(size) if size else None,
    )


class ShardSplit(StreamSplit):
    """A split in TFRecord shards of tf.train.Example.

    Args:
        folder: that holds them.
        shards: what the index says of each: "file", "images", "sha256".
        positions: which of their images, in the stored order; a range or an array.
        classes: number of classes; a label is below it.
    """

    # `prepare` writes only what it has decoded, and the records have checksums.
    checked = True

    def __init__(
        self,
        folder: Path,
        shards: Sequence[dict[str, Any]],
        positions: Positions,
        classes: int,
    ):
        super().__init__(positions)
        self._folder, self._shards, self._classes = folder, shards, classes

    def fingerprint(self) -> str:
        """Return what the index says of the shards, with their sha256."""
        return self._state() + self._digest()

    def _of(self, positions: Positions) -> ShardSplit:
        return ShardSplit(self._folder, self._shards, positions, self._classes)

    def _name_of(self, stored: int) -> str:
        return f"image {stored} of {self._folder}"

    def _state(self) -> str:
        return " ".join(f"{shard['file']}:{shard['sha256']}" for shard in self._shards)

    def _stored(self) -> tf.data.Dataset:
        files = [os.fsencode(self._folder / shard["file"]) for shard in self._shards]
        known = tf.range(self._classes, dtype=tf.int64)

        def read(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            example = tf.io.parse_single_example(record, FEATURES)
            # A label beyond the classes is no index into them, which fails here and not in the network.
            return example["image/encoded"], tf.gather(known, example["image/class/label"])

        return tf.data.TFRecordDataset(files, buffer_size=1 << 20).map(read)
