"""A folder of images, one sub-folder a class."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from keras_convnets.classes import check_class_names
from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.training.data.broken import open_header
from keras_convnets.training.data.dataset import DataSet
from keras_convnets.training.data.splits import FileSplit

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
EVALUATION_SPLITS = ("val", "validation", "test")
TEST_EVERY = 5
# The split that holds a folder of one level whole.
WHOLE = "all"
QUARANTINE = "quarantine.txt"
log = logging.getLogger("keras_convnets")


def load_folder(folder: Path) -> DataSet:
    """Read `train/<class>/` with or without val/, validation/ or test/, or one level of `<class>/`.

    Of one level, every fifth image of each class, in the order of the names, is "test": the same files always give
    the same split. The classes are the sub-folders' names in sorted order. Files that `quarantine.txt` in the folder
    lists are left out. Whether the others decode is found out by `DataSet.without_broken`.

    Raises:
        UserError: if there are fewer than two classes, a class without training images, or splits with different
            classes.
    """
    everything = _read_folder(folder)
    train = everything.splits["train"]
    left = {name: _without_listed(folder, split) for name, split in everything.splits.items()}
    count = sum(everything.splits[name].size - left[name].size for name in left)
    if count:
        log.warning("%s lists %d images, which are left out.", printable(folder / QUARANTINE), count)
    lost = np.setdiff1d(train.labels, left["train"].labels)
    if len(lost):
        raise UserError(
            f"{folder / QUARANTINE} lists every training image of {everything.class_names[lost[0]]}; "
            "mend some of them and run keras-convnets data verify again, or remove the class."
        )
    left = {name: split for name, split in left.items() if split.size}
    return dataclasses.replace(everything, splits=left, image_size=_shared_size(left["train"]))


def holds_one_level(folder: Path) -> bool:
    """Whether a folder holds classes and no splits, so that `load_folder` makes the splits."""
    return not (folder / "train").is_dir()


def load_undivided(folder: Path) -> DataSet:
    """Read a folder of one level as one split, "all", of every image that `quarantine.txt` does not list.

    Raises:
        UserError: as from `load_folder`.
    """
    classes = _class_names(folder)
    images = _without_listed(folder, _read_split(folder, classes))
    return DataSet(
        name=folder.name or str(folder),
        class_names=classes,
        flips_keep_labels=True,
        splits={WHOLE: images},
        image_size=_shared_size(images),
    )


def list_folder(folder: Path) -> dict[str, FileSplit]:
    """Return the splits of a folder with all their files, also those that `quarantine.txt` lists.

    Raises:
        UserError: as from `load_folder`.
    """
    return dict(_read_folder(folder).splits)


def _read_folder(folder: Path) -> DataSet:
    if (folder / "train").is_dir():
        names = ["train", *(name for name in EVALUATION_SPLITS if (folder / name).is_dir())]
        classes = _class_names(folder / "train")
        splits = {name: _read_split(folder / name, classes, name == "train") for name in names}
    else:
        classes = _class_names(folder)
        # The split is made before anything is left out, so that no image moves from one part to the other.
        splits = _every_fifth(_read_split(folder, classes))
    return DataSet(
        name=printable(folder.name or folder),
        class_names=classes,
        flips_keep_labels=True,
        splits=splits,
        image_size=None,
    )


def _without_listed(folder: Path, split: FileSplit) -> FileSplit:
    try:
        lines = (folder / QUARANTINE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return split
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / QUARANTINE} can't be read ({error}); mend or remove it.") from error
    listed = {line.partition("\t")[0] for line in lines}
    kept = [at for at, path in enumerate(split.paths) if listed_name(path, folder) not in listed]
    return split.subset(np.array(kept, int))


def listed_name(path: Path, folder: Path) -> str:
    """Return a file's path in a folder, with slashes, as one line of a list can hold it."""
    return printable(path.relative_to(folder).as_posix())


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in _visible(folder) if entry.is_dir()))
    check_class_names(names, f"folder {folder}")
    if len(names) < 2:
        raise UserError(
            f"{folder} holds {len(names)} class folder{'s' * (len(names) != 1)}{': ' if names else ''}"
            f"{', '.join(names)}; put the images of each class into a sub-folder of its own, at least two classes."
        )
    return names


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _read_split(folder: Path, classes: tuple[str, ...], every_class: bool = True) -> FileSplit:
    found = tuple(sorted(entry.name for entry in _visible(folder) if entry.is_dir()))
    if set(found) != set(classes):
        raise UserError(
            f"{folder} has the classes {', '.join(found) or 'none'} where train has {', '.join(classes)}; "
            "every split needs the same sub-folders."
        )
    paths, labels = [], []
    for label, name in enumerate(classes):
        images = sorted(path for path in _visible(folder / name) if path.suffix.lower() in SUFFIXES)
        if not images and every_class:
            raise UserError(f"{folder / name} holds no images ({', '.join(SUFFIXES)}); add some or remove the folder.")
        paths += images
        labels += [label] * len(images)
    if not paths:
        raise UserError(f"{folder} holds no images ({', '.join(SUFFIXES)}); add some or remove the folder.")
    return FileSplit(paths, np.array(labels))


def _every_fifth(everything: FileSplit) -> dict[str, FileSplit]:
    within = np.concatenate([np.arange(count) for count in np.bincount(everything.labels)])
    is_test = within % TEST_EVERY == TEST_EVERY - 1
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
