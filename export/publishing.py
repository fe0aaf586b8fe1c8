"""Publishing: write the artifacts, verify them, and let the version appear by one rename."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keras_convnets.card import ModelCard, card_of_model
from keras_convnets.classifier import keras_classifier
from keras_convnets.errors import UserError, unknown_name
from keras_convnets.export.repository import EXTRA, ONNX, new_version
from keras_convnets.files import sha256, whole_folder

if TYPE_CHECKING:
    import keras

FORMATS = ("saved_model", "onnx")
log = logging.getLogger("keras_convnets.export")


def publish(
    source: keras.Model | str | os.PathLike,
    *,
    name: str | None = None,
    to: str | os.PathLike = "saved_models",
    version: int | None = None,
    formats: Sequence[str] = FORMATS,
    card: ModelCard | None = None,
) -> Path:
    """Export a network into a model repository: SavedModel and ONNX, each verified before anyone can see it.

    Args:
        source: a Keras model, or a finished run directory.
        name: the model's name in the repository; by default the run's or the model's.
        to: the repository.
        version: its number; by default the highest and one.
        formats: what to write besides the card; "saved_model" is always among them, as the version needs it.
        card: for a Keras model: its card; by default one is made from the model.

    Returns:
        The version's folder, `<to>/<name>/<version>`.

    Raises:
        UserError: if the source is neither, the name can't be used, or the version exists.
        RuntimeError: if an artifact does not agree with Keras; nothing is published then.

    Example:
        >>> publish("runs/digits", name="digits")
        PosixPath('saved_models/digits/1')
    """
    for wanted in formats:
        if wanted not in FORMATS:
            raise unknown_name("format", wanted, FORMATS)
    run_folder = Path(source) if isinstance(source, (str, os.PathLike)) else None
    model, card = _from_run(run_folder) if run_folder else (source, card or card_of_model(source))
    folder = new_version(to, name or (run_folder.resolve().name if run_folder else model.name), version)
    if not card.trained:
        log.warning("%s is not trained; its card will say so.", card.architecture)
    try:
        with whole_folder(folder) as writing:
            _write(model, card, writing, run_folder, ("saved_model", *formats))
    except FileExistsError:
        raise UserError(f"{folder} was published by another process meanwhile; run the export again.") from None
    return folder


def _from_run(folder: Path) -> tuple[keras.Model, ModelCard]:
    """Read the network and the card of a finished run; its files are all that export knows of training."""
    import keras

    card = ModelCard.read(folder)
    weights = folder / card.weights.get("file", "best.keras")
    if not weights.is_file():
        raise UserError(f"{folder} has a model card but no {weights.name}; it is not a finished run.")
    if sha256(weights) != card.weights.get("sha256"):
        raise UserError(f"{weights} is not the file that {folder / 'model.json'} describes (its sha256 differs).")
    return keras.saving.load_model(weights, compile=False), card


def _write(model: keras.Model, card: ModelCard, folder: Path, run_folder: Path | None, formats: Sequence[str]) -> None:
    from keras_convnets.export.onnx_model import write_onnx
    from keras_convnets.export.saved_model import write_saved_model
    from keras_convnets.export.verification import TOLERANCE, sample_images, verify

    write_saved_model(model, card, folder)
    if "onnx" in formats:
        write_onnx(model, card, folder / ONNX)
    differences = verify(folder, formats, keras_classifier(model, card), sample_images(run_folder))
    extra = folder / EXTRA
    extra.mkdir(exist_ok=True)
    exported = {"differences": differences, "tolerance": TOLERANCE}
    dataclasses.replace(card, export=exported).write(extra)
    (extra / "labels.txt").write_text("".join(f"{label}\n" for label in card.class_names), encoding="utf-8")
