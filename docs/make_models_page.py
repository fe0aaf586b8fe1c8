"""Write docs/models.md from the registry and the records: python docs/make_models_page.py (make docs)."""

from __future__ import annotations

from pathlib import Path

from keras_convnets.networks.architecture import Architecture, PublishedError
from keras_convnets.networks.registry import ARCHITECTURES
from keras_convnets.weights.pretrained import RECORDS, WeightsRecord
from keras_convnets.weights.record import HUB
from keras_convnets.weights.record_text import accuracy_text, preprocessing_text

PAGE = Path(__file__).parent / "models.md"

INTRODUCTION = """# The networks

Made from the registry by `make docs`; `keras-convnets info MODEL` shows one with its layers. Parameters are the
trainable weights, multiply-adds those of convolutions, projections and fully connected layers, both at the default
input size and number of classes. The errors are the papers', with their protocols; they are not measurements of this
package. [Published weights](#published-weights), which others trained, have their own accuracies.
"""

PUBLISHED = """
## Published weights

Trained by others on the 1,000 classes of ImageNet 2012. The name after the colon is what `weights=` takes. Accuracies
are the publishers', in percent, on the 50,000 images of ImageNet 2012 val, by the protocol in parentheses, not measured
here. What the first layer does with RGB in 0-255 comes with the weights. Those of the ONNX Model Zoo have their sha256
below; torchvision's files are checked by the first eight digits, which are in their names; of timm's, on the Hugging
Face Hub, the commit is kept.

| weights | file | MB | top-1 / top-5 as published | preprocessing | license |
|---|---|---|---|---|---|
"""

TRAINED = """
## Weights in the package

Trained by this package's own recipes on CIFAR-10 and installed with it: nothing is downloaded. Accuracies are top-1 in
percent with 95 % intervals, measured as the row says.

| weights | MB | top-1 | recipe | command |
|---|---|---|---|---|
"""

SUMS = """
How they came about, and the sha256 that a file must have to be loaded under the name:

| weights | obtained | sha256 |
|---|---|---|
"""


def page() -> str:
    """Return the page's whole text."""
    papers: dict[str, list[Architecture]] = {}
    for architecture in ARCHITECTURES.values():
        papers.setdefault(f"{architecture.paper}, section {architecture.section}", []).append(architecture)
    sections = "".join(_section(paper, networks) for paper, networks in papers.items())
    return INTRODUCTION + sections + _published()


def _published() -> str:
    published = [record for record in RECORDS if record.locations]
    trained = [record for record in RECORDS if not record.locations]
    whole = [record for record in published if len(record.sha256) == 64]
    sums = "".join(f"| {record} | {record.obtained} | `{record.sha256}` |\n" for record in whole)
    text = PUBLISHED + "".join(_record_row(record) for record in published) + SUMS + sums
    return text + (TRAINED + "".join(_trained_row(record) for record in trained) if trained else "")


def _trained_row(record: WeightsRecord) -> str:
    accuracies = "; ".join(accuracy_text(item) for item in record.accuracies)
    recipe, command = record.training["recipe"]["name"], record.training["command"]
    return f"| {record} | {record.size / 1e6:.1f} | {accuracies} | {recipe} | `{command}` |\n"


def _record_row(record: WeightsRecord) -> str:
    accuracies = "; ".join(
        f"{item.top1:.2f} / {item.top5:.2f} ({item.protocol}; {item.source})" for item in record.accuracies
    )
    address = record.locations[0].replace(HUB, "https://huggingface.co/")
    size = "–" if record.size is None else f"{record.size / 1e6:.1f}"
    return (
        f"| {record} | [{record.file}]({address}) | {size} | {accuracies} "
        f"| {preprocessing_text(record.preprocessing)} | {record.license} |\n"
    )


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
