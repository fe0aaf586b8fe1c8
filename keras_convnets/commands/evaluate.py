"""Measure runs, exported versions, ONNX files or endpoints on a data set."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_convnets.commands.arguments import Command, Parser, add_data_flags, positive
from keras_convnets.commands.endpoints import add_endpoint_flags, check_endpoint_flags, open_client
from keras_convnets.commands.sources import check_has_weights, is_url, opened
from keras_convnets.commands.startup import load_tensorflow
from keras_convnets.commands.terminal import escaped, print_json
from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.extras import require

if TYPE_CHECKING:
    from keras_convnets.card import ModelCard
    from keras_convnets.prediction import Classifier
    from keras_convnets.training import Evaluation, Run
    from keras_convnets.training.data import DataSet, Split

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
        "center, ten_crop, crops144, dense or cifar, or several with commas; with fields where they differ, such as "
        "'dense(scales=256:384, mirror=false)'; default: that of the recipe's or the weights' published figure, where "
        "it fits"
    )
    parser.add_argument("--protocol", metavar="NAME[,NAME]", help=what)
    what = "of an image's views: mean of the probabilities (the papers'), max, geometric or logits; default: mean"
    parser.add_argument("--average", help=what)
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
    from keras_convnets.training.evaluation.protocols import get_protocol, split_protocols
    from keras_convnets.training.progress import PassProgress

    for protocol in split_protocols(args.protocol or "center"):
        get_protocol(protocol, args.average)
    results: dict[str, Any] = {}
    for source in args.source:
        with reporting(PassProgress(Console(stderr=True))):
            found = _evaluate_one(source, args)
        plain = {result.protocol: result.to_dict() for result in found}
        results[source] = plain if len(plain) > 1 else found[0].to_dict()
    if args.json == "-":
        print_json(results)
    elif args.json:
        from keras_convnets.files import write_json

        write_json(args.json, results)


def _evaluate_one(source: str, args: argparse.Namespace) -> list[Evaluation]:
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
        _check_classes(source, classifier.card, data)
        split = _measured_split(data, args)
        results = []
        for protocol, reason in _protocols(classifier, data, split, args):
            results.append(_measure(source, classifier, data, split, args, protocol, reason))
            if run is not None:
                run.add_evaluation(results[-1])
    return results


def _protocols(classifier: Classifier, data: DataSet, split: str, args: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the protocols to measure by and why each: the flag's, else that of the published figure where it fits."""
    from keras_convnets.training.evaluation.evaluator import check_fits
    from keras_convnets.training.evaluation.protocols import get_protocol, split_protocols

    if args.protocol:
        return [(protocol, "") for protocol in split_protocols(args.protocol)]
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


def _evaluate_endpoint(source: str, args: argparse.Namespace) -> list[Evaluation]:
    """Measure an endpoint: by center with images as the data hold them, which it brings to its size by itself.

    By other protocols it gets their views, through the signature `predict_images`.
    """
    from keras_convnets.classes import imagenet_classes
    from keras_convnets.prediction import Classifier
    from keras_convnets.training.evaluation.protocols import CENTER, get_protocol, split_protocols

    data = _data_of(source, None, None, args)
    split = _measured_split(data, args)
    measured = dataclasses.replace(data, splits={split: data.split(split)}).without_broken()[0]
    data = dataclasses.replace(data, splits={**data.splits, **measured.splits})
    names = dict(zip(imagenet_classes().ids, imagenet_classes().names, strict=True))
    with open_client(source, args) as client:
        expected = [names.get(name, name) for name in data.class_names]
        if not client.check_classes(expected, _some_of_each_class(data.split(split), len(expected))):
            log.warning("%s tells no class names, so only their number was compared.", source)
        pixels = Classifier(None, client.predict_images, image_size=client.image_size())
        results = []
        for protocol in split_protocols(args.protocol or CENTER.name):
            encoded = get_protocol(protocol, args.average) is CENTER
            answering = client.predict if encoded else pixels
            results.append(_measure(source, answering, data, split, args, protocol, encoded=encoded))
        return results


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
    protocol: str,
    reason: str = "",
    encoded: bool = False,
) -> Evaluation:
    """Measure by one protocol and print the figures, unless they become JSON."""
    from rich.progress import Progress

    from keras_convnets import training

    with Progress(transient=True, disable=bool(args.json) or not sys.stdout.isatty()) as progress:
        task = progress.add_task(escaped(f"evaluating {source} by {protocol}"), total=None)
        result = training.evaluate(
            predictor,
            data,
            split=split,
            protocol=protocol,
            average=args.average,
            batch_size=args.batch_size,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            encoded=encoded,
        )
    if not args.json:
        _print_evaluation(source, result, reason)
    return result


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
    from keras_convnets.training.data.shards import holds_shards

    kept = run.config()["source"] if run is not None else {}
    place = args.dataset or kept.get("dataset")
    if place is None:
        raise UserError(f"{source} does not say which data it was trained on; name some with --dataset.")
    data = training.load_dataset(place, args.data_dir or (None if args.dataset else kept.get("data_dir")))
    folder = Path(place)
    one_level = folder.is_dir() and not holds_shards(folder) and holds_one_level(folder)
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
    facts = card.data if card is not None else {}
    images = sum(facts.get("images", {}).values()) + facts.get("left_out", 0)
    return not facts or facts.get("name") == data.name or images == sum(split.size for split in data.splits.values())


def _check_classes(source: str, card: ModelCard, data: DataSet) -> None:
    if data.class_names not in (card.class_names, card.class_ids):
        raise UserError(
            f"{source} knows the classes {_shortened(card.class_names)}, and {data.name} has "
            f"{_shortened(data.class_names)}; evaluate on data with the model's classes."
        )


def _shortened(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _print_evaluation(source: str, result: Evaluation, reason: str = "") -> None:
    top5 = "" if result.top5 is None else f"  top-5 {result.top5:.2%}"
    figures = f"top-1 {result.top1:.2%} (+- {result.standard_error:.2%}){top5}"
    print(printable(f"{source}: {figures}  on {result.key}, n={result.n} of {result.of} images{reason}"))
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
