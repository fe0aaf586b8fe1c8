"""Ensembles: errors of every subset, compared with NumPy."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from keras_convnets.errors import UserError
from keras_convnets.training.evaluation import Predictions, ensemble, ensembles
from keras_convnets.training.evaluation.metrics import top_k_accuracy

N, CLASSES = 211, 9


def member(seed, source=None, classes=CLASSES, ids=None):
    rng = np.random.default_rng(7)
    labels = rng.integers(0, classes, N)
    logits = np.random.default_rng(seed).normal(size=(N, classes)) + 1.2 * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = tuple(f"class {index}" for index in range(classes))
    ids = ids or tuple(f"{number:05d}" for number in range(N))
    return Predictions(source or f"runs/{seed}", "made", "test", "center", names, ids, labels, probabilities)


@pytest.mark.parametrize("bytes_together", [1 << 25, 8 * CLASSES * 10], ids=["at once", "in parts"])
def test_every_subset_matches_numpy(monkeypatch, bytes_together):
    monkeypatch.setattr(ensembles, "SUM_BYTES", bytes_together)
    members = [member(seed) for seed in range(4)]
    order = np.random.default_rng(1).permutation(N)
    found = ensemble([members[0], members[1].at(order), *members[2:]])
    assert found.complete and len(found.subsets) == 15
    for size in range(1, 5):
        for chosen in itertools.combinations(range(4), size):
            mean = np.mean([members[index].probabilities for index in chosen], axis=0, dtype=np.float64)
            measured = found.subset(chosen)
            assert measured.top1_error == pytest.approx(1 - top_k_accuracy(mean, members[0].labels, 1))
            assert measured.top5_error == pytest.approx(1 - top_k_accuracy(mean, members[0].labels, 5))
            together = found.mean(chosen)
            np.testing.assert_allclose(together.probabilities, mean, atol=1e-6)
            assert (together.labels == members[0].labels).all() and together.ids == members[0].ids
    assert found.best.top1_error == min(measured.top1_error for measured in found.subsets)
    assert found.mean([0, 2]).source == "runs/0 + runs/2" and found.mean().source.count(" + ") == 3
    for index, gain in enumerate(found.contributions):
        others = [other for other in range(4) if other != index]
        assert gain == pytest.approx(found.subset(others).top1_error - found.whole.top1_error)


def test_to_dict_is_json_serializable():
    plain = json.loads(json.dumps(ensemble([member(0), member(1)]).to_dict()))
    assert plain["members"] == ["runs/0", "runs/1"] and plain["n"] == N and len(plain["subsets"]) == 3
    assert plain["all"]["top1_error"] == next(
        row["top1_error"] for row in plain["subsets"] if row["members"] == ["runs/0", "runs/1"]
    )


def test_forward_selection_for_many_members(monkeypatch):
    monkeypatch.setattr(ensembles, "MOST_MEMBERS", 3)
    members = [member(seed) for seed in range(5)]
    found = ensemble(members)
    assert not found.complete
    alone = [found.subset([index]).top1_wrong for index in range(5)]
    best_pair = min(
        ensemble([members[int(np.argmin(alone))], members[other]]).whole.top1_wrong
        for other in range(5)
        if other != int(np.argmin(alone))
    )
    pairs = [row for row in found.subsets if len(row.members) == 2]
    assert len(pairs) == 4 and min(row.top1_wrong for row in pairs) == best_pair
    assert len(found.contributions) == 5 and found.whole.members == (0, 1, 2, 3, 4)
    with pytest.raises(KeyError):
        found.subset([0, 1, 2, 9])


def test_ties_are_broken_by_the_fewest_members():
    same = member(0)
    found = ensemble([same, same, same])
    assert found.best.members == (0,) and found.contributions == (0, 0, 0)


def test_five_classes_or_fewer_have_no_top_5():
    found = ensemble([member(0, classes=5), member(1, classes=5)])
    assert found.best.top5_error is None and found.best.top5_wrong is None


@pytest.mark.parametrize("members, sentence", [
    (lambda: [member(0)], "an ensemble needs at least two sources, got 1"),
    (lambda: [member(0), member(1, classes=8)], "runs/0 and runs/1 have different classes"),
    (lambda: [member(0), member(1, ids=tuple(map(str, range(N))))], "runs/0 and runs/1 have .* for different images"),
])  # fmt: skip
def test_incompatible_predictions_are_errors(members, sentence):
    with pytest.raises(UserError, match=sentence):
        ensemble(members())
