"""GoogLeNet by every protocol and average on photographs, beside the same views in onnxruntime with Pillow's pixels.

    python benchmarks/protocols.py --photographs FOLDER --weights bvlc_googlenet.onnx

FOLDER holds files <wnid>_<anything>.JPEG. Ours is `keras_convnets.training.evaluation`; theirs is written here from the
papers' words, without TensorFlow: Pillow decodes and resizes, NumPy cuts and averages, onnxruntime runs the file
itself, for `dense` up to its last feature map. Prints a table of top-1 and top-5 with Wilson's 95 % intervals and of
how many images have the same top-1 answer, and appends it to results/protocols.csv. It takes hours on two cores; what
is known of each image is kept in --cache, and the same command resumes.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import onnx
import onnxruntime
from PIL import Image
from reporting import append_row

NAMES = ("center", "ten_crop", "dense", "crops144")
AVERAGES = ("mean", "max", "geometric")
SIDE, BATCH = 224, 36
CROPS144_SCALES, DENSE_SCALES = (256, 288, 320, 352), (224, 256, 384, 480, 640)
CAFFE_MEAN_BGR = np.array([104, 117, 123], np.float32)


def reduced(values: np.ndarray, axis: int) -> np.ndarray:
    """Return mean, maximum and geometric mean over an axis, behind each other along the last; of such, once more."""
    first = values.shape[-1] == 1000
    mean, high, logarithm = (values, values, values) if first else np.split(values, 3, axis=-1)
    logarithms = np.log(np.maximum(logarithm, np.finfo(np.float32).tiny))
    return np.concatenate([mean.mean(axis), high.max(axis), np.exp(logarithms.mean(axis))], axis=-1)


def ours(weights: str, paths: list[Path]) -> Callable[[str, list[int]], Iterator[np.ndarray]]:
    """Return a function: (protocol, positions) -> the three averages of each image, float32 [3000]."""
    import dataclasses

    from keras_convnets import GoogLeNet
    from keras_convnets.images.view import View
    from keras_convnets.training.data import FileSplit
    from keras_convnets.training.evaluation import prediction
    from keras_convnets.training.evaluation.protocols import Average, get_protocol

    model = GoogLeNet(weights=weights)
    view, averages = View.of_imagenet(SIDE, SIDE), Average("all", reduced, normalised=True)

    def answers(name: str, positions: list[int]) -> Iterator[np.ndarray]:
        split = FileSplit([paths[position] for position in positions], np.zeros(len(positions), np.int64))
        protocol = dataclasses.replace(get_protocol(name), average=averages)
        if name == "center":
            rows = prediction.predict_split(model, split.at_size(view, 0), BATCH)
            yield from reduced(rows[:, None], 1)
            return
        several = prediction.predict_whole_images if name == "dense" else prediction.predict_views
        for part in several(model, split, view, protocol, BATCH):
            yield from part

    return answers


def theirs(weights: str, paths: list[Path]) -> Callable[[str, list[int]], Iterator[np.ndarray]]:
    """Return the same function over onnxruntime and Pillow."""
    file = onnx.load(weights)
    pooled = next(node for node in file.graph.node if node.op_type in ("GlobalAveragePool", "AveragePool"))
    last = next(node for node in reversed(file.graph.node) if node.op_type == "Gemm")
    constants = {array.name: onnx.numpy_helper.to_array(array) for array in file.graph.initializer}
    kernel, bias = constants[last.input[1]], constants[last.input[2]]
    file.graph.output.append(onnx.ValueInfoProto(name=pooled.input[0]))
    for number, dim in enumerate(file.graph.input[0].type.tensor_type.shape.dim):
        if number != 1:
            dim.ClearField("dim_value")
            dim.dim_param = f"n{number}"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
    place, probabilities = session.get_inputs()[0].name, session.get_outputs()[0].name

    def run(output: str, images: np.ndarray) -> np.ndarray:
        data = (images[..., ::-1].astype(np.float32) - CAFFE_MEAN_BGR).transpose(0, 3, 1, 2)
        return session.run([output], {place: np.ascontiguousarray(data)})[0]

    def score_map(image: np.ndarray) -> np.ndarray:
        """The classifier on each 7x7 window of the last feature map: [places, 1000]."""
        maps = np.float64(run(pooled.input[0], image[None])[0])
        windows = np.lib.stride_tricks.sliding_window_view(maps, (7, 7), axis=(1, 2)).mean((3, 4))
        logits = windows.reshape(len(maps), -1).T @ kernel.T + bias
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        return exponentials / exponentials.sum(1, keepdims=True)

    def answers(name: str, positions: list[int]) -> Iterator[np.ndarray]:
        for position in positions:
            image = Image.open(paths[position]).convert("RGB")
            if name == "dense":
                shown = [np.asarray(resized(image, side)) for side in DENSE_SCALES]
                views = [reduced(score_map(view), 0) for whole in shown for view in (whole, whole[:, ::-1])]
                yield reduced(np.array(views), 0)
                continue
            views = pillow_views(image, name)
            parts = [run(probabilities, views[at : at + BATCH]) for at in range(0, len(views), BATCH)]
            yield reduced(np.concatenate(parts), 0)

    return answers


def resized(image: Image.Image, side: int) -> Image.Image:
    scale = side / min(image.size)
    return image.resize(tuple(max(side, round(length * scale)) for length in image.size), Image.Resampling.BILINEAR)


def pillow_views(image: Image.Image, name: str) -> np.ndarray:
    """Return the views of an image as the papers describe them, uint8 [views, 224, 224, 3]."""

    def cut(source: Image.Image, left: int, top: int, side: int) -> Image.Image:
        return source.crop((left, top, left + side, top + side))

    def five(square: Image.Image) -> list[Image.Image]:
        far = square.width - SIDE
        places = [(0, 0), (far, 0), (0, far), (far, far), (far // 2, far // 2)]
        return [cut(square, left, top, SIDE) for left, top in places]

    views = []
    for side in CROPS144_SCALES if name == "crops144" else (256,):
        whole = resized(image, side)
        width, height = whole.width - side, whole.height - side
        if name == "center":
            return np.asarray(cut(whole, (whole.width - SIDE) // 2, (whole.height - SIDE) // 2, SIDE))[None]
        if name == "ten_crop":
            views = five(cut(whole, width // 2, height // 2, side))
            break
        for left, top in ((0, 0), (width // 2, height // 2), (width, height)):
            square = cut(whole, left, top, side)
            views += [*five(square), square.resize((SIDE, SIDE), Image.Resampling.BILINEAR)]
    found = np.stack([np.asarray(view) for view in views])
    return np.concatenate([found, found[:, :, ::-1]])


def kept(answers: Callable, name: str, folder: Path, positions: list[int]) -> dict[int, np.ndarray]:
    """Return the answers of images, those from the cache that are there; each is kept as soon as it is known."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [position for position in positions if not (folder / f"{name}-{position}.npy").exists()]
    for position, row in zip(missing, answers(name, missing) if missing else (), strict=True):
        np.save(folder / f"{name}-{position}.npy", np.float32(row))
        print(f"{folder.name} {name} {position}", flush=True)
    return {position: np.load(folder / f"{name}-{position}.npy") for position in positions}


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a fraction, in percent."""
    z, fraction = 1.959964, hits / n
    centre, half = fraction + z * z / (2 * n), z * math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n))
    return 100 * (centre - half) / (1 + z * z / n), 100 * (centre + half) / (1 + z * z / n)


def report(name: str, found: np.ndarray, other: np.ndarray, labels: np.ndarray) -> None:
    """Print the rows of one protocol and append them to the results."""
    for average, rows, beside in zip(AVERAGES, np.split(found, 3, 1), np.split(other, 3, 1), strict=True):
        order = np.argsort(-rows, axis=1, kind="stable")[:, :5] == labels[:, None]
        n, top1, top5 = len(labels), int(order[:, 0].sum()), int(order.any(1).sum())
        same, theirs1 = int((rows.argmax(1) == beside.argmax(1)).sum()), int((beside.argmax(1) == labels).sum())
        shown = [
            f"{100 * hits / n:.1f} ({low:.1f} to {high:.1f})"
            for hits in (top1, top5)
            for low, high in [wilson(hits, n)]
        ]
        print(f"| {name} | {average} | {n} | {shown[0]} | {shown[1]} | {100 * theirs1 / n:.1f} | {same} |", flush=True)
        figures = {"n": n, "top1": top1 / n, "top5": top5 / n, "onnxruntime_top1": theirs1 / n, "same_top1": same / n}
        append_row("protocols", {"protocol": name, "average": average, **figures})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--protocols", default=",".join(NAMES))
    parser.add_argument("--step", type=int, default=1, help="every how many photographs are taken")
    parser.add_argument("--cache", type=Path, default=Path("protocols-cache"))
    parser.add_argument("--only", choices=("ours", "theirs"), help="fill the cache and report nothing")
    args = parser.parse_args()
    from keras_convnets.classes import imagenet_classes

    paths = sorted(args.photographs.glob("*.JPEG"))
    ids, positions = imagenet_classes().ids, list(range(0, len(paths), args.step))
    labels = np.array([ids.index(paths[position].name.split("_")[0]) for position in positions])
    makers = {"ours": ours, "theirs": theirs}
    sides = {key: maker(args.weights, paths) for key, maker in makers.items() if args.only in (None, key)}
    for name in args.protocols.split(","):
        found = {key: kept(answers, name, args.cache / key, positions) for key, answers in sides.items()}
        if args.only is None:
            rows = {key: np.array([part[position] for position in positions]) for key, part in found.items()}
            report(name, rows["ours"], rows["theirs"], labels)


if __name__ == "__main__":
    main()
