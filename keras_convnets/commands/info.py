"""Show a network and its layers, also at another input size or class count."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from keras_convnets.commands.arguments import Command, Parser, add_model_flags
from keras_convnets.commands.models import published_text
from keras_convnets.commands.startup import load_tensorflow
from keras_convnets.commands.terminal import print_json
from keras_convnets.networks.registry import ARCHITECTURES, builder_name
from keras_convnets.networks.spec import ModelSpec, read_settings

# Of this many published weights, all that is known is printed.
MOST_IN_FULL = 3

if TYPE_CHECKING:
    from keras_convnets.networks.profile import LayerRow


def add_flags(parser: Parser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a name that models lists, or 'CIFARResNet(26)'")
    add_model_flags(parser)
    parser.add_argument("--classes", type=int, help="count parameters for this number of classes")
    parser.add_argument("--image_size", type=int, help="count for a square input of this side, in pixels")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Print the facts, the published weights and a line a layer, or JSON."""
    builder_name(args.model.partition("(")[0])
    load_tensorflow()
    from keras_convnets.networks.profile import layer_table, model_info
    from keras_convnets.weights.pretrained import list_weights
    from keras_convnets.weights.record_text import record_plain, record_rows, weights_table

    spec = ModelSpec.of(args.model, read_settings(args.set_model, "--set-model"))
    known = ARCHITECTURES.get(spec.architecture)
    published = known.published if known else ()
    sizes: dict[str, Any] = {} if args.classes is None else {"classes": args.classes}
    if args.image_size is not None:
        sizes["input_shape"] = (args.image_size, args.image_size, 3)
    model = spec.build(**sizes)
    counted = model_info(model)
    facts: dict[str, Any] = {"name": str(spec), "paper": spec.family.paper, "section": spec.family.section}
    facts |= {name: getattr(counted, name) for name in ("depth", "parameters", "multiply_adds", "input_shape")}
    facts["classes"] = model.built_as.arguments["classes"]
    rows, records = layer_table(model), list_weights(spec.architecture)
    if args.json:
        facts["published"] = [vars(item) for item in published]
        facts["weights"] = [record_plain(record) for record in records]
        print_json({**facts, "layers": [vars(row) for row in rows]})
        return
    for name, value in facts.items():
        shown = (
            "x".join(map(str, value)) if isinstance(value, tuple) else f"{value:,}" if isinstance(value, int) else value
        )
        print(f"{name.replace('_', ' '):<14} {shown}")
    for item in published:
        note = f", {item.note}" if item.note else ""
        print(f"{'published':<14} {published_text(item)}{note}; {item.source}")
    # Those of PyTorch's libraries are many: a line each.
    many = len(records) > MOST_IN_FULL
    for record in records:
        if many and record.format in ("pth", "safetensors"):
            continue
        print(f"{'weights':<14} {record}")
        for label, text in record_rows(record):
            print(f"  {label:<12} {text}")
    if many:
        print("\n" + "\n".join(weights_table([one for one in records if one.format in ("pth", "safetensors")])))
    _print_layers(rows)


def _print_layers(rows: Sequence[LayerRow]) -> None:
    width = max(len(row.name) for row in rows)
    print(f"\n{'layer':<{width}}  {'kind':<26} {'output':<12} {'parameters':>11} {'multiply-adds':>14}")
    for row in rows:
        size = "x".join(map(str, row.output_shape))
        print(f"{row.name:<{width}}  {row.kind:<26} {size:<12} {row.parameters:>11,} {row.multiply_adds:>14,}")


COMMAND = Command(__doc__, add_flags, run)
