"""Images that can't be used in training: found with the ops that training decodes with, and described."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import tensorflow as tf
from PIL import Image

from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.images.decoding import MAX_PIXELS, decode_image
from keras_convnets.images.files import ORIENTATION, READ
from keras_convnets.training.data.cached_passes import counted, kept
from keras_convnets.training.data.parallel import parallel_map

# Of a split; more than this is a fault of the collection that somebody should look at.
BROKEN_FRACTION = 0.05
CHECKING = "checking that images decode"
CHECKED_TOGETHER = 256
# What reading and decoding raise for the file's own sake; running out of memory is not among them.
UNREADABLE = (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.FailedPreconditionError,
    tf.errors.PermissionDeniedError,
    # What TensorFlow's error about a file becomes in Python where the file's name is no UTF-8.
    UnicodeDecodeError,
)
TYPES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF", b"BM": "BMP"}
# Of WebP the length of the file stands between the two; what follows is one of three kinds of data.
RIFF, WEBP = b"RIFF", (b"WEBPVP8 ", b"WEBPVP8L", b"WEBPVP8X")
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
SUFFIX_TYPES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jif", ".jfif"), "JPEG"),
    **{".png": "PNG", ".gif": "GIF", ".bmp": "BMP", ".webp": "WebP"},
}
# Images with a shorter side below this, in pixels, and images with a larger aspect ratio are reported as unusual.
TINY_SIDE = 16
EXTREME_RATIO = 10
log = logging.getLogger("keras_convnets")


class BrokenImage(NamedTuple):
    """An image that is left out.

    Attributes:
        split: the split it belongs to.
        file: its path, or what else finds it.
        reason: why it can't be read.
    """

    split: str
    file: str
    reason: str


def outcomes(dataset: tf.data.Dataset) -> Iterator[Any]:
    """Give every element of a dataset in order, and None for one whose reading or decoding failed.

    Args:
        dataset: of single images, finite and in a fixed order. What reads its source must not fail, only maps may.
    """
    elements = iter(dataset)
    while True:
        try:
            element = next(elements)
        except StopIteration:
            return
        except UNREADABLE:
            element = None
        yield element


def broken_positions(encoded: tf.data.Dataset, size: int, state: str) -> list[int]:
    """Return the positions of the images that do not decode.

    All are decoded once, in parallel. Of many images the result is kept in the user's cache folder.

    Args:
        encoded: single encoded images, strings, in the stored order.
        size: how many there are.
        state: a text that changes with the images, such as the files' sizes and times of change.
    """

    def look() -> list[int]:
        decoded = parallel_map(encoded, lambda data: tf.size(decode_image(data)))
        try:
            # Nearly always all are sound, and batches spare Python a step for each.
            for _ in counted(decoded.batch(CHECKED_TOGETHER), CHECKING, size):
                pass
        except UNREADABLE:
            found = counted(outcomes(decoded), CHECKING, size, lambda _: 1)
            return [position for position, outcome in enumerate(found) if outcome is None]
        return []

    def are_positions(found: Any) -> bool:
        return isinstance(found, list) and all(type(at) is int and 0 <= at < size for at in found)

    # Another TensorFlow may decode otherwise.
    return kept("broken", f"{tf.__version__} {state}", size, look, are_positions)


def check_fraction(split: str, size: int, broken: Sequence[BrokenImage], fraction: float) -> None:
    """Log each image that is left out, and refuse a split of which too many are.

    Args:
        split: its name.
        size: number of images with the broken ones.
        broken: these.
        fraction: of the split that may be broken, 0 to 1.

    Raises:
        UserError: if more are, or all.
    """
    if not broken:
        return
    if len(broken) > fraction * size or len(broken) == size:
        first = "; ".join(f"{image.file}: {image.reason}" for image in broken[:3])
        raise UserError(
            f"{len(broken)} of the {size} images of split {split} can't be read ({first}"
            f"{'; ...' if len(broken) > 3 else ''}), and a fraction of {fraction:g} may be; fix or remove them, allow "
            "more with broken_images, or run keras-convnets data verify FOLDER --quarantine, which lists them all and "
            "has them left out."
        )
    for image in broken:
        log.warning("left out of %s: %s (%s)", split, printable(image.file), image.reason)
    log.warning("%d of the %d images of split %s can't be read and are left out.", len(broken), size, split)


def image_type(data: bytes) -> str | None:
    """Return JPEG, PNG, GIF, BMP or WebP by how the content begins, or None."""
    if data.startswith(RIFF) and data[8:16] in WEBP:
        return "WebP"
    return next((name for magic, name in TYPES.items() if data.startswith(magic)), None)


def broken_kind(data: bytes) -> tuple[str, str]:
    """Describe the defect of encoded bytes that can't be decoded.

    Returns:
        (kind, reason): kind is "empty", "not an image", "too large", "animated", "truncated" or "damaged".
    """
    if not data:
        return "empty", "0 bytes"
    kind = image_type(data)
    if kind is None:
        return "not an image", f"{_foreign_type(data)}; {READ} are read"
    try:
        with open_header(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                return "too large", f"{image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are decoded"
            if kind == "WebP" and (frames := getattr(image, "n_frames", 1)) > 1:
                return "animated", f"WebP of {frames} frames is not read; data prepare converts the first"
            image.load()
    except Image.DecompressionBombError:
        return "too large", f"more than {MAX_PIXELS:,} pixels"
    except (OSError, ValueError, SyntaxError, IndexError, EOFError) as error:
        if "truncated" in str(error):
            return "truncated", f"the {kind} data end early"
    if kind in ENDS and not data.rstrip(b"\0\r\n").endswith(ENDS[kind]):
        return "truncated", f"the {kind} data end early"
    return "damaged", f"the {kind} data can't be decoded"


def remarks(data: bytes, suffix: str) -> list[tuple[str, str]]:
    """Describe anomalies of encoded bytes that can be decoded.

    Args:
        data: the encoded image.
        suffix: of its file's name, such as ".jpg".

    Returns:
        (kind, what training sees), for each of "wrong type", "tiny", "extreme", "CMYK", "animated", "16 bits" and
        "turned" that holds.
    """
    found = []
    kind = image_type(data)
    if kind != SUFFIX_TYPES.get(suffix.lower(), kind):
        found.append(("wrong type", f"named {suffix}, the content is {kind}"))
    try:
        with open_header(io.BytesIO(data)) as image:
            found += size_remarks(image.height, image.width)
            if image.mode == "CMYK":
                found.append(("CMYK", "converted to RGB without a colour profile"))
            if (frames := getattr(image, "n_frames", 1)) > 1:
                found.append(("animated", f"the first of {frames} frames"))
            if image.mode.startswith("I"):
                found.append(("16 bits", "the upper 8"))
            if image.getexif().get(ORIENTATION, 1) != 1:
                found.append(("turned", "as it is stored, not as EXIF turns it; data prepare turns it"))
    except (OSError, ValueError, SyntaxError, IndexError, EOFError, Image.DecompressionBombError):
        # Pillow is only asked for what else there is to say; TensorFlow has decoded the image.
        pass
    return found


def size_remarks(height: int, width: int) -> list[tuple[str, str]]:
    """Say whether an image is very small or narrow, as (kind, its size)."""
    size = f"{width} x {height} pixels"
    shorter, longer = sorted((height, width))
    found = [("tiny", size)] if shorter < TINY_SIDE else []
    return found + ([("extreme", f"{size}; the centre is seen")] if longer > EXTREME_RATIO * shorter else [])


def open_header(source: Path | BinaryIO) -> Image.Image:
    """Open an image with Pillow, which reads its header only, without warnings about its size or metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(source)


def _foreign_type(data: bytes) -> str:
    if data.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "the content is HTML or XML"
    try:
        with open_header(io.BytesIO(data)) as image:
            return f"the content is {image.format}"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "the content is none that is known"
