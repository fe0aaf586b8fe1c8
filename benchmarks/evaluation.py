"""What evaluation costs beside the bare network: images/s of `center`, the time of V views, the memory of 144 crops.

    python benchmarks/evaluation.py

The bare network sees the same number of images, decoded and cropped beforehand, in batches of the same size. The two
are timed in turn; medians of the rounds' ratios, with lowest and highest, are printed and appended to
results/evaluation.csv. Aims: `center` at least 0.95 of the bare network's images/s; V views at most 1.05 times V times
the network's time for one view; at most 2 GiB resident for 144 crops of photographs of 12 megapixels.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from PIL import Image
from reporting import append_row

NETWORKS, BATCH = ("GoogLeNet", "ResNet50"), 32


def photograph(height: int, width: int, seed: int) -> bytes:
    """Return a JPEG about as hard to decode as a photograph: coarse shapes and some grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 40, width // 40, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-6, 7, (height, width, 1), np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(np.clip(pixels + grain, 0, 255))).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def photographs(folder: Path, count: int, height: int, width: int):
    """Return a data set of made photographs with ImageNet's classes."""
    from keras_convnets import imagenet_classes
    from keras_convnets.training.data import DataSet, FileSplit

    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(photograph(height, width, number))
    split = FileSplit(paths, np.arange(count))
    split.checked = True
    return DataSet("photographs", imagenet_classes().names, True, {"test": split}, None)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratios(name: str, images: int, rounds: int) -> None:
    """Report `center` and `ten_crop` of one network, each beside the bare network."""
    import keras_convnets
    from keras_convnets.prediction import compiled
    from keras_convnets.training import evaluate
    from keras_convnets.training.evaluation.prediction import even_batches

    model = getattr(keras_convnets, name)()
    pixels = np.random.default_rng(0).integers(0, 256, (even_batches(images, BATCH), 224, 224, 3), np.uint8)
    infer = compiled(model)

    def bare() -> None:
        for _ in range(0, images, len(pixels)):
            infer(pixels)

    with tempfile.TemporaryDirectory() as folder:
        many = photographs(Path(folder), images, 375, 500)
        few = photographs(Path(folder), max(1, images // 10), 375, 500)

        def center() -> None:
            evaluate(model, many, protocol="center(side=256)", batch_size=BATCH)

        def ten_crop() -> None:
            evaluate(model, few, protocol="ten_crop", batch_size=BATCH)

        for work in (bare, center, ten_crop):
            work()
        rows = [(seconds(bare), seconds(center), seconds(ten_crop)) for _ in range(rounds)]
    report(f"{name} center, images/s of bare", [one / other for one, other, _ in rows])
    report(f"{name} ten_crop, of 10 x bare", [other / one for one, _, other in rows])


def memory(images: int) -> None:
    """Evaluate by 144 crops in this process and print its peak resident memory in MiB."""
    from keras_convnets import GoogLeNet
    from keras_convnets.training import evaluate

    with tempfile.TemporaryDirectory() as folder:
        evaluate(GoogLeNet(), photographs(Path(folder), images, 3000, 4000), protocol="crops144")
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


def report(what: str, values: list[float]) -> None:
    print(
        f"{what:<36} {np.median(values):.3f} ({min(values):.3f} to {max(values):.3f}, {len(values)} rounds)", flush=True
    )
    figures = {"median": float(np.median(values)), "lowest": float(min(values)), "highest": float(max(values))}
    append_row("evaluation", {"what": what, "rounds": len(values), **figures})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=160, help="of `center`; ten_crop has a tenth")
    parser.add_argument("--large", type=int, default=4, help="photographs of 12 megapixels, by 144 crops")
    parser.add_argument("--only", choices=("time", "memory"))
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        memory(args.large)
        return
    if args.only != "memory":
        for name in NETWORKS:
            ratios(name, args.images, args.rounds)
    if args.only != "time":
        command = [sys.executable, __file__, "--memory", "--large", str(args.large)]
        peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        report(f"144 crops of {args.large} x 12 MP, MiB", [peak])


if __name__ == "__main__":
    main()
