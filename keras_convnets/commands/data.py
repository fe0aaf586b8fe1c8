"""Verify a data set, describe it, or prepare downscaled copies of its images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from keras_convnets.commands import FAILURE, PROGRAM
from keras_convnets.commands.arguments import Command, Parser, add_commands, positive
from keras_convnets.commands.startup import load_tensorflow
from keras_convnets.commands.terminal import image_progress, print_json
from keras_convnets.errors import UserError

if TYPE_CHECKING:
    from keras_convnets.training.data.folder import Survey


def _add_verify_flags(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="a folder of images, as accepted by train")
    parser.add_argument(
        "--quarantine",
        nargs="?",
        const="",
        metavar="FILE",
        help="write a list of the skipped images; default FILE: FOLDER/quarantine.txt, which training reads",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _verify(args: argparse.Namespace) -> int:
    """Find images that training would skip or decode differently than expected; exit status 1 if any are skipped."""
    _existing_folder(args.folder)
    load_tensorflow()
    from keras_convnets.training.data.verification import verify_folder

    with image_progress(f"verifying {args.folder}", args.json) as show:
        found = verify_folder(args.folder, show)
    listed = None if args.quarantine is None else found.write_quarantine(args.quarantine)
    if args.json:
        print_json(found.to_dict())
        return FAILURE if found.skipped or found.refused else 0
    width = max((len(finding.path) for finding in found.findings), default=0)
    for item in found.findings:
        print(f"{item.path:<{width}}  {item.kind:<12} {item.fate:<8} {item.detail}")
    print(f"{found.files} files, {len(found.skipped)} of them skipped in training")
    if found.refused:
        print("training refuses the folder until the findings marked as refused are fixed")
    if listed is not None:
        print(f"wrote {listed}")
    return FAILURE if found.skipped or found.refused else 0


def _add_stats_flags(parser: Parser) -> None:
    parser.add_argument("data", metavar="DATA", help="digits, a folder, or the name of a TensorFlow Datasets data set")
    parser.add_argument(
        "--data_dir", metavar="DIR", help="directory of prepared TFDS data sets; default: TFDS_DATA_DIR"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _stats(args: argparse.Namespace) -> None:
    """Describe a data set: counts, image sizes, colour statistics and duplicate images."""
    load_tensorflow()
    from keras_convnets import training
    from keras_convnets.training.data.statistics import data_statistics, statistics_text

    data = _surveyed(args.data) or training.load_dataset(args.data, args.data_dir)
    with image_progress(f"reading {args.data}", args.json) as show:
        facts = data_statistics(data, show)
    if args.json:
        print_json(facts)
    else:
        print(statistics_text(facts))


def _surveyed(place: str) -> Survey | None:
    """Return the survey of an image folder that training refuses, or None for data that can be loaded."""
    from keras_convnets.training.data.folder import survey, without_listed
    from keras_convnets.training.data.imagenet_validation import holds_validation
    from keras_convnets.training.data.shards import holds_shards

    folder = Path(place)
    if place == "digits" or not folder.is_dir() or holds_shards(folder) or holds_validation(folder):
        return None
    found = survey(folder)
    if not found.splits:
        found.check()
    return without_listed(folder, found) if found.problems else None


def _add_prepare_flags(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="a folder of images, as accepted by train; it is not changed")
    parser.add_argument("--to", required=True, metavar="OUT", help="the folder to write or to resume")
    parser.add_argument(
        "--shorter_side", type=positive, required=True, metavar="N", help="in pixels; larger images are resized to it"
    )
    parser.add_argument("--format", default="folder", help="folder or tfrecord; default: %(default)s")


def _prepare(args: argparse.Namespace) -> None:
    """Write upright, downscaled copies of a folder's images; repeating the command resumes an interrupted one."""
    _existing_folder(args.folder)
    load_tensorflow()
    from keras_convnets.training.data.preparation import prepare_folder

    with image_progress(f"preparing {args.folder}") as show:
        done = prepare_folder(args.folder, args.to, args.shorter_side, args.format, show)
    print(f"{done.folder} holds {done.images} images; {len(done.left_out)} could not be read.")
    print(f"next: {PROGRAM} train --model MODEL --dataset {done.folder} --run DIR")


def _existing_folder(folder: str) -> None:
    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder}; give an existing folder of images.")


ACTIONS = {
    "verify": Command(_verify.__doc__, _add_verify_flags, _verify),
    "stats": Command(_stats.__doc__, _add_stats_flags, _stats),
    "prepare": Command(_prepare.__doc__, _add_prepare_flags, _prepare),
}
COMMAND = Command(__doc__, lambda parser: add_commands(parser, "ACTION", ACTIONS))
