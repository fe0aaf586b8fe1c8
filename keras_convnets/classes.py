"""The 1,000 classes of ILSVRC 2012-2017 with their WordNet ids, and predictions by name. NumPy only."""

from __future__ import annotations

import difflib
import functools
import operator
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

import numpy as np

from keras_convnets.errors import UserError

# Class names are shown and written; a longer one is refused.
MOST_CHARACTERS = 1000


class HasClassNames(Protocol):
    """What knows its classes: a `ModelCard`, or a `WeightsRecord` of published weights."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names, in the order of the network's outputs."""

    @property
    def class_ids(self) -> tuple[str, ...]:
        """The ids in the same order, or none."""


def check_class_names(names: Sequence[Any], where: str) -> None:
    """Refuse class names that can't be shown and written one per line.

    Slashes and dots are allowed: where a name becomes a part of a path, `keras_convnets.files.safe_names` sees to it.

    Args:
        names: the classes.
        where: whose they are, for the error message, such as "data set cifar10".

    Raises:
        UserError: if one is no text, empty, longer than 1,000 characters, or holds control characters, line breaks or
            parts of characters.
    """
    for position, name in enumerate(names):
        if not isinstance(name, str) or not 0 < len(name) <= MOST_CHARACTERS or _UNFIT(name):
            raise UserError(
                f"class {position} of {where} is named {_short(name)}; a class name is a text of 1 to "
                f"{MOST_CHARACTERS} characters without control characters and line breaks: give it another."
            )


# Control characters, lone surrogates (of file names that are no text), and line breaks.
_UNFIT = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]").search


@dataclass(frozen=True)
class Classes:
    """Names and ids of a data set's classes, in the order of a network's outputs.

    Attributes:
        ids: such as "n01440764".
        names: such as "tench".

    Raises:
        UserError: if there are not as many ids as names.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.names):
            raise UserError(f"{len(self.ids)} class ids came with {len(self.names)} class names; give one for each.")


@functools.cache
def imagenet_classes() -> Classes:
    """Return the 1,000 ImageNet classes, in the order that all published weights share: by WordNet id.

    They are in the package; nothing is downloaded. Two names stand for two classes each, "crane" and "maillot"; ids
    are unique.

    Returns:
        1,000 ids and 1,000 names.

    Example:
        >>> imagenet_classes().names[:2]
        ('tench', 'goldfish')
    """
    text = (resources.files("keras_convnets") / "imagenet_classes.txt").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()]
    return Classes(tuple(row[0] for row in rows), tuple(row[1] for row in rows))


def names_and_ids(known: HasClassNames) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names and the ids of what knows its classes; no ids where there are none.

    ImageNet classes have both, whether they are known by their names, as by published weights, or by their ids, as of
    data in folders.

    Args:
        known: a model card, or a record of published weights.
    """
    imagenet = imagenet_classes()
    if known.class_names == imagenet.names:
        return imagenet.names, imagenet.ids
    names = dict(zip(imagenet.ids, imagenet.names, strict=True))
    if all(name in names for name in known.class_names):
        return tuple(names[name] for name in known.class_names), known.class_names
    return known.class_names, known.class_ids


def find_classes(wanted: Sequence[str | int], names: Sequence[str], ids: Sequence[str] = ()) -> list[int]:
    """Return the indices of classes that are given by name, by id or by index.

    A text is looked for among the names, then the ids, then the names without regard to capital letters and with
    underscores for spaces. A text that begins with an id, as in "n01440764_tench", stands for it, and digits for an
    index.

    Args:
        wanted: texts, or indices from 0 on.
        names: of all classes.
        ids: of all classes, where they have ids.

    Raises:
        UserError: if there is no such class, or several have the name.

    Example:
        >>> find_classes(["n01440764", "Goldfish", 217], imagenet_classes().names, imagenet_classes().ids)
        [0, 1, 217]
    """
    by_text: list[dict[str, list[int]]] = [{}, {}, {}]
    for index, name in enumerate(names):
        by_text[0].setdefault(name, []).append(index)
        by_text[2].setdefault(_folded(name), []).append(index)
    for index, key in enumerate(ids):
        by_text[1].setdefault(key, []).append(index)
    return [_find_class(one, by_text, names, ids) for one in wanted]


def _find_class(
    wanted: str | int, by_text: Sequence[dict[str, list[int]]], names: Sequence[str], ids: Sequence[str]
) -> int:
    text = str(wanted).strip()
    if isinstance(wanted, str):
        prefix = re.match(r"(n\d{8})[ _-]", text)
        places = zip((*by_text, by_text[1]), (text, text, _folded(text), prefix[1] if prefix else ""), strict=True)
        found = next((table[key] for table, key in places if key in table), [])
        if len(found) > 1:
            several = " and ".join(f"{ids[index]} (index {index})" if ids else str(index) for index in found)
            raise UserError(f"the class {text!r} is the name of {several}; give {'the id' if ids else 'an index'}.")
        if found:
            return found[0]
    if not re.fullmatch(r"\d+", text, re.ASCII):
        near = difflib.get_close_matches(text, [*names, *ids], n=3)
        hint = f"the nearest valid names are {', '.join(near)}; " if near else ""
        allowed = f"a name{', an id' if ids else ''} or an index from 0 to {len(names) - 1}"
        raise UserError(f"unknown class of the model {text!r}; {hint}give {allowed}.")
    if int(text) >= len(names):
        raise UserError(f"class {text} is beyond the model's {len(names)} classes; indices are 0 to {len(names) - 1}.")
    return int(text)


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def decode_predictions(
    predictions: Any, top: int = 5, classes: Sequence[str] | Classes | HasClassNames | None = None
) -> list[list[tuple[str, str, float]]]:
    """Name the likeliest classes of each image, as keras.applications' function does, but offline.

    Args:
        predictions: [n, classes], probabilities or logits, any dtype: an array, a tensor or nested lists.
        top: how many classes to name; more than there are gives them all.
        classes: the classes in the order of the outputs: their names, or a model card, a record of published weights
            or `Classes`, which may have ids besides. By default the 1,000 of ImageNet. Without ids, a class's index
            stands for it.

    Returns:
        For each row a list of (id, name, value), likeliest first; equal values by the lower index.

    Raises:
        UserError: if predictions are not [n, classes] or hold NaN, which has no order, or if `top` is below 1.

    Example:
        >>> decode_predictions([[0.1, 0.7, 0.2]], top=2, classes=("cat", "dog", "bird"))
        [[('1', 'dog', 0.7), ('2', 'bird', 0.2)]]
    """
    values = _rows(predictions)
    known = imagenet_classes() if classes is None else _classes_of(classes)
    if values.shape[1] != len(known.names):
        whose = "ImageNet" if classes is None else "what came as classes"
        raise UserError(
            f"predictions have {values.shape[1]} columns and {whose} has {len(known.names)} classes; "
            "pass classes=, one name for each column in the order of the network's outputs."
        )
    try:
        count = operator.index(top)
    except TypeError:
        count = 0
    if count < 1:
        raise UserError(f"top is {top!r}; give a whole number of at least 1.")
    return [
        [(known.ids[index], known.names[index], float(row[index])) for index in likeliest(row, count)] for row in values
    ]


def likeliest(probabilities: np.ndarray, k: int) -> np.ndarray:
    """Return the indices of the k highest of one image's probabilities, highest first; ties to the lower index.

    Args:
        probabilities: floating point, [classes].
        k: how many; more than there are gives all.
    """
    return np.argsort(-probabilities, kind="stable")[:k]


def _rows(predictions: Any) -> np.ndarray:
    """Return predictions as float64 [n, classes], in which every dtype's order and value is kept."""
    advice = "give numbers of shape [n, classes], as model.predict returns them"
    try:
        values = np.asarray(predictions)
        if values.dtype.kind in "USOMmc":
            raise TypeError(f"their dtype is {values.dtype}")
        values = values.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"predictions can't be read as an array of numbers ({reason}); {advice}.") from error
    if values.ndim == 1:
        raise UserError(
            f"predictions have shape {values.shape}, which is one image's; add the batch dimension: predictions[None]."
        )
    if values.ndim != 2:
        raise UserError(f"predictions have shape {values.shape}; {advice}.")
    if np.isnan(values).any():
        row = int(np.isnan(values).any(axis=1).argmax())
        raise UserError(f"predictions of image {row} hold NaN, which has no order; fix the network or its input.")
    return values


def _classes_of(given: Any) -> Classes:
    """Return names and ids of what `decode_predictions` takes as classes; indices where there are no ids."""
    if isinstance(given, Classes):
        return given
    names = getattr(given, "class_names", given)
    # A string would pass for a sequence of one-letter names, and a set has no order.
    unfit = isinstance(names, (str, bytes, Mapping, Set))
    try:
        names = None if unfit else tuple(names)
    except TypeError:
        names = None
    if names is None or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"classes is {_short(given)}; give the names as a sequence of strings, a ModelCard or the record of "
            "published weights."
        )
    ids = getattr(given, "class_ids", ()) or map(str, range(len(names)))
    return Classes(tuple(ids), names)


def _short(value: Any, most: int = 60) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
