"""Publishing: write the artifacts, verify them, and let the version appear by one rename."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_convnets.card import ModelCard, card_of_model
from keras_convnets.errors import UserError
from keras_convnets.export import committee, model_config
from keras_convnets.export.committee import Member
from keras_convnets.export.formats import DEFAULT_FORMATS, FORMATS, VERSION_FORMAT, get_format
from keras_convnets.export.formats.format import Format, Job, check_layout
from keras_convnets.export.memory import release_memory
from keras_convnets.export.repository import EXTRA, new_version
from keras_convnets.export.samples import Samples, gather
from keras_convnets.files import commit_folder, path_text, remove_abandoned, sha256, temporary_folder, wrap_write_errors
from keras_convnets.prediction import Classifier, keras_classifier, view_encoded
from keras_convnets.weights.naming import TORCHVISION, check_naming

if TYPE_CHECKING:
    import keras
    import numpy as np

SOURCES = "a Keras model, the path of a finished run or a .keras file, or a list of these"
# Fewer images than this are too few to calibrate the ranges of activations.
CALIBRATION_IMAGES = 10
log = logging.getLogger("keras_convnets.export")


@dataclasses.dataclass(frozen=True)
class Options:
    """How a version is written: its formats, the layout of ONNX files' input, and the naming of files of weights."""

    formats: Sequence[Format]
    layout: str
    naming: str


def publish(
    source: keras.Model | str | os.PathLike | Sequence[keras.Model | str | os.PathLike],
    *,
    name: str | None = None,
    to: str | os.PathLike = "saved_models",
    version: int | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    layout: str = "nhwc",
    images: str | os.PathLike | None = None,
    card: ModelCard | None = None,
    naming: str = TORCHVISION,
) -> Path:
    """Export a network into a model repository, each artifact verified before anyone can see it.

    Args:
        source: a Keras model, a finished run directory, or a .keras file. Where it gives logits, a softmax is exported
            with it. A list of several, of the same classes in the same order, is exported as a committee: one network
            that shows each of them the image in its own view and averages their probabilities.
        name: the model's name in the repository; by default the run's or the model's, or "committee".
        to: the repository.
        version: its number; by default the highest and one.
        formats: of "saved_model", "onnx", "int8" (ONNX), "litert" (float32, float16 and int8), "safetensors" (a state
            dictionary of PyTorch) and "weights_h5" (Keras' file of weights); the SavedModel is always among them, as a
            version without one is none to TensorFlow Serving. A committee whose members have different views has no
            other, as only there an image can be brought to several; none has files of weights.
        layout: of the ONNX files' input: "nhwc" or "nchw".
        images: a folder of images to verify with and to calibrate int8 on, at best with a sub-folder a class; by
            default those that the run, or a committee's first run, kept, else scikit-learn's two sample photographs.
        card: for one Keras model: its card; by default one is made from the model.
        naming: how the .safetensors file names the layers: "torchvision", or "keras_convnets" for the names here.

    Returns:
        The version's folder, `<to>/<name>/<version>`.

    Raises:
        UserError: if an argument can't be used, the network gives no probabilities of classes, the members of a
            committee have different classes, the version exists, or the repository can't be written to.
        RuntimeError: if an artifact does not agree with Keras; nothing is published then.

    Example:
        >>> publish("runs/digits", name="digits")
        PosixPath('saved_models/digits/1')
    """
    chosen = _chosen(formats)
    check_layout(layout)
    check_naming(naming)
    if images is not None and not Path(images).is_dir():
        raise UserError(f"there is no folder of images {images}; give an existing one.")
    if isinstance(source, (list, tuple)):
        if card is not None:
            raise UserError("a card came with several networks, each of which has its own; leave card out.")
        members = [_member(one, None) for one in source]
        for form in chosen:
            if form.of_one_network:
                raise UserError(
                    f"a committee can't be written as {form.artifacts[0].file}, which holds the weights of one "
                    "network; export its members each."
                )
        card = committee.committee_card(members)
        chosen = _of_committee(chosen, formats, card)
    else:
        members = [_member(source, card)]
        card = members[0].card
    name = name or (committee.NAME if card.members else members[0].name)
    folder = new_version(to, name, version)
    run_folder = next((member.place for member in members if member.place and member.place.is_dir()), None)
    samples = gather(card, run_folder, Path(images) if images is not None else None)
    for member in members:
        if not member.card.trained:
            log.warning("%s is not trained; its card will say so.", member.card.architecture)
    with wrap_write_errors(to, "nothing was published: fix that or name another with --to"):
        remove_abandoned(folder.parent)
        with temporary_folder(folder) as temporary:
            _write(members, card, temporary, name, Options(chosen, layout, naming), samples)
            folder = _place(temporary, to, name, version)
        held = model_config.register(to, name)
    if held:
        log.warning("%s/models.config holds %s at version %s; the new one waits.", to, name, ", ".join(map(str, held)))
    return folder


def _place(temporary: Path, to: str | os.PathLike, name: str, version: int | None) -> Path:
    """Rename a finished version to its number; where none was asked for, to the next that is still free."""
    while True:
        folder = new_version(to, name, version)
        try:
            commit_folder(temporary, folder)
            return folder
        except FileExistsError:
            if version is not None:
                raise UserError(f"{folder} was published by another process meanwhile; run the export again.") from None


def _chosen(formats: Sequence[str]) -> list[Format]:
    """Return the formats of these names and those that they require, in the order in which they are written."""
    names = {VERSION_FORMAT}
    for wanted in formats:
        names.update((wanted, *get_format(wanted).requires))
    return [get_format(name) for name in FORMATS if name in names]


def _of_committee(chosen: list[Format], asked: Sequence[str], card: ModelCard) -> list[Format]:
    """Return the formats that a committee can be written in: of different views, the SavedModel alone."""
    if card.has_one_view or len(chosen) == 1:
        return chosen
    reason = "the members see images in different views, which only the SavedModel can make by itself"
    if tuple(asked) != DEFAULT_FORMATS:
        raise UserError(f"formats are {', '.join(asked)}; {reason}: give {VERSION_FORMAT} alone.")
    log.warning("%s: no ONNX file is written.", reason)
    return [get_format(VERSION_FORMAT)]


def _member(source: Any, card: ModelCard | None) -> Member:
    """Return a network that is given or lies somewhere, with its card."""
    import keras

    if isinstance(source, keras.Model):
        return Member(source, card or card_of_model(source), source.name)
    place = Path(path_text(source, "source", SOURCES))
    return Member(*_opened(place), _name_of(place.resolve()), place)


def _opened(place: Path) -> tuple[keras.Model, ModelCard]:
    """Return the network and the card of a finished run, or of a .keras file."""
    from keras_convnets.networks.functional import load_keras

    if place.suffix.lower() == ".keras" and place.is_file():
        model = load_keras(place)
        described = {"file": place.name, "sha256": sha256(place)}
        return model, dataclasses.replace(card_of_model(model), weights=described)
    card = ModelCard.read(place)
    weights = place / card.weights.get("file", "best.keras")
    if not weights.is_file():
        raise UserError(f"{place} has a model card but no {weights.name}; it is not a finished run.")
    if sha256(weights) != card.weights.get("sha256"):
        raise UserError(f"{weights} is not the file that {place / 'model.json'} describes (its sha256 differs).")
    return load_keras(weights), card


def _name_of(place: Path) -> str:
    return place.stem if place.suffix.lower() == ".keras" else place.name


def _write(
    members: Sequence[Member],
    card: ModelCard,
    folder: Path,
    name: str,
    options: Options,
    samples: Samples,
) -> None:
    from keras_convnets.export.formats.saved_model import MOST_VARIABLES
    from keras_convnets.export.verification import verify
    from keras_convnets.export.warmup import write_warm_up

    artifacts = [artifact for form in options.formats for artifact in form.artifacts]
    exported: dict[str, Any] = {"formats": [artifact.key for artifact in artifacts], "layout": options.layout}
    quantised = any(artifact.precision == "int8" for artifact in artifacts)
    calibration = view_encoded(samples.encoded, card) if quantised else None
    if quantised:
        exported["calibration"] = {"n": len(samples.encoded), "source": samples.source}
        if len(samples.encoded) < CALIBRATION_IMAGES:
            log.warning("int8 is calibrated on %d images (%s); give more.", len(samples.encoded), samples.source)
    _write_artifacts([member.model for member in members], card, folder, options, calibration)
    release_memory()
    # For graphs with more operations than this, a runtime takes more memory than the weights do.
    side_by_side = sum(len(member.model.weights) for member in members) <= MOST_VARIABLES
    exported |= verify(folder, artifacts, _reference(members, card), samples, side_by_side)
    extra = folder / EXTRA
    extra.mkdir(exist_ok=True)
    dataclasses.replace(card, export=exported).write(extra)
    (extra / "labels.txt").write_text("".join(f"{one_line(label)}\n" for label in card.class_names), encoding="utf-8")
    write_warm_up(folder, name, samples.encoded[:3])


def _reference(members: Sequence[Member], card: ModelCard) -> Classifier:
    """Return what an export is compared with: Keras, and NumPy's mean of several networks."""
    return committee.committee_classifier(members, card) if card.members else keras_classifier(members[0].model, card)


def one_line(label: str) -> str:
    """Return a class name for a file of a name a line: what would end the line becomes a space."""
    return " ".join(label.splitlines()) if label.splitlines() != [label] else label


def _write_artifacts(
    models: Sequence[keras.Model],
    card: ModelCard,
    folder: Path,
    options: Options,
    calibration: np.ndarray | None,
) -> None:
    from keras_convnets.export.folding import inference_network
    from keras_convnets.networks.outputs import softmaxed

    networks = []
    for model in models:
        whole = softmaxed(model)
        if whole is not model:
            log.warning("%s gives logits; they are exported followed by a softmax.", model.name)
        networks.append(inference_network(whole))
    if card.members and card.has_one_view:
        networks = [committee.committee_network(networks, card.view.crop)]
    job = Job(tuple(networks), card, options.layout, calibration, tuple(models), options.naming)
    for form in options.formats:
        for artifact in form.artifacts:
            form.write(job, artifact, folder)
            release_memory()
