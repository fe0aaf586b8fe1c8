"""Finds the long strings in a JSON text without parsing it: what a base64 image in it costs should be its decoding."""

from __future__ import annotations

# With more quotation marks than one in so many bytes, looking at every byte is as quick.
BYTES_A_QUOTE = 512


def outside_strings(text: bytes) -> bytes | None:
    """Return what of a JSON text lies outside of strings, or None where that can't be told quickly.

    It can't where there are escapes, which may hide a quotation mark, or many short strings.

    Args:
        text: a whole JSON text, valid or not. Of an invalid one that begins a string and never ends it, the rest is
            inside.

    Example:
        >>> outside_strings(b'{"b64": "' + b"A" * 5000 + b'"}')
        b'{: }'
    """
    if b"\\" in text:
        return None
    parts, begin, is_outside = [], 0, True
    most = len(text) // BYTES_A_QUOTE
    for _ in range(most):
        end = text.find(b'"', begin)
        if end < 0:
            break
        if is_outside:
            parts.append(text[begin:end])
        begin, is_outside = end + 1, not is_outside
    else:
        return None
    if is_outside:
        parts.append(text[begin:])
    return b"".join(parts)
