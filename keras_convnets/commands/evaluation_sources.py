"""What `evaluate` measures: each source, by each protocol, on the data that the flags or its run name."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from keras_convnets.commands.endpoints import open_client
from keras_convnets.commands.sources import check_has_weights, is_folder, is_predictions, is_url, opened
from keras_convnets.commands.terminal import escaped, image_progress
from keras_convnets.errors import UserError

if TYPE_CHECKING:
    from keras_convnets.card import ModelCard
    from keras_convnets.export import Client
    from keras_convnets.prediction import Classifier
    from keras_convnets.training import Evaluation, Run
    from keras_convnets.training.data import DataSet, Split
    from keras_convnets.training.evaluation import ClassMap

# Number of images classified to compare the names of an endpoint's classes.
CLASS_CHECK_IMAGES, MOST_CLASS_CHECK_IMAGES = 64, 1000
# (source, protocol) -> the file for its predictions, or None.
PlaceOf = Callable[[str, str], Path | None]
log = logging.getLogger("keras_convnets")


class Measured(NamedTuple):
    """A source's figures by one protocol.

    Attributes:
        source: as the command names it.
        result: the figures.
        images: what they were measured on, as the data hold them, where they are at hand.
        reason: why by this protocol, for the figures' line; "" where the command names it.
    """

    source: str
    result: Evaluation
    images: Split | None
    reason: str = ""


def measured(source: str, args: argparse.Namespace, protocols: Sequence[str], place_of: PlaceOf) -> Iterator[Measured]:
    """Give a source's figures by each protocol.

    Args:
        source: a run, a network, a file, an endpoint's URL or predictions.
        args: the command's.
        protocols: those that the command names; by default that of the published figure where it fits.
        place_of: where the predictions are written.
    """
    if is_url(source):
        yield from _endpoint_measured(source, args, protocols, place_of)
        return
    if is_predictions(source):
        yield _read_predictions(source, args, place_of)
        return
    with opened(source) as (classifier, run):
        data = _data_of(source, classifier.card, run, args)
        check_has_weights(source, "measure")
        if run is not None:
            recipe, trained_on = run.config()["recipe"], _maybe_trained_on(classifier.card, data)
            # Same order as in training: images left out change which ones are held out.
            data = data.without_broken(recipe.get("broken_images", 1.0))[0]
            data = data.with_holdout(recipe["holdout"]) if trained_on and "train" in data.splits else data
        class_map = _class_map(source, classifier.card, data, args)
        split = _measured_split(data, args)
        images, weights = data.split(split).originals, None
        for protocol, reason in _protocols(classifier, data, split, protocols):
            file = place_of(source, protocol)
            if file and weights is None:
                weights = _weights_text(source, classifier.card, run)
            result = _measure(source, classifier, data, split, args, protocol, class_map, file, weights)
            if run is not None:
                run.add_evaluation(result)
            yield Measured(source, result, images, reason)


def predictions_places(sources: Sequence[str], protocols: Sequence[str], place: str | None) -> PlaceOf:
    """Return where the predictions of each source and protocol go: the flag's file, or one each in its folder."""
    from keras_convnets.files import safe_name, safe_names
    from keras_convnets.training.evaluation.predictions import SUFFIXES

    if place is None:
        return lambda source, protocol: None
    path, count = Path(place), len(sources) * max(1, len(protocols))
    is_file = path.suffix.lower() in SUFFIXES and not path.is_dir()
    if is_file and count == 1:
        return lambda source, protocol: path
    if is_file or path.is_file():
        what = f"{len(sources)} sources" if len(sources) > 1 else f"{len(protocols)} protocols"
        raise UserError(
            f"--predictions {place} is a file"
            + (f", and {what} came; name a folder." if is_file else "; it must end in .npz or .csv.")
        )
    # The last parts of paths and URLs, where they tell the sources apart.
    last = [
        re.split(r"[/\\]", source.rstrip("/\\"))[-1].removesuffix(".npz").removesuffix(".csv") for source in sources
    ]
    names = last if len({name.lower() for name in last}) == len(last) else sources
    parts = dict(zip(sources, safe_names(names), strict=True))

    def place_of(source: str, protocol: str) -> Path:
        return path / f"{parts[source]}{safe_name(f'-{protocol}') if len(protocols) > 1 else ''}.npz"

    return place_of


def _read_predictions(source: str, args: argparse.Namespace, place_of: PlaceOf) -> Measured:
    """Return the figures of predictions that were kept; with --dataset, and for a report alone, the images too."""
    from keras_convnets.training import Evaluation
    from keras_convnets.training.evaluation import Predictions

    found = dataclasses.replace(Predictions.load(source), source=source)
    if args.split not in (None, found.split):
        raise UserError(f"{source} holds predictions of {found.data}/{found.split}; leave --split {args.split} out.")
    file = place_of(source, found.protocol)
    if file:
        found.save(file)
    images = None
    if args.report and args.dataset:
        data = _data_of(source, None, None, argparse.Namespace(**{**vars(args), "split": found.split}))
        images = data.splits.get(found.split)
    return Measured(source, Evaluation.of_predictions(found), images)


def _weights_text(source: str, card: ModelCard, run: Run | None) -> str:
    """Return a text that changes with the weights of a source that is no endpoint."""
    from keras_convnets.export.repository import SAVED_MODEL, version_folders
    from keras_convnets.files import sha256

    path = Path(source)
    if run is not None:
        from keras_convnets.training.run import BEST

        return sha256(run.path / BEST)
    if path.is_file():
        return sha256(path)
    if not is_folder(source):
        return json.dumps(card.to_dict(), sort_keys=True)
    folder = path if (path / SAVED_MODEL).is_file() else (found := version_folders(path))[max(found)]
    files = [folder / SAVED_MODEL, *sorted((folder / "variables").glob("*"))]
    return " ".join(sha256(part) for part in files if part.is_file())


def _protocols(classifier: Classifier, data: DataSet, split: str, protocols: Sequence[str]) -> list[tuple[str, str]]:
    """Return the protocols to measure by and why each: those named, else that of the published figure where it fits."""
    from keras_convnets.training.evaluation.evaluator import check_fits
    from keras_convnets.training.evaluation.protocols import get_protocol

    if protocols:
        return [(protocol, "") for protocol in protocols]
    named, by = _named_protocol(classifier)
    protocol = get_protocol(named)
    try:
        check_fits(classifier, data, split, protocol)
    except UserError:
        # Of a single view there is nothing else to say: center is one too.
        return [("center", "" if protocol.is_one_view else f"; {named}, the protocol of {by}, does not fit")]
    return [(named, f"; the protocol of {by}" if by else "")]


def _named_protocol(classifier: Classifier) -> tuple[str, str]:
    """Return the protocol of the published figure that a network is compared with, and whose figure that is."""
    from keras_convnets.training.recipes import RECIPES, get_recipe

    weights = getattr(classifier.model, "published_weights", None)
    if weights is not None and weights.record is not None:
        return weights.record.protocol, f"the weights {weights.record}"
    name = classifier.card.recipe.get("name")
    protocol = get_recipe(name).protocol if name in RECIPES else "center"
    return protocol, "" if protocol == "center" else f"recipe {name}"


def _endpoint_measured(
    source: str, args: argparse.Namespace, protocols: Sequence[str], place_of: PlaceOf
) -> Iterator[Measured]:
    """Give an endpoint's figures: by center on the encoded images of the data, which it resizes and crops by itself.

    By other protocols it gets their views, through the signature `predict_images`.
    """
    from keras_convnets.prediction import Classifier
    from keras_convnets.training.evaluation.protocols import CENTER, get_protocol

    data = _data_of(source, None, None, args)
    split = _measured_split(data, args)
    sound = dataclasses.replace(data, splits={split: data.split(split)}).without_broken()[0]
    data = dataclasses.replace(sound, splits={**data.splits, **sound.splits})
    with open_client(source, args) as client:
        class_map, spellings = _endpoint_classes(client, data, args)
        if not _know_classes(client, spellings, _some_of_each_class(data.split(split), len(data.class_names))):
            log.warning("%s reports no class names, so only their number was compared.", source)
        pixels = Classifier(None, client.predict_images, image_size=client.image_size())
        for protocol in protocols or [CENTER.name]:
            encoded, file = get_protocol(protocol, args.average) is CENTER, place_of(source, protocol)
            weights = f"{source} {json.dumps(client.metadata(), sort_keys=True)}" if file else None
            answering = client.predict if encoded else pixels
            result = _measure(source, answering, data, split, args, protocol, class_map, file, weights, encoded=encoded)
            yield Measured(source, result, data.split(split))


def _endpoint_classes(
    client: Client, data: DataSet, args: argparse.Namespace
) -> tuple[ClassMap | None, list[tuple[str, ...]]]:
    """Return where the data's classes are among an endpoint's, and how the endpoint may spell all of its classes.

    An endpoint of 1,000 classes is taken to have those of ImageNet, if the data have others; of one with another number
    only the indices are known.
    """
    from keras_convnets.classes import imagenet_classes, names_and_ids
    from keras_convnets.training.evaluation.class_map import OWN_NAMES, KnownClasses, map_classes

    imagenet, count = imagenet_classes(), client.class_count()
    own_names = args.classes == OWN_NAMES and count == len(data.class_names)
    if args.classes and not own_names and count not in (None, len(imagenet.ids)):
        numbered = KnownClasses(tuple(map(str, range(count or 0))))
        return map_classes(args.classes, numbered, data, args.answers), []
    known = own = KnownClasses(data.class_names)
    if count == len(imagenet.ids) and data.class_names not in (imagenet.names, imagenet.ids):
        known = KnownClasses(imagenet.names)
    class_map = map_classes(args.classes, known, data, args.answers)
    names, ids = names_and_ids(known if class_map is not None else own)
    return class_map, [names, *([ids] if ids not in ((), names) else [])]


def _know_classes(client: Client, spellings: Sequence[tuple[str, ...]], images: Sequence[bytes]) -> bool:
    """Return whether an endpoint tells its classes' names; refuse one that has none of the spellings.

    A network that was trained on folders named by WordNet ids answers with those.
    """
    for number, names in enumerate(spellings, 1):
        try:
            return client.check_classes(names, images)
        except UserError:
            if number == len(spellings):
                raise
    return False


def _some_of_each_class(split: Split, classes: int) -> list[bytes]:
    """Return encoded images drawn from all classes, because data are often stored class by class."""
    count = min(split.size, max(CLASS_CHECK_IMAGES, min(classes, MOST_CLASS_CHECK_IMAGES)))
    try:
        stream = split.encoded_shuffled(0, balanced=True)
    except UserError:
        # Records can only be read sequentially.
        stream = split.encoded_in_order()
    return [encoded for encoded, *_ in stream.take(count).as_numpy_iterator()]


def _measure(
    source: str,
    predictor: Callable,
    data: DataSet,
    split: str,
    args: argparse.Namespace,
    protocol: str,
    class_map: ClassMap | None,
    file: Path | None,
    weights: str | None,
    encoded: bool = False,
) -> Evaluation:
    from rich.console import Console

    from keras_convnets import training
    from keras_convnets.training.progress import PassProgress

    doing = f"evaluating {source}" + (f" by {protocol}" if args.protocol else "")
    is_live = sys.stdout.isatty() and not args.json
    lines = PassProgress(None if is_live else Console(stderr=True))
    with image_progress(doing, hidden=not is_live) as bar:

        def show(done: int, total: int) -> None:
            bar(done, total)
            lines(escaped(doing), done, total)

        return training.evaluate(
            predictor,
            data,
            split=split,
            protocol=protocol,
            average=args.average,
            batch_size=args.batch_size,
            progress=show,
            encoded=encoded,
            classes=class_map,
            answers=args.answers,
            source=source,
            predictions=file,
            weights=weights,
        )


def _measured_split(data: DataSet, args: argparse.Namespace) -> str:
    """Return the name of the split to measure: the flag's, else the only one, else that of evaluation."""
    name = args.split or (next(iter(data.splits)) if list(data.splits) == ["all"] else data.evaluation_split)
    data.split(name)
    return name


def _data_of(source: str, card: ModelCard | None, run: Run | None, args: argparse.Namespace) -> DataSet:
    """Return the data to evaluate on: the flag's, else what the run was trained on.

    A folder of one level is taken whole where it is known not to be what was trained on, or --split asks for it.
    """
    from keras_convnets import training
    from keras_convnets.training.data.folder import TEST_EVERY, WHOLE, holds_one_level, load_undivided
    from keras_convnets.training.data.imagenet_validation import holds_validation
    from keras_convnets.training.data.shards import holds_shards

    kept = run.config()["source"] if run is not None else {}
    place = args.dataset or kept.get("dataset")
    if place is None:
        raise UserError(f"{source} does not say which data it was trained on; name some with --dataset.")
    data = training.load_dataset(place, args.data_dir or (None if args.dataset else kept.get("data_dir")))
    folder = Path(place)
    known = holds_shards(folder) or holds_validation(folder)
    one_level = folder.is_dir() and not known and holds_one_level(folder)
    if one_level and (args.split == WHOLE or (args.split is None and not _maybe_trained_on(card, data))):
        return load_undivided(folder)
    if one_level and args.split is None and args.dataset:
        log.warning(
            "%s may be what %s was trained on: measured is its test split, every %dth image of each class, which "
            "training leaves out; --split %s measures all.",
            *(place, source, TEST_EVERY, WHOLE),
        )
    return data


def _maybe_trained_on(card: ModelCard | None, data: DataSet) -> bool:
    """Whether a network may have been trained on these data: as its card says by name or number, or does not say."""
    if card is not None and card.members:
        return any(_maybe_trained_on(member, data) for member in card.members)
    facts = card.data if card is not None else {}
    images = sum(facts.get("images", {}).values()) + facts.get("left_out", 0)
    return not facts or facts.get("name") == data.name or images == sum(split.size for split in data.splits.values())


def _class_map(source: str, card: ModelCard, data: DataSet, args: argparse.Namespace) -> ClassMap | None:
    """Return where the data's classes are among a network's, or None where they are the same; refuse others."""
    from keras_convnets.classes import names_and_ids
    from keras_convnets.training.evaluation.class_map import map_classes

    class_map = map_classes(args.classes, card, data, args.answers)
    if class_map is None and data.class_names not in (card.class_names, names_and_ids(card)[1]):
        raise UserError(
            f"{source} knows the classes {_shortened(card.class_names)}, and {data.name} has "
            f"{_shortened(data.class_names)}; evaluate on data with the model's classes, or say with --classes "
            "which of them these are."
        )
    return class_map


def _shortened(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
