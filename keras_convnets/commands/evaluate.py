"""Measure runs, exported versions, ONNX files or endpoints on a data set."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keras_convnets.commands.arguments import Command, Parser, add_data_flags, positive
from keras_convnets.commands.endpoints import add_endpoint_flags, check_endpoint_flags, open_client
from keras_convnets.commands.sources import check_has_weights, is_url, opened
from keras_convnets.commands.startup import load_tensorflow
from keras_convnets.commands.terminal import escaped, image_progress, print_json
from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.extras import require

if TYPE_CHECKING:
    from keras_convnets.card import ModelCard
    from keras_convnets.export import Client
    from keras_convnets.training import Evaluation, Run
    from keras_convnets.training.data import DataSet, Split
    from keras_convnets.training.evaluation import ClassMap

# So many images are asked about to learn the names of an endpoint's classes.
CLASS_CHECK_IMAGES, MOST_CLASS_CHECK_IMAGES = 64, 1000
log = logging.getLogger("keras_convnets")


def add_flags(parser: Parser) -> None:
    """Add the command's arguments."""
    what = "run directory, exported version, .keras, .onnx or .tflite file, or an endpoint's URL"
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
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="print JSON, or write it to FILE")
    add_endpoint_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Measure one after the other; print tables or JSON."""
    require("train", "evaluation")
    check_endpoint_flags(args, list(filter(is_url, args.source)))
    load_tensorflow()
    from rich.console import Console

    from keras_convnets.training.data.cached_passes import reporting
    from keras_convnets.training.progress import PassProgress

    results = {}
    for source in args.source:
        with reporting(PassProgress(Console(stderr=True))):
            result = _evaluate_one(source, args)
        results[source] = result.to_dict()
        if not args.json:
            _print_evaluation(source, result)
    if args.json == "-":
        print_json(results)
    elif args.json:
        from keras_convnets.files import write_json

        write_json(args.json, results)


def _evaluate_one(source: str, args: argparse.Namespace) -> Evaluation:
    if is_url(source):
        return _evaluate_endpoint(source, args)
    with opened(source) as (classifier, run):
        data = _data_of(source, classifier.card, run, args)
        check_has_weights(source, "measure")
        if run is not None:
            recipe, trained_on = run.config()["recipe"], _maybe_trained_on(classifier.card, data)
            # In the order of the training: what is left out first changes who is held out.
            data = data.without_broken(recipe.get("broken_images", 1.0))[0]
            data = data.with_holdout(recipe["holdout"]) if trained_on and "train" in data.splits else data
        class_map = _class_map(source, classifier.card, data, args)
        split = _measured_split(data, args)
        if classifier.predict_images is not None:
            others = {name: other for name, other in data.splits.items() if name != split}
            # The images are read once: nothing is gained by holding them.
            data = data.in_view(classifier.card.view, memory_limit=0, leaving=others)
        result = _measure(source, classifier, data, split, args, class_map)
    if run is not None:
        run.add_evaluation(result)
    return result


def _evaluate_endpoint(source: str, args: argparse.Namespace) -> Evaluation:
    """Measure an endpoint with images as the data hold them: it brings them to its size by itself."""
    data = _data_of(source, None, None, args)
    split = _measured_split(data, args)
    measured = dataclasses.replace(data, splits={split: data.split(split)}).without_broken()[0]
    data = dataclasses.replace(data, splits={**data.splits, **measured.splits})
    with open_client(source, args) as client:
        class_map, spellings = _endpoint_classes(client, data, args)
        images = _some_of_each_class(data.split(split), len(data.class_names))
        if not _know_classes(client, spellings, images):
            log.warning("%s tells no class names, so only their number was compared.", source)
        return _measure(source, client.predict, data, split, args, class_map, encoded=True)


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
    """Return encoded images of as many classes as there may be: a stored order has one class after the other."""
    count = min(split.size, max(CLASS_CHECK_IMAGES, min(classes, MOST_CLASS_CHECK_IMAGES)))
    try:
        stream = split.encoded_shuffled(0, balanced=True)
    except UserError:
        # Records that are read one after the other.
        stream = split.encoded_in_order()
    return [encoded for encoded, *_ in stream.take(count).as_numpy_iterator()]


def _measure(
    source: str,
    predictor: Callable,
    data: DataSet,
    split: str,
    args: argparse.Namespace,
    class_map: ClassMap | None,
    encoded: bool = False,
) -> Evaluation:
    from rich.console import Console

    from keras_convnets import training
    from keras_convnets.training.progress import PassProgress

    doing, is_live = f"evaluating {source}", sys.stdout.isatty() and not args.json
    lines = PassProgress(None if is_live else Console(stderr=True))
    with image_progress(doing, hidden=not is_live) as bar:

        def show(done: int, total: int) -> None:
            bar(done, total)
            lines(escaped(doing), done, total)

        return training.evaluate(
            predictor,
            data,
            split=split,
            batch_size=args.batch_size,
            progress=show,
            encoded=encoded,
            classes=class_map,
            answers=args.answers,
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


def _print_evaluation(source: str, result: Evaluation) -> None:
    top5 = "" if result.top5 is None else f"  top-5 {result.top5:.2%}"
    figures = f"top-1 {result.top1:.2%} (+- {result.standard_error:.2%}){top5}"
    print(printable(f"{source}: {figures}  on {result.key}, n={result.n} of {result.of} images"))
    names = [printable(name) for name in result.class_names]
    width = max(map(len, names))
    print(f"  {'class':<{width}}  {'n':>6}  {'top-1':>7}  most often taken for")
    for index, row in enumerate(result.per_class):
        if row["n"]:
            mistakes = result.confusion[index].copy()
            mistakes[index] = 0
            worst = mistakes.argmax()
            taken = f"{names[worst]} ({mistakes[worst]})" if mistakes[worst] else ""
            print(f"  {names[index]:<{width}}  {row['n']:>6}  {row['top1']:>7.2%}  {taken}".rstrip())


COMMAND = Command(__doc__, add_flags, run)
