"""JSON text as TensorFlow Serving reads it, with its error messages.

TensorFlow Serving parses with rapidjson's iterative parser, stops after the first value, and accepts NaN and
Infinity. Python's own decoder reads the same documents and is much faster, so it goes first; what it refuses, and
the few things it accepts and rapidjson does not, go through the small parser below, which either reads the text or
says what is wrong and at which byte.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from keras_convnets.export.serving.status import ServingError, invalid_argument

_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(rb"[ \t\n\r]*")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:(\.)([0-9]*))?(?:([eE])[+-]?([0-9]*))?")
_HEX4 = re.compile(rb"[0-9a-fA-F]{4}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# Maps every digit to 0 and the exponent's letter to e, after which numbers of a kind are found by plain searches.
_NUMBER_KINDS = bytes.maketrans(b"123456789E", b"000000000e")
_LITERALS = {
    b"true": True,
    b"false": False,
    b"null": None,
    b"NaN": math.nan,
    b"Infinity": math.inf,
    b"Inf": math.inf,
    b"-Infinity": -math.inf,
    b"-Inf": -math.inf,
}
_ESCAPES = {b'"': '"', b"\\": "\\", b"/": "/", b"b": "\b", b"f": "\f", b"n": "\n", b"r": "\r", b"t": "\t"}
_EMPTY = "The document is empty."
_BAD_VALUE = "Invalid value."
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
    start = len(_BOM) if body.startswith(_BOM) else 0
    start = _SPACE.match(body, start).end()
    if not _needs_care(body):
        try:
            return _DECODER.raw_decode(body[start:].decode("utf-8", "surrogateescape"))[0]
        except (ValueError, RecursionError):
            pass
    return _Parser(body, start).parse()


def _needs_care(body: bytes) -> bool:
    """Tell whether Python might read the text otherwise than rapidjson.

    Python accepts lone surrogates, lets numbers overflow to infinity without a word and refuses very long integers.
    """
    if b"\\" in body and _SURROGATE.search(body):
        return True
    kinds = body.translate(_NUMBER_KINDS)
    return any(kind in kinds for kind in (b"e000", b"e+000", b"0" * 300))


def dump(value: Any) -> str:
    """Return a value as error messages quote it: indented objects, arrays on one line, cut after 256 characters."""
    parts: list[str] = []
    try:
        _dump_into(value, 0, parts)
    except _Full:
        pass
    return "".join(parts)[:_DUMP_LIMIT]


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


class _Parser:
    """A parser without recursion: nesting costs heap, never the interpreter's stack."""

    def __init__(self, body: bytes, start: int):
        self._body = body
        self._at = start

    def parse(self) -> Any:
        """Return the first value of the text."""
        first = self._peek()
        if first in (b"", b"\x00", b"}", b"]", b",", b":"):
            raise self._error(_EMPTY)
        if first not in (b"{", b"["):
            return self._scalar()
        root = self._open()
        # Containers still open, innermost last. A key waits beside its object until its value is whole.
        stack: list[tuple[list | dict, str | None]] = [(root, None)]
        while stack:
            container, key = stack.pop()
            if isinstance(container, dict):
                key = self._next_key(container)
                if key is None:
                    continue
            elif not self._next_item(container):
                continue
            stack.append((container, key))
            value = self._open() if self._peek() in (b"{", b"[") else self._scalar()
            if isinstance(container, list):
                container.append(value)
            else:
                container.setdefault(key, value)
            if isinstance(value, (list, dict)):
                stack.append((value, None))
            self._first = isinstance(value, (list, dict))
        return root

    def _open(self) -> list | dict:
        opened: list | dict = {} if self._peek() == b"{" else []
        self._at += 1
        self._first = True
        return opened

    def _next_item(self, container: list) -> bool:
        """Move to the array's next element; False when the array is closed instead."""
        symbol = self._peek()
        if symbol == b"]":
            return self._close()
        if not self._first:
            if symbol != b",":
                raise self._error("Missing a comma or ] after an array element.")
            self._at += 1
        if self._peek() in (b",", b":", b"}", b"]"):
            raise self._error(_BAD_VALUE)
        return True

    def _next_key(self, container: dict) -> str | None:
        """Move to the object's next value and return its key; None when the object is closed instead."""
        symbol = self._peek()
        if symbol == b"}":
            self._close()
            return None
        if not self._first:
            if symbol != b",":
                raise self._error("Missing a comma or } after an object member.")
            self._at += 1
        if self._peek() != b'"':
            raise self._error("Missing a name for object member.")
        key = self._string()
        if self._peek() != b":":
            raise self._error("Missing a colon after a name of object member.")
        self._at += 1
        if self._peek() in (b",", b":", b"}", b"]"):
            raise self._error(_BAD_VALUE)
        return key

    def _close(self) -> bool:
        self._at += 1
        self._first = False
        return False

    def _peek(self) -> bytes:
        self._at = _SPACE.match(self._body, self._at).end()
        return self._body[self._at : self._at + 1]

    def _error(self, text: str, at: int | None = None) -> ServingError:
        return invalid_argument(f"JSON Parse error: {text} at offset: {self._at if at is None else at}")

    def _scalar(self) -> Any:
        symbol = self._peek()
        if symbol == b'"':
            return self._string()
        if symbol.isdigit():
            return self._number()
        for word, value in _LITERALS.items():
            if self._body.startswith(word, self._at):
                self._at += len(word)
                return value
        return self._number()

    def _number(self) -> int | float:
        match = _NUMBER.match(self._body, self._at)
        if match is None:
            raise self._error(_BAD_VALUE, self._bad_value_offset())
        point, fraction, exponent, power = match.groups()
        if point and not fraction:
            raise self._error("Miss fraction part in number.", match.end(2))
        if exponent and not power:
            raise self._error("Miss exponent in number.", match.end())
        text = match.group()
        # Python converts no integer of thousands of digits; one that long is too big for a double anyway.
        if not point and not exponent and len(text) < 300:
            number: int | float = int(text)
        else:
            number = float(text)
            if math.isinf(number):
                raise self._error("Number too big to be stored in double.")
        self._at = match.end()
        return number

    def _bad_value_offset(self) -> int:
        """Return where a word stops being the literal that it starts as."""
        for word in _LITERALS:
            if self._body[self._at : self._at + 1] == word[:1]:
                common = 1
                while self._body[self._at + common : self._at + common + 1] == word[common : common + 1]:
                    common += 1
                return self._at + common
        return self._at

    def _string(self) -> str:
        self._at += 1
        parts: list[str] = []
        while True:
            plain = _PLAIN.match(self._body, self._at)
            parts.append(plain.group().decode("utf-8", "surrogateescape"))
            self._at = plain.end()
            symbol = self._body[self._at : self._at + 1]
            if symbol == b'"':
                self._at += 1
                return "".join(parts)
            if symbol != b"\\":
                missing = symbol in (b"", b"\x00")
                raise self._error(
                    "Missing a closing quotation mark in string." if missing else "Invalid encoding in string."
                )
            parts.append(self._escape())

    def _escape(self) -> str:
        symbol = self._body[self._at + 1 : self._at + 2]
        if symbol in _ESCAPES:
            self._at += 2
            return _ESCAPES[symbol]
        if symbol != b"u":
            raise self._error("Invalid escape character in string.")
        code, end = self._hex(self._at + 2)
        if 0xD800 <= code <= 0xDFFF:
            if code > 0xDBFF or self._body[end : end + 2] != b"\\u":
                raise self._error("The surrogate pair in string is invalid.")
            low, end = self._hex(end + 2)
            if not 0xDC00 <= low <= 0xDFFF:
                raise self._error("The surrogate pair in string is invalid.")
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
        self._at = end
        return chr(code)

    def _hex(self, at: int) -> tuple[int, int]:
        match = _HEX4.match(self._body, at)
        if match is None:
            raise self._error("Incorrect hex digit after \\u escape in string.")
        return int(match.group(), 16), match.end()
