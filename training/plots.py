"""Pictures of a run: learning curves and the confusion matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_convnets.display import printable
from keras_convnets.files import atomic_file, wrap_write_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Above this many classes the cells are too small for numbers and names.
MOST_NUMBERED, MOST_NAMED = 20, 60
# In characters; longer labels leave no room for the cells.
LONGEST_LABEL = 40


def learning_curves(records: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw error in percent and loss over the steps, as a PNG.

    Args:
        records: of `metrics.jsonl`.
        path: the PNG to write.
        title: above the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    error, loss = figure.subplots(1, 2)
    steps = [record["step"] for record in records]
    error.plot(steps, [100 * (1 - record["top1"]) for record in records], "--", label="training")
    if "val_top1" in records[-1]:
        error.plot(steps, [100 * (1 - record["val_top1"]) for record in records], label="holdout")
    error.set(xlabel="step", ylabel="top-1 error (%)", ylim=(0, None))
    error.legend()
    loss.semilogy(steps, [record["loss"] for record in records], "--", label="training loss")
    loss.set(xlabel="step", ylabel="cross-entropy")
    drops = [record["step"] for before, record in _pairs(records) if record["learning_rate"] < before["learning_rate"]]
    for axes in (error, loss):
        axes.grid(alpha=0.3)
        for step in drops:
            axes.axvline(step, color="grey", linewidth=0.8, linestyle=":")
    figure.suptitle(_label(f"{title} (dotted: the learning rate falls)" if drops else title), parse_math=False)
    _save(figure, path)


def _pairs(records: Sequence[dict[str, Any]]) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    return zip(records, records[1:], strict=False)


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str], path: Path, title: str) -> None:
    """Draw a confusion matrix, row the truth and column the answer, as a PNG.

    Args:
        counts: int [classes, classes].
        class_names: the classes.
        path: the PNG to write.
        title: above the picture.
    """
    from matplotlib.figure import Figure

    side = confusion_side(len(class_names))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    draw_confusion(axes, counts, class_names)
    axes.set_title(_label(title), parse_math=False)
    _save(figure, path)


def confusion_side(classes: int) -> float:
    """Return how long a side of a confusion matrix is to be, in inches."""
    return min(max(4.5, 0.5 * classes), 16)


def draw_confusion(axes: Axes, counts: np.ndarray, class_names: Sequence[str]) -> None:
    """Draw a confusion matrix; names and numbers of images as far as there is room."""
    classes = len(class_names)
    # Fractions of the true class, so that rare classes are seen as well as common ones.
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, interpolation="none")
    axes.set(xlabel="predicted class", ylabel="true class")
    if classes <= MOST_NAMED:
        labels = [_label(name, LONGEST_LABEL) for name in class_names]
        rotation = 0 if max(map(len, labels)) <= 2 else 90
        axes.set_xticks(range(classes), labels, rotation=rotation, parse_math=False)
        axes.set_yticks(range(classes), labels, parse_math=False)
    if classes <= MOST_NUMBERED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour)


def _label(text: str, most: int = 200) -> str:
    """Return a name as it stands in a picture; with `parse_math=False`, as dollar signs would begin a formula."""
    shown = printable(text)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def _save(figure: Figure, path: Path) -> None:
    with wrap_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
