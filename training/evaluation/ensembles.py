"""Ensembles: the mean of several classifiers' probabilities, for every subset of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_convnets.errors import UserError
from keras_convnets.training.evaluation.comparison import distinct_names
from keras_convnets.training.evaluation.metrics import label_ranks
from keras_convnets.training.evaluation.predictions import Predictions, aligned

# Of more members than this there are too many subsets to measure them all.
MOST_MEMBERS = 10
TOP = 5
# Bytes of one partial sum: each member more needs one.
SUM_BYTES = 1 << 25


@dataclass(frozen=True)
class Subset:
    """Some members' mean, measured.

    Attributes:
        members: their places, ascending.
        n: number of images.
        top1_wrong: number of images whose likeliest class is wrong.
        top5_wrong: number whose class is not among the five likeliest; None for five classes or fewer.
    """

    members: tuple[int, ...]
    n: int
    top1_wrong: int
    top5_wrong: int | None

    @property
    def top1_error(self) -> float:
        """Fraction of images whose likeliest class is wrong."""
        return self.top1_wrong / self.n

    @property
    def top5_error(self) -> float | None:
        """Fraction of images whose class is not among the five likeliest; None for five classes or fewer."""
        return None if self.top5_wrong is None else self.top5_wrong / self.n

    def _order(self) -> tuple[Any, ...]:
        return self.top1_wrong, self.top5_wrong or 0, len(self.members), self.members


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Several classifiers and the errors of their means.

    Attributes:
        names: the members'.
        predictions: the members', on the same images in the same order.
        subsets: what was measured, the best first.
        complete: whether that is every subset; else each member alone, those of a forward selection, all, and all
            but one.
    """

    names: tuple[str, ...]
    predictions: tuple[Predictions, ...]
    subsets: tuple[Subset, ...]
    complete: bool

    @property
    def best(self) -> Subset:
        """The subset of the lowest top-1 error, then top-5 error, then the fewest members.

        It was chosen by the images it was measured on: on others its error is a little higher.
        """
        return self.subsets[0]

    @property
    def whole(self) -> Subset:
        """All members."""
        return self.subset(range(len(self.names)))

    @property
    def contributions(self) -> tuple[float | None, ...]:
        """By how much the top-1 error of all rises without each member; None of a member that is alone."""
        everybody = range(len(self.names))
        if len(self.names) == 1:
            return (None,)
        without = [self.subset(other for other in everybody if other != member) for member in everybody]
        return tuple((found.top1_wrong - self.whole.top1_wrong) / found.n for found in without)

    def subset(self, members: Iterable[int]) -> Subset:
        """Return what was measured of some members.

        Raises:
            KeyError: if they were not.
        """
        wanted = tuple(members)
        return {found.members: found for found in self.subsets}[wanted]

    def mean(self, members: Iterable[int] | None = None) -> Predictions:
        """Return the predictions of some members' mean, by default of all."""
        chosen = tuple(range(len(self.names)) if members is None else members)
        same = [self.predictions[member] for member in chosen]
        protocols = list(dict.fromkeys(found.protocol for found in same))
        return Predictions(
            source=" + ".join(self.names[member] for member in chosen),
            data=same[0].data,
            split=same[0].split,
            protocol=" + ".join(protocols),
            class_names=same[0].class_names,
            ids=same[0].ids,
            labels=same[0].labels,
            probabilities=np.asarray(np.mean([found.probabilities for found in same], axis=0, dtype=np.float64)),
            left_out=same[0].left_out,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""

        def plain(found: Subset) -> dict[str, Any]:
            errors = {"top1_error": found.top1_error, "top5_error": found.top5_error}
            return {"members": [self.names[member] for member in found.members], **errors}

        return {
            "members": list(self.names),
            "n": self.best.n,
            "best": plain(self.best),
            "all": plain(self.whole),
            "contributions": dict(zip(self.names, self.contributions, strict=True)),
            "every_subset": self.complete,
            "subsets": [plain(found) for found in self.subsets],
        }


def ensemble(several: Sequence[Predictions]) -> Ensemble:
    """Measure the mean of several classifiers' probabilities, for every subset of them.

    Of more than ten members, every member alone is measured, a forward selection (from the best one on, each time with
    the member that lowers the error most), and all members but one.

    Args:
        several: predictions of the same images, which may come in other orders, of different networks or protocols.

    Raises:
        UserError: if there are fewer than two, or their images, labels or classes differ.

    Example:
        >>> found = ensemble([Predictions.load("a.npz"), Predictions.load("b.npz")])
        >>> found.best.top1_error, found.contributions
    """
    if len(several) < 2:
        raise UserError(f"an ensemble of {len(several)} was asked for; give two or more sources.")
    same = aligned(several)
    complete = len(same) <= MOST_MEMBERS
    subsets = _every_subset(same) if complete else _forward_selection(same)
    ordered = sorted(subsets, key=Subset._order)
    return Ensemble(tuple(distinct_names(same)), tuple(same), tuple(ordered), complete)


def _every_subset(same: Sequence[Predictions]) -> list[Subset]:
    """Measure every subset, with one sum each: a subset's is that of the one without its last member, and this."""
    wrong: dict[tuple[int, ...], np.ndarray] = {}

    def extend(members: tuple[int, ...], total: np.ndarray | float, part: slice) -> None:
        for member in range(members[-1] + 1 if members else 0, len(same)):
            longer, added = (*members, member), total + same[member].probabilities[part].astype(np.float64)
            wrong[longer] = wrong.get(longer, 0) + _wrong(added, same[0].labels[part])
            extend(longer, added, part)

    for part in _parts(same[0]):
        extend((), 0.0, part)
    return [_subset(members, counts, same[0]) for members, counts in wrong.items()]


def _forward_selection(same: Sequence[Predictions]) -> list[Subset]:
    measured: dict[tuple[int, ...], Subset] = {}

    def measure(members: Iterable[int]) -> Subset:
        chosen = tuple(sorted(members))
        if chosen not in measured:
            measured[chosen] = _measured(same, chosen)
        return measured[chosen]

    everybody = set(range(len(same)))
    chosen: tuple[int, ...] = ()
    while everybody - {*chosen}:
        longer = [measure((*chosen, member)) for member in sorted(everybody - {*chosen})]
        chosen = min(longer, key=Subset._order).members
    for member in sorted(everybody):
        measure(everybody - {member})
    return list(measured.values())


def _measured(same: Sequence[Predictions], members: tuple[int, ...]) -> Subset:
    counts = np.zeros(2, np.int64)
    for part in _parts(same[0]):
        total = same[members[0]].probabilities[part].astype(np.float64)
        for member in members[1:]:
            total += same[member].probabilities[part]
        counts += _wrong(total, same[0].labels[part])
    return _subset(members, counts, same[0])


def _parts(found: Predictions) -> Iterator[slice]:
    """Give the images in parts of bounded size."""
    together = max(1, SUM_BYTES // (8 * len(found.class_names)))
    for start in range(0, len(found), together):
        yield slice(start, start + together)


def _wrong(sums: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how many are wrong by top-1 and by top-5, int64 [2]."""
    ranks = label_ranks(sums, labels)
    return np.array([(ranks >= 1).sum(), (ranks >= TOP).sum()])


def _subset(members: tuple[int, ...], counts: np.ndarray, found: Predictions) -> Subset:
    has_five = len(found.class_names) > TOP
    return Subset(members, len(found), int(counts[0]), int(counts[1]) if has_five else None)
