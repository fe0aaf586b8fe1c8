"""Throughput of the local endpoint beside the bare engine on the same images, decoding included.

    python benchmarks/serving_throughput.py [FOLDER OF JPEG FILES]

ResNet-50 with random weights, 16 clients that each send one JPEG at a time, by gRPC and by REST, with batching on. The
bare engine runs the same images in batches of 16 in this process. Server and engine are measured in turn in short
windows, many times, so that what else the machine does meets both; ratios are of neighbouring windows. Printed and
appended to results/serving_throughput.csv: median, lowest and highest ratio, p50 and p99 of the answers' times, the
batches that the server ran, the time from start to first answer and the resident memory, for both engines. FastAPI
with `model.predict`, LitServe and BentoML with ONNX Runtime are measured beside them where they are installed.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import itertools
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from reporting import append_row
from serving import free_ports, grpc_client, photographs, resident_mib, rest_client, running

CLIENTS, BATCH, WAIT_MICROS, NAME = 16, 16, 10_000, "resnet50"
PREDICT = f"/v1/models/{NAME}:predict"
# Each with the engine that it runs.
PEERS = {"fastapi": "tensorflow", "litserve": "onnxruntime", "bentoml": "onnxruntime"}


def export_network(folder: Path) -> None:
    import keras

    from keras_convnets import ResNet50
    from keras_convnets.card import card_of_model
    from keras_convnets.export.folding import inference_network
    from keras_convnets.export.formats.onnx import write_onnx
    from keras_convnets.export.formats.saved_model import write_saved_model

    keras.utils.set_random_seed(0)
    model = ResNet50()
    model.save(folder.parent / "network.keras")
    card, network = card_of_model(model), inference_network(model)
    write_saved_model(network, card, folder)
    write_onnx(network, card, folder / "model.onnx")
    (folder / "assets.extra").mkdir()
    card.write(folder / "assets.extra")


def serve(engine: str, base_path: str, ports: list[int]) -> None:
    """Serve in this process, and write the size of every batch to the standard error."""
    import logging

    from keras_convnets.export.serving import ModelServer, serve_forever
    from keras_convnets.export.serving.scheduling.batching import BatchingParameters

    logging.basicConfig(format="%(message)s")
    logging.getLogger("keras_convnets.export.serving.scheduling.batching").setLevel(logging.DEBUG)
    # Without a wait the first of several concurrent requests would run alone.
    batching = BatchingParameters(max_batch_size=BATCH, batch_timeout_micros=WAIT_MICROS)
    port, rest_api_port = ports
    models = {NAME: base_path}
    serve_forever(ModelServer(models, port=port, rest_api_port=rest_api_port, engine=engine, batching=batching))


def window(clients: list[Callable[[], None]], seconds: float) -> tuple[float, list[float]]:
    """Let all clients ask for a while; returns answers per second and the time that each took."""
    times, failures = [], []
    until = time.perf_counter() + seconds

    def work(ask: Callable[[], None]) -> None:
        while (began := time.perf_counter()) < until:
            try:
                ask()
            except Exception as error:
                failures.append(error)
                return
            times.append(time.perf_counter() - began)

    began = time.perf_counter()
    threads = [threading.Thread(target=work, args=[ask]) for ask in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return len(times) / (time.perf_counter() - began), times


def bare_engine(kind: str, path: Path, images: list[bytes]) -> Callable[[float], float]:
    from keras_convnets.export.serving.engines.onnx import OnnxEngine
    from keras_convnets.export.serving.engines.saved_model import SavedModelEngine

    engine = {"tensorflow": SavedModelEngine, "onnxruntime": OnnxEngine}[kind](path)
    batch = np.array(list(itertools.islice(itertools.cycle(images), BATCH)), object)
    engine.run("serving_default", {"image_bytes": batch})

    def measure(seconds: float) -> float:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            engine.run("serving_default", {"image_bytes": batch})
            count += BATCH
        return count / (time.perf_counter() - began)

    return measure


def batch_sizes(log: Path) -> collections.Counter:
    return collections.Counter(int(size) for size in re.findall(r"Running a batch of (\d+)", log.read_text()))


def report(what: str, ratios: list[float], times: list[float], speeds: list[float], **more: object) -> None:
    p50, p99 = (1000 * np.percentile(times, [50, 99])).tolist()
    ratio = float(np.median(ratios))
    print(
        f"{what:<24} {np.median(speeds):7.1f} images/s, {ratio:.3f} of the bare engine ({min(ratios):.3f} to "
        f"{max(ratios):.3f}, {len(ratios)} windows); p50 {p50:.0f} ms, p99 {p99:.0f} ms; {more}",
        flush=True,
    )
    row = {"what": what, "windows": len(ratios), "median": ratio, "lowest": min(ratios), "highest": max(ratios)}
    append_row(
        "serving_throughput", {**row, "images_s": float(np.median(speeds)), "p50_ms": p50, "p99_ms": p99, **more}
    )


def in_turn(ways: dict[str, list[Callable[[], None]]], bare: Callable[[float], float], args) -> dict[str, tuple]:
    """Measure the bare engine and each way in turn; returns ratios, times and speeds by way."""
    found = {name: ([], [], []) for name in ways}
    for clients in ways.values():
        window(clients, args.seconds)
    for _ in range(args.windows):
        for name, clients in ways.items():
            before = bare(args.seconds)
            speed, times = window(clients, args.seconds)
            ratios, all_times, speeds = found[name]
            ratios.append(speed / ((before + bare(args.seconds)) / 2))
            all_times += times
            speeds.append(speed)
    return found


def measure_engine(kind: str, folder: Path, images: list[bytes], args) -> None:
    port, rest_port = free_ports(2)
    command = [sys.executable, __file__, "--serve", kind, str(folder), str(port), str(rest_port)]
    log = folder / f"{kind}.log"
    with running(command, rest_client(f"127.0.0.1:{rest_port}", images[0], PREDICT), log) as (process, start):
        chosen = list(itertools.islice(itertools.cycle(images), CLIENTS))
        ways = {
            "grpc": [grpc_client(f"127.0.0.1:{port}", image, NAME) for image in chosen],
            "rest": [rest_client(f"127.0.0.1:{rest_port}", image, PREDICT) for image in chosen],
        }
        found = in_turn(ways, bare_engine(kind, folder / "1", images), args)
        memory = resident_mib(process)
    sizes = batch_sizes(log)
    mean = sum(size * count for size, count in sizes.items()) / sum(sizes.values())
    for way, measured in found.items():
        report(f"{kind} {way}", *measured, start_s=start, resident_mib=memory, mean_batch=mean)
    print(f"{kind} batches: {dict(sorted(sizes.items()))}", flush=True)


def measure_peer(name: str, folder: Path, images: list[bytes], args) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, str(Path(__file__).with_name("serving_peers.py")), name, str(folder), str(port)]
    with running(command, rest_client(f"127.0.0.1:{port}", images[0], "/predict"), folder / f"{name}.log") as (
        process,
        start,
    ):
        chosen = itertools.islice(itertools.cycle(images), CLIENTS)
        ways = {"rest": [rest_client(f"127.0.0.1:{port}", image, "/predict") for image in chosen]}
        found = in_turn(ways, bare_engine(PEERS[name], folder / "1", images), args)
        report(f"{name} rest", *found["rest"], start_s=start, resident_mib=resident_mib(process), mean_batch="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="?", help="a folder of JPEG files; default: scikit-learn's two photographs")
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each window")
    parser.add_argument("--engines", nargs="*", default=["tensorflow", "onnxruntime"])
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        engine, base_path, *ports = args.serve
        serve(engine, base_path, [int(port) for port in ports])
        return
    images = photographs(args.images)
    with tempfile.TemporaryDirectory() as folder:
        export_network(Path(folder) / "1")
        for kind in args.engines:
            measure_engine(kind, Path(folder), images, args)
        for name in args.peers:
            if importlib.util.find_spec(name):
                measure_peer(name, Path(folder), images, args)


if __name__ == "__main__":
    main()
