"""The data set as training and evaluation see it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from keras_convnets.classes import check_class_names
from keras_convnets.errors import UserError, unknown_name
from keras_convnets.images.view import View
from keras_convnets.numbers import finite_number
from keras_convnets.training.data.integrity import BROKEN_FRACTION, BrokenImage, check_fraction
from keras_convnets.training.data.splits import Split, held_out

# Of a data set, over all its splits, decoded images of up to this many bytes are held in memory; more are decoded
# whenever they are read.
MEMORY_LIMIT = 2 * 1024**3
# These are read again and again in a training, so they have the first claim to memory; then the others in their order.
HELD_FIRST = ("train", "holdout")


@dataclass(frozen=True)
class DataSet:
    """Labelled images in named splits.

    Attributes:
        name: what it was asked for by.
        class_names: the classes; a label is an index into them.
        flips_keep_labels: whether a mirrored image has the same label (digits: no).
        splits: "train", and "test", "val" or "validation" as the source has them.
        image_size: (height, width) where all images share it, else None.
        left_out: the images that `without_broken` has left out.
    """

    name: str
    class_names: tuple[str, ...]
    flips_keep_labels: bool
    splits: Mapping[str, Split]
    image_size: tuple[int, int] | None
    left_out: tuple[BrokenImage, ...] = ()

    def __post_init__(self) -> None:
        check_class_names(self.class_names, f"data set {self.name}")
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

    def without_broken(self, fraction: float = BROKEN_FRACTION) -> tuple[DataSet, list[BrokenImage]]:
        """Return the data set without the images that do not decode, and these.

        Every image is decoded once with the ops that training uses; splits that are known to be sound, and those in
        memory, are not looked at again. Each image that is left out is logged. What is left keeps its order, so that
        streams stay functions of the seed.

        Args:
            fraction: of a split that may be broken, 0 to 1.

        Raises:
            UserError: if more of a split is broken, or a class has no training image left.
        """
        splits, left_out = dict(self.splits), []
        for name, split in self.splits.items():
            if split.checked:
                continue
            found = split.broken()
            broken = [BrokenImage(name, file, reason) for _, file, reason in found]
            check_fraction(name, split.size, broken, fraction)
            good = np.setdiff1d(np.arange(split.size), [position for position, _, _ in found])
            splits[name] = split.subset(good) if found else split.subset(range(split.size))
            splits[name].checked = True
            left_out += broken
            if found and name == "train":
                self._check_classes(split, splits[name])
        return dataclasses.replace(self, splits=splits, left_out=(*self.left_out, *left_out)), left_out

    def _check_classes(self, before: Split, after: Split) -> None:
        lost = sorted(set(before.labels.tolist()) - set(after.labels.tolist()))
        if lost:
            raise UserError(
                f"no readable training image of {', '.join(self.class_names[label] for label in lost)} is left in "
                f"{self.name}; fix its images or remove the class."
            )

    def at_size(
        self,
        height: int,
        width: int,
        memory_limit: int = MEMORY_LIMIT,
        resize: int | None = None,
        leaving: Mapping[str, Split] | None = None,
    ) -> DataSet:
        """Return the data set with every image resized and centre cropped to one size.

        Splits are decoded once and held as long as all together fit into the memory limit, "train" and "holdout" first;
        the others are decoded whenever they are read. What is held is held once: neither streams nor subsets nor
        fingerprints copy it. Images that do not decode are left out first, as by `without_broken`.

        Args:
            height: of the images, in pixels.
            width: of the images, in pixels.
            memory_limit: of the decoded images of all splits together, in bytes; arrays that have the size already
                count, but are not dropped.
            resize: the shorter side before the centre is cropped; by default the shorter of the two.
            leaving: splits that are taken as they are given here.

        Raises:
            UserError: if more than a fraction of 0.05 of a split is broken.
        """
        return self.in_view(View.of_size(height, width, resize), memory_limit, leaving)

    def in_view(
        self, view: View, memory_limit: int = MEMORY_LIMIT, leaving: Mapping[str, Split] | None = None
    ) -> DataSet:
        """Return the data set with every image brought to one size by a view; else as `at_size`."""
        leaving = dict(leaving or {})
        others = {name: split for name, split in self.splits.items() if name not in leaving}
        sound, _ = dataclasses.replace(self, splits=others).without_broken()
        left = memory_limit - sum(split.held_bytes for split in leaving.values())
        sized: dict[str, Split] = {}
        for name in sorted(sound.splits, key=lambda name: name not in HELD_FIRST):
            sized[name] = sound.splits[name].at_size(view, left)
            left -= sized[name].held_bytes
        splits = {name: leaving.get(name) or sized[name] for name in self.splits}
        return dataclasses.replace(self, splits=splits, image_size=view.crop, left_out=sound.left_out)

    def with_holdout(self, holdout: float) -> DataSet:
        """Return the data set with a part of "train" moved into a split named "holdout".

        Every class gives the same fraction, by position, so that the same data always give the same parts. Broken
        images are to be left out before, in training as in evaluation.

        Args:
            holdout: a number of images from 1 on, or a fraction below 1; 0 leaves the data set as it is.

        Raises:
            UserError: if nothing would be left to train on.
        """
        if finite_number(holdout) is None:
            raise UserError(f"holdout is {holdout!r}; give a number of images, or a fraction below 1.")
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
