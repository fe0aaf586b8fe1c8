"""A folder of images, one sub-folder a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from keras_convnets.errors import UserError
from keras_convnets.training.data.dataset import DataSet
from keras_convnets.training.data.splits import FileSplit

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
EVALUATION_SPLITS = ("val", "validation", "test")
TEST_EVERY = 5


def load_folder(folder: Path) -> DataSet:
    """Read `train/<class>/` with or without val/, validation/ or test/, or one level of `<class>/`.

    Of one level, every fifth image of each class, in the order of the names, is "test": the same files always give
    the same split. The classes are the sub-folders' names in sorted order. Every file's header is read.

    Raises:
        UserError: if there are fewer than two classes, a class without images, a file that is no image, or splits
            with different classes.
    """
    if (folder / "train").is_dir():
        names = ["train", *(name for name in EVALUATION_SPLITS if (folder / name).is_dir())]
        classes = _class_names(folder / "train")
        splits = {name: _read_split(folder / name, classes) for name in names}
    else:
        classes = _class_names(folder)
        splits = _every_fifth(_read_split(folder, classes))
    return DataSet(
        name=folder.name or str(folder),
        class_names=classes,
        flips_keep_labels=True,
        splits=splits,
        image_size=_shared_size(splits["train"]),
    )


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in _visible(folder) if entry.is_dir()))
    if len(names) < 2:
        raise UserError(
            f"{folder} holds {len(names)} class folder{'s' * (len(names) != 1)}{': ' if names else ''}"
            f"{', '.join(names)}; put the images of each class into a sub-folder of its own, at least two classes."
        )
    return names


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _read_split(folder: Path, classes: tuple[str, ...]) -> FileSplit:
    found = tuple(sorted(entry.name for entry in _visible(folder) if entry.is_dir()))
    if set(found) != set(classes):
        raise UserError(
            f"{folder} has the classes {', '.join(found) or 'none'} where train has {', '.join(classes)}; "
            "every split needs the same sub-folders."
        )
    paths, labels = [], []
    for label, name in enumerate(classes):
        images = sorted(path for path in _visible(folder / name) if path.suffix.lower() in SUFFIXES)
        if not images:
            raise UserError(f"{folder / name} holds no images ({', '.join(SUFFIXES)}); add some or remove the folder.")
        paths += images
        labels += [label] * len(images)
    return FileSplit(paths, np.array(labels))


def _every_fifth(everything: FileSplit) -> dict[str, FileSplit]:
    within = np.concatenate([np.arange(count) for count in np.bincount(everything.labels)])
    is_test = within % TEST_EVERY == TEST_EVERY - 1
    return {
        "train": everything.subset(np.flatnonzero(~is_test)),
        **({"test": everything.subset(np.flatnonzero(is_test))} if is_test.any() else {}),
    }


def _shared_size(split: FileSplit) -> tuple[int, int] | None:
    """Return (height, width) if all images have it; reading the headers also finds what is no image at all."""
    sizes = set()
    for path in split.paths:
        try:
            with Image.open(path) as image:
                sizes.add((image.height, image.width))
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError) as error:
            raise UserError(
                f"{path} is not a readable image ({str(error).splitlines()[0]}); mend or remove the file."
            ) from error
    return sizes.pop() if len(sizes) == 1 else None
