"""Servers and clients that the benchmarks of serving share."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

START_SECONDS = 300


def photographs(folder: str | None) -> list[bytes]:
    if folder is None:
        from sklearn import datasets

        folder = Path(datasets.__file__).parent / "images"
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    return [path.read_bytes() for path in found]


def rest_client(address: str, image: bytes, path: str) -> Callable[[], None]:
    body = json.dumps({"instances": [{"b64": base64.b64encode(image).decode()}]}).encode()
    connection = http.client.HTTPConnection(address, timeout=START_SECONDS)

    def exchange() -> tuple[int, bytes]:
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            # A connection that failed takes no other request until it is closed.
            connection.close()
            raise

    def ask() -> None:
        try:
            status, answer = exchange()
        except (ConnectionError, http.client.RemoteDisconnected):
            # Some servers close a connection that was idle for as long as a window of the bare engine.
            status, answer = exchange()
        if status != 200:
            raise RuntimeError(answer[:300])

    return ask


def grpc_client(address: str, image: bytes, model: str) -> Callable[[], None]:
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    # Channels of the same options would share one connection.
    channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([image], tf.string))
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    return lambda: stub.Predict(request, timeout=START_SECONDS)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def running(command: list[str], ask: Callable[[], None], log: Path) -> Iterator[tuple[subprocess.Popen, float]]:
    """Start a server; gives its process and the seconds to its first answer."""
    began = time.perf_counter()
    with (
        open(log, "w") as errors,
        subprocess.Popen(command, stdout=errors, stderr=errors, start_new_session=True) as process,
    ):
        try:
            while True:
                try:
                    ask()
                    break
                except (OSError, http.client.HTTPException):
                    if process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                        raise RuntimeError(log.read_text()[-2000:]) from None
                    time.sleep(0.05)
            yield process, time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
            # Some servers do not stop their workers, which would disturb the next measurement.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def resident_mib(process: subprocess.Popen) -> float:
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1024
