"""Export a run or a network as SavedModel and ONNX, verified, into a model repository."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from keras_convnets.commands import PROGRAM
from keras_convnets.commands.arguments import Command, Parser, add_model_flags
from keras_convnets.commands.sources import is_folder, open_model
from keras_convnets.commands.startup import load_tensorflow
from keras_convnets.errors import UserError
from keras_convnets.extras import require
from keras_convnets.networks.spec import model_name, read_settings, with_settings

if TYPE_CHECKING:
    import keras


def add_flags(parser: Parser) -> None:
    """Add the command's arguments."""
    from keras_convnets.export.formats import DEFAULT_FORMATS, FORMATS

    what = "a run directory, a .keras file, MODEL or MODEL:WEIGHTS; several make a committee, which averages them"
    parser.add_argument("source", nargs="+", metavar="SOURCE", help=what)
    add_model_flags(parser)
    parser.add_argument("--name", help="the model's name in the repository; default: the run's, or committee")
    parser.add_argument("--to", default="saved_models", metavar="DIR", help="the repository; default: %(default)s")
    parser.add_argument("--version", type=int, help="default: the highest and one")
    formats = f"of {','.join(FORMATS)}; default: %(default)s"
    parser.add_argument("--formats", default=",".join(DEFAULT_FORMATS), help=formats)
    parser.add_argument("--layout", default="nhwc", help="of the ONNX files' input, nhwc or nchw; default: %(default)s")
    parser.add_argument(
        "--naming",
        default="torchvision",
        help="of the layers in the safetensors file: torchvision, or keras_convnets; default: %(default)s",
    )
    parser.add_argument(
        "--images", metavar="DIR", help="to verify with and calibrate int8 on; default: what the run kept"
    )


def run(args: argparse.Namespace) -> None:
    """Publish a version and print what its verification measured."""
    require("export", "exporting")
    load_tensorflow()
    from keras_convnets import export

    sources = [_opened(source, args) for source in args.source]
    folder = export.publish(
        sources if len(sources) > 1 else sources[0],
        name=args.name,
        to=args.to,
        version=args.version,
        formats=tuple(part.strip() for part in args.formats.split(",") if part.strip()),
        layout=args.layout,
        images=args.images,
        naming=args.naming,
    )
    facts = export.load(folder).card.export
    for way, difference in facts["differences"].items():
        print(f"verified {way}: differs from Keras by at most {difference:.1e} (allowed: {facts['tolerances'][way]:g})")
    for artifact, figures in facts.get("accuracy", {}).items():
        accuracy = f"top-1 {figures['top1']:.1%}, float32 {figures['float32_top1']:.1%}; " if "top1" in figures else ""
        print(f"measured {artifact}: {accuracy}the same answer on {figures['agreement']:.1%} of {figures['n']} images")
    print(f"published {folder}; next: {PROGRAM} serve {args.to}")


def _opened(source: str, args: argparse.Namespace) -> keras.Model | str:
    """Return what `publish` takes for a SOURCE: a finished run's or a file's path, or a network."""
    if args.set_model:
        if is_folder(source) or model_name(source) is None:
            raise UserError(f"--set-model came with {source}, whose network is made already; leave it out.")
        source = with_settings(source, read_settings(args.set_model, "--set-model"))
    if is_folder(source):
        from keras_convnets.training.run import Run

        Run.existing(source).card()
        return source
    is_file = model_name(source) is None and source.lower().endswith(".keras") and Path(source).is_file()
    return source if is_file else open_model(source)


COMMAND = Command(__doc__, add_flags, run)
