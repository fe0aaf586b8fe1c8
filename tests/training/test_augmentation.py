"""The paper's augmentation, by its statistics, eagerly and inside tf.data."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance
from real_data import DATA_VARIABLE

from keras_convnets.errors import UserError
from keras_convnets.training.augmentation import (
    pad_and_crop,
    pca_colour_shift,
    photometric_distortion,
    pixel_components,
    random_flip,
)
from keras_convnets.training.data import load_dataset
from keras_convnets.training.recipes import get_recipe

FILL = (10.0, 20.0, 30.0)
# Of the size that real photographs' have, values in 0-1.
COMPONENTS = np.linalg.qr(np.array([[1.0, 2.0, 0.5], [1.0, 0.0, -1.0], [1.0, -2.0, 0.5]]))[0]
EIGENVALUES = np.array([0.2, 0.02, 0.005])


def coordinates(count=2000, side=8):
    """Images in which each pixel says where it was: row + 1, column + 1, image number."""
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    one = np.stack([rows + 1, columns + 1, np.full_like(rows, 77)], axis=-1)
    return np.repeat(one[None], count, axis=0).astype(np.uint8)


@pytest.fixture(scope="module")
def photographs() -> np.ndarray:
    """Real photographs, uint8 [n, 48, 64, 3]."""
    folder = os.environ.get(DATA_VARIABLE)
    if folder:
        pictures = map(Image.open, sorted((Path(folder) / "datasets" / "imagenet_samples").glob("*.JPEG"))[::4])
    else:
        pictures = map(Image.fromarray, pytest.importorskip("sklearn.datasets").load_sample_images().images)
    return np.stack([np.asarray(picture.convert("RGB").resize((64, 48))) for picture in pictures])


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


@pytest.mark.parametrize(
    "function",
    [
        lambda x, s: pad_and_crop(x, 2, FILL, s),
        random_flip,
        lambda x, s: pca_colour_shift(x, COMPONENTS, EIGENVALUES, s),
        photometric_distortion,
    ],
)
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
    got = recipe.augment(data, preprocessing, lambda: data.splits["train"])(
        images, tf.constant([0, 0], tf.int64)
    ).numpy()
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


def test_the_components_are_those_of_all_pixels_at_once(photographs):
    batches = [photographs[:1], photographs[1:].astype(np.float32)]
    components, eigenvalues, mean = pixel_components(map(tf.constant, batches))
    pixels = photographs.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    covariance = np.cov(pixels.T, bias=True)
    np.testing.assert_allclose(components * eigenvalues @ components.T, covariance, atol=1e-13)
    np.testing.assert_allclose(components.T @ components, np.eye(3), atol=1e-12)
    assert (np.diff(eigenvalues) < 0).all()
    # Illumination comes first: all three channels together.
    assert (components[:, 0] > 0.4).all()
    assert (components.max(0) >= -components.min(0)).all()


def test_components_of_one_colour_and_of_nothing():
    components, eigenvalues, mean = pixel_components([np.full((2, 4, 4, 3), 51, np.uint8)])
    assert (eigenvalues == 0).all() and np.isfinite(components).all()
    np.testing.assert_allclose(mean, 0.2)
    with pytest.raises(UserError, match="no images"):
        pixel_components([])


def test_colour_shifts_are_one_an_image_with_the_covariance_of_the_formula():
    images = coordinates(4000, side=4)
    shifts = pca_colour_shift(images, COMPONENTS, EIGENVALUES, tf.constant([8, 9], tf.int64)).numpy() - images
    assert np.abs(shifts - shifts[:, :1, :1]).max() < 1e-4
    # Each component's coefficient is a Gaussian of deviation 0.1 times its eigenvalue, in units of 255.
    coefficients = shifts[:, 0, 0] @ COMPONENTS / (0.1 * EIGENVALUES * 255)
    bound = 5 / np.sqrt(len(images))
    assert np.abs(coefficients.mean(0)).max() < bound
    np.testing.assert_allclose(np.cov(coefficients.T), np.eye(3), atol=bound * np.sqrt(2))
    np.testing.assert_allclose((np.abs(coefficients) < 1).mean(0), 0.6827, atol=bound * 0.5)
    twice = pca_colour_shift(images, COMPONENTS, EIGENVALUES, tf.constant([8, 9], tf.int64), deviation=0.2).numpy()
    np.testing.assert_allclose(twice - images, 2 * shifts, atol=1e-3)


def test_on_photographs_a_colour_shift_is_of_a_few_levels(photographs):
    components, eigenvalues, _ = pixel_components([photographs])
    images = np.repeat(photographs[:1], 500, axis=0)
    shifts = pca_colour_shift(images, components, eigenvalues, tf.constant([8, 9], tf.int64)).numpy() - images
    assert 0.5 < shifts.std() < 10


def pillow_distorted(image: np.ndarray, order, amounts) -> np.ndarray:
    picture = Image.fromarray(image)
    for kind, amount in zip(order, amounts, strict=True):
        enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[kind]
        picture = enhance(picture).enhance(amount)
    return np.asarray(picture, np.float32)


def test_distortions_are_pillows_in_all_orders_equally_often_and_of_uniform_amounts(photographs):
    seed = tf.constant([1, 3], tf.int64)
    count = 60
    images = np.repeat(photographs, -(-count // len(photographs)), axis=0)[:count]
    amounts, ranks = tf.random.stateless_uniform([2, count, 3], seed).numpy()
    amounts, orders = 0.5 + amounts, ranks.argsort(1)
    assert set(map(tuple, orders)) == set(itertools.permutations(range(3)))
    got = photometric_distortion(images, seed).numpy()
    assert got.dtype == np.float32 and got.min() >= 0 and got.max() <= 255
    for image, order, amount, distorted in zip(images, orders, amounts.astype(float), got, strict=True):
        # Pillow rounds after each of three steps, two of which can enlarge what was lost before.
        assert np.abs(pillow_distorted(image, order, amount) - distorted).max() < 4


def test_brightness_amounts_are_uniform_and_one_changes_nothing(photographs):
    # Of a grey image of one level contrast and colour change nothing; 100 is nowhere cut.
    grey = np.full((4000, 2, 2, 3), 100, np.uint8)
    amounts = photometric_distortion(grey, tf.constant([1, 2], tf.int64)).numpy()[:, 0, 0, 0] / 100
    quantiles = (amounts < np.linspace(0.6, 1.4, 9)[:, None]).mean(1)
    np.testing.assert_allclose(quantiles, np.linspace(0.1, 0.9, 9), atol=5 * 0.5 / np.sqrt(len(grey)))
    assert amounts.min() >= 0.5 - 1e-6 and amounts.max() <= 1.5 + 1e-6
    same = photometric_distortion(photographs, tf.constant([1, 2], tf.int64), amount=(1, 1)).numpy()
    np.testing.assert_allclose(same, photographs, atol=1e-3)


@pytest.mark.parametrize(
    "function",
    [random_flip, lambda x, s: pca_colour_shift(x, COMPONENTS, EIGENVALUES, s), photometric_distortion],
)
def test_pipelines_know_the_shape_and_a_batch_of_any_size_is_transformed(function):
    dataset = tf.data.Dataset.from_tensor_slices(coordinates(5)).batch(3)
    mapped = dataset.map(lambda images: function(images, tf.constant([1, 2], tf.int64)))
    assert mapped.element_spec.shape.as_list() == [None, 8, 8, 3]
    assert [len(batch) for batch in mapped.as_numpy_iterator()] == [3, 2]
