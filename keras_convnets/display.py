"""Text for a terminal: names made printable, bars, and the answers of `predict`. No Keras, no colour."""

from __future__ import annotations

import unicodedata
from typing import Any

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


def bar(fraction: float, blocks: str = BLOCKS, cells: int = BAR_CELLS) -> str:
    """Return a bar whose length is a fraction of a number of cells.

    Args:
        fraction: 0 to 1; values outside are clipped.
        blocks: from the narrowest part of a cell to the full one.
        cells: the length of 1.

    Example:
        >>> bar(0.5, "#", cells=10)
        '#####'
    """
    parts = round(min(max(fraction, 0.0), 1.0) * cells * len(blocks))
    full, rest = divmod(parts, len(blocks))
    return blocks[-1] * full + (blocks[rest - 1] if rest else "")


def answers_text(found: list[dict[str, Any]], blocks: str = BLOCKS) -> str:
    """Return what `predict` found as lines: an image's path, then one line a class with its probability and a bar.

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
