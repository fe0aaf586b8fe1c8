"""Write docs/models.md from the registry: python docs/make_models_page.py (make docs)."""

from __future__ import annotations

from pathlib import Path

from keras_convnets.registry import ARCHITECTURES, Architecture, PublishedError

PAGE = Path(__file__).parent / "models.md"

INTRODUCTION = """# The networks

Made from the registry by `make docs`; `keras-convnets info MODEL` shows one with its layers. Parameters are the
trainable weights, multiply-adds those of convolutions, projections and fully connected layers, both at the default
input size and number of classes. The errors are the papers', with their protocols; no weights of ours stand behind
them.
"""


def page() -> str:
    """Return the page's whole text."""
    papers: dict[str, list[Architecture]] = {}
    for architecture in ARCHITECTURES.values():
        papers.setdefault(f"{architecture.paper}, section {architecture.section}", []).append(architecture)
    return INTRODUCTION + "".join(_section(paper, networks) for paper, networks in papers.items())


def _section(paper: str, networks: list[Architecture]) -> str:
    rows = "".join(_row(network) for network in networks)
    heading = "| network | depth | parameters | multiply-adds | input | classes | published error |"
    return f"\n## {paper}\n\n{heading}\n|---|---|---|---|---|---|---|\n{rows}"


def _row(network: Architecture) -> str:
    size = "x".join(map(str, network.input_shape))
    errors = "; ".join(_error(item) for item in network.published) or "–"
    return (
        f"| {network.name} | {network.depth} | {network.parameters:,} | {network.multiply_adds / 1e6:,.1f} M "
        f"| {size} | {network.classes} | {errors} |\n"
    )


def _error(item: PublishedError) -> str:
    note = f", {item.note}" if item.note else ""
    return f"{item.figures()} ({item.data}, {item.protocol}{note}; {item.source})"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
