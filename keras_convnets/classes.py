"""The 1,000 classes of ILSVRC 2012-2017 with their WordNet ids, class lookup and decoding. NumPy only."""

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

# Maximum length of a class name.
MOST_CHARACTERS = 1000


class HasClassNames(Protocol):
    """An object with class names and ids: a `ModelCard`, or a `WeightsRecord` of published weights."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, in the order of the network's outputs."""

    @property
    def class_ids(self) -> tuple[str, ...]:
        """Class ids, in the order of the network's outputs; () if there are none."""


def check_class_names(names: Sequence[Any], where: str) -> None:
    """Check that class names can be displayed and written one per line.

    Slashes and dots are allowed; `keras_convnets.files.safe_names` converts class names to path components.

    Args:
        names: the class names.
        where: their origin, for the error message, such as "data set cifar10".

    Raises:
        UserError: if a name is not a string, is empty or longer than 1,000 characters, or has control characters, line
            breaks or lone surrogates.
    """
    for position, name in enumerate(names):
        if not isinstance(name, str) or not 0 < len(name) <= MOST_CHARACTERS or _UNFIT(name):
            raise UserError(
                f"class {position} of {where} is named {_short(name)}; a class name is a string of 1 to "
                f"{MOST_CHARACTERS} characters without control characters and line breaks: rename the class."
            )


# Control characters, line breaks, and lone surrogates (from file names that are not valid UTF-8).
_UNFIT = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]").search


@dataclass(frozen=True)
class Classes:
    """Ids and names of classes, in the order of a network's outputs.

    Attributes:
        ids: class ids, such as "n01440764".
        names: class names, such as "tench".

    Raises:
        UserError: if the numbers of ids and names differ.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.names):
            raise UserError(f"got {len(self.ids)} class ids and {len(self.names)} class names; give one id per name.")


@dataclass(frozen=True)
class KnownClasses:
    """The classes of a network that has them from elsewhere than a file of weights, as its `known_classes`.

    Attributes:
        class_names: in the order of the outputs.
        class_ids: WordNet ids, if the names are ImageNet's; else ().
    """

    class_names: tuple[str, ...]
    class_ids: tuple[str, ...] = ()


@functools.cache
def imagenet_classes() -> Classes:
    """Return the 1,000 ImageNet classes sorted by WordNet id, the order of all published weights.

    They are included in the package; nothing is downloaded. The ids are unique, but two names, "crane" and "maillot",
    are those of two classes each.

    Returns:
        The ids and names.

    Example:
        >>> imagenet_classes().names[:2]
        ('tench', 'goldfish')
    """
    text = (resources.files("keras_convnets") / "imagenet_classes.txt").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()]
    return Classes(tuple(row[0] for row in rows), tuple(row[1] for row in rows))


def names_and_ids(known: HasClassNames) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names and ids of a network's classes; the ids are () if there are none.

    For ImageNet classes, both are returned, whether the class names are names, as for published weights, or WordNet
    ids, as for data in folders.

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
    """Return the indices of classes given by name, id or index.

    A string is looked up, in this order, as a name, as an id, as a name with case ignored and underscores equal to
    spaces, by the WordNet id that it begins with, as in "n01440764_tench", and as a decimal index.

    Args:
        wanted: names, ids or 0-based indices.
        names: names of all classes.
        ids: ids of all classes; empty if they have none.

    Raises:
        UserError: if a class does not exist, or a name is ambiguous.

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
            raise UserError(f"the class name {text!r} is ambiguous: {several}; give {'the id' if ids else 'an index'}.")
        if found:
            return found[0]
    if not re.fullmatch(r"\d+", text, re.ASCII):
        near = difflib.get_close_matches(text, [*names, *ids], n=3)
        hint = f"the nearest valid names are {', '.join(near)}; " if near else ""
        allowed = f"a name{', an id' if ids else ''} or an index from 0 to {len(names) - 1}"
        raise UserError(f"unknown class of the model {text!r}; {hint}give {allowed}.")
    if int(text) >= len(names):
        raise UserError(
            f"class index {text} is out of range for the model's {len(names)} classes; indices are 0 to "
            f"{len(names) - 1}."
        )
    return int(text)


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def decode_predictions(
    predictions: Any, top: int = 5, classes: Sequence[str] | Classes | HasClassNames | None = None
) -> list[list[tuple[str, str, float]]]:
    """Decode predictions into the most probable classes of each image, as in keras.applications, but offline.

    Args:
        predictions: [n, classes], probabilities or logits of any dtype, as an array, a tensor or nested lists.
        top: number of classes to return per image, at most all of them.
        classes: the classes in the order of the outputs: class names, or a model card, a record of published weights
            or `Classes`, which may also have ids. By default the 1,000 ImageNet classes. Without ids, the class index
            is used as id.

    Returns:
        For each image, a list of (id, name, value) in descending order of the value; ties by lower class index.

    Raises:
        UserError: if predictions are not [n, classes], contain NaN, or do not match the classes, or if `top` is below
            1.

    Example:
        >>> decode_predictions([[0.1, 0.7, 0.2]], top=2, classes=("cat", "dog", "bird"))
        [[('1', 'dog', 0.7), ('2', 'bird', 0.2)]]
    """
    values = _rows(predictions)
    known = imagenet_classes() if classes is None else _classes_of(classes)
    if values.shape[1] != len(known.names):
        what = "ImageNet has" if classes is None else "classes has"
        raise UserError(
            f"predictions have {values.shape[1]} columns and {what} {len(known.names)} classes; "
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
    """Return the indices of the k most probable classes in descending order; ties by lower class index.

    Args:
        probabilities: probabilities of one image, floating point [classes].
        k: number of classes, at most all of them.
    """
    return np.argsort(-probabilities, kind="stable")[:k]


def _rows(predictions: Any) -> np.ndarray:
    """Return predictions as float64 [n, classes], which preserves the values and order of other dtypes."""
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
            f"predictions have shape {values.shape}, that of one image; add the batch dimension: predictions[None]."
        )
    if values.ndim != 2:
        raise UserError(f"predictions have shape {values.shape}; {advice}.")
    if np.isnan(values).any():
        row = int(np.isnan(values).any(axis=1).argmax())
        raise UserError(f"predictions of image {row} contain NaN; fix the network or its input.")
    return values


def _classes_of(given: Any) -> Classes:
    """Convert the `classes` argument of `decode_predictions` to ids and names; indices as ids if there are none."""
    if isinstance(given, Classes):
        return given
    names = getattr(given, "class_names", given)
    # A string is a sequence of one-letter strings, and a set has no order; both are errors.
    unfit = isinstance(names, (str, bytes, Mapping, Set))
    try:
        names = None if unfit else tuple(names)
    except TypeError:
        names = None
    if names is None or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"classes is {_short(given)}; give a sequence of class names, a ModelCard, or a record of published "
            "weights."
        )
    ids = getattr(given, "class_ids", ()) or map(str, range(len(names)))
    return Classes(tuple(ids), names)


def _short(value: Any, most: int = 60) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
