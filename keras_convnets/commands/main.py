"""The command line: `main` parses and delegates; each command is thin over the Python interface.

This module alone may import the other rooms, training and export, and only inside functions: help and `models` answer
without Keras.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_convnets.commands.arguments import Parser
from keras_convnets.display import printable
from keras_convnets.errors import Diverged, UnreadableImage, UserError, unknown_name
from keras_convnets.networks.registry import ARCHITECTURES, PublishedError, get_architecture, get_model, list_models
from keras_convnets.version import __version__

if TYPE_CHECKING:
    from keras_convnets.card import ModelCard
    from keras_convnets.prediction import Classifier
    from keras_convnets.training.data import DataSet

PROGRAM = "keras-convnets"
FAILURE, USER_ERROR, INTERRUPTED = 1, 2, 130
# So many images are asked about to learn the names of an endpoint's classes.
CLASS_CHECK_IMAGES, MOST_CLASS_CHECK_IMAGES = 64, 1000
_TLS_FILES = {
    "root_certificates": "the authorities that are trusted, PEM; default: the system's",
    "client_certificate": "the client's own certificate, PEM",
    "client_key": "its key, PEM; default: in --client_certificate",
}
log = logging.getLogger("keras_convnets")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the program's name; by default those of the process.

    Returns:
        The exit status: 0, 2 for a user's mistake, 1 for a failure, 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    handler = logging.StreamHandler()
    handler.setFormatter(_TextFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    try:
        args = _parse(argv)
        return args.command(args) or 0
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does; python's own flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        return _complain(error)


class _TextFormatter(logging.Formatter):
    """Messages of ours as text: names in them send nothing else to the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return printable(text) if record.name.startswith("keras_convnets") else text


def _complain(error: BaseException) -> int:
    """Print one sentence for an error and return the exit status that fits it."""
    from keras_convnets.errors import Interrupted
    from keras_convnets.weights.downloads import DownloadError

    sentence = printable(" ".join(str(error).split())) or type(error).__name__
    status = FAILURE
    if isinstance(error, UserError):
        status = USER_ERROR
    elif isinstance(error, (Interrupted, KeyboardInterrupt)):
        status = INTERRUPTED
    elif not isinstance(error, (DownloadError, Diverged)):
        sentence = f"{sentence[:500]} (add --debug for the traceback)"
    print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    return status


def _parse(argv: list[str]) -> argparse.Namespace:
    first = next((arg for arg in argv if not arg.startswith("-")), None)
    if first is not None and first not in COMMANDS:
        raise unknown_name("command", first, COMMANDS, f"see {PROGRAM} --help")
    parser = Parser(prog=PROGRAM, description="The classic convolutional networks: train, evaluate, export, serve.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for name, (command, add_flags) in COMMANDS.items():
        purpose = command.__doc__.split("\n")[0]
        sub = commands.add_parser(name, help=purpose[0].lower() + purpose[1:].rstrip("."), description=purpose)
        # Its own default would overwrite a --debug that stood before the command.
        sub.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
        add_flags(sub)
        sub.set_defaults(command=command)
    args = parser.parse_args(argv)
    args.given = argv
    return args


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep TensorFlow's start-up messages off the screen: they come from C++ before its log level is read."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    screen = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)


def _load_tensorflow() -> None:
    """Import TensorFlow without its messages, unless the user asked to see everything."""
    with contextlib.nullcontext() if "--debug" in sys.argv else _hushed():
        import tensorflow as tf

        # Otherwise one process takes a GPU's whole memory, and a quickstart's endpoint finds none left.
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
        tf.config.list_logical_devices()
    tf.get_logger().setLevel(logging.ERROR)
    logging.getLogger("absl").setLevel(logging.ERROR)


def _console():
    from rich.console import Console

    return Console()


def _print_json(data: Any) -> None:
    from keras_convnets.files import json_text

    print(json_text(data))


def _models(args: argparse.Namespace) -> None:
    """List the networks."""
    names = list_models(args.pattern)
    if not names:
        raise UserError(f"no network matches {args.pattern!r}; run {PROGRAM} models for all of them.")
    from keras_convnets.weights.pretrained import list_weights

    rows = [ARCHITECTURES[name] for name in names]
    weights = {name: [record.name for record in list_weights(name)] for name in names}
    if args.json:
        facts = ("name", "depth", "parameters", "multiply_adds", "input_shape", "classes", "paper", "section")
        _print_json([{**{fact: getattr(row, fact) for fact in facts}, "weights": weights[row.name]} for row in rows])
        return
    heading = f"{'network':<15} {'depth':>5} {'parameters':>11} {'multiply-adds':>15}  {'input':<12} {'weights':<9}"
    print(f"{heading} published error")
    for row in rows:
        size = "x".join(map(str, row.input_shape))
        error = _shown_error(row.published[0]) if row.published else "-"
        facts = f"{row.name:<15} {row.depth:>5} {row.parameters:>11,} {row.multiply_adds:>15,}  {size:<12}"
        print(f"{facts} {','.join(weights[row.name]) or '-':<9} {error}")


def _models_flags(parser: Parser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="such as 'ResNet*'")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _info(args: argparse.Namespace) -> None:
    """Show what is known of a network and its layers, also at another input size or class count."""
    known = get_architecture(args.model)
    facts = {
        "name": known.name,
        "paper": known.paper,
        "section": known.section,
        "depth": known.depth,
        "parameters": known.parameters,
        "multiply_adds": known.multiply_adds,
        "input_shape": known.input_shape,
        "classes": known.classes,
    }
    _load_tensorflow()
    from keras_convnets.display import record_plain, record_rows
    from keras_convnets.networks.profile import layer_table, model_info
    from keras_convnets.weights.pretrained import list_weights

    facts["classes"] = known.classes if args.classes is None else args.classes
    shape = known.input_shape if args.image_size is None else (args.image_size, args.image_size, 3)
    model = get_model(known.name, classes=facts["classes"], input_shape=shape)
    counted = model_info(model)
    facts |= {name: getattr(counted, name) for name in ("depth", "parameters", "multiply_adds", "input_shape")}
    rows, records = layer_table(model), list_weights(known.name)
    if args.json:
        facts["published"] = [vars(item) for item in known.published]
        facts["weights"] = [record_plain(record) for record in records]
        _print_json({**facts, "layers": [vars(row) for row in rows]})
        return
    for name, value in facts.items():
        shown = (
            "x".join(map(str, value)) if isinstance(value, tuple) else f"{value:,}" if isinstance(value, int) else value
        )
        print(f"{name.replace('_', ' '):<14} {shown}")
    for item in known.published:
        note = f", {item.note}" if item.note else ""
        print(f"{'published':<14} {_shown_error(item)}{note}; {item.source}")
    for record in records:
        print(f"{'weights':<14} {record}")
        for label, text in record_rows(record):
            print(f"  {label:<12} {text}")
    _print_layers(rows)


def _print_layers(rows) -> None:
    width = max(len(row.name) for row in rows)
    print(f"\n{'layer':<{width}}  {'kind':<26} {'output':<12} {'parameters':>11} {'multiply-adds':>14}")
    for row in rows:
        size = "x".join(map(str, row.output_shape))
        print(f"{row.name:<{width}}  {row.kind:<26} {size:<12} {row.parameters:>11,} {row.multiply_adds:>14,}")


def _shown_error(item: PublishedError) -> str:
    return f"{item.figures()} error, {item.data}, {item.protocol}"


def _info_flags(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a name that models lists")
    parser.add_argument("--classes", type=int, help="count for so many classes")
    parser.add_argument("--image_size", type=int, help="count for a square input of this side, in pixels")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _train(args: argparse.Namespace) -> None:
    """Train a network by a paper's recipe; the same command again goes on where it stopped."""
    overrides = dict(_assignment(text) for text in args.set)
    get_architecture(args.model.partition(":")[0])
    _load_tensorflow()
    from keras_convnets import training

    if args.dry_run or args.synthetic or args.input_only:
        _rehearse(args, overrides)
        return
    if args.run is None:
        raise UserError("train got no --run; name the run directory to write or to go on with.")
    finished_before = training.Run(args.run).finished
    try:
        run = training.fit(
            args.model,
            args.dataset,
            run=args.run,
            recipe=args.recipe,
            weights=args.weights,
            overrides=overrides,
            data_dir=args.data_dir,
            console=_console(),
        )
    except Diverged as error:
        mended = [PROGRAM, *args.given, "--set", f"learning_rate={error.learning_rate:g}"]
        raise Diverged(f"{error} Type: {shlex.join(mended)}", error.learning_rate) from error
    if finished_before:
        print(f"run {run.path} is finished already; nothing was done.")
    else:
        print(f"run {run.path} is finished; next: {PROGRAM} evaluate {run.path}, or {PROGRAM} export {run.path}")


def _rehearse(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Print what a training would be and take; nothing is written."""
    from keras_convnets.training.dry_run import describe, rehearse
    from keras_convnets.training.plan import make_plan

    plan = make_plan(args.model, args.dataset, args.recipe, overrides, args.data_dir, args.weights, sampled=True)
    # Asked for one alone, the other is not measured.
    found = rehearse(plan, with_input=not args.synthetic, with_compute=not args.input_only)
    rows = describe(plan, found)
    for name, text in rows:
        print(f"{name:<{max(len(name) for name, _ in rows)}}  {text}")


def _train_flags(parser: Parser) -> None:
    parser.add_argument("--model", required=True, metavar="MODEL", help="a name that models lists, or MODEL:WEIGHTS")
    _data_flags(parser, required=True)
    parser.add_argument("--run", metavar="DIR", help="the run directory to write or to go on with")
    parser.add_argument("--weights", metavar="WEIGHTS", help="what to start from: a name that info lists, or a file")
    parser.add_argument("--recipe", help="default: finetune with weights, else that of the network's paper")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="set a field of the recipe")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry_run", action="store_true", help="print what it would be and take; write nothing")
    only.add_argument("--synthetic", action="store_true", help="the same with random images: measures compute alone")
    only.add_argument("--input_only", action="store_true", help="the same without the network: measures input alone")


def _data_flags(parser: Parser, required: bool = False) -> None:
    what = "digits, a folder of images, or a name of TensorFlow Datasets such as cifar10"
    parser.add_argument("--dataset", required=required, metavar="DATA", help=what)
    parser.add_argument("--data_dir", metavar="DIR", help="where prepared TFDS directories are (else TFDS_DATA_DIR)")


def _assignment(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not equals or not field:
        raise UserError(f"--set got {text!r}; it takes FIELD=VALUE, such as --set epochs=3.")
    return field.replace("-", "_"), value


def _evaluate(args: argparse.Namespace) -> None:
    """Measure runs, exported versions, ONNX files or endpoints on a data set."""
    _check_endpoint_flags(args, list(filter(_is_url, args.source)))
    _load_tensorflow()
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
        _print_json(results)
    elif args.json:
        from keras_convnets.files import write_json

        write_json(args.json, results)


def _evaluate_flags(parser: Parser) -> None:
    what = "run directory, exported version, .keras, .onnx or .tflite file, or an endpoint's URL"
    parser.add_argument("source", nargs="+", metavar="SOURCE", help=what)
    _data_flags(parser)
    what = (
        "default: test where there is one, else val or validation; of a folder of one level that the network was not "
        "trained on, all"
    )
    parser.add_argument("--split", help=what)
    parser.add_argument("--batch_size", type=_positive, default=128, help="default: %(default)s")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="print JSON, or write it to FILE")
    _endpoint_flags(parser)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


def _evaluate_one(source: str, args: argparse.Namespace):
    if _is_url(source):
        return _evaluate_endpoint(source, args)
    with _opened(source) as (classifier, run):
        data = _data_of(source, classifier.card, run, args)
        _check_has_weights(source, "measure")
        if run is not None:
            recipe, trained_on = run.config()["recipe"], _maybe_trained_on(classifier.card, data)
            # In the order of the training: what is left out first changes who is held out.
            data = data.without_broken(recipe.get("broken_images", 1.0))[0]
            data = data.with_holdout(recipe["holdout"]) if trained_on and "train" in data.splits else data
        _check_classes(source, classifier.card, data)
        split = _measured_split(data, args)
        others = {name: other for name, other in data.splits.items() if name != split}
        result = _measure(source, classifier, data.in_view(classifier.card.view, leaving=others), split, args)
    if run is not None:
        run.add_evaluation(result)
    return result


def _described(doing: str) -> str:
    """Return what rich shows as it is given: brackets in a name are no markup."""
    from rich.markup import escape

    return escape(printable(doing))


def _evaluate_endpoint(source: str, args: argparse.Namespace):
    """Measure an endpoint with images as the data hold them: it brings them to its size by itself."""
    from keras_convnets.classes import imagenet_classes

    data = _data_of(source, None, None, args)
    split = _measured_split(data, args)
    measured = dataclasses.replace(data, splits={split: data.split(split)}).without_broken()[0]
    data = dataclasses.replace(data, splits={**data.splits, **measured.splits})
    names = dict(zip(imagenet_classes().ids, imagenet_classes().names, strict=True))
    with _client(source, args) as client:
        expected = [names.get(name, name) for name in data.class_names]
        if not client.check_classes(expected, _some_of_each_class(data.split(split), len(expected))):
            log.warning("%s tells no class names, so only their number was compared.", source)
        return _measure(source, client.predict, data, split, args, encoded=True)


def _some_of_each_class(split, classes: int) -> list[bytes]:
    """Return encoded images of as many classes as there may be: a stored order has one class after the other."""
    count = min(split.size, max(CLASS_CHECK_IMAGES, min(classes, MOST_CLASS_CHECK_IMAGES)))
    try:
        stream = split.encoded_shuffled(0, balanced=True)
    except UserError:
        # Records that are read one after the other.
        stream = split.encoded_in_order()
    return [encoded for encoded, *_ in stream.take(count).as_numpy_iterator()]


def _measure(source: str, predictor, data: DataSet, split: str, args: argparse.Namespace, encoded: bool = False):
    from rich.progress import Progress

    from keras_convnets import training

    with Progress(transient=True, disable=bool(args.json) or not sys.stdout.isatty()) as progress:
        task = progress.add_task(_described(f"evaluating {source}"), total=None)
        return training.evaluate(
            predictor,
            data,
            split=split,
            batch_size=args.batch_size,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            encoded=encoded,
        )


def _measured_split(data: DataSet, args: argparse.Namespace) -> str:
    """Return the name of the split to measure: the flag's, else the only one, else that of evaluation."""
    name = args.split or (next(iter(data.splits)) if list(data.splits) == ["all"] else data.evaluation_split)
    data.split(name)
    return name


def _check_classes(source: str, card: ModelCard, data: DataSet) -> None:
    if data.class_names not in (card.class_names, card.class_ids):
        raise UserError(
            f"{source} knows the classes {_shortened(card.class_names)}, and {data.name} has "
            f"{_shortened(data.class_names)}; evaluate on data with the model's classes."
        )


def _shortened(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _data_of(source: str, card: ModelCard | None, run, args: argparse.Namespace) -> DataSet:
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


def _print_evaluation(source: str, result) -> None:
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


@contextlib.contextmanager
def _opened(source: str) -> Iterator[tuple[Classifier, Any]]:
    """Give the classifier that a SOURCE names, and its run where it is one."""
    from keras_convnets import export
    from keras_convnets.card import card_of_model
    from keras_convnets.prediction import keras_classifier

    path = Path(source)
    if (path / "config.json").is_file():
        from keras_convnets.training import Run

        run = Run.existing(path)
        yield keras_classifier(run.model(), run.card()), run
    elif _is_folder(source) or (path.suffix.lower() in (".onnx", ".tflite") and not _weights_of(source)):
        yield export.load(source), None
    else:
        model = _open_model(source)
        yield keras_classifier(model, card_of_model(model)), None


def _is_url(source: str) -> bool:
    return source.lower().startswith(("http://", "https://", "grpc://", "grpcs://"))


def _is_folder(source: str) -> bool:
    """Whether a SOURCE is a folder. A network's name is that, unless a run or an exported version bears it."""
    path = Path(source)
    if not path.is_dir() or _name_of(source) is None:
        return path.is_dir()
    from keras_convnets.export.repository import SAVED_MODEL, versions

    return any((path / file).is_file() for file in ("config.json", "model.json", SAVED_MODEL)) or bool(versions(path))


def _client(url: str, args: argparse.Namespace):
    """Return a client that shows the endpoint what the flags say."""
    from keras_convnets import export
    from keras_convnets.export.credentials import read_headers

    files = {name: getattr(args, name) for name in _TLS_FILES}
    return export.Client(url, headers=read_headers(args.header), **files)


def _check_endpoint_flags(args: argparse.Namespace, urls: Sequence[str]) -> None:
    given = ["--header"] * bool(args.header) + [f"--{name}" for name in _TLS_FILES if getattr(args, name)]
    if given and not urls:
        raise UserError(f"{', '.join(given)} came without an endpoint; give its URL, or leave it out.")


def _endpoint_flags(parser: Parser) -> None:
    group = parser.add_argument_group("for an endpoint's URL")
    what = "to send along, and the next with another flag, such as 'Authorization: Bearer X'; @FILE: one a line"
    group.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help=what)
    for name, what in _TLS_FILES.items():
        group.add_argument(f"--{name}", metavar="FILE", help=f"with https:// or grpcs://: {what}")


def _open_model(source: str):
    """Return the network of MODEL, MODEL:WEIGHTS or a .keras file."""
    weights = _weights_of(source)
    if source.lower().endswith(".keras") and weights is None:
        from keras_convnets.networks.functional import load_keras

        if not Path(source).is_file():
            raise UserError(f"there is no file {source}; give an existing .keras file.")
        return load_keras(source)
    name = _name_of(source)
    if name is None and (os.sep in source or Path(source).exists()):
        state = (
            "is no run directory, exported version, .keras or .onnx file" if Path(source).exists() else "does not exist"
        )
        raise UserError(f"{source} {state}; give one of these, MODEL, MODEL:WEIGHTS or a URL.")
    return get_model(name or source, weights=weights)


def _check_has_weights(source: str, doing: str) -> None:
    """Refuse a network's bare name where answers are wanted: an untrained network's are chance."""
    if _name_of(source) is not None and _weights_of(source) is None and not _is_folder(source):
        raise UserError(
            f"{source} names a network without weights, whose answers are chance, so there is nothing to {doing}; give "
            f"{source}:WEIGHTS (a name that info lists, or a file), a run directory or an exported version."
        )


def _weights_of(source: str) -> str | None:
    """Return the WEIGHTS of MODEL:WEIGHTS; None of any other source."""
    _, colon, weights = source.partition(":")
    return weights if colon and _name_of(source) is not None else None


def _name_of(source: str) -> str | None:
    """Return the MODEL of MODEL or MODEL:WEIGHTS; None of any other source."""
    name = source.partition(":")[0]
    return name if name.lower() in map(str.lower, ARCHITECTURES) else None


def _predict(args: argparse.Namespace) -> int | None:
    """Classify images, folders of images or URLs of images; exit status 1 if some can't be read."""
    given = [value for value in (args.run, args.model, args.url) if value]
    if len(given) != 1:
        raise UserError(f"{PROGRAM} predict takes one of --run, --model and --url, and got {len(given)}; give one.")
    _check_endpoint_flags(args, [args.url] if args.url else [])
    from keras_convnets.images.files import find_images

    # One that is given twice is answered once.
    places = list(dict.fromkeys(find_images(args.images)))
    _load_tensorflow()
    with _answering(args) as answer:
        found = []
        for first in range(0, len(places), args.batch_size):
            for place, answers in _answered(places[first : first + args.batch_size], answer):
                if isinstance(answers, UnreadableImage):
                    found.append({"image": place, "error": str(answers)})
                    continue
                classes = [{"class": name, "probability": probability} for name, probability in answers[: args.top_k]]
                found.append({"image": place, "classes": classes})
    unread = [item for item in found if "error" in item]
    if args.json:
        _print_json(found)
    elif len(unread) < len(found):
        from keras_convnets.display import answers_text, blocks_for

        print(answers_text([item for item in found if "error" not in item], blocks_for(sys.stdout.encoding)))
    for item in unread:
        print(f"{PROGRAM}: {printable(item['error'])}", file=sys.stderr)
    if not unread:
        return None
    print(f"{PROGRAM}: {len(unread)} of the {len(found)} images have no answer.", file=sys.stderr)
    return FAILURE if len(unread) < len(found) else USER_ERROR


def _answered(
    places: Sequence[str], answer: Callable
) -> Iterator[tuple[str, list[tuple[str, float]] | UnreadableImage]]:
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


def _answer_alone(place: str, data: bytes, answer: Callable) -> list[tuple[str, float]] | UnreadableImage:
    try:
        return answer([data])[0]
    except UnreadableImage as error:
        reason = str(error)
        named = reason.removeprefix("image 0 ")
        return UnreadableImage(f"{place} {named}" if named != reason else f"{place}: {reason}")


@contextlib.contextmanager
def _answering(args: argparse.Namespace) -> Iterator[Callable[[Sequence[bytes]], list[list[tuple[str, float]]]]]:
    """Give what turns encoded images into named answers: a run, an artifact or an endpoint."""
    if args.url:
        with _client(args.url, args) as client:
            yield client.top_k
        return
    if args.run:
        from keras_convnets.training import Run

        Run.existing(args.run)
    _check_has_weights(args.run or args.model, "predict")
    if args.model and _is_url(args.model):
        raise UserError(f"--model got {args.model!r}; give an endpoint's address as --url.")
    with _opened(args.run or args.model) as (classifier, _):
        yield lambda encoded: classifier.top_k(encoded, args.top_k)


def _predict_flags(parser: Parser) -> None:
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, folders of images, http(s) URLs of images"
    )
    parser.add_argument("--run", metavar="DIR", help="classify with a run")
    parser.add_argument(
        "--model", metavar="SOURCE", help="with MODEL:WEIGHTS, an exported version, a .keras, .onnx or .tflite file"
    )
    parser.add_argument("--url", help="with an endpoint: http://HOST:8501/v1/models/NAME or grpc://HOST:8500/NAME")
    parser.add_argument(
        "--top_k", type=_positive, default=3, help="classes shown; an endpoint gives at most 5; default: 3"
    )
    parser.add_argument("--batch_size", type=_positive, default=32, help="images at a time; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _endpoint_flags(parser)


def _export(args: argparse.Namespace) -> None:
    """Export a run or a network as SavedModel and ONNX, verified, into a model repository."""
    _load_tensorflow()
    from keras_convnets import export

    source = args.source if _is_folder(args.source) else _open_model(args.source)
    if source is args.source:
        from keras_convnets.training import Run

        Run.existing(source).card()
    folder = export.publish(
        source,
        name=args.name,
        to=args.to,
        version=args.version,
        formats=tuple(part.strip() for part in args.formats.split(",") if part.strip()),
        layout=args.layout,
        images=args.images,
    )
    facts = export.load(folder).card.export
    for way, difference in facts["differences"].items():
        print(f"verified {way}: differs from Keras by at most {difference:.1e} (allowed: {facts['tolerances'][way]:g})")
    for artifact, figures in facts.get("accuracy", {}).items():
        accuracy = f"top-1 {figures['top1']:.1%}, float32 {figures['float32_top1']:.1%}; " if "top1" in figures else ""
        print(f"measured {artifact}: {accuracy}the same answer on {figures['agreement']:.1%} of {figures['n']} images")
    print(f"published {folder}; next: {PROGRAM} serve {args.to}")


def _export_flags(parser: Parser) -> None:
    from keras_convnets.export.formats import DEFAULT_FORMATS, FORMATS

    parser.add_argument("source", metavar="SOURCE", help="a run directory, a .keras file, MODEL or MODEL:WEIGHTS")
    parser.add_argument("--name", help="the model's name in the repository; default: the run's")
    parser.add_argument("--to", default="saved_models", metavar="DIR", help="the repository; default: %(default)s")
    parser.add_argument("--version", type=int, help="default: the highest and one")
    formats = f"of {','.join(FORMATS)}; default: %(default)s"
    parser.add_argument("--formats", default=",".join(DEFAULT_FORMATS), help=formats)
    parser.add_argument("--layout", default="nhwc", help="of the ONNX files' input, nhwc or nchw; default: %(default)s")
    parser.add_argument(
        "--images", metavar="DIR", help="to verify with and calibrate int8 on; default: what the run kept"
    )


def _repo(args: argparse.Namespace) -> None:
    """List a repository's versions, delete old ones, or have an earlier one served."""
    args.action(args)


def _repo_flags(parser: Parser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    for name, (action, add_flags) in REPO_ACTIONS.items():
        purpose = action.__doc__.split("\n")[0]
        sub = actions.add_parser(name, help=purpose[0].lower() + purpose[1:].rstrip("."), description=purpose)
        sub.add_argument("--to", default="saved_models", metavar="DIR", help="the repository; default: %(default)s")
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        add_flags(sub)
        sub.set_defaults(action=action)


def _repo_list(args: argparse.Namespace) -> None:
    """List the versions; an asterisk marks those that are served."""
    from keras_convnets.export import repository
    from keras_convnets.export.listing import versions_plain, versions_text

    with _hushed():
        found = repository.published(args.to, args.model)
    if args.json:
        _print_json(versions_plain(found))
    else:
        print(versions_text(found))


def _repo_list_flags(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="one model; default: all")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _repo_prune(args: argparse.Namespace) -> None:
    """Delete all but the highest versions; one that a rollback serves stays."""
    from keras_convnets.export import repository

    with _hushed():
        gone = repository.prune(args.to, args.keep, args.model)
    for path in gone:
        print(f"deleted {path}")
    if not gone:
        print(f"nothing to delete: no model has more than {args.keep} versions.")


def _repo_prune_flags(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="one model; default: all")
    parser.add_argument("--keep", type=int, required=True, metavar="N", help="how many of the highest versions stay")


def _repo_rollback(args: argparse.Namespace) -> None:
    """Have an earlier version served, by models.config; nothing is deleted."""
    from keras_convnets.export import repository

    if args.latest and args.version is not None:
        raise UserError("rollback got --latest and --version; give one of the two.")
    with _hushed():
        if args.latest:
            number, further = repository.serve_latest(args.to, args.model), "and those to come"
        else:
            number, further = repository.rollback(args.to, args.model, args.version), "until rollback --latest"
    print(f"{args.to}/models.config: {args.model} is served at version {number}, {further}.")


def _repo_rollback_flags(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="its name in the repository")
    parser.add_argument("--version", type=int, metavar="N", help="default: the one before what is served")
    parser.add_argument("--latest", action="store_true", help="take a rollback back")


REPO_ACTIONS: dict[str, tuple[Callable[[argparse.Namespace], None], Callable[[Parser], None]]] = {
    "list": (_repo_list, _repo_list_flags),
    "prune": (_repo_prune, _repo_prune_flags),
    "rollback": (_repo_rollback, _repo_rollback_flags),
}


def _data(args: argparse.Namespace) -> int | None:
    """Check a data set, describe it, or make its photographs small once for all."""
    return args.action(args)


def _data_actions(parser: Parser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    for name, (action, add_flags) in DATA_ACTIONS.items():
        purpose = action.__doc__.split("\n")[0]
        sub = actions.add_parser(name, help=purpose[0].lower() + purpose[1:].rstrip("."), description=purpose)
        sub.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
        add_flags(sub)
        sub.set_defaults(action=action)


@contextlib.contextmanager
def _counted(doing: str, hidden: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Give a function (done, in all) that shows progress, with images/s and time left, on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    speed = TextColumn("{task.fields[speed]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=hidden or not sys.stdout.isatty()) as progress:
        task = progress.add_task(_described(doing), total=None, speed="")

        def show(done: int, total: int) -> None:
            rate = progress.tasks[0].speed
            progress.update(task, completed=done, total=total, speed=f"{rate:,.0f} images/s" if rate else "")

        yield show


def _data_verify(args: argparse.Namespace) -> int:
    """Find the images that training would skip or see otherwise; exit status 1 if some would be skipped."""
    _existing_folder(args.folder)
    _load_tensorflow()
    from keras_convnets.training.data.verification import verify_folder

    with _counted(f"verifying {args.folder}", args.json) as show:
        found = verify_folder(args.folder, show)
    listed = None if args.quarantine is None else found.write_quarantine(args.quarantine)
    if args.json:
        _print_json(found.to_dict())
        return FAILURE if found.skipped or found.refused else 0
    width = max((len(finding.path) for finding in found.findings), default=0)
    for item in found.findings:
        print(f"{item.path:<{width}}  {item.kind:<12} {item.fate:<8} {item.detail}")
    print(f"{found.files} files, {len(found.skipped)} of them skipped in training")
    if found.refused:
        print("training refuses the folder until what is marked as refused is mended")
    if listed is not None:
        print(f"wrote {listed}")
    return FAILURE if found.skipped or found.refused else 0


def _data_verify_flags(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="a folder of images, as train takes it")
    parser.add_argument(
        "--quarantine",
        nargs="?",
        const="",
        metavar="FILE",
        help="write the list of those that are skipped; without FILE to FOLDER/quarantine.txt, which training respects",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _existing_folder(folder: str) -> None:
    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder}; give an existing folder of images.")


def _data_stats(args: argparse.Namespace) -> None:
    """Describe a data set: counts, sizes, colours, and images that occur twice."""
    _load_tensorflow()
    from keras_convnets import training
    from keras_convnets.training.data.statistics import data_statistics, statistics_text

    data = _surveyed(args.data) or training.load_dataset(args.data, args.data_dir)
    with _counted(f"reading {args.data}", args.json) as show:
        facts = data_statistics(data, show)
    if args.json:
        _print_json(facts)
    else:
        print(statistics_text(facts))


def _surveyed(place: str):
    """Return what lies in a folder of images that training refuses; None of anything else, which is loaded."""
    from keras_convnets.training.data.folder import survey, without_listed
    from keras_convnets.training.data.shards import holds_shards

    folder = Path(place)
    if place == "digits" or not folder.is_dir() or holds_shards(folder):
        return None
    found = survey(folder)
    if not found.splits:
        found.check()
    return without_listed(folder, found) if found.problems else None


def _data_stats_flags(parser: Parser) -> None:
    parser.add_argument("data", metavar="DATA", help="digits, a folder, or a name of TensorFlow Datasets")
    parser.add_argument("--data_dir", metavar="DIR", help="where prepared TFDS directories are (else TFDS_DATA_DIR)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _data_prepare(args: argparse.Namespace) -> None:
    """Write a folder's photographs anew, upright and no larger than needed; the same command again goes on."""
    _existing_folder(args.folder)
    _load_tensorflow()
    from keras_convnets.training.data.preparation import prepare_folder

    with _counted(f"preparing {args.folder}") as show:
        done = prepare_folder(args.folder, args.to, args.shorter_side, args.format, show)
    print(f"{done.folder} holds {done.images} images; {len(done.left_out)} could not be read.")
    print(f"next: {PROGRAM} train --model MODEL --dataset {done.folder} --run DIR")


def _data_prepare_flags(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="a folder of images, as train takes it; it stays as it is")
    parser.add_argument("--to", required=True, metavar="OUT", help="the folder to write or to go on with")
    parser.add_argument(
        "--shorter_side", type=_positive, required=True, metavar="N", help="in pixels; what is larger is resized to it"
    )
    parser.add_argument("--format", default="folder", help="folder or tfrecord; default: %(default)s")


DATA_ACTIONS: dict[str, tuple[Callable[[argparse.Namespace], int | None], Callable[[Parser], None]]] = {
    "verify": (_data_verify, _data_verify_flags),
    "stats": (_data_stats, _data_stats_flags),
    "prepare": (_data_prepare, _data_prepare_flags),
}


def _serve(args: argparse.Namespace) -> None:
    """Answer TensorFlow Serving's REST and gRPC for exported models."""
    from keras_convnets.export.serving import command

    flags = vars(args)
    command.check_batching(flags)
    program = command.find_model_server(args.engine)
    if program is not None:
        arguments = command.model_server_arguments(flags)
        print(f"Serving with {program}, which listens on every address of this machine.", flush=True)
        os.execv(program, [program, *arguments])
    server = command.make_local_server(flags)
    if args.engine is None:
        print(f"{command.MODEL_SERVER} is not on PATH: the local server answers in its place.", file=sys.stderr)
    _load_tensorflow()
    from keras_convnets.export.serving import serve_forever

    serve_forever(server, announce=lambda line: print(line, flush=True))


def _serve_flags(parser: Parser) -> None:
    parser.add_argument("repository", nargs="?", default="saved_models", metavar="DIR", help="default: %(default)s")
    add = parser.add_argument
    add("--port", type=int, default=8500, help="of gRPC; default: %(default)s")
    add("--rest_api_port", type=int, default=8501, help="of REST; default: %(default)s")
    add("--host", help="address to listen on; default: 127.0.0.1, this machine only")
    add("--grpc_socket_path", default="", metavar="FILE", help="a UNIX socket that answers gRPC too")
    add("--grpc_channel_arguments", default="", metavar="KEY=VALUE,...", help="options of gRPC's own")
    add("--model_name", help="serve this model only, or the name for --model_base_path")
    add("--model_base_path", metavar="DIR", help="a model's folder of versions, instead of a repository")
    add("--model_config_file", metavar="FILE", help="a ModelServerConfig, instead of a repository")
    engines = ("tensorflow", "onnxruntime", "tensorflow_model_server")
    add("--engine", choices=engines, help="default: tensorflow_model_server where it is on PATH, else tensorflow")
    add("--batching_parameters_file", metavar="FILE", help="a BatchingParameters")
    add("--monitoring_config_file", metavar="FILE", help="a MonitoringConfig: metrics for Prometheus")
    seconds = (
        ("file_system_poll_wait_seconds", 1.0, "between two looks for versions; 0: look once"),
        ("model_config_file_poll_wait_seconds", 0.0, "between two readings of --model_config_file; 0: on SIGHUP only"),
    )
    for name, default, purpose in seconds:
        add(f"--{name}", type=_not_negative, default=default, metavar="S", help=f"{purpose}; default: %(default)s")
    add("--rest_api_timeout_in_ms", type=_positive, default=30_000, metavar="MS", help="default: %(default)s")
    add("--max_queued_requests", type=_positive, metavar="N", help="more are refused; default: 128")
    _limit_flags(parser)
    folders = "whose models clients may have served (HandleReloadConfigRequest), and the next with another flag; "
    folders += "default: what is served, and none where --host is reached by other machines"
    add("--reload_folders", action="append", metavar="DIR", help=folders)
    switches = (
        ("enable_batching", False, "run requests that come at the same time together"),
        ("enable_model_warmup", True, "answer a version's warm-up requests before it is available"),
        ("rest_api_enable_cors_support", False, "let pages of other origins read the answers"),
        ("enable_grpc_healthcheck_service", False, "answer grpc.health.v1"),
        ("allow_version_labels_for_unavailable_models", False, "let a new label name a version still to be loaded"),
    )
    for name, default, purpose in switches:
        purpose = f"{purpose}; default: {str(default).lower()}"
        add(f"--{name}", nargs="?", const=True, default=default, type=_switch, metavar="true|false", help=purpose)


def _limit_flags(parser: Parser) -> None:
    import dataclasses

    from keras_convnets.export.serving.admission.limits import Limits

    group = parser.add_argument_group("limits of the local server", "0: none, as in TensorFlow Serving")
    for field in dataclasses.fields(Limits):
        purpose = f"{field.metadata['purpose']}; default: {field.default}"
        group.add_argument(f"--{field.name}", type=_count, metavar="N", help=purpose)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return int(text)


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false; put a switch last or give it =true")
    return text.lower() == "true"


def _quickstart(args: argparse.Namespace) -> None:
    """Do the main job on real data: train, evaluate, export, serve, classify over REST and gRPC."""
    from keras_convnets.commands.quickstart import quickstart

    quickstart(main, run=args.run, repository=args.to, keep_serving=args.keep_serving)


def _quickstart_flags(parser: Parser) -> None:
    parser.add_argument("--run", default="runs/quickstart", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--to", default="saved_models", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--keep_serving", action="store_true", help="leave the endpoint up until Ctrl-C")


# A command's docstring is its help.
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int | None], Callable[[Parser], None]]] = {
    "models": (_models, _models_flags),
    "info": (_info, _info_flags),
    "data": (_data, _data_actions),
    "train": (_train, _train_flags),
    "evaluate": (_evaluate, _evaluate_flags),
    "predict": (_predict, _predict_flags),
    "export": (_export, _export_flags),
    "repo": (_repo, _repo_flags),
    "serve": (_serve, _serve_flags),
    "quickstart": (_quickstart, _quickstart_flags),
}
