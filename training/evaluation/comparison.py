"""Paired comparison: which of two classifiers gets more of the same images right, and whether that is chance."""

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
    """Two classifiers on the same images, by their likeliest classes.

    Attributes:
        first: the first one's name.
        second: the second one's.
        n: number of images.
        both: how many both get right.
        only_first: how many only the first gets right.
        only_second: how many only the second does.
        p_value: of McNemar's exact test, two-sided: how probable a difference at least as large is if they are equally
            good.
        adjusted_p_value: the same, adjusted by Holm's method where several pairs are compared.
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
        """The first one's top-1 error less the second one's, -1 to 1: below 0 the first is better."""
        return (self.only_second - self.only_first) / self.n

    @property
    def better(self) -> str | None:
        """The name of the one with fewer errors; None where they have as many."""
        if self.only_first == self.only_second:
            return None
        return self.first if self.only_first > self.only_second else self.second

    @property
    def significant(self) -> bool:
        """Whether the adjusted p-value is below 0.05."""
        return self.adjusted_p_value < SIGNIFICANT

    def sentence(self) -> str:
        """Return in words which is better, and whether it is significant."""
        facts = f"{self.only_first} only {self.first} gets right, {self.only_second} only {self.second}"
        p_value = f"p = {self.p_value:.2g}"
        if self.adjusted_p_value != self.p_value:
            p_value += f", {self.adjusted_p_value:.2g} for all pairs"
        if self.better is None:
            return f"{self.first} and {self.second} have equally many errors ({facts}; {p_value})"
        other = self.second if self.better == self.first else self.first
        verdict = "is better than" if self.significant else "has fewer errors than"
        chance = "significant" if self.significant else "not significant"
        return (
            f"{self.better} {verdict} {other} by {abs(self.difference):.2%} of the images: {chance} "
            f"({facts}; {p_value})"
        )

    def to_dict(self) -> dict[str, str | int | float | bool | None]:
        """Return plain data for JSON."""
        return {
            **dataclasses.asdict(self),
            "difference": self.difference,
            "better": self.better,
            "significant": self.significant,
        }


def compare(first: Predictions, second: Predictions) -> Comparison:
    """Compare two classifiers on the same images by McNemar's exact test.

    Args:
        first: of one classifier.
        second: of another, or of the same by another protocol; the images may come in another order.

    Raises:
        UserError: if the images, their labels or the classes differ.

    Example:
        >>> compare(training.evaluate(a, data).predictions, training.evaluate(b, data).predictions).p_value
        0.0213
    """
    (comparison,) = compare_all([first, second])
    return comparison


def compare_all(several: Sequence[Predictions]) -> list[Comparison]:
    """Compare every two of several classifiers on the same images; else as `compare`."""
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
    """Return what tells several predictions apart: their sources, with the protocol or a number where these are one."""
    sources = [found.source for found in several]
    names = [
        found.source if sources.count(found.source) == 1 else f"{found.source} ({found.protocol})" for found in several
    ]
    return [
        name if names.count(name) == 1 else f"{name} #{names[: at + 1].count(name)}" for at, name in enumerate(names)
    ]
