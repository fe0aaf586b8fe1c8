"""The data set as training and evaluation see it, and the way from a name to one."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from keras_convnets.card import center_view
from keras_convnets.errors import UserError, unknown_name
from keras_convnets.training.data.splits import Split, held_out

# Decoded images of up to this many bytes are kept in memory; more are read from disk in each epoch.
MEMORY_LIMIT = 2 * 1024**3


@dataclass(frozen=True)
class DataSet:
    """Labelled images in named splits.

    Attributes:
        name: what it was asked for by.
        class_names: the classes; a label is an index into them.
        flips_keep_labels: whether a mirrored image has the same label (digits: no).
        splits: "train", and "test", "val" or "validation" as the source has them.
        image_size: (height, width) where all images share it, else None.
    """

    name: str
    class_names: tuple[str, ...]
    flips_keep_labels: bool
    splits: Mapping[str, Split]
    image_size: tuple[int, int] | None

    def __post_init__(self):
        if len(self.class_names) < 2:
            raise UserError(
                f"data set {self.name} has {len(self.class_names)} class ({', '.join(self.class_names) or 'none'}); "
                "a classifier needs at least two: give a folder with one sub-folder a class."
            )

    def split(self, name: str) -> Split:
        """Return a split by its name.

        Raises:
            UserError: if there is none of that name.
        """
        if name not in self.splits:
            raise unknown_name(f"split of {self.name}", name, self.splits)
        return self.splits[name]

    @property
    def evaluation_split(self) -> str:
        """The split that figures are reported on: test where there is one, else val or validation.

        Raises:
            UserError: if the data set has neither.
        """
        for name in ("test", "val", "validation"):
            if name in self.splits and self.splits[name].labelled:
                return name
        raise UserError(
            f"data set {self.name} has only {', '.join(self.splits)}; evaluation needs a split named test, val or "
            "validation: add one, or name another with --split."
        )

    def at_size(self, height: int, width: int, memory_limit: int = MEMORY_LIMIT, resize: int | None = None) -> DataSet:
        """Return the data set with every image brought to one size by the plain centre view.

        Splits that fit into the memory limit (bytes) are decoded once and held; larger ones are decoded when read.

        Args:
            height: of the images, in pixels.
            width: of the images, in pixels.
            memory_limit: in bytes.
            resize: the shorter side before the centre is cropped; by default the shorter of the two.
        """
        view = center_view(height, width, resize)
        splits = {name: split.at_size(view, memory_limit) for name, split in self.splits.items()}
        return dataclasses.replace(self, splits=splits, image_size=(height, width))

    def with_holdout(self, holdout: float) -> DataSet:
        """Return the data set with a part of "train" moved into a split named "holdout".

        Every class gives its share, by position, so that the same data always give the same parts.

        Args:
            holdout: a number of images from 1 on, or a share below 1; 0 leaves the data set as it is.

        Raises:
            UserError: if nothing would be left to train on.
        """
        if not holdout:
            return self
        train = self.split("train")
        count = round(holdout if holdout >= 1 else holdout * train.size)
        if not 0 < count < train.size:
            raise UserError(
                f"holdout is {holdout}, {count} of the {train.size} training images of {self.name}; "
                f"hold out between 1 and {train.size - 1}."
            )
        held, kept = held_out(train.labels, count)
        return dataclasses.replace(
            self, splits={**self.splits, "train": train.subset(kept), "holdout": train.subset(held)}
        )

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change with the classes, the images or their labels."""
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for name in sorted(self.splits):
            digest.update(f"{name}:{self.splits[name].fingerprint()}".encode())
        return digest.hexdigest()[:16]


def load_dataset(name: str | os.PathLike | DataSet, data_dir: str | os.PathLike | None = None) -> DataSet:
    """Return a data set by what it is called.

    Args:
        name: "digits" (scikit-learn's 8x8 handwritten digits); a folder of images, `train/<class>/*.jpg` with or
            without `val/` or `test/`, or `<class>/*.jpg`, of which every fifth image of each class is then "test";
            or a name of TensorFlow Datasets, such as "cifar10". A folder is a path that exists.
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
    if name == "digits":
        from keras_convnets.training.data.digits import load_digits

        return load_digits()
    text = os.fspath(name)
    if Path(text).is_dir():
        from keras_convnets.training.data.folder import load_folder

        return load_folder(Path(text))
    if os.sep in text or text.startswith((".", "~")):
        raise UserError(f"there is no folder {text}; give an existing folder of images, digits, or a TFDS name.")
    from keras_convnets.training.data.catalogue import load_catalogue

    return load_catalogue(text, data_dir)
