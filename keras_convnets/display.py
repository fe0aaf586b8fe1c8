"""Text for a terminal and for pages: bars, and records of published weights in words. No Keras, no color."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_convnets.images.preprocessing import Preprocessing
    from keras_convnets.weights.pretrained import Accuracy, WeightsRecord

# Eighths of a cell, from one to eight: a bar ends where its value does.
BLOCKS = "▏▎▍▌▋▊▉█"
ASCII_BLOCKS = "#"
BAR_CELLS = 30


def printable(text: object, most: int | None = None) -> str:
    """Return a name from data, a file or elsewhere as text that a terminal, a log or a line of a file shows as it is.

    What is no visible character, such as an escape sequence, a line break, a change of the writing direction or a part
    of a file's name that is not text, is written as Python writes it in a literal: \\x1b, \\n, \\u202e.

    Args:
        text: what is to be shown.
        most: how many of its characters; what is longer is cut and ends in "...".

    Example:
        >>> printable("ants\\x1b[2J")
        'ants\\\\x1b[2J'
    """
    text = str(text)
    text = text if most is None or len(text) <= most else f"{text[:most]}..."
    return text if text.isprintable() else "".join(map(_shown_character, text))


def _shown_character(character: str) -> str:
    # Spaces of other scripts, and what joins and parts letters in some, are part of how words are written.
    if character.isprintable() or character in "\u200c\u200d" or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()


def blocks_for(encoding: str | None) -> str:
    """Return the characters of bars that an encoding can write.

    Args:
        encoding: of the stream, such as "utf-8"; None where it has none.
    """
    try:
        BLOCKS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII_BLOCKS
    return BLOCKS


def bar(share: float, blocks: str = BLOCKS, cells: int = BAR_CELLS) -> str:
    """Return a bar whose length is a share of so many cells.

    Args:
        share: 0 to 1; what lies outside is taken for the nearer end.
        blocks: from the narrowest part of a cell to the full one.
        cells: the length of 1.

    Example:
        >>> bar(0.5, "#", cells=10)
        '#####'
    """
    parts = round(min(max(share, 0.0), 1.0) * cells * len(blocks))
    full, rest = divmod(parts, len(blocks))
    return blocks[-1] * full + (blocks[rest - 1] if rest else "")


def answers_text(found: list[dict[str, Any]], blocks: str = BLOCKS) -> str:
    """Return what `predict` found as lines: an image's path, then one line a class with its share and a bar.

    Args:
        found: {"image": path, "classes": [{"class": name, "probability": 0 to 1}, ...]}, one an image.
        blocks: the characters of the bars.
    """
    width = max((len(printable(row["class"])) for item in found for row in item["classes"]), default=0)
    lines = []
    for item in found:
        lines.append(printable(item["image"]))
        for row in item["classes"]:
            shown = (
                f"  {printable(row['class']):<{width}}  {row['probability']:>6.1%}  {bar(row['probability'], blocks)}"
            )
            lines.append(shown.rstrip())
    return "\n".join(lines)


def preprocessing_text(preprocessing: Preprocessing) -> str:
    """Return a preprocessing in words, such as "BGR in 0-255, minus (104, 117, 123)"."""

    def shown(values: tuple[float, ...]) -> str:
        return f"({', '.join(f'{value:.7g}' for value in values)})"

    less = "the mean image" if preprocessing.mean_image is not None else shown(preprocessing.mean)
    divided = f", divided by {shown(preprocessing.std)}" if set(preprocessing.std) != {1.0} else ""
    return f"{preprocessing.order} in 0-255, minus {less}{divided}"


def accuracy_text(accuracy: Accuracy) -> str:
    """Return a measured accuracy with all that belongs to it, in one line."""
    return (
        f"top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} % on {accuracy.data}, n={accuracy.n:,}, "
        f"{accuracy.protocol}; {accuracy.source}"
    )


def record_rows(record: WeightsRecord) -> list[tuple[str, str]]:
    """Return what a record of published weights says, as (label, text) in the order to show them."""
    height, width, _ = record.input_shape
    built = [f"{key}={_plain(value)}" for key, value in record.arguments.items()]
    return [
        *(("accuracy", accuracy_text(accuracy)) for accuracy in record.accuracies),
        ("trained on", f"{record.data}, {height}x{width}"),
        ("preprocessed", preprocessing_text(record.preprocessing)),
        *((("built with", "; ".join(built)),) if built else ()),
        ("file", f"{record.file}, {record.size / 1e6:.1f} MB"),
        ("address", record.locations[0]),
        ("sha256", record.sha256),
        ("obtained", record.obtained),
        ("license", record.license),
    ]


def record_plain(record: WeightsRecord) -> dict[str, Any]:
    """Return a record of published weights as plain data for JSON."""
    return {item.name: _plain(getattr(record, item.name)) for item in dataclasses.fields(record)}


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(inner) for inner in value]
    return value
