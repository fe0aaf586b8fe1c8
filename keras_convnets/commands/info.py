"""Show what is known of a network and its layers, also at another input size or class count."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keras_convnets.commands.arguments import Command, Parser
from keras_convnets.commands.models import published_text
from keras_convnets.commands.startup import load_tensorflow
from keras_convnets.commands.terminal import print_json
from keras_convnets.networks.registry import get_architecture, get_model

if TYPE_CHECKING:
    from keras_convnets.networks.profile import LayerRow


def add_flags(parser: Parser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a name that models lists")
    parser.add_argument("--classes", type=int, help="count for so many classes")
    parser.add_argument("--image_size", type=int, help="count for a square input of this side, in pixels")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Print the facts, the published weights and a line a layer, or JSON."""
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
    load_tensorflow()
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
        print_json({**facts, "layers": [vars(row) for row in rows]})
        return
    for name, value in facts.items():
        shown = (
            "x".join(map(str, value)) if isinstance(value, tuple) else f"{value:,}" if isinstance(value, int) else value
        )
        print(f"{name.replace('_', ' '):<14} {shown}")
    for item in known.published:
        note = f", {item.note}" if item.note else ""
        print(f"{'published':<14} {published_text(item)}{note}; {item.source}")
    for record in records:
        print(f"{'weights':<14} {record}")
        for label, text in record_rows(record):
            print(f"  {label:<12} {text}")
    _print_layers(rows)


def _print_layers(rows: Sequence[LayerRow]) -> None:
    width = max(len(row.name) for row in rows)
    print(f"\n{'layer':<{width}}  {'kind':<26} {'output':<12} {'parameters':>11} {'multiply-adds':>14}")
    for row in rows:
        size = "x".join(map(str, row.output_shape))
        print(f"{row.name:<{width}}  {row.kind:<26} {size:<12} {row.parameters:>11,} {row.multiply_adds:>14,}")


COMMAND = Command(__doc__, add_flags, run)
