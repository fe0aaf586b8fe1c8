"""A folder of images, one sub-folder a class."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from keras_convnets.classes import check_class_names
from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.images.files import OTHER_SUFFIXES, SUFFIXES, images_below, is_litter, types_of
from keras_convnets.training.data.dataset import DataSet
from keras_convnets.training.data.integrity import open_header
from keras_convnets.training.data.splits import FileSplit

# How people name the folders of splits, in upper or lower case, and what the splits are called here, in their order.
SPLIT_FOLDERS = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "dev": "val", "validation": "validation"},
    **{"test": "test", "testing": "test"},
}
SPLITS = tuple(dict.fromkeys(SPLIT_FOLDERS.values()))
TEST_EVERY = 5
# The split that holds a folder of one level whole.
WHOLE = "all"
QUARANTINE = "quarantine.txt"
# This package's files that may lie beside the splits.
OURS = (QUARANTINE, "prepared.json")
NAMES_SHOWN = 5
log = logging.getLogger("keras_convnets")


class Problem(NamedTuple):
    """A reason why a folder can't be used for training or evaluation.

    Attributes:
        path: the file or folder concerned.
        kind: in a word or two, such as "no images".
        sentence: what is wrong and what to do.
    """

    path: Path
    kind: str
    sentence: str


@dataclass(frozen=True)
class Survey:
    """The contents of a folder of images, whether or not it can be trained on.

    Attributes:
        name: of the folder.
        class_names: the classes of all splits; a label is an index into them.
        splits: those that hold images.
        others: images of types that are not read.
        beside: what lies beside the splits or the classes and is not read.
        problems: what has the folder refused, the gravest first.
        empty: folders of classes that a split other than train has no images of.
    """

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, FileSplit]
    others: tuple[Path, ...]
    beside: tuple[Path, ...]
    problems: tuple[Problem, ...]
    empty: tuple[Path, ...]

    def check(self) -> None:
        """Refuse a folder that has problems.

        Raises:
            UserError: the first of them.
        """
        if self.problems:
            raise UserError(self.problems[0].sentence)


def load_folder(folder: Path, convertible: bool = False) -> DataSet:
    """Read `train/<class>/` with or without a folder for validation or test, or test alone, or one level of `<class>/`.

    Splits may be named as `SPLIT_FOLDERS` lists it. Images in folders below a class belong to the class. Of one level,
    every fifth image of each class, in the order of the names, is "test": the same files always give the same split.
    The classes are the sub-folders' names in sorted order; what is not UTF-8 in one is written as \\xe9. Files that
    `quarantine.txt` in the folder lists are left out. What is not read, and lies beside what is, is named in a warning.
    Whether the images decode is found out by `DataSet.without_broken`.

    Args:
        folder: that holds the splits or the classes.
        convertible: give images of other types too, which do not decode but may be converted. They move no other image
            to another split.

    Raises:
        UserError: if there are fewer than two classes, a class without training images, splits with different classes,
            or two folders for one split.
    """
    found = survey(folder, convertible)
    found.check()
    _warn(folder, found, convertible)
    left = {name: _without_listed(folder, split) for name, split in found.splits.items()}
    count = sum(found.splits[name].size - left[name].size for name in left)
    if count:
        log.warning("%s lists %d images, which are left out.", printable(folder / QUARANTINE), count)
    if "train" in left:
        lost = np.setdiff1d(found.splits["train"].labels, left["train"].labels)
        if len(lost):
            raise UserError(
                f"{folder / QUARANTINE} lists every training image of {found.class_names[lost[0]]}; "
                "fix some of them and run keras-convnets data verify again, or remove the class."
            )
    left = {name: split for name, split in left.items() if split.size}
    if not left:
        raise UserError(f"{folder / QUARANTINE} lists every image; fix some and run keras-convnets data verify again.")
    return DataSet(
        name=found.name,
        class_names=found.class_names,
        flips_keep_labels=True,
        splits=left,
        image_size=_shared_size(next(iter(left.values()))),
    )


def holds_one_level(folder: Path) -> bool:
    """Whether a folder holds classes and no splits, so that `load_folder` makes the splits."""
    return not _split_folders(folder)


def load_undivided(folder: Path) -> DataSet:
    """Read a folder of one level as one split, "all", of every image that `quarantine.txt` does not list.

    Raises:
        UserError: as from `load_folder`.
    """
    found = survey(folder, undivided=True)
    found.check()
    images = _without_listed(folder, found.splits[WHOLE])
    return DataSet(
        name=found.name,
        class_names=found.class_names,
        flips_keep_labels=True,
        splits={WHOLE: images},
        image_size=_shared_size(images),
    )


def survey(folder: Path, convertible: bool = False, undivided: bool = False) -> Survey:
    """Return the contents of a folder, even if `load_folder` refuses it; `quarantine.txt` is ignored.

    Args:
        folder: as `load_folder` takes it.
        convertible: have images of other types in the splits, as `load_folder` does it.
        undivided: have a folder of one level as one split, "all".

    Raises:
        UserError: if a folder can't be read.
    """
    parts = _split_folders(folder)
    found = _Reading([], [], [], [])
    places = parts or [("train", folder)]
    classes = {name: place for _, part in reversed(places) for name, place in _class_folders(part).items()}
    names = tuple(sorted(classes, key=lambda name: os.fsencode(classes[name].name)))
    found.check_names(places[0][1], names)
    splits: dict[str, FileSplit] = {}
    for split, place in places:
        # The first that is named so has the name, another keeps its own.
        name = place.name if split in splits else split
        splits[name] = found.read(place, names, split, convertible)
    if parts:
        found.check_splits(folder, parts)
    elif undivided:
        splits = {WHOLE: splits["train"]}
    else:
        # The split is made before anything is left out, so that no image moves from one part to the other.
        splits = _every_fifth(splits["train"])
    beside = [*found.beside, *(_unread(folder, [place for _, place in parts]) if parts else [])]
    return Survey(
        name=printable(folder.name or folder),
        class_names=names,
        splits={name: split for name, split in splits.items() if split.size},
        others=tuple(found.others),
        beside=tuple(beside),
        problems=tuple(found.problems),
        empty=tuple(found.empty),
    )


@dataclass(frozen=True)
class _Reading:
    """What is come across while a folder's splits are read."""

    problems: list[Problem]
    others: list[Path]
    beside: list[Path]
    empty: list[Path]

    def check_names(self, folder: Path, names: Sequence[str]) -> None:
        """Note classes that are too few, or have names that can't be shown."""
        try:
            check_class_names(names, f"folder {folder}")
        except UserError as error:
            self.problems.append(Problem(folder, "class name", str(error)))
        if len(names) < 2:
            sentence = (
                f"{folder} holds {len(names)} class folder{'s' * (len(names) != 1)}{': ' if names else ''}"
                f"{', '.join(names)}; put the images of each class into a sub-folder of its own, at least two classes."
            )
            self.problems.append(Problem(folder, "too few classes", sentence))

    def check_splits(self, folder: Path, parts: Sequence[tuple[str, Path]]) -> None:
        """Note two folders for one split, and splits that do not have the classes of the first."""
        # "validation" is another word for "val", which keeps its name.
        purposes = [split.removesuffix("idation") for split, _ in parts]
        for purpose, count in Counter(purposes).items():
            if count > 1:
                several = [place for at, (_, place) in enumerate(parts) if purposes[at] == purpose]
                shown = " and ".join(place.name for place in several)
                sentence = f"{folder} has {shown}, which name the same split; merge them, or rename all but one."
                self.problems.append(Problem(several[1], "split twice", sentence))
        first, *rest = [(place, set(_class_folders(place))) for _, place in parts]
        for place, found in rest:
            if found != first[1]:
                sentence = (
                    f"{place} has the classes {', '.join(sorted(found)) or 'none'} where {first[0].name} has "
                    f"{', '.join(sorted(first[1]))}; every split needs the same sub-folders."
                )
                self.problems.append(Problem(place, "other classes", sentence))

    def read(self, place: Path, names: Sequence[str], split: str, convertible: bool) -> FileSplit:
        """Return the images of a folder of classes; those of the training need some of each class."""
        paths, labels = [], []
        folders = _class_folders(place)
        for label, name in enumerate(names):
            if name not in folders:
                continue
            images, others = images_below(folders[name])
            if not images and not (convertible and others):
                self._note_empty(folders[name], others, split == "train")
            self.others.extend(others)
            if convertible:
                images = sorted([*images, *others], key=os.fsencode)
            paths += images
            labels += [label] * len(images)
        if not paths and split != "train":
            sentence = f"{place} holds no images ({', '.join(SUFFIXES)}); add some or remove the folder."
            self.problems.append(Problem(place, "no images", sentence))
        self.beside.extend(path for path in _visible(place) if path.suffix.lower() in SUFFIXES and not path.is_dir())
        return FileSplit(paths, np.array(labels, int), place)

    def _note_empty(self, folder: Path, others: Sequence[Path], needed: bool) -> None:
        if not needed:
            self.empty.append(folder)
            return
        held = f" but {types_of(others)}, which keras-convnets data prepare converts where Pillow reads them"
        sentence = f"{folder} holds no images ({', '.join(SUFFIXES)}){held if others else ''}; "
        self.problems.append(Problem(folder, "no images", sentence + "add some or remove the folder."))


def _warn(folder: Path, found: Survey, convertible: bool) -> None:
    """Log the files that are not read."""
    if found.beside:
        names = [listed_name(path, folder) for path in found.beside]
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        log.warning("not read in %s: %s%s.", printable(folder), ", ".join(names[:NAMES_SHOWN]), more)
    if found.others and not convertible:
        log.warning(
            "images of other types in %s are left out: %s; keras-convnets data prepare converts what Pillow reads.",
            *(printable(folder), types_of(found.others)),
        )


def _without_listed(folder: Path, split: FileSplit) -> FileSplit:
    try:
        lines = (folder / QUARANTINE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return split
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / QUARANTINE} can't be read ({error}); fix or remove it.") from error
    listed = {line.partition("\t")[0] for line in lines}
    kept = [at for at, path in enumerate(split.paths) if listed_name(path, folder) not in listed]
    return split.subset(np.array(kept, int))


def without_listed(folder: Path, found: Survey) -> Survey:
    """Return a survey without the images that `quarantine.txt` lists."""
    splits = {name: _without_listed(folder, split) for name, split in found.splits.items()}
    return dataclasses.replace(found, splits={name: split for name, split in splits.items() if split.size})


def listed_name(path: Path, folder: Path) -> str:
    """Return a file's path in a folder, with slashes, as one line of a list can hold it."""
    return printable(path.relative_to(folder).as_posix())


def _visible(folder: Path) -> list[Path]:
    return sorted((entry for entry in folder.iterdir() if not is_litter(entry.name)), key=os.fsencode)


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _visible(folder) if entry.is_dir()]


def _class_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of classes by the classes' names: those of the folders, as text in any case."""
    return {os.fsencode(entry.name).decode(errors="backslashreplace"): entry for entry in _folders(folder)}


def _split_folders(folder: Path) -> list[tuple[str, Path]]:
    """Return (split, its folder), train first; nothing where the folder holds classes.

    A folder that is named as a split is one if it holds folders: a class may have such a name. Where all are named so,
    none is a class.
    """
    folders = _folders(folder)
    named = [(SPLIT_FOLDERS[place.name.lower()], place) for place in folders if place.name.lower() in SPLIT_FOLDERS]
    if any(_folders(place) for _, place in named) or (named and len(named) == len(folders)):
        return sorted(named, key=lambda part: SPLITS.index(part[0]))
    return []


def _unread(folder: Path, read: Sequence[Path]) -> list[Path]:
    """Return the other entries of a folder with splits."""
    return [entry for entry in _visible(folder) if entry not in read and entry.name not in OURS]


def _every_fifth(everything: FileSplit) -> dict[str, FileSplit]:
    counts: Counter = Counter()
    is_test = np.zeros(everything.size, bool)
    for position, (path, label) in enumerate(zip(everything.paths, everything.labels.tolist(), strict=True)):
        # Images to be converted are counted by themselves, so that they move no other to the other part.
        kind = (label, path.suffix.lower() in OTHER_SUFFIXES)
        is_test[position] = counts[kind] % TEST_EVERY == TEST_EVERY - 1
        counts[kind] += 1
    return {
        "train": everything.subset(np.flatnonzero(~is_test)),
        **({"test": everything.subset(np.flatnonzero(is_test))} if is_test.any() else {}),
    }


def _shared_size(split: FileSplit) -> tuple[int, int] | None:
    """Return (height, width) if all images that have a readable header have it."""
    sizes = set()
    for path in split.paths:
        try:
            with open_header(path) as image:
                sizes.add((image.height, image.width))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
        if len(sizes) > 1:
            return None
    return sizes.pop() if sizes else None
