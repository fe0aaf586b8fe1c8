"""Paired comparison of the top-1 accuracy of classifiers on the same images, by McNemar's exact test."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_convnets.training.evaluation.metrics import holm_adjusted, mcnemar_p_value
from keras_convnets.training.evaluation.predictions import Predictions, aligned

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """Paired comparison of the top-1 predictions of two classifiers on the same images.

    Attributes:
        first: name of the first classifier.
        second: name of the second classifier.
        n: number of images.
        both: number of images that both classify correctly.
        only_first: number of images that only the first classifies correctly.
        only_second: number of images that only the second classifies correctly.
        p_value: two-sided p-value of McNemar's exact test. The null hypothesis is that both have the same error.
        adjusted_p_value: the p-value adjusted by Holm's method for the number of compared pairs.
    """

    first: str
    second: str
    n: int
    both: int
    only_first: int
    only_second: int
    p_value: float
    adjusted_p_value: float

    @property
    def difference(self) -> float:
        """Top-1 error of the first minus that of the second, -1 to 1: negative if the first is better."""
        return (self.only_second - self.only_first) / self.n

    @property
    def better(self) -> str | None:
        """Name of the classifier with fewer errors; None if both have equally many."""
        if self.only_first == self.only_second:
            return None
        return self.first if self.only_first > self.only_second else self.second

    @property
    def significant(self) -> bool:
        """Whether the adjusted p-value is below 0.05."""
        return self.adjusted_p_value < SIGNIFICANT

    def sentence(self) -> str:
        """Return the result as a sentence: which classifier has the lower error, and whether that is significant."""
        facts = f"only {self.first} correct: {self.only_first}, only {self.second} correct: {self.only_second}"
        p_value = f"p = {self.p_value:.2g}"
        if self.adjusted_p_value != self.p_value:
            p_value += f", {self.adjusted_p_value:.2g} adjusted by Holm's method"
        if self.better is None:
            return f"{self.first} and {self.second} have equally many errors ({facts}; {p_value})"
        other = self.second if self.better == self.first else self.first
        significance = "significant" if self.significant else "not significant"
        return (
            f"{self.better} has a lower top-1 error than {other}, by {abs(self.difference):.2%}: {significance} "
            f"({facts}; {p_value})"
        )

    def to_dict(self) -> dict[str, str | int | float | bool | None]:
        """Return the comparison as a JSON-serializable dict."""
        return {
            **dataclasses.asdict(self),
            "difference": self.difference,
            "better": self.better,
            "significant": self.significant,
        }


def compare(first: Predictions, second: Predictions) -> Comparison:
    """Compare two classifiers on the same images by McNemar's exact test.

    Args:
        first: predictions of one classifier.
        second: predictions of another classifier, or of the same one by another protocol. The images may be in a
            different order.

    Raises:
        UserError: if the images, their labels or the classes differ.

    Example:
        >>> compare(training.evaluate(a, data).predictions, training.evaluate(b, data).predictions).p_value
        0.0213
    """
    (comparison,) = compare_all([first, second])
    return comparison


def compare_all(several: Sequence[Predictions]) -> list[Comparison]:
    """Compare every pair of several classifiers on the same images, with p-values adjusted by Holm's method."""
    same = aligned(several)
    names = distinct_names(same)
    right = [found.probabilities.argmax(axis=1) == found.labels for found in same]
    pairs = list(itertools.combinations(range(len(same)), 2))
    counts = [(int((right[a] & ~right[b]).sum()), int((right[b] & ~right[a]).sum())) for a, b in pairs]
    p_values = [mcnemar_p_value(*count) for count in counts]
    return [
        Comparison(
            first=names[a],
            second=names[b],
            n=len(same[a]),
            both=int(np.sum(right[a] & right[b])),
            only_first=only_a,
            only_second=only_b,
            p_value=p_value,
            adjusted_p_value=adjusted,
        )
        for (a, b), (only_a, only_b), p_value, adjusted in zip(
            pairs, counts, p_values, holm_adjusted(p_values), strict=True
        )
    ]


def distinct_names(several: Sequence[Predictions]) -> list[str]:
    """Return a unique name for each of several predictions: the source; if repeated, with its protocol or a number."""
    sources = [found.source for found in several]
    names = [
        found.source if sources.count(found.source) == 1 else f"{found.source} ({found.protocol})" for found in several
    ]
    return [
        name if names.count(name) == 1 else f"{name} #{names[: at + 1].count(name)}" for at, name in enumerate(names)
    ]
