"""The number of pixels that an encoded image's header declares, read before it is decoded."""

from __future__ import annotations

import struct

# JPEG files have a few dozen segments before their size, a few hundred with a colour profile and maker's notes.
_MAX_SEGMENTS = 2000
_JPEG_SIZES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_MOST_PIXELS = 65535**2


def image_pixels(data: bytes) -> int:
    """Return how many pixels a JPEG, PNG, GIF, BMP or WebP file claims to have, and 0 for anything else.

    Example:
        >>> image_pixels(b"BM" + bytes(16) + struct.pack("<ii", 3, -2))
        6
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        sizes = _unpacked(">II", data, 16)
    elif data[:4] == b"GIF8":
        sizes = _unpacked("<HH", data, 6)
    elif data[:2] == b"BM":
        sizes = _unpacked("<ii", data, 18)
    elif data[:4] == b"RIFF" and data[8:15] == b"WEBPVP8":
        sizes = _webp_sizes(data)
    elif data[:2] == b"\xff\xd8":
        return _jpeg_pixels(data)
    else:
        return 0
    return abs(sizes[0] * sizes[1])


def _webp_sizes(data: bytes) -> tuple[int, int]:
    """Return width and height by the header of each of WebP's three kinds, and zeros where it is not whole."""
    kind, header = data[15:16], data[20:30]
    if len(header) < 10:
        return 0, 0
    if kind == b"X":
        return 1 + int.from_bytes(header[4:7], "little"), 1 + int.from_bytes(header[7:10], "little")
    if kind == b"L":
        bits = int.from_bytes(header[1:5], "little")
        return 1 + bits % 2**14, 1 + (bits >> 14) % 2**14
    return int.from_bytes(header[6:8], "little") % 2**14, int.from_bytes(header[8:10], "little") % 2**14


def _jpeg_pixels(data: bytes) -> int:
    at = 2
    for _ in range(_MAX_SEGMENTS):
        at = data.find(b"\xff", at)
        while at >= 0 and data[at : at + 1] == b"\xff":
            at += 1
        if at < 0 or at >= len(data):
            return 0
        marker = data[at]
        if marker in _JPEG_SIZES:
            height, width = _unpacked(">HH", data, at + 4)
            return height * width
        # A marker without a length field.
        alone = marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8
        at += 1 if alone else 1 + max(_unpacked(">H", data, at + 1)[0], 2)
    return _MOST_PIXELS


def _unpacked(form: str, data: bytes, at: int) -> tuple[int, ...]:
    part = data[at : at + struct.calcsize(form)]
    return struct.unpack(form, part.ljust(struct.calcsize(form), b"\0"))
