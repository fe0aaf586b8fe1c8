"""JSON text as TensorFlow Serving reads it, with its error messages.

TensorFlow Serving parses with rapidjson, stops after the first value, keeps the first of duplicate keys, accepts NaN
and Infinity, and nests without a limit. Python's own decoder reads the same documents and goes first. What it refuses
is read again here, value by value: containers in a loop, because the decoder would recurse into them, and strings and
numbers by the decoder, after which what it accepts and rapidjson does not is refused: halves of surrogate pairs, which
are no text that could be answered, and numbers beyond a double, which Python silently reads as infinity. The error
messages are rapidjson's; their offsets may differ by the rest of a word.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from keras_convnets.export.serving.json_strings import outside_strings
from keras_convnets.export.serving.status import ServingError, invalid_argument

_BOM = "\ufeff"
_SPACE = re.compile(r"[ \t\n\r]*")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# Escapes in a string, of which the last kind is half a surrogate pair.
_ESCAPES = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]|u(?![dD][89a-fA-F])|[^u]|(?P<half>u))", re.DOTALL)
# What begins the part of a number that is missing.
_UNFINISHED = {".": "Miss fraction part in number.", "e": "Miss exponent in number.", "E": "Miss exponent in number."}
# Maps every digit to 0 and the exponent's letter to e, after which numbers of a kind are found by plain searches.
_NUMBER_KINDS = bytes.maketrans(b"123456789E", b"000000000e")
# As many digits are too many for a double, or nearly; Python converts no integer of thousands.
_MOST_DIGITS = 300
_SHORT_INFINITIES = re.compile(r"-?Inf(?!inity)")
# What Python's messages begin with, and rapidjson's for the same.
_REASONS = {
    "Unterminated string": "Missing a closing quotation mark in string.",
    "Invalid control character": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}
_NO_COMMA = {
    "]": "Missing a comma or ] after an array element.",
    "}": "Missing a comma or } after an object member.",
}
_BAD_VALUE = "Invalid value."
_TOO_BIG = "Number too big to be stored in double."
_DUMP_LIMIT = 256


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    return members if len(members) == len(pairs) else dict(reversed(pairs))


_DECODER = json.JSONDecoder(object_pairs_hook=_first_wins)


def parse(body: bytes) -> Any:
    """Return the first JSON value of a request body; of duplicate keys the first counts.

    Bytes that are not UTF-8 are kept as surrogate escapes, so that a string can be turned back into the bytes that
    were sent.

    Raises:
        ServingError: INVALID_ARGUMENT, "JSON Parse error: ... at offset: N" with N in bytes.

    Example:
        >>> parse(b'{"instances": [1, 2]} anything')
        {'instances': [1, 2]}
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    text = body.decode("utf-8", "surrogateescape")
    start = _after_space(text, len(_BOM) if text.startswith(_BOM) else 0)
    if not _needs_care(body):
        try:
            return _DECODER.raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            pass
    return _Reader(text, start).read()


def _needs_care(body: bytes) -> bool:
    """Tell whether Python might read the text otherwise than rapidjson.

    Python accepts lone surrogates, lets numbers overflow silently to infinity and refuses very long integers.
    """
    outside = outside_strings(body)
    if outside is None and b"\\" in body and _SURROGATE.search(body):
        return True
    # No number is inside a string.
    kinds = (body if outside is None else outside).translate(_NUMBER_KINDS)
    return any(kind in kinds for kind in (b"e000", b"e+000", b"0" * _MOST_DIGITS))


def dump(value: Any) -> str:
    """Return a value as error messages quote it: indented objects, arrays on one line, cut after 256 characters."""
    parts: list[str] = []
    try:
        _dump_into(value, 0, parts)
    except _Full:
        pass
    return "".join(parts)[:_DUMP_LIMIT]


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


class _Full(Exception):
    """The dump has all the text that it may have."""


def _dump_into(value: Any, depth: int, parts: list[str]) -> None:
    if len(parts) > _DUMP_LIMIT or sum(map(len, parts)) > _DUMP_LIMIT:
        raise _Full
    if isinstance(value, list):
        parts.append("[")
        for index, item in enumerate(value):
            parts.append(", " if index else "")
            _dump_into(item, depth + 1, parts)
        parts.append("]")
    elif isinstance(value, dict):
        parts.append("{")
        for index, (key, item) in enumerate(value.items()):
            parts.append(("," if index else "") + "\n" + "    " * (depth + 1))
            parts.append(json.dumps(key[:_DUMP_LIMIT], ensure_ascii=False) + ": ")
            _dump_into(item, depth + 1, parts)
        parts.append("\n" + "    " * depth + "}" if value else "}")
    elif isinstance(value, str):
        parts.append(json.dumps(value[:_DUMP_LIMIT], ensure_ascii=False))
    else:
        parts.append(json.dumps(value))


class _Reader:
    """Reads a text without recursion: nesting costs heap, never the interpreter's stack."""

    def __init__(self, text: str, start: int):
        self._text = text
        self._at = start

    def read(self) -> Any:
        """Return the first value of the text."""
        if self._peek() in ("", "\0", "}", "]", ",", ":"):
            raise self._error("The document is empty.")
        root = self._value()
        # Containers that are still open, innermost last.
        opened = [root] if isinstance(root, (list, dict)) else []
        is_first = True
        while opened:
            container = opened[-1]
            closing = "]" if isinstance(container, list) else "}"
            symbol = self._peek()
            if symbol == closing:
                self._at += 1
                opened.pop()
                is_first = False
                continue
            if not is_first:
                if symbol != ",":
                    raise self._error(_NO_COMMA[closing])
                self._at += 1
            if isinstance(container, list):
                value = self._value()
                container.append(value)
            else:
                key = self._key()
                value = self._value()
                container.setdefault(key, value)
            is_first = isinstance(value, (list, dict))
            opened += [value] if is_first else []
        return root

    def _key(self) -> str:
        if self._peek() != '"':
            raise self._error("Missing a name for object member.")
        key = self._scalar()
        if self._peek() != ":":
            raise self._error("Missing a colon after a name of object member.")
        self._at += 1
        return key

    def _value(self) -> Any:
        """Return the value that comes next; of a container, an empty one whose members follow."""
        symbol = self._peek()
        if symbol in ("[", "{"):
            self._at += 1
            return [] if symbol == "[" else {}
        return self._scalar()

    def _scalar(self) -> Any:
        start = self._at
        if short := _SHORT_INFINITIES.match(self._text, start):
            self._at = short.end()
            return float(short.group())
        try:
            value, self._at = _DECODER.raw_decode(self._text, start)
        except json.JSONDecodeError as error:
            reason = next((text for begin, text in _REASONS.items() if error.msg.startswith(begin)), _BAD_VALUE)
            # Python gives where a string without an end begins.
            raise self._error(reason, len(self._text) if "Unterminated" in error.msg else error.pos) from None
        except ValueError:  # an integer of thousands of digits
            raise self._error(_TOO_BIG, start) from None
        if isinstance(value, str):
            self._check_pairs(start)
        elif isinstance(value, (int, float)) and self._text[self._at - 1].isdigit():
            value = self._number(value, start)
        return value

    def _check_pairs(self, start: int) -> None:
        """Check that the string which was just read has no half of a surrogate pair among its escapes."""
        for escape in _ESCAPES.finditer(self._text, start, self._at):
            if escape["half"]:
                raise self._error("The surrogate pair in string is invalid.", escape.start())

    def _number(self, value: int | float, start: int) -> int | float:
        """Return the number that was just read, if it is whole and a double can hold it."""
        if reason := _UNFINISHED.get(self._text[self._at : self._at + 1]):
            raise self._error(reason, self._at + 1)
        if isinstance(value, int) and self._at - start >= _MOST_DIGITS:
            value = float(self._text[start : self._at])
        if isinstance(value, float) and math.isinf(value):
            raise self._error(_TOO_BIG, start)
        return value

    def _peek(self) -> str:
        self._at = _after_space(self._text, self._at)
        return self._text[self._at : self._at + 1]

    def _error(self, reason: str, at: int | None = None) -> ServingError:
        before = self._text[: self._at if at is None else at].encode("utf-8", "surrogateescape")
        return invalid_argument(f"JSON Parse error: {reason} at offset: {len(before)}")
