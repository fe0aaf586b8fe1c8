"""Picture files as a client handles them: found, read, set upright. Pillow only."""

from __future__ import annotations

import io
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from keras_convnets.errors import UserError
from keras_convnets.version import __version__

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
URL_TIMEOUT = 30.0
ORIENTATION = 0x0112


def find_images(places: list[str]) -> list[str]:
    """Return files and URLs one by one: a folder stands for the images in it and below, sorted by name.

    Raises:
        UserError: if a path does not exist, or a folder holds no images.
    """
    found: list[str] = []
    for place in places:
        path = Path(place)
        if place.startswith(("http://", "https://")) or path.is_file():
            found.append(place)
        elif path.is_dir():
            inside = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise UserError(f"folder {place} holds no images ({', '.join(SUFFIXES)}); give a folder that does.")
            found += inside
        else:
            raise UserError(f"there is no image or folder {place}; give files, folders or http(s) URLs of images.")
    return found


def read_image(place: str) -> bytes:
    """Return an image's encoded bytes, upright.

    A photograph whose EXIF says that it lies on its side is turned and encoded again without loss, because neither
    the networks nor TensorFlow's decoders look at EXIF; any other file's bytes come back as they are.

    Raises:
        UserError: if it can't be read, fetched or decoded.
    """
    try:
        if place.startswith(("http://", "https://")):
            request = urllib.request.Request(place, headers={"User-Agent": f"keras-convnets/{__version__}"})
            with urllib.request.urlopen(request, timeout=URL_TIMEOUT) as response:
                data = response.read()
        else:
            data = Path(place).read_bytes()
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise UserError(f"{place} can't be read ({error}); give an existing file or a URL that answers.") from error
    try:
        return upright(data)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(f"{place} is not a readable image ({reason}); JPEG, PNG, BMP and GIF are.") from error


def upright(data: bytes) -> bytes:
    """Return encoded bytes of the image as it is to be seen; the same bytes where EXIF asks for no turning."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        if image.getexif().get(ORIENTATION, 1) == 1:
            return data
        return _png(ImageOps.exif_transpose(image).convert("RGB"))


def encode_png(pixels: np.ndarray) -> bytes:
    """Return an image, uint8 [H, W, 3], as PNG."""
    return _png(Image.fromarray(pixels))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
