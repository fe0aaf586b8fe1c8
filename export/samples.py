"""Real images that an export is checked and calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_convnets.card import ModelCard
from keras_convnets.files import safe_names
from keras_convnets.images.files import SUFFIXES, find_images, read_image

# As many as calibration gains from; more only take time.
MOST = 200


@dataclass(frozen=True)
class Samples:
    """Encoded images and their labels.

    Attributes:
        encoded: the images.
        labels: int [n], the classes, or None where they are not known.
        source: a description of where they come from.
    """

    encoded: Sequence[bytes]
    labels: np.ndarray | None
    source: str


def gather(card: ModelCard, run_folder: Path | None = None, folder: Path | None = None) -> Samples:
    """Return the images of a folder, else those that the run kept, else scikit-learn's two photographs.

    An image's class is the name of its folder, if that is one of the card's class names or ids. The run's samples
    are in folders named by `safe_names`.

    Args:
        card: gives the classes.
        run_folder: a run directory, with `samples/<class>/`; what it kept is seen as it is stored, as in evaluation,
            while images of a folder are turned as EXIF says, as a client turns them.
        folder: a folder of images, at best with a sub-folder a class.

    Raises:
        UserError: if the folder holds no images, or one that can't be read.
    """
    folders = {name: label for label, name in enumerate(safe_names(card.class_names))}
    if folder is not None:
        known = {name: label for names in (card.class_ids, card.class_names) for label, name in enumerate(names)}
        return _of_files(find_images([str(folder)]), folders | known, str(folder), read_image)
    kept = sorted((run_folder / "samples").glob("*/*")) if run_folder else []
    places = [str(path) for path in kept if path.suffix.lower() in SUFFIXES]
    if places:
        return _of_files(places, folders, "the run's samples", lambda place: Path(place).read_bytes())
    encoded = [path.read_bytes() for path in sample_photographs()]
    return Samples(encoded, None, "scikit-learn's sample photographs")


def sample_photographs() -> list[Path]:
    """Return the JPEG files of scikit-learn's two sample photographs, a Chinese palace and a flower."""
    from sklearn import datasets

    return sorted((Path(datasets.__file__).parent / "images").glob("*.jpg"))


def _of_files(places: Sequence[str], index: Mapping[str, int], source: str, read: Callable[[str], bytes]) -> Samples:
    chosen = [places[position * len(places) // MOST] for position in range(MOST)] if len(places) > MOST else places
    labels = [index.get(Path(place).parent.name) for place in chosen]
    known = None if None in labels else np.array(labels)
    return Samples([read(place) for place in chosen], known, source)
