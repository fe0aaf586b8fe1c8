"""Our exports as ratios to Keras' own `model.export`, in one run: time of inference, time of exporting, size.

    python benchmarks/exports.py [--rounds N] [--network NAME]

The network has random weights; the statistics of batch normalisation are calibrated on one batch, so that numbers are
finite. Inference is timed by turns, A B A B, each round on the same images at batch 1 and 8; what is compared is the
median of the rounds' ratios. Aims: SavedModel at most 0.9 (batch 1) and 0.85 (batch 8) of Keras' own, ONNX at most 0.7
of Keras' SavedModel, exporting ResNet152 as SavedModel and ONNX with verification at most 0.5 of Keras' two exports.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import onnxruntime
import tensorflow as tf
from reporting import append_row

from keras_convnets import export, get_model


def calibrated(name: str) -> keras.Model:
    """Return a network whose batch normalisation has seen one batch of noise."""
    keras.utils.set_random_seed(0)
    model = get_model(name)
    images = np.random.default_rng(0).uniform(0, 255, (8, 224, 224, 3)).astype(np.float32)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images, training=True)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    return model


def seconds(call) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        call()
    return time.perf_counter() - began


def main() -> None:
    """Run the benchmark and append a row to results/exports.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--network", default="ResNet50")
    args = parser.parse_args()
    model = calibrated(args.network)
    with tempfile.TemporaryDirectory() as folder:
        theirs, theirs_onnx = Path(folder) / "keras", Path(folder) / "keras.onnx"
        row = {"network": args.network, "rounds": args.rounds}
        theirs_seconds = seconds(lambda: model.export(theirs, verbose=False))
        theirs_seconds += seconds(lambda: model.export(theirs_onnx, format="onnx", verbose=False))
        ours_seconds = seconds(lambda: export.publish(model, name="net", to=Path(folder) / "ours"))
        ours = Path(folder) / "ours" / "net" / "1"
        row["export_seconds"], row["export_to_keras"] = round(ours_seconds, 1), round(ours_seconds / theirs_seconds, 3)
        row["saved_model_size_to_keras"] = round(size(ours / "variables", ours / "saved_model.pb") / size(theirs), 3)
        row["onnx_size_to_keras"] = round(size(ours / "model.onnx") / size(theirs_onnx), 3)
        for batch in (1, 8):
            row |= inference(theirs, ours, batch, args.rounds)
    append_row("exports", row)
    print("\n".join(f"{key}: {value}" for key, value in row.items()))


def size(*places: Path) -> int:
    """Return the bytes of files and folders."""
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())


def inference(theirs: Path, ours: Path, batch: int, rounds: int) -> dict[str, float | str]:
    """Return medians, with quartiles, of the ratios of inference times to Keras' own SavedModel."""
    images = np.random.default_rng(1).integers(0, 256, (batch, 224, 224, 3)).astype(np.uint8)
    floats = images.astype(np.float32)
    keras_model, our_model = tf.saved_model.load(str(theirs)), tf.saved_model.load(str(ours))
    by_keras, by_us = keras_model.signatures["serving_default"], our_model.signatures["predict_images"]
    (input_name,) = by_keras.structured_input_signature[1]
    session = onnxruntime.InferenceSession(str(ours / "model.onnx"), providers=["CPUExecutionProvider"])
    ways = {
        "keras": lambda: by_keras(**{input_name: tf.constant(floats)}),
        "saved_model": lambda: by_us(images=tf.constant(images)),
        "onnx": lambda: session.run(None, {"images": floats}),
    }
    for call in ways.values():
        call()
    rows = [{name: seconds(call) for name, call in ways.items()} for _ in range(rounds)]
    found = {}
    for name in ("saved_model", "onnx"):
        shares = [row[name] / row["keras"] for row in rows]
        found[f"{name}_batch{batch}_to_keras"] = float(np.median(shares))
        found[f"{name}_batch{batch}_quartiles"] = "{:.2f} to {:.2f}".format(*np.quantile(shares, (0.25, 0.75)))
    return found


if __name__ == "__main__":
    main()
