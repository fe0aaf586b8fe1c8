"""Records of published weights as text, for a terminal and for pages, and as plain data for JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.weights.pretrained import Accuracy, WeightsRecord


def preprocessing_text(preprocessing: Preprocessing) -> str:
    """Return a preprocessing as text, such as "BGR in 0-255, minus (104, 117, 123)"."""

    def shown(values: tuple[float, ...]) -> str:
        return f"({', '.join(f'{value:.7g}' for value in values)})"

    less = "the mean image" if preprocessing.mean_image is not None else shown(preprocessing.mean)
    divided = f", divided by {shown(preprocessing.std)}" if set(preprocessing.std) != {1.0} else ""
    return f"{preprocessing.order} in 0-255, minus {less}{divided}"


def accuracy_text(accuracy: Accuracy) -> str:
    """Return a measured accuracy with all that belongs to it, in one line."""
    interval = "" if accuracy.interval is None else " (95 % interval {:.2f} to {:.2f})".format(*accuracy.interval)
    images = "" if accuracy.n is None else f", n={accuracy.n:,}"
    top5 = "" if accuracy.top5 is None else f", top-5 {accuracy.top5:.2f} %"
    return (
        f"top-1 {accuracy.top1:.2f} %{interval}{top5} on {accuracy.data}{images}, {accuracy.protocol}; "
        f"{accuracy.source}"
    )


def record_rows(record: WeightsRecord) -> list[tuple[str, str]]:
    """Return what a record of published weights says, as (label, text) in the order to show them."""
    height, width, _ = record.input_shape
    built = [f"{key}={_plain(value)}" for key, value in record.arguments.items()]
    return [
        *(("accuracy", accuracy_text(accuracy)) for accuracy in record.accuracies),
        ("trained on", f"{record.data}, {height}x{width}"),
        ("preprocessed", preprocessing_text(record.preprocessing)),
        *((("built with", "; ".join(built)),) if built else ()),
        ("file", record.file if record.size is None else f"{record.file}, {record.size / 1e6:.1f} MB"),
        ("address", record.locations[0] if record.locations else "a part of this package"),
        *((("sha256", record.sha256 if len(record.sha256) == 64 else f"{record.sha256}..."),) if record.sha256 else ()),
        *((("revision", record.revision),) if record.revision else ()),
        ("obtained", record.obtained),
        *((("command", record.training["command"]),) if record.training else ()),
        ("license", record.license),
    ]


def weights_table(records: Sequence[WeightsRecord]) -> list[str]:
    """Return a line for each of the records under a heading: accuracy and protocol as stated, license, source."""
    rows = [("weights", "top-1", "top-5", "as stated", "license", "source")]
    for record in records:
        top1, top5, how = "-", "-", "-"
        if record.accuracies:
            item = record.accuracies[0]
            top1, top5 = ("-" if value is None else f"{value:.2f}" for value in (item.top1, item.top5))
            how = f"{item.data}, {item.protocol}"
        rows.append((str(record), top1, top5, how, record.license, record.obtained))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def record_plain(record: WeightsRecord) -> dict[str, Any]:
    """Return a record of published weights as plain data for JSON."""
    return {item.name: _plain(getattr(record, item.name)) for item in dataclasses.fields(record)}


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(inner) for inner in value]
    return value
