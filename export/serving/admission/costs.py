"""Estimates of the memory that a request will take, from its bytes, before it is parsed.

The estimates are upper bounds for the bytes that Python, protocol buffers and TensorFlow allocate. They are close for
requests that consist mostly of images or numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from keras_convnets.export.serving.admission.image_sizes import image_pixels
from keras_convnets.export.serving.admission.limits import NO_LIMITS, Limits, TooLarge, too_large_text
from keras_convnets.export.serving.json_strings import BYTES_A_QUOTE, outside_strings
from keras_convnets.export.serving.status import invalid_argument
from keras_convnets.images.view import DECODED_AT_ONCE

# Bytes for each byte of JSON text: two copies of the inflated body, the text, its strings, decoded base64, the tensor.
_TEXT_COPIES = 6
# A string with any character beyond Latin-1 takes two or four bytes per character.
_WIDE_TEXT_COPIES = 12
# Bytes for each list or object, value and string in JSON, by the punctuation that marks it.
_SIGNS = {b"[": 160, b"{": 160, b",": 48, b":": 48, b'"': 32}
# Bytes for each byte of a protocol buffer: the parsed message, its tensor written again, read, and given to the graph.
_MESSAGE_COPIES = 6
_FIELD_BYTES = 160
# A packed number of one byte becomes one of up to eight, each time.
_PACKED_COPIES = 24
# FieldDescriptor's CPPTYPE_INT32, INT64, UINT32, UINT64, BOOL and ENUM.
_GROWING = frozenset({1, 2, 3, 4, 7, 8})
_MAX_DEPTH = 100


def of_json(pieces: Iterable[bytes]) -> int:
    """Return an upper bound in bytes for parsing a JSON text, given in pieces, and converting it to tensors.

    Example:
        >>> of_json([b'{"instances": [1, 2]}']) < 1000
        True
    """
    size = cost = 0
    narrow = True
    for piece in pieces:
        size += len(piece)
        cost += _of_signs(piece)
        narrow = narrow and piece.isascii()
    return cost + size * (_TEXT_COPIES if narrow else _WIDE_TEXT_COPIES)


def of_whole_json(text: bytes) -> int:
    """Return the bound of `of_json` for a whole text; in one with long strings, their punctuation is not counted.

    Example:
        >>> of_whole_json(b'{"instances": [1, 2]}') == of_json([b'{"instances": [1, 2]}'])
        True
    """
    outside = outside_strings(text)
    if outside is None:
        return of_json([text])
    most_quotes = len(text) // BYTES_A_QUOTE
    copies = _TEXT_COPIES if text.isascii() else _WIDE_TEXT_COPIES
    return _of_signs(outside) + most_quotes * _SIGNS[b'"'] + len(text) * copies


def _of_signs(text: bytes) -> int:
    return sum(each * text.count(sign) for sign, each in _SIGNS.items())


def of_answer(outputs: Mapping[str, np.ndarray], bytes_each: int) -> int:
    """Return an upper bound in bytes for writing a response.

    Args:
        outputs: the tensors by name.
        bytes_each: overhead of an element, in bytes.
    """
    return sum(
        array.size * bytes_each + (3 * sum(map(len, array.flat)) if array.dtype == object else 3 * array.nbytes)
        for array in outputs.values()
    )


def of_message(data: bytes, descriptor: Any, limits: Limits = NO_LIMITS) -> int:
    """Return an upper bound in bytes for parsing a protocol buffer and converting it to tensors.

    Two bytes may encode an empty message that takes fifty bytes in memory, so the fields are counted without parsing.

    Args:
        data: the serialized message; an invalid one is left to the parser.
        descriptor: the message's type.
        limits: give the maximum number of fields.

    Raises:
        ServingError: RESOURCE_EXHAUSTED for too many fields, INVALID_ARGUMENT for messages that are nested too deeply.
    """
    cost = 0
    for _, field, start, end in _fields(data, descriptor, limits.max_message_fields):
        cost += _FIELD_BYTES
        if field is None or field[0] is None:
            cost += (end - start) * (_PACKED_COPIES if field is not None and field[1] else _MESSAGE_COPIES)
    return cost


def decoded_pixels(strings: Iterable[bytes], in_examples: bool = False) -> int:
    """Return the pixels of a request's images that are decoded concurrently, assuming the largest ones.

    Args:
        strings: a tensor's strings, images or anything else.
        in_examples: whether they are serialized tf.Examples with images in their features.
    """
    pixels = map(_example_pixels if in_examples else image_pixels, strings)
    return sum(sorted(pixels, reverse=True)[:DECODED_AT_ONCE])


def _example_pixels(data: bytes) -> int:
    from tensorflow.core.example import example_pb2

    found = _fields(data, example_pb2.Example.DESCRIPTOR, 0)
    return max((image_pixels(data[start:end]) for _, field, start, end in found if field == (None, False)), default=0)


def _fields(data: bytes, descriptor: Any, most: int) -> Iterator[tuple[int, tuple[Any, bool] | None, int, int]]:
    """Yield (depth, entry of `_known` or None, start, end) for the fields of a message and of its nested messages.

    Stops where the wire format is invalid.
    """
    count = 0
    # A stack of the enclosing messages: where each ends, and its known fields.
    opened = [(len(data), _known(descriptor))]
    at = 0
    while opened:
        end, known = opened[-1]
        if at >= end:
            opened.pop()
            continue
        tag, at = _varint(data, at)
        kind, start = tag & 7, at
        if kind == 0:
            at = _varint(data, at)[1]
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            size, start = _varint(data, at)
            at = start + size
        else:
            return
        count += 1
        if most and count > most:
            what = f"The message has more than {most} fields"
            raise TooLarge(too_large_text(what, most, "max_message_fields"))
        if at > end:
            return
        field = known.get(tag >> 3) if kind == 2 else None
        yield len(opened), field, start, at
        if field is not None and field[0] is not None:
            if len(opened) >= _MAX_DEPTH:
                raise invalid_argument("The message has others in it more than a hundred deep.")
            opened.append((at, _known(field[0])))
            at = start


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Decode a varint; return it and the position after it. Bytes beyond the end count as zero."""
    number = shift = 0
    while at < len(data) and shift < 70:
        octet = data[at]
        at += 1
        number |= (octet & 0x7F) << shift
        if octet < 0x80:
            break
        shift += 7
    return number, at


@functools.cache
def _known(descriptor: Any) -> dict[int, tuple[Any, bool]]:
    """Return by field number the message type, or None, and whether its integers take more bytes in memory."""
    return {field.number: (field.message_type, field.cpp_type in _GROWING) for field in descriptor.fields}
