"""The sources of `evaluate`: loading, choice of data, split and protocols, and evaluation."""

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

# Minimum and maximum number of images classified to check an endpoint's class names.
CLASS_CHECK_IMAGES, MOST_CLASS_CHECK_IMAGES = 64, 1000
# (source, protocol) -> file for the predictions, or None.
PathOf = Callable[[str, str], Path | None]
log = logging.getLogger("keras_convnets")


class Measured(NamedTuple):
    """The evaluation of a source by one protocol.

    Attributes:
        source: the source as given to the command.
        result: the metrics.
        images: the split with the original images; None if not available.
        reason: why the protocol was chosen, to be appended to the printed metrics; "" if it was given by the user.
    """

    source: str
    result: Evaluation
    images: Split | None
    reason: str = ""


def measured(source: str, args: argparse.Namespace, protocols: Sequence[str], path_of: PathOf) -> Iterator[Measured]:
    """Evaluate a source by each protocol.

    Args:
        source: a run, network, file, URL of an endpoint, or file of predictions.
        args: arguments of the command.
        protocols: the given protocols; if empty, that of the published accuracy is used where applicable.
        path_of: returns the file for the predictions.
    """
    if is_url(source):
        yield from _endpoint_measured(source, args, protocols, path_of)
        return
    if is_predictions(source):
        yield _read_predictions(source, args, path_of)
        return
    with opened(source) as (classifier, run):
        data = _data_of(source, classifier.card, run, args)
        check_has_weights(source, "measure")
        if run is not None:
            recipe, trained_on = run.config()["recipe"], _maybe_trained_on(classifier.card, data)
            # In the same order as in training, because leaving out images changes the holdout.
            data = data.without_broken(recipe.get("broken_images", 1.0))[0]
            data = data.with_holdout(recipe["holdout"]) if trained_on and "train" in data.splits else data
        class_map = _class_map(source, classifier.card, data, args)
        split = _evaluation_split(data, args)
        images, weights = data.split(split).originals, None
        for protocol, reason in _protocols(classifier, data, split, protocols):
            file = path_of(source, protocol)
            if file and weights is None:
                weights = _weights_text(source, classifier.card, run)
            result = _measure(source, classifier, data, split, args, protocol, class_map, file, weights)
            if run is not None:
                run.add_evaluation(result)
            yield Measured(source, result, images, reason)


def predictions_paths(sources: Sequence[str], protocols: Sequence[str], place: str | None) -> PathOf:
    """Return the function to the predictions file of a source and protocol: the given file, or one in that folder."""
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
            + (f" and there are {what}; give a folder." if is_file else "; it must end in .npz or .csv.")
        )
    # The last components of the paths and URLs, if they are unique.
    last = [
        re.split(r"[/\\]", source.rstrip("/\\"))[-1].removesuffix(".npz").removesuffix(".csv") for source in sources
    ]
    names = last if len({name.lower() for name in last}) == len(last) else sources
    parts = dict(zip(sources, safe_names(names), strict=True))

    def path_of(source: str, protocol: str) -> Path:
        return path / f"{parts[source]}{safe_name(f'-{protocol}') if len(protocols) > 1 else ''}.npz"

    return path_of


def _read_predictions(source: str, args: argparse.Namespace, path_of: PathOf) -> Measured:
    """Load a file of predictions; with --dataset and --report, also the images for the report."""
    from keras_convnets.training import Evaluation
    from keras_convnets.training.evaluation import Predictions

    found = dataclasses.replace(Predictions.load(source), source=source)
    if args.split not in (None, found.split):
        raise UserError(f"{source} has predictions of {found.data}/{found.split}; leave --split {args.split} out.")
    file = path_of(source, found.protocol)
    if file:
        found.save(file)
    images = None
    if args.report and args.dataset:
        data = _data_of(source, None, None, argparse.Namespace(**{**vars(args), "split": found.split}))
        images = data.splits.get(found.split)
    return Measured(source, Evaluation.of_predictions(found), images)


def _weights_text(source: str, card: ModelCard, run: Run | None) -> str:
    """Return a string that identifies the weights of a source other than an endpoint."""
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
    """Return (protocol, reason) pairs: the given protocols, else that of the published accuracy if applicable."""
    from keras_convnets.training.evaluation.evaluator import check_protocol
    from keras_convnets.training.evaluation.protocols import get_protocol

    if protocols:
        return [(protocol, "") for protocol in protocols]
    named, by = _named_protocol(classifier)
    protocol = get_protocol(named)
    try:
        check_protocol(classifier, data, split, protocol)
    except UserError:
        # No explanation is needed for a single-view protocol, because center has a single view too.
        return [("center", "" if protocol.is_one_view else f"; {named}, the protocol of {by}, is not applicable")]
    return [(named, f"; the protocol of {by}" if by else "")]


def _named_protocol(classifier: Classifier) -> tuple[str, str]:
    """Return the protocol of the published accuracy of a network, and the weights or recipe that define it."""
    from keras_convnets.training.recipes import RECIPES, get_recipe

    weights = getattr(classifier.model, "published_weights", None)
    if weights is not None and weights.record is not None:
        return weights.record.protocol, f"the weights {weights.record}"
    name = classifier.card.recipe.get("name")
    protocol = get_recipe(name).protocol if name in RECIPES else "center"
    return protocol, "" if protocol == "center" else f"recipe {name}"


def _endpoint_measured(
    source: str, args: argparse.Namespace, protocols: Sequence[str], path_of: PathOf
) -> Iterator[Measured]:
    """Evaluate an endpoint by each protocol.

    For center, the endpoint gets the encoded images and resizes and crops them. For other protocols, it gets the views
    through the signature `predict_images`.
    """
    from keras_convnets.prediction import Classifier
    from keras_convnets.training.evaluation.protocols import CENTER, get_protocol

    data = _data_of(source, None, None, args)
    split = _evaluation_split(data, args)
    decodable = dataclasses.replace(data, splits={split: data.split(split)}).without_broken()[0]
    data = dataclasses.replace(decodable, splits={**data.splits, **decodable.splits})
    with open_client(source, args) as client:
        class_map, spellings = _endpoint_classes(client, data, args)
        if not _check_class_names(client, spellings, _class_check_images(data.split(split), len(data.class_names))):
            log.warning("%s reports no class names, so only the number of classes was checked.", source)
        pixels = Classifier(None, client.predict_images, image_size=client.image_size())
        for protocol in protocols or [CENTER.name]:
            encoded, file = get_protocol(protocol, args.average) is CENTER, path_of(source, protocol)
            weights = f"{source} {json.dumps(client.metadata(), sort_keys=True)}" if file else None
            predictor = client.predict if encoded else pixels
            result = _measure(source, predictor, data, split, args, protocol, class_map, file, weights, encoded=encoded)
            yield Measured(source, result, data.split(split))


def _endpoint_classes(
    client: Client, data: DataSet, args: argparse.Namespace
) -> tuple[ClassMap | None, list[tuple[str, ...]]]:
    """Return the map from the data's classes to an endpoint's, and the class names that the endpoint may report.

    An endpoint with 1,000 classes is assumed to have the ImageNet classes if the data's classes differ. For other
    numbers of classes, only the indices are known.
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


def _check_class_names(client: Client, spellings: Sequence[tuple[str, ...]], images: Sequence[bytes]) -> bool:
    """Check that an endpoint's class names match one of the `spellings`; return whether it reports names at all.

    A network trained on folders named by WordNet ids reports ids as class names.
    """
    for number, names in enumerate(spellings, 1):
        try:
            return client.check_classes(names, images)
        except UserError:
            if number == len(spellings):
                raise
    return False


def _class_check_images(split: Split, classes: int) -> list[bytes]:
    """Return encoded images drawn from all classes, because data sets are often sorted by class."""
    count = min(split.size, max(CLASS_CHECK_IMAGES, min(classes, MOST_CLASS_CHECK_IMAGES)))
    try:
        stream = split.encoded_shuffled(0, balanced=True)
    except UserError:
        # Records support sequential reading only.
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


def _evaluation_split(data: DataSet, args: argparse.Namespace) -> str:
    """Return the name of the split: that of --split, else "all" if it is the only one, else the evaluation split."""
    name = args.split or (next(iter(data.splits)) if list(data.splits) == ["all"] else data.evaluation_split)
    data.split(name)
    return name


def _data_of(source: str, card: ModelCard | None, run: Run | None, args: argparse.Namespace) -> DataSet:
    """Return the data set of --dataset, else that of the run.

    A folder without splits is evaluated completely if the network was not trained on it, or with --split all.
    """
    from keras_convnets import training
    from keras_convnets.training.data.folder import TEST_EVERY, WHOLE, holds_one_level, load_undivided
    from keras_convnets.training.data.imagenet_validation import holds_validation
    from keras_convnets.training.data.shards import holds_shards

    kept = run.config()["source"] if run is not None else {}
    place = args.dataset or kept.get("dataset")
    if place is None:
        raise UserError(f"{source} does not record its training data; give a data set with --dataset.")
    data = training.load_dataset(place, args.data_dir or (None if args.dataset else kept.get("data_dir")))
    folder = Path(place)
    known = holds_shards(folder) or holds_validation(folder)
    one_level = folder.is_dir() and not known and holds_one_level(folder)
    if one_level and (args.split == WHOLE or (args.split is None and not _maybe_trained_on(card, data))):
        return load_undivided(folder)
    if one_level and args.split is None and args.dataset:
        log.warning(
            "%s may be the training data of %s: only its test split is evaluated, every %dth image of each class, "
            "which is not used in training; use --split %s to evaluate all images.",
            *(place, source, TEST_EVERY, WHOLE),
        )
    return data


def _maybe_trained_on(card: ModelCard | None, data: DataSet) -> bool:
    """Whether a network may have been trained on a data set: equal name or number of images, or no data in its card."""
    if card is not None and card.members:
        return any(_maybe_trained_on(member, data) for member in card.members)
    facts = card.data if card is not None else {}
    images = sum(facts.get("images", {}).values()) + facts.get("left_out", 0)
    return not facts or facts.get("name") == data.name or images == sum(split.size for split in data.splits.values())


def _class_map(source: str, card: ModelCard, data: DataSet, args: argparse.Namespace) -> ClassMap | None:
    """Return the map from the data's classes to a network's, or None if they are equal; raise if they do not match."""
    from keras_convnets.classes import names_and_ids
    from keras_convnets.training.evaluation.class_map import map_classes

    class_map = map_classes(args.classes, card, data, args.answers)
    if class_map is None and data.class_names not in (card.class_names, names_and_ids(card)[1]):
        raise UserError(
            f"{source} has the classes {_shortened(card.class_names)} and {data.name} has "
            f"{_shortened(data.class_names)}; evaluate on data with the model's classes, or map the data's classes to "
            "the model's with --classes."
        )
    return class_map


def _shortened(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
