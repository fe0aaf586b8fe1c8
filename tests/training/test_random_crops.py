"""Random crops of photographs: the law of their windows, and that only the pixels that are needed are decoded."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from real_data import DATA_VARIABLE

from keras_convnets.errors import UserError
from keras_convnets.images.decoding import decode_image
from keras_convnets.images.resizing import apply_view
from keras_convnets.images.view import View
from keras_convnets.training import random_crops
from keras_convnets.training.random_crops import (
    KERNELS,
    area_window,
    random_area_crop,
    random_scale_crop,
    random_square_crop,
    scale_corner,
    square_corner,
)

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
DRAWS = 4000
CROPS = {
    "area": lambda data, seed: random_area_crop(data, seed, 64),
    "kernels": lambda data, seed: random_area_crop(data, seed, 64, kernels=KERNELS),
    "scale": lambda data, seed: random_scale_crop(data, seed, 64, (72, 140)),
    "square": lambda data, seed: random_square_crop(data, seed, 64, 72),
}


@pytest.fixture(scope="module")
def encoded() -> list[bytes]:
    """Photographs of several sizes and chroma resolutions, with one that is grey; two of scikit-learn without data."""
    folder = os.environ.get(DATA_VARIABLE)
    if folder:
        paths = sorted((Path(folder) / "datasets" / "imagenet_samples").glob("*.JPEG"))[::25]
        paths += sorted((Path(folder) / "datasets" / "ants_bees" / "val").rglob("*.jpg"))[::80]
    else:
        datasets = pytest.importorskip("sklearn.datasets")
        paths = [Path(name) for name in datasets.load_sample_images().filenames]
        paths = [Path(datasets.__file__).parent / "images" / path.name for path in paths]
    return [path.read_bytes() for path in paths] + [saved(Image.open(paths[0]).convert("L"), "JPEG")]


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def seeds(count: int) -> tf.Tensor:
    return tf.constant([[11, number] for number in range(count)], tf.int64)


def drawn(function, *height_width: int, count: int = DRAWS):
    """Draw from a function of size and seed in a pipeline, [count, ...]."""
    dataset = tf.data.Dataset.from_tensor_slices(seeds(count)).map(
        lambda seed: function(tf.constant(height_width), seed), num_parallel_calls=2
    )
    return next(iter(dataset.batch(count)))


def windows(height: int, width: int, area=AREA, aspect=ASPECT) -> np.ndarray:
    return drawn(lambda size, seed: area_window(size, seed, area, aspect), height, width).numpy()


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    """Check that the largest distance of the distribution functions is one that chance gives (Kolmogorov-Smirnov)."""
    values = np.sort((values - low) / (high - low))
    steps = np.arange(len(values) + 1) / len(values)
    distance = max(np.abs(values - steps[1:]).max(), np.abs(values - steps[:-1]).max())
    # One in fifty thousand: sqrt(-ln(0.00001) / 2).
    assert distance < 2.4 / math.sqrt(len(values))


def assert_all_whole_numbers_equally_often(values: np.ndarray, low: int, high: int) -> None:
    found, counts = np.unique(values, return_counts=True)
    assert found[0] == low and found[-1] == high
    expected = len(values) / (high - low + 1)
    chi_square = ((counts - expected) ** 2).sum() / expected + (high - low + 1 - len(found)) * expected
    assert abs(chi_square - (high - low)) < 5 * math.sqrt(2 * (high - low))


def test_areas_aspects_and_places_of_windows_that_always_fit():
    # Up to 0.7 of the area every aspect ratio fits into a square, so nothing is drawn again and the laws are bare.
    top, left, height, width = windows(2000, 2000, area=(0.08, 0.7)).T
    assert_uniform(height * width / 2000**2, 0.08, 0.7)
    assert_uniform(np.log(width / height), math.log(3 / 4), math.log(4 / 3))
    assert_uniform((top + 0.5) / (2000 - height + 1), 0, 1)
    assert_uniform((left + 0.5) / (2000 - width + 1), 0, 1)
    free = [height * width, np.log(width / height), top / (2000 - height + 1), left / (2000 - width + 1)]
    assert np.abs(np.corrcoef(free)[np.triu_indices(4, 1)]).max() < 5 / math.sqrt(DRAWS)


def test_every_place_of_a_window_is_equally_likely():
    top, left, height, width = windows(10, 8, area=(0.2, 0.2), aspect=(1, 1)).T
    assert (height == 4).all() and (width == 4).all()
    assert_all_whole_numbers_equally_often(top, 0, 6)
    assert_all_whole_numbers_equally_often(left, 0, 4)


@pytest.mark.parametrize("height, width", [(375, 500), (500, 333), (400, 400)])
def test_windows_of_a_photograph_are_those_of_the_rule_drawn_again_until_they_fit(height, width):
    top, left, h, w = windows(height, width).T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
    # Rounding the sides moves area and aspect by a little.
    assert (h * w >= 0.08 * height * width * 0.98).all()
    assert (w / h > 3 / 4 * 0.98).all() and (w / h < 4 / 3 * 1.02).all()
    generator = np.random.default_rng(0)
    area = generator.uniform(*AREA, 400_000) * height * width
    aspect = np.exp(generator.uniform(*np.log(ASPECT), len(area)))
    fits = (np.round(np.sqrt(area * aspect)) <= width) & (np.round(np.sqrt(area / aspect)) <= height)
    expected = np.quantile(area[fits] / (height * width), np.linspace(0.1, 0.9, 9))
    got = (h * w / (height * width) < expected[:, None]).mean(1)
    np.testing.assert_allclose(got, np.linspace(0.1, 0.9, 9), atol=5 * 0.5 / math.sqrt(DRAWS))


@pytest.mark.parametrize(
    "height, width, expected", [(20, 400, (0, 186, 20, 27)), (400, 20, (186, 0, 27, 20)), (1, 1, (0, 0, 1, 1))]
)
def test_what_never_fits_gives_the_largest_allowed_window_at_the_centre(height, width, expected):
    # An area of at least half of a strip is never of an allowed aspect ratio.
    assert (windows(height, width, area=(0.5, 1.0)) == expected).all()


@pytest.mark.parametrize("shorter", [(256, 480), (256, 512)])
def test_the_shorter_side_and_the_corner_are_uniform(shorter):
    scaled, corner = drawn(lambda size, seed: scale_corner(size, seed, 224, shorter), 375, 500)
    scaled, corner = scaled.numpy(), corner.numpy()
    assert_all_whole_numbers_equally_often(scaled[:, 0], *shorter)
    assert (np.abs(scaled[:, 1] - scaled[:, 0] * 500 / 375) <= 0.51).all()
    assert (corner >= 0).all() and (corner + 224 <= scaled).all()
    assert (corner == 0).any() and (corner + 224 == scaled).any()
    for axis in (0, 1):
        assert_uniform((corner[:, axis] + 0.5) / (scaled[:, axis] - 224 + 1), 0, 1)


def test_the_small_square_is_uniform_within_the_central_one():
    scaled, corner = drawn(lambda size, seed: square_corner(size, seed, 224, 256), 375, 500)
    assert (scaled.numpy() == (256, 341)).all()
    assert_all_whole_numbers_equally_often(corner[:, 0].numpy(), 0, 32)
    assert_all_whole_numbers_equally_often(corner[:, 1].numpy() - (341 - 256) // 2, 0, 32)


def test_each_kernel_is_drawn_equally_often_and_does_not_move_the_window(encoded, monkeypatch):
    # Each kernel paints its own number, and the window's size beside it.
    def painted(image, size, kernel):
        pixel = tf.stack([KERNELS.index(kernel), tf.shape(image)[0], tf.shape(image)[1]])
        return tf.cast(tf.ones([size, size, 1]) * tf.cast(pixel, tf.float32), tf.uint8)

    monkeypatch.setattr(random_crops, "_resized", painted)
    small = saved(Image.open(io.BytesIO(encoded[0])).convert("RGB").resize((48, 40)), "PNG")
    all_four = drawn(lambda _, seed: random_area_crop(tf.constant(small), seed, 2, kernels=KERNELS), 1, 1, count=1000)
    counts = np.bincount(all_four[:, 0, 0, 0])
    assert np.abs(counts - 250).max() < 5 * math.sqrt(1000 * 0.25 * 0.75)
    alone = drawn(lambda _, seed: random_area_crop(tf.constant(small), seed, 2), 1, 1, count=1000)
    assert (all_four[..., 1:].numpy() == alone[..., 1:].numpy()).all()


def test_a_decoded_window_is_the_window_of_the_decoded_photograph(encoded):
    generator = np.random.default_rng(1)
    picture = Image.open(io.BytesIO(encoded[0])).convert("RGB")
    kinds = [saved(picture, "JPEG", subsampling=subsampling) for subsampling in (0, 1, 2)]
    kinds += [saved(picture, "JPEG", progressive=True), saved(picture.convert("CMYK"), "JPEG"), saved(picture, "PNG")]
    kinds += [saved(picture, "BMP"), saved(picture.quantize(64), "GIF")]
    for data in [*encoded, *kinds]:
        whole = decode_image(tf.constant(data)).numpy()
        height_width, read = random_crops._opened(tf.constant(data))
        assert tuple(height_width.numpy()) == whole.shape[:2]
        for _ in range(3):
            bottom, right = (generator.integers(1, side + 1) for side in whole.shape[:2])
            top, left = generator.integers(0, bottom), generator.integers(0, right)
            window = read(tf.constant([top, left, bottom - top, right - left], tf.int32))
            assert (window.numpy() == whole[top:bottom, left:right]).all()


def test_an_area_crop_is_its_window_resized(encoded):
    for data, seed in zip(encoded, seeds(len(encoded)), strict=True):
        whole = decode_image(tf.constant(data))
        top, left, height, width = area_window(tf.shape(whole)[:2], seed, AREA, ASPECT).numpy()
        window = whole[top : top + height, left : left + width]
        for kernel in KERNELS:
            plain = tf.image.resize(window, [64, 64], kernel, antialias=kernel in ("bilinear", "bicubic"))
            expected = tf.round(tf.clip_by_value(plain, 0, 255)).numpy()
            crop = random_area_crop(tf.constant(data), seed, 64, kernels=[kernel])
            assert crop.dtype == tf.uint8 and crop.shape == (64, 64, 3)
            assert np.abs(crop.numpy() - expected).max() <= (0 if kernel != "bicubic" else 1)


@pytest.mark.parametrize("size, shorter", [(64, (72, 140)), (224, (256, 480)), (224, (600, 700))])
def test_a_scale_crop_is_that_of_the_whole_photograph_resized(encoded, size, shorter):
    for data, seed in zip(encoded, seeds(len(encoded)), strict=True):
        whole = decode_image(tf.constant(data))
        scaled, (top, left) = scale_corner(tf.shape(whole)[:2], seed, size, shorter)
        resized = tf.image.resize(whole, tf.cast(scaled, tf.int32), "bilinear", antialias=True)
        expected = tf.round(resized)[top : top + size, left : left + size].numpy()
        crop = random_scale_crop(tf.constant(data), seed, size, shorter).numpy()
        # Where a pixel lies is rounded otherwise from another origin: some are one level off, none is more.
        differences = np.abs(crop - expected)
        assert differences.max() <= 1 and (differences > 0).mean() < 0.01


def test_a_square_crop_is_a_crop_of_the_central_square(encoded):
    for data, seed in zip(encoded, seeds(len(encoded)), strict=True):
        whole = decode_image(tf.constant(data))
        scaled, corner = square_corner(tf.shape(whole)[:2], seed, 224, 256)
        top, left = (corner - (scaled - 256) // 2).numpy()
        expected = apply_view(whole, View(256, (256, 256)))[top : top + 224, left : left + 224].numpy().astype(int)
        differences = np.abs(random_square_crop(tf.constant(data), seed).numpy() - expected)
        assert differences.max() <= 1 and (differences > 0).mean() < 0.01


def test_only_the_window_is_decoded(encoded, monkeypatch):
    def refused(data):
        raise AssertionError("the whole photograph was decoded")

    monkeypatch.setattr(random_crops, "decode_image", refused)
    for crop in CROPS.values():
        assert crop(tf.constant(encoded[0]), seeds(1)[0]).shape == (64, 64, 3)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.heavy) if name in ("scale", "square") else name for name in CROPS]
)
def test_a_seed_gives_the_same_crop_eagerly_and_in_a_pipeline(encoded, name):
    dataset = tf.data.Dataset.from_tensor_slices((encoded, seeds(len(encoded))))
    mapped = dataset.map(CROPS[name], num_parallel_calls=2)
    assert mapped.element_spec == tf.TensorSpec([64, 64, 3], tf.uint8)
    once, again = [np.stack(list(mapped.as_numpy_iterator())) for _ in range(2)]
    assert (once == again).all()
    eager = np.stack([CROPS[name](data, seed).numpy() for data, seed in dataset])
    assert (eager == once).all()
    others = np.stack([CROPS[name](data, seed + 1000).numpy() for data, seed in dataset])
    assert (others != once).any((1, 2, 3)).all()


@pytest.mark.parametrize("name", CROPS)
def test_a_damaged_file_and_one_that_claims_too_many_pixels_are_refused(name):
    enormous = bytearray(saved(Image.new("RGB", (8, 8)), "JPEG"))
    at = enormous.index(b"\xff\xc0") + 5
    enormous[at : at + 4] = b"\x7f\xff\x7f\xff"
    for data, message in (
        (bytes(enormous), "32767 x 32767 pixels; at most"),
        (b"\xff\xd8\xff\xe0 no more", "Invalid JPEG"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            CROPS[name](tf.constant(data), seeds(1)[0])
    with pytest.raises(tf.errors.InvalidArgumentError, match="Unknown image file format"):
        CROPS[name](tf.constant(b"not an image"), seeds(1)[0])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda *x: random_area_crop(*x, 0), "size is 0"),
        (lambda *x: random_area_crop(*x, 8, area=(0, 1)), "area"),
        (lambda *x: random_area_crop(*x, 8, area=(0.5, 1.2)), "at most 1"),
        (lambda *x: random_area_crop(*x, 8, aspect=(2, 1)), "aspect"),
        (lambda *x: random_area_crop(*x, 8, kernels=["lanczos"]), "lanczos"),
        (lambda *x: random_area_crop(*x, 8, kernels=[]), "kernels"),
        (lambda *x: random_scale_crop(*x, 257), "at most 256"),
        (lambda *x: random_scale_crop(*x, 8, (480, 256)), "shorter"),
        (lambda *x: random_square_crop(*x, 300), "at most 256"),
    ],
)
def test_arguments_out_of_range_are_named(encoded, call, message):
    with pytest.raises(UserError, match=message):
        call(tf.constant(encoded[0]), seeds(1)[0])
