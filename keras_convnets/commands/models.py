"""List the networks."""

from __future__ import annotations

import argparse

from keras_convnets.commands import PROGRAM
from keras_convnets.commands.arguments import Command, Parser
from keras_convnets.commands.terminal import print_json
from keras_convnets.errors import UserError
from keras_convnets.networks.architecture import PublishedError
from keras_convnets.networks.registry import ARCHITECTURES, list_models


def add_flags(parser: Parser) -> None:
    """Add the command's arguments."""
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="such as 'ResNet*'")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Print a line a network, or JSON."""
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
    heading = f"{'network':<15} {'depth':>5} {'parameters':>11} {'multiply-adds':>15}  {'input':<12} {'weights':<9}"
    print(f"{heading} published error")
    for row in rows:
        size = "x".join(map(str, row.input_shape))
        error = published_text(row.published[0]) if row.published else "-"
        facts = f"{row.name:<15} {row.depth:>5} {row.parameters:>11,} {row.multiply_adds:>15,}  {size:<12}"
        print(f"{facts} {','.join(weights[row.name]) or '-':<9} {error}")


def published_text(item: PublishedError) -> str:
    """Return a published error with the data and the protocol it was measured by."""
    return f"{item.figures()} error, {item.data}, {item.protocol}"


COMMAND = Command(__doc__, add_flags, run)
