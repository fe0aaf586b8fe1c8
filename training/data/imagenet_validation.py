"""ImageNet's validation images as distributed: files in one folder, with ground truth in text or XML files."""

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

# Some mirrors append the WordNet id of the class to the file name.
IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})(?:_(n\d{8}))?\.(?:jpe?g|png)", re.IGNORECASE)
# Folders searched for the images, relative to the given folder: the unpacked archive, and Kaggle's layout.
KAGGLE_IMAGES = "Data/CLS-LOC/val"
IMAGE_PLACES = ("", "val", "validation", "ILSVRC2012_img_val", KAGGLE_IMAGES, f"ILSVRC/{KAGGLE_IMAGES}")
XML_PLACES = ("", "val", "Annotations/CLS-LOC/val", "ILSVRC/Annotations/CLS-LOC/val")
# The development kit's ground truth: line n is the 1-based ILSVRC2012_ID (or the WordNet id) of image n.
DEVKIT_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
# Ground-truth files by Kaggle; by Caffe, and others in its format; of the development kit; of TensorFlow.
TRUTHS = (
    *("LOC_val_solution.csv", "val.txt", "val_map.txt", "val_label.txt", "val_labels.txt"),
    *(DEVKIT_TRUTH, "imagenet_2012_validation_synset_labels.txt", "validation_labels.txt"),
)
BY_NAME = re.compile(r'.*ILSVRC2012_val_(?P<number>\d{8})[^\s,]*[\s,]+"?(?P<label>n\d{8}|\d{1,4})\b.*')
BY_LINE = re.compile(r"(?P<label>n\d{8}|\d{1,4})")
XML_CLASS = re.compile(rb"<name>\s*(n\d{8})\s*</name>")
# Files installed with TensorFlow Datasets: the classes of all validation images, and the WordNet ids by ILSVRC2012_ID.
TFDS_TRUTH = "datasets/imagenet2012/validation_labels.txt"
TFDS_IDS = "image_classification/imagenet_resized_labels.txt"
# Minimum agreement with the official labels: cleaned labels agree mostly, and those in a wrong order almost never.
LEAST_AGREEMENT = 0.5
log = logging.getLogger("keras_convnets")


def holds_validation(folder: Path) -> bool:
    """Whether a folder holds ImageNet's flat validation images, directly or in one of the `IMAGE_PLACES`."""
    return _images_place(folder) is not None


def load_validation(folder: Path) -> DataSet:
    """Load ImageNet's validation images, a flat folder of `ILSVRC2012_val_00000001.JPEG` etc., as split "validation".

    The classes are always all 1,000 WordNet ids in sorted order, even if only some of the images are present. The
    labels are taken from the first of these sources that exists:

    - the file names, if they end in WordNet ids;
    - one of the ground-truth files `TRUTHS`, in the folder, next to the images, or in a folder of the development kit.
      Each line is `FILE CLASS` (Caffe's `val.txt`, Kaggle's CSV), or the class only, with line n for image n. A class
      is a WordNet id or the 0-based index in the sorted ids. In the development kit's ground truth, it is the 1-based
      ILSVRC2012_ID, which has a different order, given by `meta.mat` or `map_clsloc.txt` in the same folder, or by
      TensorFlow Datasets;
    - the XML annotations, `ILSVRC2012_val_00000001.xml` etc.;
    - the list installed with TensorFlow Datasets.

    Args:
        folder: the folder with the images, or one with the images in `val` or in Kaggle's `ILSVRC/Data/CLS-LOC/val`.

    Raises:
        UserError: if an image has no label, a ground-truth file has an invalid format, or its classes are in a
            different order.
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
    """Return the label of each image, from the first ground-truth source that exists."""
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
        log.info("%s has no ground truth; the labels are taken from %s.", place, where)
    else:
        raise UserError(
            f"there is no ground truth for the images in {place}; put {DEVKIT_TRUTH} of the development kit, Kaggle's "
            f"{TRUTHS[0]}, Caffe's {TRUTHS[1]} or the XML annotations into {folder}."
        )
    unknown = next((file for file, number in zip(files, numbers, strict=True) if number not in known), None)
    if unknown is not None:
        raise UserError(f"{where} has no label for {unknown.name}; use the ground truth of these images.")
    labels = [known[number] for number in numbers]
    _check_order(labels, [official.get(number) for number in numbers], where)
    return labels


def _roots(folder: Path, place: Path) -> list[Path]:
    """Return the folders that are searched for ground truth, in order of precedence."""
    roots = [folder, place, place.parent]
    if place.resolve().as_posix().endswith(f"/{KAGGLE_IMAGES}"):
        roots += [place.resolve().parents[2], place.resolve().parents[3]]
    kits = [kit for root in (folder, place.parent) for kit in (root / "data", *sorted(root.glob("*devkit*")))]
    return list(dict.fromkeys([*roots, *kits, *(kit / "data" for kit in kits)]))


def _read_truth(path: Path, index: Mapping[str, int]) -> dict[int, int]:
    """Return the labels by image number from a ground-truth file, with or without image names."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}); repair or remove it.") from error
    by_id = _devkit_ids(path.parent, index) if path.name == DEVKIT_TRUTH else {}
    is_named = any("ILSVRC2012_val_" in line for line in lines[:2])
    found = {}
    for position, line in enumerate(lines, 1):
        if not line.strip() or (is_named and line.startswith("ImageId")):
            continue
        match = (BY_NAME if is_named else BY_LINE).fullmatch(line.strip())
        label = None if match is None else _label_of(match["label"], by_id, index)
        if match is None or label is None:
            what = "an image and its class" if is_named else "a class"
            allowed = "1 to 1000" if by_id else "a WordNet id, or 0 to 999"
            raise UserError(f"line {position} of {path} is {line[:80]!r}; it must be {what} ({allowed}).")
        found[int(match["number"]) if is_named else position] = label
    return found


def _label_of(text: str, by_id: Mapping[int, int], index: Mapping[str, int]) -> int | None:
    """Return the class index of a WordNet id or number; None if it is invalid."""
    if text in index:
        return index[text]
    number = int(text) if text.isdigit() else -1
    return by_id.get(number) if by_id else number if 0 <= number < len(index) else None


def _devkit_ids(folder: Path, index: Mapping[str, int]) -> dict[int, int]:
    """Return class indices by the development kit's ILSVRC2012_ID, 1 to 1000; it has a different order."""
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
            f"{folder / DEVKIT_TRUTH} numbers the classes by ILSVRC2012_ID, which {where} does not define for all "
            "classes; put the development kit's meta.mat into the same folder."
        )
    return found


def _meta_pairs(path: Path) -> list[tuple[int, str]]:
    """Return (ILSVRC2012_ID, WordNet id) pairs from the development kit's `meta.mat`, including inner nodes."""
    from scipy import io

    try:
        synsets: Any = io.loadmat(path, squeeze_me=True, variable_names=["synsets"])["synsets"]
        return [(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in synsets]
    except Exception as error:  # loadmat may raise anything for an invalid file
        raise UserError(f"{path} is not the development kit's meta.mat ({str(error)[:200]}); copy it again.") from error


def _annotated(folder: Path, file: Path, index: Mapping[str, int]) -> int:
    """Return the label in an image's XML annotation; all its objects must have the same class."""
    path = folder / f"{file.stem}.xml"
    try:
        wnids = {match.decode() for match in XML_CLASS.findall(path.read_bytes())}
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); every image needs an annotation.") from error
    if len(wnids) != 1 or not wnids <= index.keys():
        raise UserError(
            f"{path} names {', '.join(sorted(wnids)) or 'no class'}; the annotation of a validation image must name "
            "exactly one of the 1,000 classes, as <name>n01440764</name>."
        )
    return index[wnids.pop()]


def _official(index: Mapping[str, int]) -> dict[int, int]:
    """Return the labels by image number from TensorFlow Datasets; {} if it is not installed."""
    lines = enumerate(_installed_lines(TFDS_TRUTH), 1)
    return {number: index[wnid] for number, wnid in lines if wnid in index}


def _installed_lines(name: str) -> list[str]:
    """Return the lines of a text file installed with TensorFlow Datasets; [] if it does not exist."""
    found = importlib.util.find_spec("tensorflow_datasets")
    places = [Path(folder) / name for folder in (found.submodule_search_locations or ())] if found else []
    path = next((path for path in places if path.is_file()), None)
    return [] if path is None else path.read_text(encoding="utf-8").split()


def _check_order(labels: Sequence[int], official: Sequence[int | None], where: str) -> None:
    """Check the labels against the official ones, to detect class indices in a different order."""
    both = [label == known for label, known in zip(labels, official, strict=True) if known is not None]
    if both and sum(both) < LEAST_AGREEMENT * len(both):
        raise UserError(
            f"{where} agrees with ImageNet's labels for {sum(both)} of {len(both)} images, so its classes are in a "
            "different order; it must contain WordNet ids or 0-based indices in the sorted ids. ILSVRC2012_IDs of the "
            f"development kit are supported in {DEVKIT_TRUTH} only."
        )
