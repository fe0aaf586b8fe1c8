"""Our exports as ratios to Keras' own `model.export`: time of inference, time of exporting, size, memory of exporting.

    python benchmarks/exports.py [--rounds N] [--network NAME]
    python benchmarks/exports.py --memory [--network NAME ...] [--formats saved_model,onnx]

Every measurement is made in a separate process, one after the other: thread pools of two runtimes in one process
disturb each other. A round times each artifact once, in turn, at batch 1 and 8 on the same images; what is compared is
the median of the rounds' ratios. Aims: SavedModel at most 0.8 of Keras' own, ONNX at most 0.65 (batch 1) and 0.75
(batch 8) of Keras' SavedModel, exporting ResNet152 as SavedModel and ONNX with verification at most 0.5 of Keras' two
exports. The network has random weights; the statistics of batch normalisation are those of one batch of noise, so that
numbers are finite.

--memory exports networks, by default every registered one, and reports the largest memory of the export's process and
of those that verify it, together, in two ways: `peak_gib` counts the pages that these processes share, which are
TensorFlow's libraries, once, as the machine's memory holds them once; `rss_sum_gib` is the sum of what each reports as
resident, which counts them in each. Aim for SavedModel and ONNX: `peak_gib` at most 2 GiB and four times the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import psutil
from reporting import append_row

BATCHES = (1, 8)
GIB = 1024**3
SAMPLING_SECONDS = 0.02


def main() -> None:
    """Run the benchmark and append rows to results/exports.csv or results/exports_memory.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--network", nargs="+")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--formats", default="saved_model,onnx")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, *rest = args.worker
        print(json.dumps(WORKERS[name](*rest)))
    elif args.memory:
        from keras_convnets import list_models

        for network in args.network or list_models():
            measure_memory(network, args.formats)
    else:
        for network in args.network or ["ResNet50"]:
            compare(network, args.rounds)


def measure_memory(network: str, formats: str) -> None:
    """Export in a separate process; print and append the peak of its memory."""
    with tempfile.TemporaryDirectory() as folder:
        answer, peaks = in_process("export_ours", network, folder, formats)
    bound = 2 + 4 * answer["weights_bytes"] / GIB
    peak, rss_sum = (bytes_ / GIB for bytes_ in peaks)
    row = {
        "network": network,
        "formats": formats,
        "seconds": answer["seconds"],
        "peak_gib": peak,
        "rss_sum_gib": rss_sum,
    }
    row |= {"weights_gib": answer["weights_bytes"] / GIB, "two_gib_and_four_times_the_weights": bound}
    append_row("exports_memory", row)
    figures = f"peak {peak:.2f} GiB of {bound:.2f} (sum of RSS {rss_sum:.2f}), {answer['seconds']:.0f} s"
    print(f"{network:<16} {formats:<20} {figures}", flush=True)


def compare(network: str, rounds: int) -> None:
    """Export a network by us and by Keras, time what was exported, and report the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "net" / "1", Path(folder) / "keras"
        by_us, _ = in_process("export_ours", network, folder, "saved_model,onnx")
        by_keras, _ = in_process("export_keras", network, str(theirs))
        row = {"network": network, "rounds": rounds, "export_seconds": by_us["seconds"]}
        row["export_to_keras"] = by_us["seconds"] / by_keras["seconds"]
        row["saved_model_size_to_keras"] = size(ours / "variables", ours / "saved_model.pb") / size(theirs)
        row["onnx_size_to_keras"] = size(ours / "model.onnx") / size(theirs.with_suffix(".onnx"))
        ways = {"keras": theirs, "saved_model": ours, "onnx": ours / "model.onnx"}
        times = [{name: in_process("inference", str(path))[0] for name, path in ways.items()} for _ in range(rounds)]
    for batch in map(str, BATCHES):
        row[f"keras_batch{batch}_ms"] = 1e3 * float(np.median([found["keras"][batch] for found in times]))
        for name in ("saved_model", "onnx"):
            ratios = [found[name][batch] / found["keras"][batch] for found in times]
            row[f"{name}_batch{batch}_to_keras"] = float(np.median(ratios))
            row[f"{name}_batch{batch}_range"] = f"{min(ratios):.2f} to {max(ratios):.2f}"
    append_row("exports", row)
    print("\n".join(f"{key}: {value}" for key, value in row.items()), flush=True)


def in_process(worker: str, *arguments: str) -> tuple[Any, tuple[int, int]]:
    """Run a worker in a separate process.

    Returns:
        Its answer, and the largest memory of it and its children in bytes, sampled 50 times a second: with shared pages
        counted once, and as the sum of RSS.
    """
    command = [sys.executable, __file__, "--worker", worker, *arguments]
    with tempfile.TemporaryFile("w+") as output:
        process, peaks = psutil.Popen(command, stdout=output), (0, 0)
        while process.poll() is None:
            once, summed = resident(process)
            peaks = (max(peaks[0], once), max(peaks[1], summed))
            time.sleep(SAMPLING_SECONDS)
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
        output.seek(0)
        return json.loads(output.read().splitlines()[-1]), peaks


def resident(process: psutil.Process) -> tuple[int, int]:
    """Return the resident bytes of a process and its children: with shared pages counted once, and the sum of RSS.

    What each process has alone is added; of what each shares with others, the largest is taken.
    """
    alone, summed, shared = 0, 0, [0]
    for member in (process, *children(process)):
        try:
            memory = member.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        alone += memory.uss
        summed += memory.rss
        shared.append(memory.rss - memory.uss)
    return alone + max(shared), summed


def children(process: psutil.Process) -> Sequence[psutil.Process]:
    """Return the processes below one; none where it has ended."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def export_ours(network: str, folder: str, formats: str) -> dict[str, float]:
    """Worker: publish a network as <folder>/net/1."""
    from keras_convnets import export

    model = calibrated(network)
    seconds = seconds_of(lambda: export.publish(model, name="net", to=folder, formats=formats.split(",")))
    return {"seconds": seconds, "weights_bytes": 4 * model.count_params()}


def export_keras(network: str, place: str) -> dict[str, float]:
    """Worker: let Keras export a network as <place> and <place>.onnx."""
    model = calibrated(network)

    def both() -> None:
        model.export(place, verbose=False)
        model.export(f"{place}.onnx", format="onnx", verbose=False)

    return {"seconds": seconds_of(both)}


def inference(place: str) -> dict[int, float]:
    """Worker: return the median seconds of a call, by batch, of a SavedModel or an ONNX file."""
    call, shape = onnx_call(place) if place.endswith(".onnx") else saved_model_call(place)
    found = {}
    for batch in BATCHES:
        images = np.random.default_rng(1).integers(0, 256, (batch, *shape)).astype(np.float32)
        for _ in range(3):
            call(images)
        found[batch] = float(np.median([seconds_of(lambda: call(images)) for _ in range(24 // batch + 8)]))  # noqa: B023
    return found


def saved_model_call(place: str) -> tuple[Callable[[np.ndarray], Any], Sequence[int]]:
    """Return the call of ours, which takes uint8, or of Keras', and the shape of an image."""
    import tensorflow as tf

    signatures = tf.saved_model.load(place).signatures
    infer = signatures["predict_images" if "predict_images" in signatures else "serving_default"]
    ((name, images),) = infer.structured_input_signature[1].items()

    def call(floats: np.ndarray) -> None:
        for output in infer(**{name: tf.constant(floats, images.dtype)}).values():
            output.numpy()

    return call, images.shape[1:]


def onnx_call(place: str) -> tuple[Callable[[np.ndarray], Any], Sequence[int]]:
    """Return the call of an ONNX file in ONNX Runtime, and the shape of an image."""
    import onnxruntime

    session = onnxruntime.InferenceSession(place, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images}), session.get_inputs()[0].shape[1:]


def calibrated(name: str) -> Any:
    """Return a network, called once, whose batch normalisation has the statistics of one batch of noise."""
    import keras

    from keras_convnets import get_model

    keras.utils.set_random_seed(0)
    model = get_model(name)
    images = np.random.default_rng(0).uniform(0, 255, (2, *model.input_shape[1:])).astype(np.float32)
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in layers:
        layer.momentum = 0.0
    model(images, training=bool(layers))
    for layer in layers:
        layer.momentum = 0.9
    return model


def seconds_of(call: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def size(*places: Path) -> int:
    """Return the bytes of files and folders."""
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())


WORKERS = {"export_ours": export_ours, "export_keras": export_keras, "inference": inference}

if __name__ == "__main__":
    main()
