"""Names that came from a client, made safe for a log."""

from __future__ import annotations

MAX_CHARACTERS = 200


def printable(text: str, most: int = MAX_CHARACTERS) -> str:
    """Return a text as one line without control characters, of a length that a log can bear.

    Args:
        text: such as a model's name or a path, as a client sent it.
        most: characters that are kept of it.

    Example:
        >>> printable("a" + chr(27) + "[2J" + chr(10) + "b")
        'a\\x1b[2J\\nb'
    """
    short = text if len(text) <= most else f"{text[:most]}..."
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in short)
