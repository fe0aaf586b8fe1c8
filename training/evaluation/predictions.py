"""Predictions of a classifier for each image of a split, and their .npz and .csv files."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from keras_convnets.classes import check_class_names
from keras_convnets.errors import UserError
from keras_convnets.files import atomic_file, wrap_write_errors
from keras_convnets.training.data.integrity import BrokenImage

SUFFIXES = (".npz", ".csv")
# Number of most probable classes written by name.
TOP = 5
# CSV columns before the top-k columns, and between these and the probabilities.
FIRST_COLUMNS = ("id", "label", "label_name")
LAST_COLUMNS = ("source", "data", "split", "protocol")
# Nine significant digits represent every float32 exactly.
NUMBER = "%.9g"
ADVICE = "give a file written by keras-convnets evaluate --predictions"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted probabilities and true labels of the images of a split, one row per image.

    Attributes:
        source: name of the classifier, for example a path or URL as given to the command.
        data: name of the data set.
        split: name of the split.
        protocol: name of the test protocol, such as "ten_crop".
        class_names: class names; labels are indices into them.
        ids: image ids, as `Split.ids` returns them, such as "ants/0013035.jpg".
        labels: true labels, int64 [n].
        probabilities: predicted probabilities, float32 [n, classes].
        left_out: images left out because they do not decode.
        fingerprint: a hash of the weights, the images and the protocol; "" if unknown.

    Raises:
        UserError: if the lengths differ, a label is not a valid class index, or a probability is negative or not
            finite.

    Example:
        >>> found = Predictions.load("resnet20.npz")
        >>> found.probabilities.argmax(axis=1) == found.labels
    """

    source: str
    data: str
    split: str
    protocol: str
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    left_out: tuple[BrokenImage, ...] = ()
    fingerprint: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", np.asarray(self.labels, np.int64))
        object.__setattr__(self, "probabilities", np.asarray(self.probabilities, np.float32))
        check_class_names(self.class_names, f"the predictions of {self.source}")
        n, classes = len(self.ids), len(self.class_names)
        if n < 1 or self.labels.shape != (n,) or self.probabilities.shape != (n, classes):
            raise UserError(
                f"the predictions of {self.source} have {n} ids, labels of shape {self.labels.shape} and probabilities "
                f"of shape {self.probabilities.shape} with {classes} class names; the shapes must be [n] and "
                f"[n, classes], with n at least 1: {ADVICE}."
            )
        if self.labels.min() < 0 or self.labels.max() >= classes:
            wrong = int(((self.labels < 0) | (self.labels >= classes)).argmax())
            raise UserError(
                f"image {self.ids[wrong]} of the predictions of {self.source} has the label {self.labels[wrong]}; "
                f"labels are 0 to {classes - 1}: {ADVICE}."
            )
        if not (np.isfinite(self.probabilities).all() and self.probabilities.min() >= 0):
            wrong = int((~np.isfinite(self.probabilities) | (self.probabilities < 0)).any(axis=1).argmax())
            raise UserError(
                f"image {self.ids[wrong]} of the predictions of {self.source} has a probability that is negative or "
                "not finite; fix the network and evaluate it again."
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def key(self) -> str:
        """Data set, split and protocol, such as "imagenet2012/validation/center": the key of a model card."""
        return f"{self.data}/{self.split}/{self.protocol}"

    def top(self, k: int) -> np.ndarray:
        """Return the k most probable classes of each image, int64 [n, min(k, classes)]; ties by lower class index."""
        return np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]

    def at(self, positions: Sequence[int] | np.ndarray) -> Predictions:
        """Return the predictions of the images at the given positions, in that order."""
        chosen = np.asarray(positions, np.int64)
        return dataclasses.replace(
            self,
            ids=tuple(self.ids[position] for position in chosen),
            labels=self.labels[chosen],
            probabilities=self.probabilities[chosen],
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Write the predictions to a .npz or .csv file, atomically.

        A .npz file holds all attributes as arrays of the same names, and "top5", class indices [n, min(5, classes)]. A
        .csv file has one row per image, with the columns id, label, label_name, top1_name, top1_probability and so on
        up to top5, source, data, split and protocol, followed by the probabilities, one column per class with the
        class's name. If another column has that name too, " (class INDEX)" is appended. The .csv file does not contain
        `left_out` and `fingerprint`.

        Args:
            path: file name with the suffix .npz or .csv.

        Returns:
            The path.

        Raises:
            UserError: if the path has another suffix or can't be written.
        """
        file = predictions_path(path)
        with wrap_write_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as temporary:
            if file.suffix.lower() == ".npz":
                self._write_npz(temporary)
            else:
                with open(temporary, "w", encoding="utf-8", newline="") as stream:
                    self._write_csv(stream)
        return file

    @classmethod
    def load(cls, path: str | os.PathLike) -> Predictions:
        """Read a file written by `save`.

        Raises:
            UserError: if the file does not exist or does not hold predictions.
        """
        file = predictions_path(path)
        if not file.is_file():
            raise UserError(f"{file} does not exist; {ADVICE}.")
        try:
            return cls(**(_read_npz(file) if file.suffix.lower() == ".npz" else _read_csv(file)))
        except UserError:
            raise
        except (OSError, EOFError, KeyError, ValueError, TypeError, IndexError, csv.Error, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{file} is not a file of predictions ({reason}); {ADVICE}.") from error

    def _write_npz(self, path: Path) -> None:
        names = ("class_names", "ids", *LAST_COLUMNS, "fingerprint", "labels", "probabilities")
        arrays: dict[str, Any] = {name: np.array(getattr(self, name)) for name in names}
        arrays["left_out"] = np.array(self.left_out) if self.left_out else np.empty((0, len(BrokenImage._fields)), str)
        with open(path, "wb") as stream:
            np.savez(stream, **arrays, top5=self.top(TOP))

    def _write_csv(self, stream: TextIO) -> None:
        order, facts = self.top(TOP), [getattr(self, name) for name in LAST_COLUMNS]
        columns = _fixed_columns(order.shape[1])
        table = csv.writer(stream, lineterminator="\n")
        table.writerow([*columns, *_class_columns(self.class_names, columns)])
        numbers_format = ",".join([NUMBER] * len(self.class_names))
        for name, label, likeliest, row in zip(self.ids, self.labels, order, self.probabilities, strict=True):
            best = [text for index in likeliest for text in (self.class_names[index], NUMBER % row[index])]
            numbers = (numbers_format % tuple(row.tolist())).split(",")
            table.writerow([name, label, self.class_names[label], *best, *facts, *numbers])


def aligned(several: Sequence[Predictions]) -> list[Predictions]:
    """Return several predictions for the same images, sorted into the image order of the first.

    Raises:
        UserError: if an image has two predictions, or if the images, their labels or the classes differ.
    """
    first = several[0]
    places = {name: place for place, name in enumerate(first.ids)}
    if len(places) != len(first):
        raise UserError(f"{first.source} has two predictions for an image of {first.key}; {ADVICE}.")
    return [first, *(_aligned(other, first, places) for other in several[1:])]


def _aligned(other: Predictions, first: Predictions, places: dict[str, int]) -> Predictions:
    both, advice = f"{first.source} and {other.source}", "evaluate them on the same data"
    if other.class_names != first.class_names:
        theirs = f"{_shortened(first.class_names)}; {_shortened(other.class_names)}"
        raise UserError(f"{both} have different classes ({theirs}); {advice}.")
    if other.ids != first.ids:
        differing = set(places).symmetric_difference(other.ids)
        if differing or len(other) != len(first):
            example = f", such as {min(differing)}" if differing else ""
            raise UserError(
                f"{both} have predictions for different images ({len(first)} of {first.key}, {len(other)} of "
                f"{other.key}{example}); {advice}."
            )
        other = other.at(np.argsort([places[name] for name in other.ids]))
    wrong = np.flatnonzero(other.labels != first.labels)
    if len(wrong):
        raise UserError(
            f"{both} have different true labels for {len(wrong)} images, such as {first.ids[wrong[0]]} "
            f"({first.class_names[first.labels[wrong[0]]]}; {other.class_names[other.labels[wrong[0]]]}); {advice}."
        )
    return other


def _shortened(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def predictions_path(path: str | os.PathLike) -> Path:
    """Return the path of a predictions file.

    Raises:
        UserError: if its suffix is not .npz or .csv.
    """
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"{file} is not a valid name of a predictions file; it must end in .npz or .csv.")
    return file


def _fixed_columns(top: int) -> list[str]:
    """Return the CSV columns before the probabilities."""
    best = [f"top{place}_{what}" for place in range(1, top + 1) for what in ("name", "probability")]
    return [*FIRST_COLUMNS, *best, *LAST_COLUMNS]


def _class_columns(class_names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return a unique CSV column name for each class; `_class_name` is the inverse."""
    taken = {*others}
    columns = []
    for index, name in enumerate(class_names):
        # A class name may itself end in such a suffix.
        is_ambiguous = name in taken or re.search(r" \(class \d+\)$", name) is not None
        taken.add(name)
        columns.append(name + _index_suffix(index) if is_ambiguous else name)
    return columns


def _class_name(column: str, index: int) -> str:
    return column.removesuffix(_index_suffix(index))


def _index_suffix(index: int) -> str:
    return f" (class {index})"


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as stored:
        texts = {name: str(stored[name][()]) for name in (*LAST_COLUMNS, "fingerprint")}
        return {
            **texts,
            "class_names": tuple(stored["class_names"].tolist()),
            "ids": tuple(stored["ids"].tolist()),
            "labels": stored["labels"],
            "probabilities": stored["probabilities"],
            "left_out": tuple(BrokenImage(*row) for row in stored["left_out"].tolist()),
        }


def _read_csv(path: Path) -> dict[str, Any]:
    with open(path, encoding="utf-8", newline="") as stream:
        table = csv.reader(stream)
        header = next(table, [])
        top = sum(re.fullmatch("top[1-9]_name", column) is not None for column in header[: len(_fixed_columns(TOP))])
        fixed = _fixed_columns(top)
        if top < 1 or header[: len(fixed)] != fixed:
            raise ValueError(f"the first columns are not {', '.join(fixed[:4])}")
        first, ids, labels, rows = len(fixed), [], [], []
        facts: list[str] = [""] * len(LAST_COLUMNS)
        for row in table:
            if len(row) != len(header):
                raise ValueError(f"line {table.line_num} has {len(row)} columns and the header has {len(header)}")
            ids.append(row[0])
            labels.append(int(row[1]))
            facts = row[first - len(LAST_COLUMNS) : first]
            rows.append(np.array(row[first:], np.float32))
    return {
        **dict(zip(LAST_COLUMNS, facts, strict=True)),
        "class_names": tuple(_class_name(column, index) for index, column in enumerate(header[first:])),
        "ids": tuple(ids),
        "labels": np.array(labels, np.int64),
        "probabilities": np.stack(rows) if rows else np.empty((0, len(header) - first), np.float32),
    }
