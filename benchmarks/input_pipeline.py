"""Photographs/s per core of the random area crop, beside other ways to the same kind of crop.

    python benchmarks/input_pipeline.py [folder]

`ours` is `random_area_crop` to 224 x 224 in a tf.data pipeline. `pillow` is torchvision's `RandomResizedCrop` written
out: Pillow decodes the whole photograph, crops and resizes, bilinear. `full` decodes the whole photograph in
TensorFlow, then crops and resizes with `tf.image.resize`. `bare` decodes just the window and resizes with
`tf.image.resize`, with windows drawn beforehand and no look at the header: the least a pipeline of stock operations can
do. `decode` is the first half of that, decoding the window alone: no way of resizing gets beyond it.

All of them see the photographs in the same order, from memory, with windows drawn by the same rule. Each has one core
and one thread, and what is counted is the processor's time, so that others on the machine disturb little. They are
timed in turn, several rounds; the medians of the ratios, with lowest and highest, are printed and appended to
results/input_pipeline.csv. Aims: ours / pillow at least 1.9, ours / full 1.35, ours / bare 0.9. The photographs are
those of the folder, or else scikit-learn's two. `load` is what the machine had to do when it began: processes that
share caches and memory slow down what moves many pixels more than what decodes.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from PIL import Image
from reporting import append_row

from keras_convnets.training.random_crops import area_window, random_area_crop

SIZE, AREA, ASPECT = 224, (0.08, 1.0), (3 / 4, 4 / 3)
SUFFIXES = {".jpg", ".jpeg"}


def read_photographs(folder: Path | None) -> tuple[str, list[bytes]]:
    if folder is None:
        import sklearn.datasets

        folder = Path(sklearn.datasets.__file__).parent / "images"
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise SystemExit(f"{folder} has no JPEG photographs.")
    return folder.name, [path.read_bytes() for path in paths]


def pillow_window(width: int, height: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw left, top, width and height as torchvision does."""
    for _ in range(10):
        area = width * height * generator.uniform(*AREA)
        aspect = math.exp(generator.uniform(*np.log(ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1)), w, h
    w, h = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def pillow(photographs: list[bytes]) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(0)
    while True:
        for data in photographs:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            left, top, width, height = pillow_window(*image.size, generator)
            window = image.crop((left, top, left + width, top + height))
            yield np.asarray(window.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def resized(window: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.round(tf.image.resize(window, [SIZE, SIZE], "bilinear", antialias=True)), tf.uint8)


def ours(data: tf.Tensor, seed: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    return random_area_crop(data, seed, SIZE, AREA, ASPECT)


def full(data: tf.Tensor, seed: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
    top, left, height, width = tf.unstack(area_window(tf.shape(image)[:2], seed, AREA, ASPECT))
    return resized(image[top : top + height, left : left + width])


def decode(data: tf.Tensor, _: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    return tf.image.decode_and_crop_jpeg(data, window, channels=3, dct_method="INTEGER_ACCURATE")


def bare(data: tf.Tensor, seed: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    return resized(decode(data, seed, window))


def pipeline(photographs: list[bytes], function: Callable, drawn: int = 20) -> Iterator[tf.Tensor]:
    """Return an endless stream; windows are drawn beforehand for so many passes, and come again after that."""
    sizes = [tf.io.extract_jpeg_shape(data)[:2] for data in photographs]
    seeds = tf.stack([tf.zeros([drawn * len(sizes)], tf.int64), tf.range(drawn * len(sizes), dtype=tf.int64)], 1)
    windows = [area_window(size, seed, AREA, ASPECT) for size, seed in zip(sizes * drawn, seeds, strict=True)]
    numbers = tf.data.Dataset.from_tensor_slices((tf.tile(tf.range(len(sizes)), [drawn]), seeds, tf.stack(windows)))
    data = tf.constant(photographs)
    crops = numbers.repeat().map(lambda at, seed, window: function(data[at], seed, window), num_parallel_calls=1)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    return iter(crops.with_options(options))


def per_second(stream: Iterator, count: int) -> float:
    """Return photographs a second of processor time, of all threads of this process."""
    began = time.process_time()
    for _ in range(count):
        next(stream)
    return count / (time.process_time() - began)


def one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="photographs, JPEG, in folders or not")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--passes", type=int, default=2, help="over the photographs in a round")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    one_core()
    name, photographs = read_photographs(args.folder)
    streams = {"pillow": pillow(photographs)}
    streams |= {function.__name__: pipeline(photographs, function) for function in (ours, full, bare, decode)}
    count = args.passes * len(photographs)
    for stream in streams.values():
        per_second(stream, len(photographs))
    rounds = [{way: per_second(stream, count) for way, stream in streams.items()} for _ in range(args.rounds)]
    row = {"photographs": f"{name} ({len(photographs)})", "size": SIZE, "rounds": args.rounds, "passes": args.passes}
    row["load"] = load
    for way in streams:
        row[f"{way}_per_s"] = float(np.median([figures[way] for figures in rounds]))
        print(f"{way:<7} {row[f'{way}_per_s']:8.1f} photographs/s per core (median of {args.rounds})")
    for way in ("pillow", "full", "bare", "decode"):
        ratios = [figures["ours"] / figures[way] for figures in rounds]
        row |= {f"ours_to_{way}": float(np.median(ratios)), f"{way}_lowest": min(ratios), f"{way}_highest": max(ratios)}
        print(f"ours / {way:<7} {np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    append_row("input_pipeline", row)


if __name__ == "__main__":
    main()
