"""The paper's augmentation, by its statistics, eagerly and inside tf.data."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_convnets.training.augment import pad_and_crop, random_flip
from keras_convnets.training.data import load_dataset
from keras_convnets.training.recipes import get_recipe

FILL = (10.0, 20.0, 30.0)


def coordinates(count=2000, side=8):
    """Images in which each pixel says where it was: row + 1, column + 1, image number."""
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    one = np.stack([rows + 1, columns + 1, np.full_like(rows, 77)], axis=-1)
    return np.repeat(one[None], count, axis=0).astype(np.uint8)


def in_pipeline(function, images, seed):
    dataset = tf.data.Dataset.from_tensors(images).map(lambda batch: function(batch, tf.constant(seed, tf.int64)))
    return next(iter(dataset)).numpy()


@pytest.mark.parametrize("pad", [0, 1, 4])
def test_crops_are_uniform_over_all_offsets_and_the_border_is_the_fill(pad):
    images = coordinates(side=16)
    crops = pad_and_crop(images, pad, FILL, tf.constant([1, 2], tf.int64)).numpy()
    assert crops.shape == images.shape and crops.dtype == np.float32
    is_fill = (crops == np.array(FILL, np.float32)).all(-1)
    # Where the centre pixel came from gives the offset of each crop.
    offsets = crops[:, 8, 8, :2] - 9
    counts = np.unique(offsets, axis=0, return_counts=True)
    assert set(map(tuple, counts[0])) == {(y, x) for y in range(-pad, pad + 1) for x in range(-pad, pad + 1)}
    # Multinomial: each of k cells holds n/k within five standard deviations.
    expected = len(images) / (2 * pad + 1) ** 2
    assert np.abs(counts[1] - expected).max() <= 5 * np.sqrt(expected)
    rows = offsets[:, :1] + np.arange(16)
    columns = offsets[:, 1:] + np.arange(16)
    outside = ((rows < 0) | (rows > 15))[:, :, None] | ((columns < 0) | (columns > 15))[:, None, :]
    assert (is_fill == outside).all()
    inside = crops[~outside]
    assert (inside[:, 2] == 77).all()


def test_flips_are_half_and_whole():
    images = coordinates()
    flipped = random_flip(images, tf.constant([3, 4], tf.int64)).numpy()
    is_flipped = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert ((flipped == images).all((1, 2, 3)) ^ is_flipped).all()
    assert abs(is_flipped.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(images))
    assert flipped.dtype == images.dtype


@pytest.mark.parametrize("function", [lambda x, s: pad_and_crop(x, 2, FILL, s), random_flip])
def test_a_seed_gives_the_same_in_eager_mode_and_in_a_pipeline_and_changes_no_argument(function):
    images = coordinates(64)
    before = images.copy()
    eager = function(images, tf.constant([5, 6], tf.int64)).numpy()
    assert (in_pipeline(function, images, [5, 6]) == eager).all()
    assert (images == before).all()
    assert (function(images, tf.constant([5, 7], tf.int64)).numpy() != eager).any()


@pytest.mark.parametrize("name, pads, flips", [("digits", 1, False), ("made", 4, True)])
def test_the_recipe_pads_an_eighth_of_the_side_with_the_mean_and_flips_where_labels_allow(name, pads, flips):
    if name == "digits":
        data = load_dataset("digits")
    else:
        import dataclasses

        data = dataclasses.replace(load_dataset("digits").at_size(32, 32), flips_keep_labels=True)
    recipe = get_recipe("resnet_cifar")
    preprocessing = recipe.preprocessing(data.splits["train"])
    images = coordinates(1000, data.image_size[0])
    got = recipe.augment(data, preprocessing)(tf.constant(images), tf.constant([0, 0], tf.int64)).numpy()
    is_fill = np.isclose(got, np.array(preprocessing.mean, np.float32), atol=1e-3).all(-1)
    widest = is_fill.all(2).sum(1).max()
    assert widest == pads
    # In an unflipped crop the column numbers rise to the right.
    middle = got[:, got.shape[1] // 2, :, 1]
    rises = middle[:, middle.shape[1] // 2 + 1] > middle[:, middle.shape[1] // 2]
    assert (not rises.all()) == flips


def test_the_mean_image_is_the_training_sets():
    data = load_dataset("digits").with_holdout(100)
    preprocessing = get_recipe("resnet_cifar").preprocessing(data.splits["train"])
    expected = data.splits["train"].images.astype(np.float64).mean(0)
    np.testing.assert_allclose(preprocessing.mean_image, expected, rtol=1e-6)
    np.testing.assert_allclose(preprocessing.mean, expected.mean((0, 1)), rtol=1e-9)
