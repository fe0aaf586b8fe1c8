"""Evaluate runs, exported versions, ONNX files, endpoints or saved predictions on a data set."""

from __future__ import annotations

import argparse
import itertools
import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_convnets.commands import PROGRAM
from keras_convnets.commands.arguments import Command, Parser, add_data_flags, positive
from keras_convnets.commands.endpoints import add_endpoint_flags, check_endpoint_flags
from keras_convnets.commands.evaluation_sources import Measured, measured, predictions_paths
from keras_convnets.commands.evaluation_text import print_comparisons, print_ensemble, print_evaluation
from keras_convnets.commands.sources import is_url
from keras_convnets.commands.startup import load_tensorflow
from keras_convnets.commands.terminal import print_json
from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.extras import require

if TYPE_CHECKING:
    from keras_convnets.training.evaluation import Comparison, Predictions

log = logging.getLogger("keras_convnets")


def add_flags(parser: Parser) -> None:
    """Add the command's arguments."""
    what = (
        "run directory, exported version, .keras, .onnx or .tflite file, URL of an endpoint, or .npz or .csv file of "
        "predictions"
    )
    parser.add_argument("source", nargs="+", metavar="SOURCE", help=what)
    add_data_flags(parser)
    what = (
        "split to evaluate; default: test if it exists, else val or validation; all for a folder without splits that "
        "the network was not trained on"
    )
    parser.add_argument("--split", help=what)
    what = (
        "map from the data's classes to the network's, if they are a subset or in a different order: names (look up "
        "each class by its name), or a comma-separated list or a file of WordNet ids, names or indices; default: by "
        "WordNet ids, if the data's classes are named so"
    )
    parser.add_argument("--classes", metavar="MAP", help=what)
    what = "predict among all classes of the network (all) or the data's classes only (subset); default: %(default)s"
    parser.add_argument("--answers", default="all", help=what)
    what = (
        "test protocols: center, ten_crop, crops144, dense or cifar, comma-separated, optionally with fields, such as "
        "'dense(scales=256:384, mirror=false)'; default: that of the published accuracy of the recipe or weights, if "
        "applicable, else center"
    )
    parser.add_argument("--protocol", metavar="NAME[,NAME]", help=what)
    what = "how the probabilities of an image's views are combined: mean, max, geometric or logits; default: mean"
    parser.add_argument("--average", help=what)
    parser.add_argument("--batch_size", type=positive, default=128, help="images per batch; default: %(default)s")
    what = "write the predictions to a .npz or .csv file and resume an interrupted evaluation; with several: a folder"
    parser.add_argument("--predictions", metavar="FILE", help=what)
    what = "also evaluate the mean probabilities of every subset of the sources"
    parser.add_argument("--ensemble", action="store_true", help=what)
    parser.add_argument("--report", metavar="DIR", help="write an HTML report to DIR/index.html")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="print JSON, or write it to FILE")
    add_endpoint_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluate the sources one after another; print tables or JSON, and write the report."""
    require("train", "evaluation")
    check_endpoint_flags(args, list(filter(is_url, args.source)))
    if args.ensemble and len(args.source) < 2 and "," not in (args.protocol or ""):
        raise UserError("--ensemble needs at least two sources or protocols; give another SOURCE or --protocol.")
    if args.report and Path(args.report).is_file():
        raise UserError(f"--report {args.report} is a file; give a folder.")
    load_tensorflow()
    from rich.console import Console

    from keras_convnets.training.data.cached_passes import reporting
    from keras_convnets.training.evaluation.protocols import get_protocol, split_protocols
    from keras_convnets.training.progress import PassProgress

    protocols = split_protocols(args.protocol) if args.protocol else []
    for protocol in protocols or ["center"]:
        get_protocol(protocol, args.average)
    found: list[Measured] = []
    path_of = predictions_paths(args.source, protocols, args.predictions)
    for source in args.source:
        with reporting(PassProgress(Console(stderr=True))):
            for one in measured(source, args, protocols, path_of):
                found.append(one)
                if not args.json:
                    print_evaluation(source, one.result, one.reason)
    _finish(found, args)


def _finish(found: Sequence[Measured], args: argparse.Namespace) -> None:
    """Compare the sources, and print or write comparisons, ensembles, report and JSON."""
    from keras_convnets.training.evaluation import ensemble, report

    results = [one.result for one in found]
    several = [result.predictions for result in results if result.predictions is not None]
    together = ensemble(several) if args.ensemble else None
    comparisons = _comparisons(several)
    if not args.json:
        if comparisons:
            print_comparisons(comparisons)
        if together is not None:
            print_ensemble(together)
    if args.report:
        images = [one.images for one in found]
        page = report(results, args.report, images=images, ensemble=together, command=_command_text(args.given))
        log.info("wrote %s", page)
        if not args.json:
            print(printable(f"wrote {page}"))
    if args.json:
        plain = _plain(found, comparisons)
        if together is not None:
            plain["ensemble"] = together.to_dict()
        _write_json(plain, args.json)


def _plain(found: Sequence[Measured], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return the metrics by source; for a source with several protocols, by source and protocol."""
    rows = [one.result.to_dict() for one in found]
    for (first, second), comparison in zip(itertools.combinations(rows, 2), comparisons, strict=False):
        for row in (first, second):
            row.setdefault("comparisons", []).append(comparison.to_dict())
    by_source: dict[str, list[dict[str, Any]]] = {}
    for one, row in zip(found, rows, strict=True):
        by_source.setdefault(one.source, []).append(row)
    return {
        source: own[0] if len(own) == 1 else {row["protocol"]: row for row in own} for source, own in by_source.items()
    }


def _write_json(plain: dict[str, Any], to: str) -> None:
    from keras_convnets.files import write_json

    if to == "-":
        print_json(plain)
    else:
        write_json(to, plain)


def _comparisons(several: Sequence[Predictions]) -> list[Comparison]:
    """Return the comparisons of all pairs of sources; [] if they were not evaluated on the same images."""
    from keras_convnets.training.evaluation.comparison import compare_all

    if len(several) < 2 or len({(found.data, found.split) for found in several}) > 1:
        return []
    try:
        return compare_all(several)
    except UserError as error:
        log.warning("the sources are not compared: %s", error)
        return []


def _command_text(given: Sequence[str]) -> str:
    """Return the command line, with credentials in headers and URLs replaced by "..."."""
    shown = []
    for at, arg in enumerate(given):
        if at and given[at - 1] == "--header":
            arg = f"{arg.partition(':')[0]}: ..."
        elif arg.startswith("--header="):
            arg = f"{arg.partition(':')[0]}: ..."
        shown.append(re.sub(r"(?<=://)[^/@]*@", "...@", arg))
    return shlex.join([PROGRAM, *shown])


COMMAND = Command(__doc__, add_flags, run)
