"""A repository's versions as text and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_convnets.card import ModelCard
from keras_convnets.display import printable
from keras_convnets.export.repository import Version


def versions_text(found: Sequence[Version]) -> str:
    """Return a repository's versions as lines; an asterisk marks those that are served.

    Args:
        found: what `repository.published` gives.
    """
    width = max(len("model"), *(len(item.model) for item in found))
    lines = [f"{'model':<{width}}  {'version':>8}  {'MB':>7}  {'network':<26} {'formats':<32} best accuracy"]
    for row, item in zip(versions_plain(found), found, strict=True):
        number = f"{item.number}{'*' if item.served else ' '}"
        network = f"{row['network'] or '-'}{'' if row['trained'] or item.card is None else ' (untrained)'}"
        formats = ",".join(key.replace(" ", "-") for key in row["formats"])
        facts = f"{item.model:<{width}}  {number:>8}  {item.size / 1e6:>7.1f}  {network:<26} {formats:<32}"
        lines.append(printable(f"{facts} {_best(item.card)}"))
    return "\n".join(lines)


def _best(card: ModelCard | None) -> str:
    known = {key: figures["top1"] for key, figures in (card.metrics if card else {}).items() if "top1" in figures}
    if not known:
        return "-"
    key = max(known, key=lambda key: known[key])
    return f"{known[key]:.2%} on {key}"


def versions_plain(found: Sequence[Version]) -> list[dict[str, Any]]:
    """Return a repository's versions as plain data for JSON."""
    return [
        {
            "model": item.model,
            "version": item.number,
            "path": str(item.path),
            "served": item.served,
            "bytes": item.size,
            "network": item.card.architecture if item.card else None,
            "trained": item.card.trained if item.card else None,
            "formats": item.card.export.get("formats", []) if item.card else [],
            "metrics": item.card.metrics if item.card else {},
        }
        for item in found
    ]
