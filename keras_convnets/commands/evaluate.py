"""Measure runs, exported versions, ONNX files or endpoints on a data set."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from keras_convnets.commands import PROGRAM
from keras_convnets.commands.arguments import Command, Parser, add_data_flags, positive
from keras_convnets.commands.endpoints import add_endpoint_flags, check_endpoint_flags, open_client
from keras_convnets.commands.evaluation_text import print_comparisons, print_ensemble, print_evaluation
from keras_convnets.commands.sources import check_has_weights, is_folder, is_predictions, is_url, opened
from keras_convnets.commands.startup import load_tensorflow
from keras_convnets.commands.terminal import image_progress, print_json
from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.extras import require

if TYPE_CHECKING:
    from keras_convnets.card import ModelCard
    from keras_convnets.export import Client
    from keras_convnets.training import Evaluation, Run
    from keras_convnets.training.data import DataSet, Split
    from keras_convnets.training.evaluation import ClassMap, Comparison, Predictions

# Number of images classified to compare the names of an endpoint's classes.
CLASS_CHECK_IMAGES, MOST_CLASS_CHECK_IMAGES = 64, 1000
log = logging.getLogger("keras_convnets")


def add_flags(parser: Parser) -> None:
    """Add the command's arguments."""
    what = (
        "run directory, exported version, .keras, .onnx or .tflite file, an endpoint's URL, or predictions that were "
        "kept as .npz or .csv"
    )
    parser.add_argument("source", nargs="+", metavar="SOURCE", help=what)
    add_data_flags(parser)
    what = (
        "default: test where there is one, else val or validation; of a folder of one level that the network was not "
        "trained on, all"
    )
    parser.add_argument("--split", help=what)
    what = (
        "where the data's classes are among the network's 1,000, say: names (each is understood by its own name), a "
        "list with commas or a file of WordNet ids, names or indices; default: found where they are WordNet ids"
    )
    parser.add_argument("--classes", metavar="MAP", help=what)
    what = "all: every class of the network is an answer; subset: the data's classes alone; default: %(default)s"
    parser.add_argument("--answers", default="all", help=what)
    parser.add_argument("--batch_size", type=positive, default=128, help="default: %(default)s")
    what = "keep what is answered for each image, as .npz or .csv, and resume from it; of several sources: a folder"
    parser.add_argument("--predictions", metavar="FILE", help=what)
    what = "measure the mean of the sources' probabilities too, for every subset of them"
    parser.add_argument("--ensemble", action="store_true", help=what)
    parser.add_argument("--report", metavar="DIR", help="write one HTML page, DIR/index.html, with all of it")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="print JSON, or write it to FILE")
    add_endpoint_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Measure one after the other; print tables or JSON, write the report."""
    require("train", "evaluation")
    check_endpoint_flags(args, list(filter(is_url, args.source)))
    if args.ensemble and len(args.source) < 2:
        raise UserError("--ensemble came with one SOURCE; give two or more.")
    if args.report and Path(args.report).is_file():
        raise UserError(f"--report {args.report} is a file; it names a folder.")
    load_tensorflow()
    from rich.console import Console

    from keras_convnets.training.data.cached_passes import reporting
    from keras_convnets.training.progress import PassProgress

    found = []
    for source, file in zip(args.source, _prediction_files(args.source, args.predictions), strict=True):
        with reporting(PassProgress(Console(stderr=True))):
            found.append(_evaluate_one(source, args, file))
        if not args.json:
            print_evaluation(source, found[-1].result)
    _finish([one.result for one in found], [one.images for one in found], args)


class _Measured(NamedTuple):
    """A source's figures, and the images that it was measured on, as the data hold them, where they are at hand."""

    result: Evaluation
    images: Split | None


def _finish(results: Sequence[Evaluation], images: Sequence[Split | None], args: argparse.Namespace) -> None:
    """Compare the sources, and print or write what comes after each one's figures."""
    from keras_convnets.training.evaluation import ensemble, report

    several = [result.predictions for result in results if result.predictions is not None]
    together = ensemble(several) if args.ensemble else None
    comparisons = _comparisons(several)
    if not args.json:
        if comparisons:
            print_comparisons(comparisons)
        if together is not None:
            print_ensemble(together)
    if args.report:
        page = report(results, args.report, images=images, ensemble=together, command=_command_text(args.given))
        log.info("wrote %s", page)
        if not args.json:
            print(printable(f"wrote {page}"))
    if args.json:
        plain: dict[str, Any] = {source: result.to_dict() for source, result in zip(args.source, results, strict=True)}
        for (first, second), row in zip(itertools.combinations(args.source, 2), comparisons, strict=False):
            for source in dict.fromkeys((first, second)):
                plain[source].setdefault("comparisons", []).append(row.to_dict())
        if together is not None:
            plain["ensemble"] = together.to_dict()
        _write_json(plain, args.json)


def _write_json(plain: dict[str, Any], to: str) -> None:
    from keras_convnets.files import write_json

    if to == "-":
        print_json(plain)
    else:
        write_json(to, plain)


def _comparisons(several: Sequence[Predictions]) -> list[Comparison]:
    """Return the paired comparisons of sources on the same images; none of sources on others."""
    from keras_convnets.training.evaluation.comparison import compare_all

    if len(several) < 2 or len({(found.data, found.split) for found in several}) > 1:
        return []
    try:
        return compare_all(several)
    except UserError as error:
        log.warning("the sources are not compared: %s", error)
        return []


def _command_text(given: Sequence[str]) -> str:
    """Return the command as it was given, without what headers and URLs hold of secrets."""
    shown = []
    for at, arg in enumerate(given):
        if at and given[at - 1] == "--header":
            arg = f"{arg.partition(':')[0]}: ..."
        elif arg.startswith("--header="):
            arg = f"{arg.partition(':')[0]}: ..."
        shown.append(re.sub(r"(?<=://)[^/@]*@", "...@", arg))
    return shlex.join([PROGRAM, *shown])


def _prediction_files(sources: Sequence[str], place: str | None) -> list[Path | None]:
    """Return the file of predictions of each source, or None: the flag's, or one each in the folder that it names."""
    from keras_convnets.files import safe_names
    from keras_convnets.training.evaluation.predictions import SUFFIXES

    if place is None:
        return [None] * len(sources)
    is_file = Path(place).suffix.lower() in SUFFIXES and not Path(place).is_dir()
    if is_file and len(sources) == 1:
        return [Path(place)]
    if is_file or Path(place).is_file():
        raise UserError(
            f"--predictions {place} is a file"
            + (f", and {len(sources)} sources came; name a folder." if is_file else "; it must end in .npz or .csv.")
        )
    # The last parts of paths and URLs, where they tell the sources apart.
    last = [
        re.split(r"[/\\]", source.rstrip("/\\"))[-1].removesuffix(".npz").removesuffix(".csv") for source in sources
    ]
    names = last if len({name.lower() for name in last}) == len(last) else sources
    return [Path(place) / f"{name}.npz" for name in safe_names(names)]


def _evaluate_one(source: str, args: argparse.Namespace, file: Path | None) -> _Measured:
    if is_url(source):
        return _evaluate_endpoint(source, args, file)
    if is_predictions(source):
        return _read_predictions(source, args, file)
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
        images = data.split(split).originals
        if classifier.predict_images is not None:
            others = {name: other for name, other in data.splits.items() if name != split}
            # The images are read once: nothing is gained by holding them.
            data = data.in_view(classifier.card.view, memory_limit=0, leaving=others)
        weights = _weights_text(source, classifier.card, run) if file else None
        result = _measure(source, classifier, data, split, args, class_map, file, weights)
    if run is not None:
        run.add_evaluation(result)
    return _Measured(result, images)


def _read_predictions(source: str, args: argparse.Namespace, file: Path | None) -> _Measured:
    """Return the figures of predictions that were kept; with --dataset, and for a report alone, the images too."""
    from keras_convnets.training import Evaluation
    from keras_convnets.training.evaluation import Predictions

    found = dataclasses.replace(Predictions.load(source), source=source)
    if args.split not in (None, found.split):
        raise UserError(f"{source} holds predictions of {found.data}/{found.split}; leave --split {args.split} out.")
    if file:
        found.save(file)
    images = None
    if args.report and args.dataset:
        data = _data_of(source, None, None, argparse.Namespace(**{**vars(args), "split": found.split}))
        images = data.splits.get(found.split)
    return _Measured(Evaluation.of_predictions(found), images)


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


def _evaluate_endpoint(source: str, args: argparse.Namespace, file: Path | None) -> _Measured:
    """Measure an endpoint with images as the data hold them: it brings them to its size by itself."""
    data = _data_of(source, None, None, args)
    split = _measured_split(data, args)
    measured = dataclasses.replace(data, splits={split: data.split(split)}).without_broken()[0]
    data = dataclasses.replace(measured, splits={**data.splits, **measured.splits})
    with open_client(source, args) as client:
        class_map, spellings = _endpoint_classes(client, data, args)
        if not _know_classes(client, spellings, _some_of_each_class(data.split(split), len(data.class_names))):
            log.warning("%s reports no class names, so only their number was compared.", source)
        weights = f"{source} {json.dumps(client.metadata(), sort_keys=True)}" if file else None
        result = _measure(source, client.predict, data, split, args, class_map, file, weights, encoded=True)
    return _Measured(result, data.split(split))


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
    class_map: ClassMap | None,
    file: Path | None,
    weights: str | None,
    encoded: bool = False,
) -> Evaluation:
    from keras_convnets import training

    with image_progress(f"evaluating {source}", hidden=bool(args.json)) as show:
        return training.evaluate(
            predictor,
            data,
            split=split,
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


COMMAND = Command(__doc__, add_flags, run)
