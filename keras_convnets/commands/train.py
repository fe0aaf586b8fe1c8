"""Train a network by a paper's recipe; the same command again resumes the run."""

from __future__ import annotations

import argparse
import shlex

from keras_convnets.commands import PROGRAM
from keras_convnets.commands.arguments import Command, Parser, add_data_flags, add_model_flags
from keras_convnets.commands.startup import load_tensorflow
from keras_convnets.errors import Diverged, UserError
from keras_convnets.extras import require
from keras_convnets.networks.registry import builder_name
from keras_convnets.networks.spec import read_settings, split_weights, with_settings


def add_flags(parser: Parser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--model", required=True, metavar="MODEL", help="a name that models lists, or MODEL:WEIGHTS")
    add_model_flags(parser)
    add_data_flags(parser, required=True)
    parser.add_argument("--run", metavar="DIR", help="the run directory to write or to resume")
    parser.add_argument("--weights", metavar="WEIGHTS", help="what to start from: a name that info lists, or a file")
    parser.add_argument("--recipe", help="default: finetune with weights, else that of the network's paper")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="set a field of the recipe")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry_run", action="store_true", help="print what it would be and take; write nothing")
    only.add_argument("--synthetic", action="store_true", help="a dry run with random images: measures compute alone")
    only.add_argument("--input_only", action="store_true", help="a dry run without the network: measures input alone")


def run(args: argparse.Namespace) -> None:
    """Train, or say what a training would be."""
    require("train", "training")
    overrides = dict(_assignment(text) for text in args.set)
    settings = read_settings(args.set_model, "--set-model")
    builder_name(split_weights(args.model)[0].partition("(")[0])
    load_tensorflow(training=True)
    from rich.console import Console

    from keras_convnets import training

    args.model = with_settings(args.model, settings)
    if args.dry_run or args.synthetic or args.input_only:
        _dry_run(args, overrides)
        return
    if args.run is None:
        raise UserError("train got no --run; name the run directory to write or to resume.")
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
            console=Console(),
        )
    except Diverged as error:
        retry = [PROGRAM, *args.given, "--set", f"learning_rate={error.learning_rate:g}"]
        raise Diverged(f"{error} Type: {shlex.join(retry)}", error.learning_rate) from error
    if finished_before:
        print(f"run {run.path} is finished already; nothing was done.")
    else:
        print(f"run {run.path} is finished; next: {PROGRAM} evaluate {run.path}, or {PROGRAM} export {run.path}")


def _dry_run(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Print what a training would be and take; nothing is written."""
    from keras_convnets.training.dry_run import describe, measure
    from keras_convnets.training.plan import make_plan

    plan = make_plan(args.model, args.dataset, args.recipe, overrides, args.data_dir, args.weights, sampled=True)
    # Asked for one alone, the other is not measured.
    found = measure(plan, with_input=not args.synthetic, with_compute=not args.input_only)
    rows = describe(plan, found)
    for name, text in rows:
        print(f"{name:<{max(len(name) for name, _ in rows)}}  {text}")


def _assignment(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not equals or not field:
        raise UserError(f"--set got {text!r}; it takes FIELD=VALUE, such as --set epochs=3.")
    return field.replace("-", "_"), value


COMMAND = Command(__doc__, add_flags, run)
