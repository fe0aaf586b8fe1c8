"""Figures of the report as SVG: confusion matrices and reliability diagrams."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_convnets.training.evaluation.calibration import Reliability
from keras_convnets.training.evaluation.report_page.html import Html
from keras_convnets.training.plots import LONGEST_LABEL, MOST_NAMED, MOST_NUMBERED, confusion_side, draw_confusion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Placeholder colour, replaced by `currentColor`, so that text and axes follow the page's light or dark theme.
INK = "#010203"
# Blue and orange of M. Okabe and K. Ito's palette for colour-blind readers.
BLUE, ORANGE = "#0072B2", "#E69F00"
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    # A fixed salt makes the element ids, and so the file, reproducible.
    "svg.hashsalt": "keras_convnets",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
}
# Approximate width of a letter, in inches.
LETTER = 0.08
# For many classes: number of most confused classes shown by name, and maximum cells per side of the overview.
MOST_ZOOMED, MOST_DOTS = MOST_NUMBERED, 250


def svg(draw: Callable[[Figure], None], size: tuple[float, float], prefix: str, label: str) -> Html:
    """Return a Matplotlib figure as an <svg> element; the output is deterministic.

    Args:
        draw: function that draws on the figure.
        size: (width, height) in inches.
        prefix: prefix of the element ids, unique for each figure of a page.
        label: accessible description (aria-label). It is not escaped and must not contain text from data.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        draw(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, facecolor="none")
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", text).replace(INK, "currentColor")
    return Html(text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))


def confusion_picture(counts: np.ndarray, class_names: Sequence[str], prefix: str) -> Html:
    """Return a confusion matrix with the names of all classes.

    Args:
        counts: int [classes, classes]; rows are true classes, columns predicted classes.
        class_names: class names.
        prefix: as for `svg`.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_facecolor("white")
        draw_confusion(axes, counts, class_names)

    # Additional space for the class names next to the matrix.
    side = confusion_side(len(class_names)) + LETTER * min(max(map(len, class_names)), LONGEST_LABEL)
    return svg(draw, (side, side), prefix, "confusion matrix: rows are true classes, columns predicted classes")


def overview_picture(counts: np.ndarray, prefix: str) -> tuple[Html, int]:
    """Return a confusion matrix of many classes without names, and the number of classes per side of a cell.

    The classes are ordered by `confusion_order`, so that confused classes are adjacent.
    """
    order = confusion_order(counts)
    fractions = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[np.ix_(order, order)]
    together = -(-len(order) // MOST_DOTS)
    blocks = np.arange(0, len(order), together)
    dots = np.maximum.reduceat(np.maximum.reduceat(fractions, blocks, axis=0), blocks, axis=1)

    def draw(figure: Figure) -> None:
        from matplotlib.colors import PowerNorm

        axes = figure.subplots()
        extent = (0.0, float(len(order)), float(len(order)), 0.0)
        # A power-law colour scale makes rare confusions visible.
        drawn = axes.imshow(dots, cmap="Blues", norm=PowerNorm(0.4, 0, 1), interpolation="none", extent=extent)
        axes.set(xlabel="predicted class (ordered by confusion)", ylabel="true class")
        figure.colorbar(drawn, shrink=0.7, label="fraction of the true class", ticks=[0, 0.01, 0.1, 0.3, 1])

    return svg(draw, (7, 6), prefix, "confusion matrix of all classes"), together


def most_confused(counts: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """Return (true class, predicted class, images) of the most confused pairs of classes, most frequent first."""
    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    flat = mistakes.ravel()
    # A stable sort breaks ties in favour of the lower class indices.
    order = np.argsort(-flat, kind="stable")[:most]
    pairs = [(*divmod(int(place), len(counts)), int(flat[place])) for place in order]
    return [pair for pair in pairs if pair[2]]


def most_confused_classes(counts: np.ndarray) -> np.ndarray:
    """Return the classes of the most confused pairs, at most `MOST_ZOOMED`, ordered by `confusion_order`."""
    chosen: list[int] = []
    for truth, answer, _ in most_confused(counts, len(counts)):
        new = [index for index in (truth, answer) if index not in chosen]
        if len(chosen) + len(new) > MOST_ZOOMED:
            break
        chosen += new
    inner = counts[np.ix_(chosen, chosen)]
    return np.array(chosen, int)[confusion_order(inner)]


def confusion_order(counts: np.ndarray) -> np.ndarray:
    """Return an order of the classes in which confused classes are close.

    Groups of classes are merged greedily, in descending order of the confusions between two classes, as in
    single-linkage clustering.
    """
    groups = {index: [index] for index in range(len(counts))}
    group_of = list(range(len(counts)))
    mistakes = counts + counts.T
    rows, columns = np.nonzero(np.triu(mistakes, 1))
    for place in np.argsort(-mistakes[rows, columns], kind="stable"):
        first, second = sorted((group_of[rows[place]], group_of[columns[place]]))
        if first == second:
            continue
        for index in groups[second]:
            group_of[index] = first
        groups[first] += groups.pop(second)
    return np.array([index for group in groups.values() for index in group], int)


def reliability_picture(found: Reliability, title: str, prefix: str) -> Html:
    """Return a reliability diagram: accuracy by confidence, and the histogram of the confidence."""

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        bins = len(found.counts)
        centres, filled = (np.arange(bins) + 0.5) / bins, found.counts > 0
        bar = {"width": 0.9 / bins}
        upper.bar(centres[filled], found.accuracy[filled], color=BLUE, label="accuracy", **bar)
        upper.plot([0, 1], [0, 1], "--", color=INK, linewidth=1, label="perfect calibration")
        gaps = (found.confidence - found.accuracy)[filled]
        hatched = {"facecolor": "none", "edgecolor": ORANGE, "hatch": "////", "label": "confidence - accuracy"}
        upper.bar(centres[filled], gaps, bottom=found.accuracy[filled], **hatched, **bar)
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
        upper.set_title(f"{title}: ECE {found.error:.2%}", fontsize=11)
        upper.legend(frameon=False, fontsize=9, loc="upper left")
        lower.bar(centres, found.counts / found.counts.sum(), color=BLUE, **bar)
        lower.set(ylim=(0, 1), xlabel="confidence (probability of the predicted class)", ylabel="images")
        lower.set_yticks([0, 1], ["0", "all"])
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)

    label = f"reliability diagram, {title}: expected calibration error {found.error:.2%}"
    return svg(draw, (4.4, 4.6), prefix, label)


def fits_by_name(classes: int) -> bool:
    """Whether the number of classes is small enough to label a confusion matrix with their names."""
    return classes <= MOST_NAMED
