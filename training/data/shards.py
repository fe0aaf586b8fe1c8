"""A folder of TFRecord shards with an index, as `prepare` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_convnets.errors import UserError
from keras_convnets.files import read_json
from keras_convnets.training.data.dataset import DataSet
from keras_convnets.training.data.streams import StreamSplit

INDEX = "prepared.json"
FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/class/label": tf.io.FixedLenFeature([], tf.int64),
}


def holds_shards(folder: Path) -> bool:
    """Return whether a folder was written by `prepare` as shards.

    Raises:
        UserError: if it was begun by `prepare`, in whatever format, and is not finished.
    """
    if not (folder / INDEX).is_file():
        return False
    index = read_json(folder / INDEX, "index of prepared images")
    if not index.get("finished"):
        raise UserError(f"{folder} is not finished; run the same keras-convnets data prepare again, which goes on.")
    return index["plan"]["format"] == "tfrecord"


def load_shards(folder: Path) -> DataSet:
    """Return the data set of a folder of shards. Its images were decoded when it was written.

    Raises:
        UserError: if a shard is missing or has another size than it was written with.
    """
    index = read_json(folder / INDEX, "index of prepared images")
    splits = {}
    for name in index["splits"]:
        shards = [shard for shard in index["shards"] if shard["split"] == name]
        for shard in shards:
            path = folder / shard["file"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise UserError(f"{path} is missing or not as it was written; delete {folder} and prepare it again.")
        splits[name] = ShardSplit(folder, shards, range(sum(shard["images"] for shard in shards)))
    size = index["image_size"]
    return DataSet(
        name=index["name"],
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
    """

    # `prepare` writes only what it has decoded, and the records have checksums.
    checked = True

    def __init__(
        self,
        folder: Path,
        shards: Sequence[dict[str, Any]],
        positions: Sequence[int],
    ):
        super().__init__(positions)
        self._folder, self._shards = folder, shards

    def fingerprint(self) -> str:
        """Return what the index says of the shards, with their sha256."""
        return self._state() + self._digest()

    def _of(self, positions) -> ShardSplit:
        return ShardSplit(self._folder, self._shards, positions)

    def _name_of(self, stored: int) -> str:
        return f"image {stored} of {self._folder}"

    def _state(self) -> str:
        return " ".join(f"{shard['file']}:{shard['sha256']}" for shard in self._shards)

    def _stored(self) -> tf.data.Dataset:
        files = [str(self._folder / shard["file"]) for shard in self._shards]

        def read(record):
            example = tf.io.parse_single_example(record, FEATURES)
            return example["image/encoded"], example["image/class/label"]

        return tf.data.TFRecordDataset(files, buffer_size=1 << 20).map(read)
