"""Ensembles: errors of the mean probabilities of every subset of several classifiers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_convnets.errors import UserError
from keras_convnets.training.evaluation.comparison import distinct_names
from keras_convnets.training.evaluation.metrics import label_ranks
from keras_convnets.training.evaluation.predictions import Predictions, aligned

# Maximum number of members for which all 2^n - 1 subsets are evaluated.
MOST_MEMBERS = 10
TOP = 5
# Bytes of one partial sum of probabilities; there is one per level of the recursion over members.
SUM_BYTES = 1 << 25


@dataclass(frozen=True)
class Subset:
    """Errors of the mean probabilities of a subset of the members.

    Attributes:
        members: indices of the members, ascending.
        n: number of images.
        top1_wrong: number of top-1 errors.
        top5_wrong: number of top-5 errors; None for five classes or fewer.
    """

    members: tuple[int, ...]
    n: int
    top1_wrong: int
    top5_wrong: int | None

    @property
    def top1_error(self) -> float:
        """Top-1 error, 0 to 1."""
        return self.top1_wrong / self.n

    @property
    def top5_error(self) -> float | None:
        """Top-5 error, 0 to 1; None for five classes or fewer."""
        return None if self.top5_wrong is None else self.top5_wrong / self.n

    def _order(self) -> tuple[Any, ...]:
        return self.top1_wrong, self.top5_wrong or 0, len(self.members), self.members


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Several classifiers, and the errors of the mean probabilities of their subsets.

    Attributes:
        names: names of the members.
        predictions: predictions of the members, for the same images in the same order.
        subsets: the evaluated subsets, best first.
        complete: whether these are all subsets; otherwise, they are the single members, the subsets of a forward
            selection, all members, and all members but one.
    """

    names: tuple[str, ...]
    predictions: tuple[Predictions, ...]
    subsets: tuple[Subset, ...]
    complete: bool

    @property
    def best(self) -> Subset:
        """The subset with the lowest top-1 error; ties are broken by top-5 error, then by the number of members.

        It is selected on the images that it is evaluated on, so its error is biased downwards: expect a slightly higher
        error on new images.
        """
        return self.subsets[0]

    @property
    def whole(self) -> Subset:
        """The subset of all members."""
        return self.subset(range(len(self.names)))

    @property
    def contributions(self) -> tuple[float | None, ...]:
        """For each member, the increase of the full ensemble's top-1 error if it is removed; None for a single one."""
        everybody = range(len(self.names))
        if len(self.names) == 1:
            return (None,)
        without = [self.subset(other for other in everybody if other != member) for member in everybody]
        return tuple((found.top1_wrong - self.whole.top1_wrong) / found.n for found in without)

    def subset(self, members: Iterable[int]) -> Subset:
        """Return the errors of a subset.

        Args:
            members: indices of the members, ascending.

        Raises:
            KeyError: if this subset was not evaluated.
        """
        wanted = tuple(members)
        return {found.members: found for found in self.subsets}[wanted]

    def mean(self, members: Iterable[int] | None = None) -> Predictions:
        """Return the mean predictions of a subset of the members, by default of all members."""
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
        """Return the ensemble's errors as a JSON-serializable dict."""

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
    """Evaluate the mean probabilities of every subset of several classifiers.

    For more than ten members, only these subsets are evaluated: each single member; a forward selection, which starts
    with the best member and repeatedly adds the member that gives the lowest error; and all members but one.

    Args:
        several: predictions for the same images, in any order, of different models or protocols.

    Raises:
        UserError: if there are fewer than two predictions, or if their images, labels or classes differ.

    Example:
        >>> found = ensemble([Predictions.load("a.npz"), Predictions.load("b.npz")])
        >>> found.best.top1_error, found.contributions
    """
    if len(several) < 2:
        raise UserError(f"an ensemble needs at least two sources, got {len(several)}; give two or more.")
    same = aligned(several)
    complete = len(same) <= MOST_MEMBERS
    subsets = _every_subset(same) if complete else _forward_selection(same)
    ordered = sorted(subsets, key=Subset._order)
    return Ensemble(tuple(distinct_names(same)), tuple(same), tuple(ordered), complete)


def _every_subset(same: Sequence[Predictions]) -> list[Subset]:
    """Evaluate every subset depth-first, with one addition each: the sum without the last member plus that member."""
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
    """Yield slices of the images, such that a partial sum has at most `SUM_BYTES`."""
    together = max(1, SUM_BYTES // (8 * len(found.class_names)))
    for start in range(0, len(found), together):
        yield slice(start, start + together)


def _wrong(sums: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the numbers of top-1 and top-5 errors, int64 [2]."""
    ranks = label_ranks(sums, labels)
    return np.array([(ranks >= 1).sum(), (ranks >= TOP).sum()])


def _subset(members: tuple[int, ...], counts: np.ndarray, found: Predictions) -> Subset:
    has_five = len(found.class_names) > TOP
    return Subset(members, len(found), int(counts[0]), int(counts[1]) if has_five else None)
