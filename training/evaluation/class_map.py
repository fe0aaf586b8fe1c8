"""Class maps: evaluation on data whose classes are a subset or a permutation of the model's classes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_convnets.classes import HasClassNames, find_classes, names_and_ids
from keras_convnets.errors import UserError, unknown_name
from keras_convnets.training.data import DataSet

# `classes` value: look up each class of the data by its name.
OWN_NAMES = "names"
# Candidate classes of a prediction: all classes of the model, or only those of the data.
ALL, SUBSET = "all", "subset"
ANSWERS = (ALL, SUBSET)


class KnownClasses(NamedTuple):
    """The classes of a model without a model card.

    Attributes:
        class_names: names, in the order of the model's outputs.
        class_ids: ids, in the order of the model's outputs; () if there are none.
    """

    class_names: tuple[str, ...]
    class_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassMap:
    """A mapping from the classes of a data set to the outputs of a model.

    Attributes:
        indices: for each class of the data, the index of the model's output.
        data_names: class names of the data.
        model_names: class names of the model, in the order of its outputs.
        answers: "all" to predict among all classes of the model; "subset" to predict among the classes of the data
            only, with their probabilities renormalised to sum 1.
    """

    indices: tuple[int, ...]
    data_names: tuple[str, ...]
    model_names: tuple[str, ...]
    answers: str = ALL

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the mapped labels and probabilities."""
        return self.model_names if self.answers == ALL else self.data_names

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """Map labels of the data, integers [n], to indices into `class_names`, int64 [n]."""
        return np.asarray(self.indices, np.int64)[labels] if self.answers == ALL else labels

    def probabilities(self, probabilities: np.ndarray) -> np.ndarray:
        """Map the model's probabilities, float32 [n, outputs], to those of `class_names`."""
        if self.answers == ALL:
            return probabilities
        chosen = probabilities[:, list(self.indices)]
        sums = chosen.sum(axis=1, keepdims=True)
        # If all of these probabilities are 0, the distribution is uniform.
        return np.where(sums > 0, chosen / np.maximum(sums, np.finfo(np.float32).tiny), 1 / len(self.indices))


# The `classes` argument of `evaluate`: OWN_NAMES, the path of a file or a comma-separated list; a class of the model
# for each class of the data, as a sequence in their order or a dict by name; or a ClassMap.
ClassesArgument = str | os.PathLike | Sequence[str | int] | Mapping[str, str | int] | ClassMap


def map_classes(
    classes: ClassesArgument | None, known: HasClassNames, data: DataSet, answers: str = ALL
) -> ClassMap | None:
    """Return the map from the classes of a data set to those of a model, or None if no map is needed.

    Args:
        classes: as for `evaluate`. None maps classes that are a subset or a permutation of the model's by their
            WordNet ids; all other differences are left to the caller, with None returned.
        known: the model's classes.
        data: the data set.
        answers: "all" or "subset".

    Raises:
        UserError: if a class is unknown or ambiguous, two classes of the data map to the same class of the model, or
            the number of classes is not that of the data.
    """
    if answers not in ANSWERS:
        raise unknown_name("value of answers", answers, ANSWERS)
    if isinstance(classes, ClassMap):
        return classes
    names, ids = names_and_ids(known)
    if classes is None:
        if data.class_names in (known.class_names, ids) or not set(data.class_names) <= set(ids):
            return None
        classes = OWN_NAMES
    wanted = _wanted(read_classes(classes) if isinstance(classes, (str, os.PathLike)) else classes, data)
    indices = find_classes(wanted, names, ids)
    first: dict[int, str] = {}
    for name, index in zip(data.class_names, indices, strict=True):
        if index in first:
            raise UserError(
                f"the classes {first[index]} and {name} of {data.name} both map to class {names[index]} of the model; "
                "map each to a different class."
            )
        first[index] = name
    return ClassMap(tuple(indices), data.class_names, known.class_names, answers)


def read_classes(text: str | os.PathLike) -> str | list[str] | dict[str, str]:
    """Parse the `--classes` flag: OWN_NAMES, a comma-separated list, or the path of a text file.

    The file has one line per class of the data, in their order, with the class of the model; if the line begins with a
    WordNet id, the rest of the line is ignored. Alternatively, each line has a class of the data, a tab, and the class
    of the model.

    Raises:
        UserError: if the file can't be read.
    """
    text = os.fspath(text)
    if text == OWN_NAMES:
        return text
    if not Path(text).is_file() and not (os.sep in text or text.endswith((".txt", ".tsv"))):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        lines = [line for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the class file {text} can't be read ({error}); give an existing text file.") from error
    if lines and all("\t" in line for line in lines):
        pairs = [line.split("\t") for line in lines]
        return {pair[0].strip(): pair[1].strip() for pair in pairs}
    return [re.sub(r"^(n\d{8})\b.*", r"\1", line.strip()) for line in lines]


def _wanted(classes: str | Sequence[str | int] | Mapping[str, str | int], data: DataSet) -> Sequence[str | int]:
    """Return the requested class of the model for each class of the data, in the order of the data's classes."""
    if classes == OWN_NAMES:
        return data.class_names
    if isinstance(classes, Mapping):
        for name in classes:
            if name not in data.class_names:
                raise unknown_name(f"class of {data.name}", name, data.class_names)
        missing = [name for name in data.class_names if name not in classes]
        if missing:
            raise UserError(f"class {missing[0]} of {data.name} has no class of the model; give one for each class.")
        return [classes[name] for name in data.class_names]
    if len(classes) != len(data.class_names):
        raise UserError(
            f"{len(classes)} classes of the model are given and {data.name} has {len(data.class_names)} "
            f"({', '.join(data.class_names[:5])}{' ...' if len(data.class_names) > 5 else ''}); give one for each, in "
            "this order, or a file whose lines are a class of the data, a tab and a class of the model."
        )
    return list(classes)
