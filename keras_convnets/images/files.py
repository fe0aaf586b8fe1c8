"""Image files as users have them: found, read, turned upright by EXIF, encoded. Pillow only."""

from __future__ import annotations

import io
import logging
import os
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from keras_convnets.errors import UnreadableImage, UserError
from keras_convnets.version import __version__

# The formats that are decoded, as text and as file suffixes; decoding itself goes by the content.
READ = "JPEG, PNG, GIF, BMP and WebP"
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".png", ".bmp", ".gif", ".webp")
# Images by their names too, which are not decoded; `data prepare` converts those of them that Pillow reads.
OTHER_SUFFIXES = (
    *(".tif", ".tiff", ".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpx", ".jxl", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".tga", ".pcx", ".dib", ".ico", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
)
# Files and folders that operating systems create, besides hidden ones.
LITTER = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"),
    "lost+found",
}
URL_TIMEOUT = 30.0
ORIENTATION = 0x0112
log = logging.getLogger("keras_convnets")


def is_litter(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or none of the user's own, such as `__MACOSX`."""
    return name.startswith(".") or name.lower() in LITTER


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and in all folders below it, without litter, sorted by the bytes of their paths.

    Symbolic links are followed; a folder to which several ways lead, or a circle of links, is read once.

    Raises:
        UserError: if a folder can't be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"folder {error.filename} can't be read ({error.strerror}); let it be read, or move it away.")

    seen, found = set(), []
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        facts = os.stat(place)
        if (facts.st_dev, facts.st_ino) in seen:
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders[:] = sorted((name for name in folders if not is_litter(name)), key=os.fsencode)
        found += [Path(place, name) for name in files if not is_litter(name)]
    return sorted(found, key=os.fsencode)


def images_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the images of `files_below` that are read, and those of other formats, by their suffixes."""
    files = files_below(folder)
    read, others = ([path for path in files if path.suffix.lower() in known] for known in (SUFFIXES, OTHER_SUFFIXES))
    return read, others


def types_of(paths: Iterable[Path]) -> str:
    """Return how many files there are of each type, such as "3 .tif, 1 .heic"."""
    counts = Counter(path.suffix.lower() for path in paths)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())


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
            inside, others = images_below(path)
            if not inside:
                held = f" but {types_of(others)}" if others else ""
                raise UserError(
                    f"folder {place} holds no images ({', '.join(SUFFIXES)}){held}; give a folder that does."
                )
            if others:
                log.warning("images of other types in %s are left out: %s; %s are read.", place, types_of(others), READ)
            found += map(str, inside)
        else:
            raise UserError(f"there is no image or folder {place}; give files, folders or http(s) URLs of images.")
    return found


def read_image(place: str) -> bytes:
    """Return an image's encoded bytes, upright.

    A photograph whose EXIF says that it lies on its side is turned and encoded again without loss, because neither
    the networks nor TensorFlow's decoders look at EXIF; any other file's bytes come back as they are.

    Raises:
        UnreadableImage: if it can't be read, fetched or decoded.
    """
    try:
        if place.startswith(("http://", "https://")):
            request = urllib.request.Request(place, headers={"User-Agent": f"keras-convnets/{__version__}"})
            with urllib.request.urlopen(request, timeout=URL_TIMEOUT) as response:
                data = response.read()
        else:
            data = Path(place).read_bytes()
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise UnreadableImage(
            f"{place} can't be read ({error}); give an existing file or a URL that answers."
        ) from error
    try:
        return upright(data)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UnreadableImage(f"{place} is not a readable image ({reason}); {READ} are.") from error


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
