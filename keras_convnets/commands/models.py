"""List the networks, or the published weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from keras_convnets.commands import PROGRAM
from keras_convnets.commands.arguments import Command, Parser
from keras_convnets.commands.terminal import print_json
from keras_convnets.errors import UserError
from keras_convnets.networks.architecture import PublishedError
from keras_convnets.networks.registry import ARCHITECTURES, list_models


def add_flags(parser: Parser) -> None:
    """Add the command's arguments."""
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="such as 'ResNet*'")
    parser.add_argument(
        "--weights", action="store_true", help="list published weights instead; PATTERN may be MODEL:WEIGHTS"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Print a line a network or weights, or JSON."""
    if args.weights:
        _list_weights(args.pattern, args.json)
        return
    names = list_models(args.pattern)
    if not names:
        raise UserError(f"no network matches {args.pattern!r}; run {PROGRAM} models for all of them.")
    from keras_convnets.weights.pretrained import list_weights

    rows = [ARCHITECTURES[name] for name in names]
    weights = {name: [record.name for record in list_weights(name)] for name in names}
    if args.json:
        named = ("name", "depth", "parameters", "multiply_adds", "input_shape", "classes", "paper", "section")
        print_json([{**{fact: getattr(row, fact) for fact in named}, "weights": weights[row.name]} for row in rows])
        return
    heading = f"{'network':<15} {'depth':>5} {'parameters':>11} {'multiply-adds':>15}  {'input':<12} {'weights':<22}"
    print(f"{heading} published error")
    for row in rows:
        size = "x".join(map(str, row.input_shape))
        error = published_text(row.published[0]) if row.published else "-"
        facts = f"{row.name:<15} {row.depth:>5} {row.parameters:>11,} {row.multiply_adds:>15,}  {size:<12}"
        print(f"{facts} {_shown(weights[row.name]):<22} {error}")


def _shown(names: Sequence[str]) -> str:
    """Return the first of the names, and how many more there are."""
    more = f", {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}" if names else "-"


def _list_weights(pattern: str, as_json: bool) -> None:
    """Print a line for each of the weights, or JSON."""
    from keras_convnets.weights.pretrained import list_weights
    from keras_convnets.weights.record_text import record_plain, weights_table

    records = list_weights(pattern)
    if not records:
        raise UserError(f"no published weights match {pattern!r}; run {PROGRAM} models --weights for all of them.")
    if as_json:
        print_json([record_plain(record) for record in records])
        return
    for line in weights_table(records):
        print(line)


def published_text(item: PublishedError) -> str:
    """Return a published error with the data and the protocol it was measured by."""
    return f"{item.figures()} error, {item.data}, {item.protocol}"


COMMAND = Command(__doc__, add_flags, run)
