"""ImageNet's validation images as they are distributed: files in one folder, and their classes in a text or XML."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_convnets.classes import imagenet_classes
from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.training.data.dataset import DataSet
from keras_convnets.training.data.splits import FileSplit

# Some mirrors append the image's WordNet id to the file's name.
IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})(?:_(n\d{8}))?\.(?:jpe?g|png)", re.IGNORECASE)
# Where the images lie below the folder that a user names: the archive unpacked, and Kaggle's layout.
KAGGLE_IMAGES = "Data/CLS-LOC/val"
IMAGE_PLACES = ("", "val", "validation", "ILSVRC2012_img_val", KAGGLE_IMAGES, f"ILSVRC/{KAGGLE_IMAGES}")
XML_PLACES = ("", "val", "Annotations/CLS-LOC/val", "ILSVRC/Annotations/CLS-LOC/val")
# A line for an image, by its number: 1-based ids of the development kit, or WordNet ids.
DEVKIT_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
# Kaggle's; Caffe's, and others' of its form; the development kit's; TensorFlow's.
TRUTHS = (
    *("LOC_val_solution.csv", "val.txt", "val_map.txt", "val_label.txt", "val_labels.txt"),
    *(DEVKIT_TRUTH, "imagenet_2012_validation_synset_labels.txt", "validation_labels.txt"),
)
BY_NAME = re.compile(r'.*ILSVRC2012_val_(?P<number>\d{8})[^\s,]*[\s,]+"?(?P<label>n\d{8}|\d{1,4})\b.*')
BY_LINE = re.compile(r"(?P<label>n\d{8}|\d{1,4})")
XML_CLASS = re.compile(rb"<name>\s*(n\d{8})\s*</name>")
# What TensorFlow Datasets is installed with: the classes of all validation images, and the development kit's ids.
TFDS_TRUTH = "datasets/imagenet2012/validation_labels.txt"
TFDS_IDS = "image_classification/imagenet_resized_labels.txt"
# Labels that were cleaned still agree with most of the official ones; labels in another order agree with none.
LEAST_AGREEMENT = 0.5
log = logging.getLogger("keras_convnets")


def holds_validation(folder: Path) -> bool:
    """Whether a folder holds ImageNet's validation images in one folder, directly or where they are unpacked to."""
    return _images_place(folder) is not None


def load_validation(folder: Path) -> DataSet:
    """Read ImageNet's validation images, `ILSVRC2012_val_00000001.JPEG` and so on in one folder, as "validation".

    The classes are the 1,000 WordNet ids in sorted order, whichever images are there. An image's class is looked for

    - in its name, where that ends in a WordNet id;
    - in one of the texts `TRUTHS`, in the folder, beside the images, or in a folder of the development kit. Lines are
      `FILE CLASS` (Caffe's `val.txt`, Kaggle's CSV) or hold the class alone, line n that of image n. A class is a
      WordNet id; the 0-based index among the sorted ids beside a file's name; the development kit's 1-based
      ILSVRC2012_ID in its ground truth, whose order is another. `meta.mat` or `map_clsloc.txt` beside it tells that,
      else TensorFlow Datasets;
    - in the XML annotations, `ILSVRC2012_val_00000001.xml`;
    - else in the list that TensorFlow Datasets is installed with.

    Args:
        folder: that holds the images, or the folder `val` or Kaggle's `ILSVRC/Data/CLS-LOC/val` with them.

    Raises:
        UserError: if an image has no class, a text is of another form, or its classes are in another order.
    """
    place = _images_place(folder)
    assert place is not None, f"{folder} holds validation images"
    matches = [match for name in sorted(os.listdir(place)) if (match := IMAGE.fullmatch(name))]
    files = [place / match[0] for match in matches]
    numbers = [int(match[1]) for match in matches]
    index = {wnid: label for label, wnid in enumerate(imagenet_classes().ids)}
    if all(match[2] in index for match in matches):
        labels = [index[match[2]] for match in matches]
    else:
        labels = _labels(folder, place, files, numbers, index)
    return DataSet(
        name=printable(folder.resolve().name),
        class_names=imagenet_classes().ids,
        flips_keep_labels=True,
        splits={"validation": FileSplit(files, np.array(labels))},
        image_size=None,
    )


def _images_place(folder: Path) -> Path | None:
    for place in dict.fromkeys(folder / below for below in IMAGE_PLACES):
        if place.is_dir() and any(map(IMAGE.fullmatch, os.listdir(place))):
            return place
    return None


def _labels(
    folder: Path, place: Path, files: Sequence[Path], numbers: Sequence[int], index: Mapping[str, int]
) -> list[int]:
    """Return the class of each image, by the first source of classes that is found."""
    roots = _roots(folder, place)
    truth = next((root / name for root in roots for name in TRUTHS if (root / name).is_file()), None)
    official = _official(index)
    annotations = (root / below / f"{files[0].stem}.xml" for root in roots for below in XML_PLACES)
    annotation = next((path for path in annotations if path.is_file()), None)
    if truth is not None:
        known, where = _read_truth(truth, index), str(truth)
    elif annotation is not None:
        known = {
            number: _annotated(annotation.parent, file, index) for number, file in zip(numbers, files, strict=True)
        }
        where = str(annotation.parent)
    elif official:
        known, where = official, "the list of TensorFlow Datasets"
        log.info("no classes lie beside the images of %s; they are taken from %s.", place, where)
    else:
        raise UserError(
            f"the classes of the images in {place} are not known; put {DEVKIT_TRUTH} of the development kit, Kaggle's "
            f"{TRUTHS[0]}, Caffe's {TRUTHS[1]} or the XML annotations into {folder}."
        )
    unknown = next((file for file, number in zip(files, numbers, strict=True) if number not in known), None)
    if unknown is not None:
        raise UserError(f"{where} has no class of {unknown.name}; take the one that belongs to these images.")
    labels = [known[number] for number in numbers]
    _check_order(labels, [official.get(number) for number in numbers], where)
    return labels


def _roots(folder: Path, place: Path) -> list[Path]:
    """Return the folders in which ground truth is looked for."""
    roots = [folder, place, place.parent]
    if place.resolve().as_posix().endswith(f"/{KAGGLE_IMAGES}"):
        roots += [place.resolve().parents[2], place.resolve().parents[3]]
    kits = [kit for root in (folder, place.parent) for kit in (root / "data", *sorted(root.glob("*devkit*")))]
    return list(dict.fromkeys([*roots, *kits, *(kit / "data" for kit in kits)]))


def _read_truth(path: Path, index: Mapping[str, int]) -> dict[int, int]:
    """Return classes by the images' numbers, from a text of either form."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}); mend or remove it.") from error
    by_id = _devkit_ids(path.parent, index) if path.name == DEVKIT_TRUTH else {}
    is_named = any("ILSVRC2012_val_" in line for line in lines[:2])
    found = {}
    for position, line in enumerate(lines, 1):
        if not line.strip() or (is_named and line.startswith("ImageId")):
            continue
        match = (BY_NAME if is_named else BY_LINE).fullmatch(line.strip())
        label = None if match is None else _label_of(match["label"], by_id, index)
        if match is None or label is None:
            what = "name an image and give its class" if is_named else "give a class"
            allowed = "1 to 1000" if by_id else "a WordNet id, or 0 to 999"
            raise UserError(f"line {position} of {path} is {line[:80]!r}; it must {what} ({allowed}).")
        found[int(match["number"]) if is_named else position] = label
    return found


def _label_of(text: str, by_id: Mapping[int, int], index: Mapping[str, int]) -> int | None:
    """Return a class that a text gives as a WordNet id or a number; None where it is none."""
    if text in index:
        return index[text]
    number = int(text) if text.isdigit() else -1
    return by_id.get(number) if by_id else number if 0 <= number < len(index) else None


def _devkit_ids(folder: Path, index: Mapping[str, int]) -> dict[int, int]:
    """Return classes by the development kit's ILSVRC2012_ID, 1 to 1000, whose order is not that of WordNet ids."""
    if (folder / "meta.mat").is_file() and importlib.util.find_spec("scipy"):
        pairs = _meta_pairs(folder / "meta.mat")
        where = str(folder / "meta.mat")
    elif (folder / "map_clsloc.txt").is_file():
        where = str(folder / "map_clsloc.txt")
        rows = [line.split() for line in Path(where).read_text(encoding="utf-8", errors="replace").splitlines()]
        pairs = [(int(row[1]), row[0]) for row in rows if len(row) > 1 and row[1].isdigit()]
    else:
        where = "the list of TensorFlow Datasets"
        pairs = list(enumerate(_installed_lines(TFDS_IDS), 1))
    found = {number: index[wnid] for number, wnid in pairs if wnid in index}
    if set(found) != set(range(1, len(index) + 1)):
        raise UserError(
            f"{folder / DEVKIT_TRUTH} numbers the classes by ILSVRC2012_ID, which {where} does not tell; put the "
            "development kit's meta.mat beside it."
        )
    return found


def _meta_pairs(path: Path) -> list[tuple[int, str]]:
    """Return (ILSVRC2012_ID, WordNet id) of the development kit's `meta.mat`, its inner nodes among them."""
    from scipy import io

    try:
        synsets: Any = io.loadmat(path, squeeze_me=True, variable_names=["synsets"])["synsets"]
        return [(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in synsets]
    except Exception as error:  # what a reader of foreign files can raise
        raise UserError(f"{path} is not the development kit's meta.mat ({str(error)[:200]}); copy it again.") from error


def _annotated(folder: Path, file: Path, index: Mapping[str, int]) -> int:
    """Return the class that an image's XML annotation names: that of all its objects."""
    path = folder / f"{file.stem}.xml"
    try:
        wnids = {match.decode() for match in XML_CLASS.findall(path.read_bytes())}
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); every image needs its annotation.") from error
    if len(wnids) != 1 or not wnids <= index.keys():
        raise UserError(
            f"{path} names {', '.join(sorted(wnids)) or 'no class'}; an annotation of a validation image has objects "
            "of one of the 1,000 classes, as <name>n01440764</name>."
        )
    return index[wnids.pop()]


def _official(index: Mapping[str, int]) -> dict[int, int]:
    """Return the classes by the images' numbers as TensorFlow Datasets has them; {} where it is not installed."""
    lines = enumerate(_installed_lines(TFDS_TRUTH), 1)
    return {number: index[wnid] for number, wnid in lines if wnid in index}


def _installed_lines(name: str) -> list[str]:
    """Return the lines of a text that TensorFlow Datasets is installed with; none where there is no such file."""
    found = importlib.util.find_spec("tensorflow_datasets")
    places = [Path(folder) / name for folder in (found.submodule_search_locations or ())] if found else []
    path = next((path for path in places if path.is_file()), None)
    return [] if path is None else path.read_text(encoding="utf-8").split()


def _check_order(labels: Sequence[int], official: Sequence[int | None], where: str) -> None:
    """Refuse classes that are numbered in another order: nearly all images would count as wrong."""
    both = [label == known for label, known in zip(labels, official, strict=True) if known is not None]
    if both and sum(both) < LEAST_AGREEMENT * len(both):
        raise UserError(
            f"{where} gives {sum(both)} of {len(both)} images the class that ImageNet gives them, so its classes are "
            "in another order; it must hold WordNet ids, or 0-based indices among the sorted ids, and ids of the "
            f"development kit stand in {DEVKIT_TRUTH}."
        )
