"""The sources of data: one row each. `load_dataset` asks them in this order which one knows a name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from keras_convnets.files import path_text
from keras_convnets.training.data.dataset import DataSet
from keras_convnets.training.data.digits import load_digits
from keras_convnets.training.data.folder import load_folder
from keras_convnets.training.data.imagenet_validation import holds_validation, load_validation
from keras_convnets.training.data.shards import holds_shards, load_shards
from keras_convnets.training.data.tfds import load_tfds

# Text stays text, every other path is a Path: "digits" is a name, Path("digits") a folder.
Place = str | Path


class Source(NamedTuple):
    """A source of data sets.

    Attributes:
        name: what it is, in a word.
        knows: whether a name or path is one of its.
        load: (name or path, folder of prepared TFDS directories or None) -> the data set.
    """

    name: str
    knows: Callable[[Place], bool]
    load: Callable[[Place, str | os.PathLike | None], DataSet]


SOURCES = (
    Source("digits", lambda place: place == "digits", lambda place, _: load_digits()),
    Source("shards", lambda place: holds_shards(Path(place)), lambda place, _: load_shards(Path(place))),
    Source(
        "imagenet validation",
        lambda place: holds_validation(Path(place)),
        lambda place, _: load_validation(Path(place)),
    ),
    Source("folder", lambda place: Path(place).is_dir(), lambda place, _: load_folder(Path(place))),
    Source("tfds", lambda place: True, lambda place, data_dir: load_tfds(str(place), data_dir)),
)


def load_dataset(name: str | os.PathLike | DataSet, data_dir: str | os.PathLike | None = None) -> DataSet:
    """Return a data set by its name.

    Args:
        name: "digits" (scikit-learn's 8x8 handwritten digits); a folder of images, `train/<class>/*.jpg` with or
            without `val/` or `test/`, or `<class>/*.jpg`, of which every fifth image of each class is then "test";
            a folder of shards that `prepare` wrote; ImageNet's validation images in one folder with their ground truth
            (`load_validation`); or a name of TensorFlow Datasets, such as "cifar10",
            "emnist/letters" with a config, or "cifar10:3.0.2" with a version. What exists as a folder is a folder.
        data_dir: where TensorFlow Datasets' prepared directories are looked for first, then TFDS_DATA_DIR, then
            ~/tensorflow_datasets.

    Raises:
        UserError: if there is no such data set, or it can't be read.

    Example:
        >>> load_dataset("digits").splits["test"].size
        360
    """
    if isinstance(name, DataSet):
        return name
    text = path_text(name, "dataset", "a DataSet, digits, a folder of images, or a name of TensorFlow Datasets")
    place = text if isinstance(name, str) else Path(text)
    return next(source for source in SOURCES if source.knows(place)).load(place, data_dir)
