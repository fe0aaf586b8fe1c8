"""Data whose classes are some of a network's, or stand in another order: where each is among the network's outputs."""

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

# Understand the data's classes by their own names.
OWN_NAMES = "names"
# Which answers of the network count: all, or those that are classes of the data.
ALL, SUBSET = "all", "subset"
ANSWERS = (ALL, SUBSET)


class KnownClasses(NamedTuple):
    """The classes of a network without a card.

    Attributes:
        class_names: in the order of its outputs.
        class_ids: in the same order, or none.
    """

    class_names: tuple[str, ...]
    class_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassMap:
    """Where the classes of a data set are among a network's.

    Attributes:
        indices: of each class of the data, the network's output.
        data_names: the data's classes.
        model_names: the network's classes, in the order of its outputs.
        answers: "all" where every class of the network is an answer, "subset" where only those of the data are: their
            probabilities are then divided by their sum.
    """

    indices: tuple[int, ...]
    data_names: tuple[str, ...]
    model_names: tuple[str, ...]
    answers: str = ALL

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that figures are of."""
        return self.model_names if self.answers == ALL else self.data_names

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """Return labels of the data, integers [n], as indices into `class_names`, int64 [n]."""
        return np.asarray(self.indices, np.int64)[labels] if self.answers == ALL else labels

    def probabilities(self, probabilities: np.ndarray) -> np.ndarray:
        """Return a network's probabilities, float32 [n, outputs], as those of `class_names`."""
        if self.answers == ALL:
            return probabilities
        chosen = probabilities[:, list(self.indices)]
        sums = chosen.sum(axis=1, keepdims=True)
        # Where a network gives none of them anything, none is likelier.
        return np.where(sums > 0, chosen / np.maximum(sums, np.finfo(np.float32).tiny), 1 / len(self.indices))


# What `evaluate` takes as classes: OWN_NAMES, a file's path or a list with commas; a class of the model for each of the
# data, in their order or by the data's names; or a map.
Asked = str | os.PathLike | Sequence[str | int] | Mapping[str, str | int] | ClassMap


def map_classes(asked: Asked | None, known: HasClassNames, data: DataSet, answers: str = ALL) -> ClassMap | None:
    """Return where the classes of a data set are among a network's, or None where they are the same.

    Args:
        asked: as `evaluate` takes it. With None, classes in another order and a part of the network's are found by
            their WordNet ids; what else differs is left to the caller.
        known: the network's classes.
        data: the data set.
        answers: "all" or "subset".

    Raises:
        UserError: if a class is unknown or ambiguous, two of the data are one of the network's, or there are not as
            many as the data have.
    """
    if answers not in ANSWERS:
        raise unknown_name("kind of answers", answers, ANSWERS)
    if isinstance(asked, ClassMap):
        return asked
    names, ids = names_and_ids(known)
    if asked is None:
        if data.class_names in (known.class_names, ids) or not set(data.class_names) <= set(ids):
            return None
        asked = OWN_NAMES
    wanted = _wanted(read_classes(asked) if isinstance(asked, (str, os.PathLike)) else asked, data)
    indices = find_classes(wanted, names, ids)
    first: dict[int, str] = {}
    for name, index in zip(data.class_names, indices, strict=True):
        if index in first:
            raise UserError(
                f"the classes {first[index]} and {name} of {data.name} are both {names[index]} of the model; give each "
                "a class of its own."
            )
        first[index] = name
    return ClassMap(tuple(indices), data.class_names, known.class_names, answers)


def read_classes(text: str | os.PathLike) -> str | list[str] | dict[str, str]:
    """Return classes that were named by a text: OWN_NAMES, a list with commas, or a file.

    A line of the file is a class of the model, for each of the data in their order; a line that begins with a WordNet
    id stands for that. Or it is a class of the data, a tab, and the class of the model.

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
        raise UserError(f"the classes {text} can't be read ({error}); give an existing text file.") from error
    if lines and all("\t" in line for line in lines):
        pairs = [line.split("\t") for line in lines]
        return {pair[0].strip(): pair[1].strip() for pair in pairs}
    return [re.sub(r"^(n\d{8})\b.*", r"\1", line.strip()) for line in lines]


def _wanted(asked: str | Sequence[str | int] | Mapping[str, str | int], data: DataSet) -> Sequence[str | int]:
    """Return what was asked for as a class of the model for each class of the data."""
    if asked == OWN_NAMES:
        return data.class_names
    if isinstance(asked, Mapping):
        for name in asked:
            if name not in data.class_names:
                raise unknown_name(f"class of {data.name}", name, data.class_names)
        missing = [name for name in data.class_names if name not in asked]
        if missing:
            raise UserError(f"no class of the model is given for {missing[0]} of {data.name}; give one for each class.")
        return [asked[name] for name in data.class_names]
    if len(asked) != len(data.class_names):
        raise UserError(
            f"{len(asked)} classes of the model are given and {data.name} has {len(data.class_names)} "
            f"({', '.join(data.class_names[:5])}{' ...' if len(data.class_names) > 5 else ''}); give one for each, in "
            "this order, or a file with lines of both, a tab between."
        )
    return list(asked)
