"""The order in which every class is drawn equally often."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from keras_convnets.training.seeds import purpose_seed


def balanced_positions(labels: np.ndarray, seed: int, first: int = 0) -> Iterator[np.ndarray]:
    """Give positions without end, one of each class in every round, the classes in random order.

    Each class has its own deck, which is reshuffled when it is used up, so that its images come equally often too.
    The order is a function of the seed alone, so that a stream can resume in its middle.

    Args:
        labels: integers [n]; a class without images is none.
        seed: of the orders, at least 0.
        first: how many positions to pass over.

    Returns:
        Rounds, int64 [number of classes], the first one shorter where `first` lies within it.
    """
    seed = purpose_seed(seed, "balanced order")
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    decks: dict[int, np.ndarray] = {}
    begin, passed = divmod(first, len(members))
    for number in itertools.count(begin):
        # The last word distinguishes the orders of rounds (0) from those of decks (1 and the class).
        order = np.random.default_rng([seed, number, 0]).permutation(len(members))
        drawn = []
        for label in order:
            epoch, place = divmod(number, len(members[label]))
            if place == 0 or label not in decks:
                decks[label] = np.random.default_rng([seed, epoch, 1 + int(label)]).permutation(members[label])
            drawn.append(decks[label][place])
        yield np.array(drawn, np.int64)[passed if number == begin else 0 :]
