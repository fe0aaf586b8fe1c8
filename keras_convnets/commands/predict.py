"""Classify images, folders of images or URLs of images; exit status 1 if some can't be read."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from keras_convnets.commands import FAILURE, PROGRAM, USER_ERROR
from keras_convnets.commands.arguments import Command, Parser, positive
from keras_convnets.commands.endpoints import add_endpoint_flags, check_endpoint_flags, open_client
from keras_convnets.commands.sources import check_has_weights, is_url, opened
from keras_convnets.commands.startup import load_tensorflow
from keras_convnets.commands.terminal import print_json
from keras_convnets.display import printable
from keras_convnets.errors import UnreadableImage, UserError

# An image's likeliest classes with their probabilities, likeliest first.
Answer = list[tuple[str, float]]


def add_flags(parser: Parser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, folders of images, http(s) URLs of images"
    )
    parser.add_argument("--run", metavar="DIR", help="classify with a run")
    parser.add_argument(
        "--model", metavar="SOURCE", help="with MODEL:WEIGHTS, an exported version, a .keras, .onnx or .tflite file"
    )
    parser.add_argument("--url", help="with an endpoint: http://HOST:8501/v1/models/NAME or grpc://HOST:8500/NAME")
    parser.add_argument(
        "--top_k", type=positive, default=3, help="classes shown; an endpoint gives at most 5; default: 3"
    )
    parser.add_argument("--batch_size", type=positive, default=32, help="images at a time; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_endpoint_flags(parser)


def run(args: argparse.Namespace) -> int | None:
    """Print the likeliest classes of each image, then the images without an answer."""
    given = [value for value in (args.run, args.model, args.url) if value]
    if len(given) != 1:
        raise UserError(f"{PROGRAM} predict takes one of --run, --model and --url, and got {len(given)}; give one.")
    check_endpoint_flags(args, [args.url] if args.url else [])
    from keras_convnets.images.files import find_images

    # One that is given twice is answered once.
    places = list(dict.fromkeys(find_images(args.images)))
    load_tensorflow()
    with _answering(args) as answer:
        found: list[dict[str, Any]] = []
        for first in range(0, len(places), args.batch_size):
            for place, answers in _answered(places[first : first + args.batch_size], answer):
                if isinstance(answers, UnreadableImage):
                    found.append({"image": place, "error": str(answers)})
                    continue
                classes = [{"class": name, "probability": probability} for name, probability in answers[: args.top_k]]
                found.append({"image": place, "classes": classes})
    unread = [item for item in found if "error" in item]
    if args.json:
        print_json(found)
    elif len(unread) < len(found):
        from keras_convnets.display import answers_text, blocks_for

        print(answers_text([item for item in found if "error" not in item], blocks_for(sys.stdout.encoding)))
    for item in unread:
        print(f"{PROGRAM}: {printable(item['error'])}", file=sys.stderr)
    if not unread:
        return None
    print(f"{PROGRAM}: {len(unread)} of the {len(found)} images have no answer.", file=sys.stderr)
    return FAILURE if len(unread) < len(found) else USER_ERROR


@contextlib.contextmanager
def _answering(args: argparse.Namespace) -> Iterator[Callable[[Sequence[bytes]], list[Answer]]]:
    """Give what turns encoded images into named answers: a run, an artifact or an endpoint."""
    if args.url:
        with open_client(args.url, args) as client:
            yield client.top_k
        return
    if args.run:
        from keras_convnets.training.run import Run

        Run.existing(args.run)
    check_has_weights(args.run or args.model, "predict")
    if args.model and is_url(args.model):
        raise UserError(f"--model got {args.model!r}; give an endpoint's address as --url.")
    with opened(args.run or args.model) as (classifier, _):
        yield lambda encoded: classifier.top_k(encoded, args.top_k)


def _answered(places: Sequence[str], answer: Callable) -> Iterator[tuple[str, Answer | UnreadableImage]]:
    """Give each place with its answers, or with the reason why it has none."""
    from keras_convnets.images.files import read_image

    read: dict[str, bytes | UnreadableImage] = {}
    for place in places:
        try:
            read[place] = read_image(place)
        except UnreadableImage as error:
            read[place] = error
    encoded = [data for data in read.values() if isinstance(data, bytes)]
    try:
        answers = iter(answer(encoded) if encoded else ())
    except UnreadableImage:
        # One that does not decode fails the batch: it is found by asking about each alone.
        answers = None
    for place in places:
        data = read[place]
        if isinstance(data, UnreadableImage):
            yield place, data
        elif answers is not None:
            yield place, next(answers)
        else:
            yield place, _answer_alone(place, data, answer)


def _answer_alone(place: str, data: bytes, answer: Callable) -> Answer | UnreadableImage:
    try:
        return answer([data])[0]
    except UnreadableImage as error:
        reason = str(error)
        named = reason.removeprefix("image 0 ")
        return UnreadableImage(f"{place} {named}" if named != reason else f"{place}: {reason}")


COMMAND = Command(__doc__, add_flags, run)
