"""A long run of the endpoint: valid and hostile requests together, while versions come and go; its memory over time.

    python benchmarks/soak.py [--requests 100000] [--alone] [--figure docs/soak.png]

Serves a small network from a repository, in a process of its own. Clients over REST and gRPC send images whose answers
are known, and check each; others send what a stranger might: bytes that are no image, broken JSON, wrong shapes and
types, numbers without end, bodies too large, half a request, requests whose answers nobody reads, unknown models.
Meanwhile versions are published, rolled back, taken back and removed. Each version answers otherwise, so that an answer
by a wrong one is seen. Fails if a valid request fails or is answered wrongly. Appends a row to results/soak.csv; the
figure shows the server's resident memory. Aim: growth in the last half under 1 %.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gzip
import http.client
import json
import os
import random
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from reporting import append_row, machine
from serving import free_ports, resident_mib, rest_client, running

NAME, SIDE, CLASSES = "small", 32, 10
# So many networks are made once; version v is a copy of number v % KINDS.
KINDS = 5
KEPT = 3
PUBLISH_SECONDS = 4.0
SAMPLE_SECONDS = 1.0
# The shares of clients.
REST_CLIENTS, GRPC_CLIENTS, HOSTILE_CLIENTS = 4, 4, 2


def make_networks(folder: Path) -> list[np.ndarray]:
    """Write the SavedModels, and return what each answers for the images of `images()`."""
    import keras

    from keras_convnets import CIFARResNet
    from keras_convnets.card import card_of_model
    from keras_convnets.export.folding import inference_network
    from keras_convnets.export.formats.saved_model import write_saved_model

    keras.utils.set_random_seed(0)
    model = CIFARResNet(8, input_shape=(SIDE, SIDE, 3), classes=CLASSES)
    head = model.get_layer("predictions")
    kernel = 0.02 * np.random.default_rng(0).standard_normal(head.kernel.shape)
    answers = []
    for kind in range(KINDS):
        head.set_weights([kernel, np.eye(CLASSES)[kind]])
        write_saved_model(inference_network(model), card_of_model(model), folder / str(kind))
        answers.append(model.predict(images(), verbose=0))
    return answers


def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (8, SIDE, SIDE, 3), np.uint8)


class Versions(threading.Thread):
    """Publishes, rolls back, takes back and removes versions, until told to stop."""

    def __init__(self, root: Path, networks: Path):
        super().__init__(daemon=True)
        self._root, self._networks = root, networks
        self.stopped = threading.Event()
        self.number = 0
        self.done: Counter = Counter()
        self.failure: Exception | None = None

    def publish(self) -> None:
        """Publish the next version, whole, by rename."""
        from keras_convnets.export import model_config
        from keras_convnets.files import commit_folder, temporary_folder

        self.number += 1
        target = self._root / NAME / str(self.number)
        with temporary_folder(target) as temporary:
            shutil.copytree(self._networks / str(self.number % KINDS), temporary, dirs_exist_ok=True)
            commit_folder(temporary, target)
        model_config.register(self._root, NAME)
        self.done["published"] += 1

    def run(self) -> None:
        """Change the versions until told to stop."""
        from keras_convnets.export import repository

        try:
            turn = 0
            while not self.stopped.wait(PUBLISH_SECONDS):
                turn += 1
                if turn % 4 == 2:
                    repository.rollback(self._root, NAME)
                    self.done["rolled back"] += 1
                elif turn % 4 == 3:
                    repository.serve_latest(self._root, NAME)
                    self.done["taken back"] += 1
                else:
                    self.publish()
                    self.done["removed"] += len(repository.prune(self._root, KEPT, NAME))
        except Exception as error:
            self.failure = error


class Clients:
    """Asks and checks; counts what was asked, and keeps what went wrong."""

    def __init__(self, ports: tuple[int, int], answers: list[np.ndarray], total: int):
        self.port, self.rest_port = ports
        self.answers = answers
        self.total = total
        self.counts: Counter = Counter()
        self.wrong: list[str] = []
        self._pngs = [encode_png(image) for image in images()]
        self._lock = threading.Lock()

    @property
    def sent(self) -> int:
        """How many requests were sent."""
        return sum(self.counts.values())

    def threads(self) -> list[threading.Thread]:
        """Return the clients' threads, not started."""
        kinds: list[Callable[[int], None]] = [self.rest] * REST_CLIENTS + [self.grpc] * GRPC_CLIENTS
        kinds += [self.hostile] * HOSTILE_CLIENTS
        return [threading.Thread(target=kind, args=[number], daemon=True) for number, kind in enumerate(kinds)]

    def note(self, kind: str, wrong: str | None = None) -> None:
        """Count a request, and keep what was wrong with its answer."""
        with self._lock:
            self.counts[kind] += 1
            if wrong is not None:
                self.wrong.append(f"{kind}: {wrong}"[:500])

    def rest(self, seed: int) -> None:
        """Send valid requests over REST and check the answers."""
        rng, connection = random.Random(seed), http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=60)
        while self.sent < self.total:
            index = rng.randrange(len(self._pngs))
            body = json.dumps({"instances": [{"b64": base64.b64encode(self._pngs[index]).decode()}]})
            try:
                connection.request("POST", f"/v1/models/{NAME}:predict", body)
                response = connection.getresponse()
                status, text = response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self.note("valid REST", repr(error))
                continue
            if status != 200:
                self.note("valid REST", f"{status} {text[:200]!r}")
                continue
            got = np.array(json.loads(text)["predictions"][0])
            # REST does not say which version answered: it must be one of them.
            near = min(float(np.abs(got - answer[index]).max()) for answer in self.answers)
            self.note("valid REST", None if near < 1e-4 else f"differs by {near}")

    def grpc(self, seed: int) -> None:
        """Send valid requests over gRPC and check the answers by the version that gave them."""
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        rng = random.Random(seed)
        with grpc.insecure_channel(f"127.0.0.1:{self.port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            while self.sent < self.total:
                index = rng.randrange(len(self._pngs))
                request = predict_pb2.PredictRequest()
                request.model_spec.name = NAME
                request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([self._pngs[index]], tf.string))
                try:
                    answer = stub.Predict(request, timeout=60)
                except grpc.RpcError as error:
                    self.note("valid gRPC", f"{error.code()} {error.details()}")
                    continue
                version = answer.model_spec.version.value
                got = np.array(answer.outputs["probabilities"].float_val)
                apart = float(np.abs(got - self.answers[version % KINDS][index]).max())
                self.note("valid gRPC", None if apart < 1e-4 else f"version {version} differs by {apart}")

    def hostile(self, seed: int) -> None:
        """Send what a stranger might; answered with success, it is wrong."""
        rng, ways = random.Random(seed), self.hostile_ways()
        while self.sent < self.total:
            name, way = rng.choice(ways)
            wrong = None
            try:
                way()
            except (OSError, http.client.HTTPException):
                pass  # The server may close the connection of a client like these.
            except Exception as error:
                wrong = repr(error)
            self.note(f"hostile: {name}", wrong)
            # Hostile clients are as many as others, but what they send may take long to refuse.
            time.sleep(0.005)

    def hostile_ways(self) -> list[tuple[str, Callable[[], None]]]:
        """Return the kinds of hostile requests by name."""
        predict = f"/v1/models/{NAME}:predict"
        image = base64.b64encode(self._pngs[0]).decode()
        nested = "[" * 5000 + "]" * 5000
        bodies = {
            "no image": json.dumps({"instances": [{"b64": base64.b64encode(os.urandom(3000)).decode()}]}),
            "half an image": json.dumps({"instances": [{"b64": image[: len(image) // 8 * 4]}]}),
            "broken JSON": '{"instances": [{"b64": "' + image,
            "deep JSON": f'{{"instances": {nested}}}',
            "a number without end": '{"signature_name": "predict_images", "instances": [' + "9" * 20_000 + "]}",
            "wrong shape": json.dumps({"signature_name": "predict_images", "instances": [[[1, 2], [3]]]}),
            "too many rows": json.dumps({"instances": [{"b64": image}] * 300}),
            "unknown signature": json.dumps({"signature_name": "x" * 1000, "instances": [1]}),
        }
        ways = [(name, lambda body=body: self._post(predict, body)) for name, body in bodies.items()]
        bomb = gzip.compress(b" " * (20 * 2**20))
        ways += [
            ("unknown model", lambda: self._post(f"/v1/models/m{random.random()}:predict", "{}")),
            ("no route", lambda: self._post("/v1/models/a/b/c:predict", "{}")),
            ("gzip that inflates", lambda: self._post(predict, bomb, {"Content-Encoding": "gzip"})),
            ("body too large", self._too_large),
            (
                "half a request",
                lambda: self._raw(b"POST /v1/models/small:predict HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"),
            ),
            ("no HTTP", lambda: self._raw(os.urandom(2000))),
            ("unread answer", lambda: self._raw(self._request(predict, bodies["too many rows"]))),
            ("no protocol buffer", self._garbage),
        ]
        return ways

    def _post(self, path: str, body: str | bytes, headers: dict[str, str] | None = None) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", path, body, headers or {})
            response = connection.getresponse()
            response.read()
            if response.status < 400:
                raise RuntimeError(f"answered with {response.status}")

    def _raw(self, data: bytes) -> None:
        with socket.create_connection(("127.0.0.1", self.rest_port), 10) as connection:
            connection.sendall(data)
            time.sleep(0.02)

    @staticmethod
    def _request(path: str, body: str) -> bytes:
        return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    def _too_large(self) -> None:
        head = b"POST /v1/models/small:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 400000000\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.rest_port), 10) as connection:
            connection.sendall(head + b" " * 2**20)

    def _garbage(self) -> None:
        import grpc

        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
            with contextlib.suppress(grpc.RpcError):
                call(os.urandom(1000), timeout=30)


def encode_png(image: np.ndarray) -> bytes:
    from keras_convnets.images.files import encode_png as encode

    return encode(image)


def growth(memory: list[float]) -> float:
    """Return how much memory grew over the last half of its samples, by a straight line through them, as a share."""
    half = np.array(memory[len(memory) // 2 :])
    slope = np.polyfit(np.arange(len(half)), half, 1)[0]
    return float(slope * (len(half) - 1) / half.mean())


def soak(folder: Path, total: int, batching: bool = True) -> tuple[Clients, Versions, list[tuple[float, int, float]]]:
    """Run the server and all clients; returns them, and (seconds, requests, resident MiB) over time."""
    answers = make_networks(folder / "networks")
    root = folder / "repository"
    versions = Versions(root, folder / "networks")
    versions.publish()
    port, rest_port = free_ports(2)
    command = [sys.executable, "-m", "keras_convnets", "serve", str(root), "--engine", "tensorflow"]
    command += ["--port", str(port), "--rest_api_port", str(rest_port), f"--enable_batching={batching}"]
    command += ["--file_system_poll_wait_seconds", "0.5"]
    clients = Clients((port, rest_port), answers, total)
    samples = []
    first = rest_client(f"127.0.0.1:{rest_port}", clients._pngs[0], f"/v1/models/{NAME}:predict")
    with running(command, first, folder / "server.log") as (process, _):
        began, threads = time.perf_counter(), clients.threads()
        versions.start()
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            samples.append((time.perf_counter() - began, clients.sent, resident_mib(process)))
            if len(samples) % 30 == 0:
                print(f"{clients.sent:,} requests, {samples[-1][2]:.0f} MiB", flush=True)
            time.sleep(SAMPLE_SECONDS)
        versions.stopped.set()
        versions.join()
    return clients, versions, samples


def draw(samples: list[tuple[float, int, float]], path: str) -> None:
    """Draw the server's memory over the requests."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    axes.plot([sent for _, sent, _ in samples], [memory for *_, memory in samples], color="#0072b2", linewidth=1.2)
    axes.axvline(samples[len(samples) // 2][1], color="#999999", linestyle=":", linewidth=1)
    axes.set(
        xlabel="requests (dotted: half of the time)", ylabel="resident memory, MiB", ylim=(0, None), xlim=(0, None)
    )
    axes.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--alone", action="store_true", help="run requests without batching")
    parser.add_argument("--figure", metavar="FILE", help="a PNG of the memory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clients, versions, samples = soak(Path(folder), args.requests, not args.alone)
    memory = [value for *_, value in samples]
    grown = growth(memory)
    for name, count in sorted(clients.counts.items()):
        print(f"{count:8,} {name}")
    print(f"versions: {dict(versions.done)}; {samples[-1][0]:.0f} s on {machine()}")
    held = f"{memory[0]:.0f} MiB at the start, {max(memory):.0f} at most, {memory[-1]:.0f} at the end"
    print(f"memory: {held}; growth in the last half {grown:+.2%}")
    if args.figure:
        draw(samples, args.figure)
    valid = sum(count for name, count in clients.counts.items() if name.startswith("valid"))
    append_row(
        "soak",
        {
            "batching": not args.alone,
            "requests": clients.sent, "valid": valid, "failed": len(clients.wrong), "seconds": samples[-1][0],
            **{name.replace(" ", "_"): versions.done[name] for name in ("published", "rolled back", "removed")},
            "start_mib": memory[0], "most_mib": max(memory), "end_mib": memory[-1], "growth_last_half": grown,
        },
    )  # fmt: skip
    for wrong in clients.wrong[:10]:
        print(f"wrong: {wrong}")
    if clients.wrong or versions.failure:
        raise SystemExit(f"{len(clients.wrong)} requests went wrong; versions: {versions.failure}")


if __name__ == "__main__":
    main()
