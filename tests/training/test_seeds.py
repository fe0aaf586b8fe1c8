"""Random streams: of no two purposes and no two seeds are they the same, shifted or not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import tensorflow as tf

from keras_convnets import training
from keras_convnets.training.data import ArraySplit
from keras_convnets.training.input_pipeline import training_batches
from keras_convnets.training.plan import make_plan
from keras_convnets.training.recipes import RECIPES, get_recipe
from keras_convnets.training.recipes.base import Recipe
from keras_convnets.training.seeds import folded, purpose_seed

STEPS, SEEDS = 30, (0, 1, 2)


@dataclass(frozen=True)
class Seen(Recipe):
    """A recipe whose images are the seeds that cropping and batch augmentation are given."""

    epochs: float | None = 1
    batch_size: int = 1

    @property
    def reads_photographs(self):
        return True

    def read(self, encoded, seed, size):
        return seed

    def augment(self, data, preprocessing, sample):
        return lambda images, seed: tf.concat([images, seed[None]], 0)


@pytest.fixture(scope="module")
def data():
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    return training.DataSet("made", ("a", "b"), True, {"train": ArraySplit(images, np.arange(40) % 2)}, (8, 8))


def plan_of(data, seed):
    return make_plan("ResNet20", data, Seen(seed=seed, image_size=8), None, None)


def test_crops_and_augmentation_of_all_seeds_have_streams_of_their_own(data):
    streams = {seed: training_batches(plan_of(data, seed), None).take(STEPS) for seed in SEEDS}
    found = {seed: np.stack([images.numpy() for images, _ in stream]) for seed, stream in streams.items()}
    crops, batches = ({seed: pairs[:, n] for seed, pairs in found.items()} for n in (0, 1))
    used = [tuple(pair) for kind in (crops, batches) for seed in SEEDS for pair in kind[seed].tolist()]
    assert len(set(used)) == 2 * len(SEEDS) * STEPS
    # A stream goes on where it was left, whatever came before.
    later = next(iter(training_batches(plan_of(data, 1), None, first_step=20)))[0].numpy()
    assert (later == found[1][20]).all()


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_drawn_for_a_batch_is_drawn_from_seeds_of_its_own(data, name, monkeypatch):
    used = []
    for operation in ("stateless_uniform", "stateless_normal"):
        drawn = getattr(tf.random, operation)

        def noting(shape, seed, *arguments, drawn=drawn, **more):
            used.append(tuple(np.asarray(seed).tolist()))
            return drawn(shape, seed, *arguments, **more)

        monkeypatch.setattr(tf.random, operation, noting)
    recipe = get_recipe(name)
    preprocessing = recipe.preprocessing(data.split("train"))
    augment = recipe.augment(data, preprocessing, lambda: data.split("train"))
    images = tf.zeros([2, 8, 8, 3])
    for seed in SEEDS:
        for step in range(5):
            # Numbers that are counted on: what adds to them meets the next one's.
            augment(images, tf.constant([seed, step], tf.int64))
    assert len(used) >= 15 and len(set(used)) == len(used)


def test_orders_differ_between_seeds_and_from_what_other_purposes_would_draw(data):
    orders = {tuple(order) for seed in SEEDS for order in positions(data.split("train"), seed).tolist()}
    assert len(orders) == 8 * len(SEEDS)
    shuffled = tf.random.experimental.stateless_shuffle
    for first in (0, 1, 2, *(purpose_seed(seed, "augmentation") for seed in SEEDS)):
        assert not orders & {tuple(shuffled(tf.range(40), [first, step]).numpy()) for step in range(8)}


def positions(split, seed):
    stream = split.encoded_shuffled(seed).take(8 * 40)
    return np.array([int(position) for *_, position in stream]).reshape(8, 40)


def test_seeds_are_unlike_for_every_purpose_and_the_same_for_the_same():
    named = {(seed, purpose): purpose_seed(seed, purpose) for seed in range(100) for purpose in ("crops", "order")}
    assert len(set(named.values())) == 200 and all(0 < value < 2**63 for value in named.values())
    assert purpose_seed(7, "crops") == named[7, "crops"]
    seed = tf.constant([3, 4], tf.int64)
    one, same, other = (folded(seed, purpose).numpy().tolist() for purpose in ("flip", "flip", "crop"))
    assert one == same != other
