"""Load on a served model: throughput and percentiles of the latency, from clients that wait and from ones that do not.

    python benchmarks/load.py http://127.0.0.1:8501/v1/models/photos --clients 1 4 16 64
    python benchmarks/load.py grpc://127.0.0.1:8500/photos --rate 20 40 --seconds 30 --images FOLDER
    python benchmarks/load.py --matrix

The first two load any server with TensorFlow Serving's interface, TensorFlow Serving itself included. `--clients N` is
a closed loop: N clients, each of which sends its next request when it has its answer. A server that stalls is then
asked less, and most of the stall is missing in the percentiles. `--rate R` is an open loop: requests arrive at random
(Poisson), R a second, whether earlier ones are answered or not, and a latency counts from the moment at which the
request was to be sent: there is no coordinated omission. What was not answered at the end counts with the time that it
had waited by then.

`--matrix` starts this package's endpoint with each engine, with and without batching, and measures 1, 4, 16 and 64
clients over REST and gRPC; rows go to results/load.csv. The generator runs in a process of its own and prints its share
of one processor: near 100 % it is the generator that is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import queue
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from reporting import append_row
from serving import free_ports, grpc_client, photographs, resident_mib, rest_client, running

PERCENTILES = (50, 90, 95, 99, 99.9, 100)
# Connections of the open loop: so many requests may be under way.
CONNECTIONS = 256
# After the last arrival, for answers that are still missing.
DRAIN_SECONDS = 10.0
WARM_UP_SECONDS = 2.0
Ask = Callable[[], None]


@dataclasses.dataclass
class Measured:
    """What one load gave.

    Attributes:
        latencies: in seconds, of the requests that were answered, from when they were to be sent.
        missing: in seconds, how long those had waited that were not answered when the measurement ended.
        errors: how many requests failed, by what was said.
        seconds: from the first request to the last answer.
        cpu: the generator's share of one processor.
    """

    latencies: list[float]
    missing: list[float]
    errors: Counter
    seconds: float
    cpu: float

    def figures(self) -> dict[str, float]:
        """Return throughput and percentiles; what is missing counts as at least its wait."""
        waits = [*self.latencies, *self.missing] or [float("nan")]
        values = np.percentile(waits, PERCENTILES) * 1000
        names = ["max_ms" if share == 100 else f"p{share:g}_ms" for share in PERCENTILES]
        return {
            "answers_s": len(self.latencies) / self.seconds,
            **dict(zip(names, values.tolist(), strict=True)),
            "n": len(self.latencies),
            "missing": len(self.missing),
            "errors": sum(self.errors.values()),
            "generator_cpu": self.cpu,
        }


def closed_loop(clients: Sequence[Ask], seconds: float) -> Measured:
    """Let each client ask again and again for a while."""
    latencies, errors, until = [], Counter(), time.perf_counter() + seconds

    def work(ask: Ask) -> None:
        while (began := time.perf_counter()) < until:
            try:
                ask()
            except Exception as error:
                errors[f"{type(error).__name__}: {error}"[:200]] += 1
            else:
                latencies.append(time.perf_counter() - began)

    began, cpu = time.perf_counter(), time.process_time()
    threads = [threading.Thread(target=work, args=[ask]) for ask in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed = time.perf_counter() - began
    return Measured(latencies, [], errors, passed, (time.process_time() - cpu) / passed)


def arrivals(rate: float, seconds: float, seed: int = 0) -> np.ndarray:
    """Return the times of a Poisson process, in seconds from its beginning."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, int(rate * seconds + 10 * (rate * seconds) ** 0.5 + 10)))
    return times[times < seconds]


def open_loop(clients: Sequence[Ask], rate: float, seconds: float, drain: float = DRAIN_SECONDS) -> Measured:
    """Send requests at random times, by whichever client is free, and count from the times at which they were due."""
    latencies, errors, waiting, lock = [], Counter(), queue.SimpleQueue(), threading.Lock()
    under_way: dict[int, float] = {}
    ended = threading.Event()

    def work(number: int, ask: Ask) -> None:
        while (planned := waiting.get()) is not None:
            with lock:
                under_way[number] = planned
            try:
                ask()
                failure = None
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"[:200]
            done = time.perf_counter()
            with lock:
                if ended.is_set():
                    return
                del under_way[number]
                if failure is None:
                    latencies.append(done - planned)
                else:
                    errors[failure] += 1

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in enumerate(clients)]
    for thread in threads:
        thread.start()
    began, cpu = time.perf_counter(), time.process_time()
    for at in arrivals(rate, seconds):
        time.sleep(max(0.0, began + at - time.perf_counter()))
        waiting.put(began + at)
    until = time.perf_counter() + drain
    while (not waiting.empty() or under_way) and time.perf_counter() < until:
        time.sleep(0.01)
    with lock:
        ended.set()
        now = time.perf_counter()
        missing = [now - planned for planned in under_way.values()]
    while not waiting.empty():
        planned = waiting.get()
        missing.append(now - planned)
    for _ in clients:
        waiting.put(None)
    passed = now - began
    return Measured(latencies, missing, errors, passed, (time.process_time() - cpu) / passed)


def make_clients(url: str, images: Sequence[bytes], count: int) -> list[Ask]:
    """Return clients of a model's URL, each with a connection and an image of its own."""
    scheme, _, rest = url.partition("://")
    chosen = itertools.islice(itertools.cycle(images), count)
    if scheme == "grpc":
        address, _, model = rest.partition("/")
        return [grpc_client(address, image, model) for image in chosen]
    if scheme != "http":
        raise SystemExit(f"{url}: give http://HOST:PORT/v1/models/NAME or grpc://HOST:PORT/NAME.")
    address, _, path = rest.partition("/")
    return [rest_client(address, image, f"/{path}:predict") for image in chosen]


def show(what: str, measured: Measured) -> dict[str, float]:
    """Print a line of figures and the errors; returns the figures."""
    figures = measured.figures()
    shown = ", ".join(f"{name.removesuffix('_ms')} {figures[name]:.0f}" for name in figures if name.endswith("_ms"))
    print(
        f"{what:<44} {figures['answers_s']:7.1f}/s; ms: {shown}; n={figures['n']}, missing {figures['missing']}, "
        f"errors {figures['errors']}; generator {figures['generator_cpu']:.0%}",
        flush=True,
    )
    for said, count in measured.errors.most_common(3):
        print(f"    {count} x {said}", flush=True)
    return figures


def load(url: str, images: Sequence[bytes], clients: Sequence[int], rates: Sequence[float], seconds: float) -> None:
    """Load one address, in closed and open loops."""
    for count in clients:
        asks = make_clients(url, images, count)
        closed_loop(asks, WARM_UP_SECONDS)
        show(f"{count} clients", closed_loop(asks, seconds))
    for rate in rates:
        asks = make_clients(url, images, CONNECTIONS)
        closed_loop(asks[:8], WARM_UP_SECONDS)
        show(f"{rate:g} requests/s", open_loop(asks, rate, seconds))


def matrix(source: str, images: Sequence[bytes], counts: Sequence[int], engines: Sequence[str], seconds: float) -> None:
    """Measure this package's endpoint with each engine, with and without batching, and append rows to results."""
    from keras_convnets import export
    from keras_convnets.commands.sources import open_model

    network = source.partition(":")[0]
    with tempfile.TemporaryDirectory() as folder:
        place = export.publish(open_model(source), name="model", to=folder, formats=("saved_model", "onnx"))
        for engine, batching in itertools.product(engines, (False, True)):
            port, rest_port = free_ports(2)
            command = [sys.executable, "-m", "keras_convnets", "serve", "--engine", engine, "--page", "false"]
            command += ["--model_name", "model", "--model_base_path", str(place.parent)]
            command += ["--port", str(port), "--rest_api_port", str(rest_port), "--max_queued_requests", "1000"]
            if batching:
                from keras_convnets.export import deployment

                template = Path(deployment.__file__).parent / "templates" / "batching.txt"
                command += ["--enable_batching=true", "--batching_parameters_file", str(template)]
            urls = {"REST": f"http://127.0.0.1:{rest_port}/v1/models/model", "gRPC": f"grpc://127.0.0.1:{port}/model"}
            (first,) = make_clients(urls["REST"], images, 1)
            with running(command, first, Path(folder) / "server.log") as (process, _):
                for interface, count in itertools.product(urls, counts):
                    asks = make_clients(urls[interface], images, count)
                    closed_loop(asks, WARM_UP_SECONDS)
                    kind = "batching" if batching else "alone"
                    measured = closed_loop(asks, seconds)
                    figures = show(f"{network} {engine} {kind} {interface} {count} clients", measured)
                    row = {"network": network, "engine": engine, "batching": kind, "interface": interface}
                    append_row("load", {**row, "clients": count, **figures, "server_mib": resident_mib(process)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", help="http://HOST:PORT/v1/models/NAME or grpc://HOST:PORT/NAME")
    parser.add_argument("--images", metavar="FOLDER", help="of JPEG files; default: scikit-learn's two photographs")
    parser.add_argument("--clients", nargs="*", type=int, help="closed loops; with --matrix by default 1 4 16 64")
    parser.add_argument("--rate", nargs="*", type=float, default=[], help="open loops, in requests a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each; default: %(default)s")
    parser.add_argument("--matrix", action="store_true", help="measure this package's endpoint")
    parser.add_argument("--source", default="ResNet20:cifar10", help="of --matrix; default: %(default)s")
    parser.add_argument("--engines", nargs="*", default=["tensorflow", "onnxruntime"], help="of --matrix")
    args = parser.parse_args()
    images = photographs(args.images)
    if args.matrix:
        matrix(args.source, images, args.clients or (1, 4, 16, 64), args.engines, args.seconds)
    elif args.url:
        load(args.url, images, args.clients or ([] if args.rate else [1, 4, 16]), args.rate, args.seconds)
    else:
        parser.error("give a model's URL, or --matrix.")


if __name__ == "__main__":
    main()
