"""What a stranger can make the endpoint do: the memory of a running server under each kind of large request."""

import concurrent.futures
import contextlib
import dataclasses
import gzip
import http.client
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import types
import zlib

import grpc
import numpy as np
import pytest
import tensorflow as tf
from endpoints import Models, assert_fails, call, front_ends, get, post
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import classification_pb2, predict_pb2, prediction_service_pb2_grpc

from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.export.serving.admission import admission, costs, image_sizes
from keras_convnets.export.serving.admission.limits import NO_LIMITS, Limits
from keras_convnets.export.serving.engines.engine import Engine
from keras_convnets.export.serving.metrics import Metrics
from keras_convnets.export.serving.rest import body, http_server, json_tensors, json_text
from keras_convnets.export.serving.rpc import tensor_protos
from keras_convnets.export.serving.scheduling.concurrency import ConcurrencyLimit
from keras_convnets.export.serving.scheduling.deadline import deadline
from keras_convnets.export.serving.signatures import TensorInfo
from keras_convnets.export.serving.status import MAX_NAME, Code, ServingError

MB = 2**20


class Echo(tf.Module):
    """Gives back numbers, texts, and the lengths of tf.Examples."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def same(self, x):
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="x")])
    def text(self, x):
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs):
        return {"scores": tf.cast(tf.strings.length(inputs), tf.float32)[:, None]}


FLAGS = ["--max_request_bytes", 8 * MB, "--max_pending_bytes", 32 * MB, "--max_working_bytes", 64 * MB]
FLAGS += ["--max_connections", 40, "--port", 0, "--rest_api_port", 0, "--engine", "tensorflow"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server in a separate process, whose memory can be read."""
    base = tmp_path_factory.mktemp("echo")
    echo = Echo()
    signatures = {"serving_default": echo.same, "text": echo.text, "classify": echo.classify}
    tf.saved_model.save(echo, str(base / "1"), signatures)
    command = [sys.executable, "-m", "keras_convnets", "serve", "--model_base_path", base, "--model_name", "m", *FLAGS]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stdout.readline()
            rest_port = int(line.split("127.0.0.1:")[1].split("/")[0])
            running = types.SimpleNamespace(pid=process.pid, rest_api_port=rest_port)
            running.port = int(line.rpartition(" (gRPC)")[0].rpartition(":")[2])
            # What a first request of each kind sets up is no answer to a stranger.
            assert post(running, "/v1/models/m:predict", {"instances": [1.5] * 1000})[0] == 200
            assert predict(running, spec() + field(2, b"")) == "INVALID_ARGUMENT"
            yield running
        finally:
            process.kill()


def memory(pid, key):
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


@contextlib.contextmanager
def grows_by_less_than(server, most):
    """Check the peak of a server's memory inside, in bytes above what it had before."""
    try:
        with open(f"/proc/{server.pid}/clear_refs", "w") as file:
            file.write("5")
        before = memory(server.pid, "VmRSS")
    except OSError:
        pytest.skip("the peak of another process's memory can't be read here")
    yield
    grown = memory(server.pid, "VmHWM") - before
    assert grown < most, f"{grown / MB:.0f} MiB"
    assert get(server, "/v1/models/m")[0] == 200


def varint(number):
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def spec(signature=""):
    return field(1, field(1, b"m") + field(3, signature.encode()))


def predict(server, data, method="Predict", compression=None):
    """Send a serialized request; returns the code's name, or "OK"."""
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", options, compression) as channel:
        try:
            channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")(data, timeout=60)
        except grpc.RpcError as error:
            return error.code().name
        return "OK"


def tensor_request(signature, **tensor):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", signature
    shape = tensor.pop("shape")
    request.inputs["x"].CopyFrom(tensor_pb2.TensorProto(**tensor))
    for size in shape:
        request.inputs["x"].tensor_shape.dim.add(size=size)
    return request.SerializeToString()


def test_few_bytes_that_stand_for_many_elements(server):
    one = tensor_request("", dtype=1, shape=[2**21], float_val=[1.0])
    assert len(one) < 50
    text = tensor_request("text", dtype=7, shape=[2**18], string_val=[b"x" * 500])
    long = tensor_request("text", dtype=7, shape=[200], string_val=[b"x" * MB])
    with grows_by_less_than(server, 20 * MB):
        assert predict(server, one) == predict(server, text) == "INVALID_ARGUMENT"
        assert predict(server, long) == "RESOURCE_EXHAUSTED"


def test_many_small_fields(server):
    dimensions = field(2, field(1, b"x") + field(2, b"\x08\x01" + field(2, b"\x12\x00" * (2 * MB))))
    with grows_by_less_than(server, 30 * MB):
        assert predict(server, spec() + dimensions) == "RESOURCE_EXHAUSTED"


def test_a_context_for_many_examples(server):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", "classify"
    example = request.input.example_list_with_context.context
    example.features.feature["a"].bytes_list.value.append(b"x" * MB)
    for _ in range(200):
        request.input.example_list_with_context.examples.add()
    body = {"signature_name": "classify", "context": {"a": "x" * MB}, "examples": [{}] * 200}
    with grows_by_less_than(server, 40 * MB):
        assert predict(server, request.SerializeToString(), "Classify") == "RESOURCE_EXHAUSTED"
        assert post(server, "/v1/models/m:classify", body)[0] == 413
    body["examples"] = [{}] * 300
    body["context"] = {}
    status, answer = post(server, "/v1/models/m:classify", body)
    assert (status, answer["error"].split(";")[0]) == (400, "The request has 300 rows")


def test_bodies_and_messages(server):
    zeros = zlib.compressobj(9, wbits=31)
    compressed = b"".join(zeros.compress(bytes(MB)) for _ in range(100)) + zeros.flush()
    with grows_by_less_than(server, 60 * MB):
        status, _, answer = call(server, "POST", "/v1/models/m:predict", compressed, {"Content-Encoding": "gzip"})
        assert status == 413 and b"The inflated request is too large" in answer
        head = f"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {100 * MB}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.rest_api_port), timeout=30) as raw:
            with contextlib.suppress(ConnectionError):
                raw.sendall(head.encode() + bytes(30 * MB))
            with contextlib.suppress(ConnectionError):
                assert raw.recv(100).startswith(b"HTTP/1.1 413")
        large = spec() + field(99, bytes(30 * MB))
        assert predict(server, large) == "RESOURCE_EXHAUSTED"
        assert predict(server, large, compression=grpc.Compression.Gzip) == "RESOURCE_EXHAUSTED"


def test_json_that_becomes_many_objects(server):
    with grows_by_less_than(server, 60 * MB):
        objects = b'{"inputs":[' + b"{}," * (2 * MB) + b"{}]}"
        status, answer = post(server, "/v1/models/m:predict", objects)
        assert status == 413 and "--max_working_bytes" in answer["error"]


def test_many_requests_at_a_time(server):
    """Each takes a good part of what may be worked on: they wait, and their errors keep nothing."""
    body = b'{"signature_name": "text", "inputs": [[' + b"1.5," * (MB // 2) + b"1]]}"
    with grows_by_less_than(server, 150 * MB), concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = pool.map(lambda _: post(server, "/v1/models/m:predict", body)[0], range(12))
        assert set(answers) <= {400, 429}


def test_bodies_that_do_not_end_and_connections(server):
    head = f"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {8 * MB}\r\n\r\n".encode()
    with grows_by_less_than(server, 80 * MB), contextlib.ExitStack() as stack:
        opened = []
        for _ in range(38):
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", server.rest_api_port), timeout=30))
            with contextlib.suppress(OSError):
                raw.sendall(head + bytes(3 * MB))
            opened.append(raw)
        assert "HTTP/1.1 429" in {said(raw) for raw in opened[-20:]}, "what is pending has a bound"
    refused = b""
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", server.rest_api_port), timeout=30))
        refused = raw.recv(1000)
    assert refused.startswith(b"HTTP/1.1 503") and b"--max_connections" in refused
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up and b"AVAILABLE" not in call(server, "GET", "/v1/models/m")[2]:
        time.sleep(0.05)


def said(raw):
    raw.settimeout(0.2)
    try:
        return raw.recv(12).decode()
    except OSError:
        return ""


def test_headers_that_do_not_end(server):
    with grows_by_less_than(server, 12 * MB), contextlib.ExitStack() as stack:
        for _ in range(38):
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", server.rest_api_port), timeout=30))
            with contextlib.suppress(OSError):
                raw.sendall(b"GET /v1/models/m HTTP/1.1\r\nX: " + b"x" * 1_000_000)
        time.sleep(0.3)


# Without a process


def test_what_is_overridden_of_uvicorn_is_there():
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    theirs = set(dir(HttpToolsProtocol))
    ours = {name: value for name, value in vars(http_server.LimitedProtocol).items() if not name.startswith("__")}
    hooks = {name for name, value in ours.items() if callable(value) and not name.startswith("_")}
    assert {"connection_made", "data_received", "on_message_begin", "on_headers_complete"} <= hooks <= theirs
    assert not (set(ours) - hooks) & theirs, "a name of ours that uvicorn uses too"


def test_the_defaults_are_finite():
    assert all(value > 0 for value in vars(Limits()).values())
    assert not any(vars(NO_LIMITS).values())
    with pytest.raises(UserError, match="max_connections is -1"):
        Limits(max_connections=-1)


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"{}," * 20_000 + b"{}]",
        b"[" + b"[]," * 20_000 + b"[]]",
        b"[" + b"1.5," * 20_000 + b"1]",
        b"[" + b"1234567," * 20_000 + b"1]",
        b"[" + b'"ab",' * 20_000 + b'""]',
        b"[" + b'{"ab":1},' * 20_000 + b"1]",
        b"[" + b"[[[]]]," * 20_000 + b"1]",
        b"[" + '"\U0001f600 and so on and on",'.encode() * 20_000 + b"1]",
        b"[" * 40_000 + b"]" * 40_000,
        b'["' + b"x" * 400_000 + b'"]',
        b'{"instances": [' + b"[1.5, 2, 300]," * 10_000 + b"[1, 2, 3]]}",
    ],
)
def test_what_json_takes_is_told_before(text):
    tracemalloc.start()
    try:
        document, _ = json_tensors.parse_request(text) if text[:1] == b"{" else (json_text.parse(text), "")
        if isinstance(document, dict):
            json_tensors.decode_inputs(document, {"x": TensorInfo("x", "float", (None, 3))})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < costs.of_json([text])


def test_what_a_message_takes_is_told_before():
    kind = predict_pb2.PredictRequest.DESCRIPTOR
    image = tensor_request("", dtype=4, shape=[1, 2**20], tensor_content=bytes(2**20))
    assert 2**20 < costs.of_message(image, kind) < 7 * 2**20
    varints = tensor_request("", dtype=9, shape=[2**16], int64_val=[1] * 2**16)
    assert costs.of_message(varints, kind) > 8 * 3 * 2**16
    assert costs.of_message(field(2, field(2, field(2, b"\x12\x00" * 1000))), kind) > 100 * 1000
    rng = random.Random(0)
    for _ in range(300):
        broken = bytearray(image[:60])
        broken[rng.randrange(len(broken))] = rng.randrange(256)
        costs.of_message(bytes(broken[: rng.randrange(60)]), kind)
    deep = b""
    for _ in range(150):
        deep = field(15, field(3, deep))
    with pytest.raises(ServingError, match="more than a hundred deep"):
        costs.of_message(field(2, field(2, deep)), kind)
    with pytest.raises(ServingError, match="more than 10 fields"):
        costs.of_message(b"\x12\x00" * 11, kind, Limits(max_message_fields=10))


def test_the_pixels_of_images_are_told_before():
    pixels = np.zeros((7, 5, 3), np.uint8)
    bmp = b"BM" + bytes(16) + struct.pack("<ii", 5, -7)
    files = [tf.io.encode_png(pixels).numpy(), tf.io.encode_jpeg(pixels).numpy(), b"GIF89a\x05\x00\x07\x00", bmp]
    assert [image_sizes.image_pixels(data) for data in files] == [35] * 4
    assert [image_sizes.image_pixels(data[:5]) for data in files] == [0] * 4
    assert image_sizes.image_pixels(b"\xff\xd8" + b"\xff\xe0\x00\x02" * 5000) > 10**9, "one that hides its size"
    assert costs.decoded_pixels([b"text", *files]) == 140 and costs.decoded_pixels(files * 10) == 35 * 16
    features = {"a": tf.train.Feature(bytes_list=tf.train.BytesList(value=[files[0]]))}
    example = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    assert costs.decoded_pixels([example], in_examples=True) == 35


class Decoding(Engine):
    """Counts the pixels that are decoded at a time."""

    def __init__(self, limits):
        from tensorflow.core.protobuf import meta_graph_pb2

        signature = meta_graph_pb2.SignatureDef()
        signature.inputs["image_bytes"].dtype = 7
        signature.inputs["image_bytes"].tensor_shape.dim.add(size=-1)
        super().__init__({"serving_default": signature}, ConcurrencyLimit(at_once=8), admission.Admission(limits))
        self.at_once = self.most = 0
        self.lock = threading.Lock()

    def _call(self, name, inputs):
        pixels = costs.decoded_pixels(inputs["image_bytes"].flat)
        with self.lock:
            self.at_once += pixels
            self.most = max(self.most, self.at_once)
        time.sleep(0.02)
        with self.lock:
            self.at_once -= pixels
        return {}

    def _graph(self, name, **tensors):
        raise AssertionError


def test_so_many_pixels_are_decoded_at_a_time():
    engine = Decoding(Limits(max_decoded_pixels=100))
    png = tf.io.encode_png(np.zeros((6, 5, 3), np.uint8)).numpy()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(engine.run, "serving_default", {"image_bytes": images(png)}) for _ in range(16)]:
            assert future.result(20) == {}
    assert engine.most == 90
    with pytest.raises(ServingError, match=r"120 pixels .* allows 100 \(--max_decoded_pixels\)") as caught:
        engine.run("serving_default", {"image_bytes": images(*[png] * 4)})
    assert (caught.value.code, caught.value.http_status) == (Code.RESOURCE_EXHAUSTED, 413)


def images(*data):
    return np.array([*data, None], object)[:-1]


def test_a_budget_is_given_in_turn():
    budget = admission.Budget(10, "It has {} bytes", "flag")
    order, started = [], threading.Event()

    def one(amount):
        started.set()
        with budget.hold(amount):
            order.append(amount)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        with budget.hold(6):
            futures = []
            for amount in (8, 2):
                futures.append(pool.submit(one, amount))
                while len(budget._queue) < len(futures):
                    time.sleep(0.001)
            assert order == [], "a small one does not overtake"
            with deadline(time.monotonic() + 0.05), pytest.raises(ServingError, match="deadline"):
                with budget.hold(1):
                    pass
        for future in futures:
            future.result(20)
    assert order == [8, 2] and budget._used == 0
    with pytest.raises(ServingError, match="It has 11 bytes; the server allows 10"):
        with budget.hold(11):
            pass
    with admission.Budget(0, "", "").hold(10**15):
        pass


def test_a_message_that_does_not_come_is_given_up_where_others_wait(monkeypatch):
    monkeypatch.setattr(admission, "RECEIVE_SECONDS", 0.2)
    receivers = admission.Admission(Limits(max_request_bytes=10, max_pending_bytes=20))
    ended = []
    with receivers.receiving(lambda: ended.append(1)), receivers.receiving(lambda: ended.append(2)):
        with receivers.receiving(lambda: ended.append(3)):
            assert ended == [1]
    with deadline(time.monotonic() + 0.05), receivers.receiving(list), receivers.receiving(list):
        with pytest.raises(ServingError, match="deadline"), receivers.receiving(list):
            pass


class Slow:
    """A fake engine that returns numbers when the test releases it."""

    def __init__(self):
        from keras_convnets.export.serving.signatures import Signature

        info = TensorInfo("x", "float", (None, None))
        self.signatures = {"serving_default": Signature("serving_default", {"x": info}, {"x": info})}
        self.release = threading.Event()
        self.ran = 0

    def run(self, name, inputs):
        self.ran += 1
        self.release.wait(20)
        return dict(inputs)


def test_rows_elements_and_where_they_are_counted():
    engine = Slow()
    engine.release.set()
    limits = Limits(max_request_rows=3, max_request_elements=8, max_repeated_values=2)
    with front_ends(Models({"m": engine}), limits=limits) as ports:
        for key in ("instances", "inputs"):
            status, answer = post(ports, "/v1/models/m:predict", {key: [[1]] * 4})
            assert (status, answer["error"].split(";")[0]) == (400, "The request has 4 rows")
            status, answer = post(ports, "/v1/models/m:predict", {key: [[1] * 3] * 3})
            assert status == 400 and "Input x has 9 elements" in answer["error"]
            assert post(ports, "/v1/models/m:predict", {key: [[1, 2]] * 3})[0] == 200
        stub = prediction_service_pb2_grpc.PredictionServiceStub(ports.channel)
        for shape, sent, message in [
            ([4, 1], 4, "The request has 4 rows; the server allows 3 (--max_request_rows)"),
            ([3, 3], 9, "Input x has 9 elements; the server allows 8 (--max_request_elements)"),
            ([2, 2], 1, "tensor parsing error: x: it repeats its last value 3 times; the server allows 2"),
            ([2, 2], 2, None),
            ([2, 2], 4, None),
        ]:
            data = tensor_request("", dtype=1, shape=shape, float_val=[1.0] * sent)
            request = predict_pb2.PredictRequest.FromString(data)
            if message is None:
                stub.Predict(request)
            else:
                assert assert_fails("INVALID_ARGUMENT", None, stub.Predict, request).startswith(message)
    assert engine.ran == 4


def test_without_limits_it_is_as_boundless_as_tensorflow_serving():
    engine = Slow()
    engine.release.set()
    with front_ends(Models({"m": engine}), limits=NO_LIMITS) as ports:
        assert post(ports, "/v1/models/m:predict", {"instances": [[1]] * 5000})[0] == 200
        stub = prediction_service_pb2_grpc.PredictionServiceStub(ports.channel)
        data = tensor_request("", dtype=1, shape=[1000, 1000], float_val=[1.0])
        assert stub.Predict(predict_pb2.PredictRequest.FromString(data)).outputs["x"].float_val[-1] == 1.0


def test_a_full_server_refuses_before_it_reads(monkeypatch):
    """As many as may run and wait are inside: the next is neither parsed nor converted, over both interfaces."""
    engine, parsed = Slow(), []
    with front_ends(Models({"m": engine}), workers=6) as ports:
        ports.admission._most = 2
        parse = json_tensors.parse_request
        monkeypatch.setattr(json_tensors, "parse_request", lambda body: parsed.append(body) or parse(body))
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            first = [pool.submit(post, ports, "/v1/models/m:predict", {"instances": [[1]]}) for _ in range(2)]
            while engine.ran < 2:
                time.sleep(0.01)
            status, answer = post(ports, "/v1/models/m:predict", {"instances": [[1]]})
            assert status == 429 and answer["error"].startswith("The queue is full: 2 requests run or wait")
            data = tensor_request("", dtype=1, shape=[1, 1], float_val=[1.0])
            assert predict(ports, data) == "RESOURCE_EXHAUSTED" and predict(ports, b"\xff") == "RESOURCE_EXHAUSTED"
            assert get(ports, "/v1/models/m")[0] == 200, "the status is available"
            engine.release.set()
            assert [future.result(20)[0] for future in first] == [200, 200]
        assert len(parsed) == 2
        assert predict(ports, data) == "OK" and ports.admission._inside == ports.admission.pending._used == 0


def test_memory_of_a_request_that_timed_out_counts_until_its_work_ends():
    engine = Slow()
    with front_ends(Models({"m": engine}), timeout_seconds=0.2) as ports:
        assert post(ports, "/v1/models/m:predict", {"instances": [[1]]})[0] == 504
        assert ports.admission.pending._used > 0 and ports.admission._inside == 1
        engine.release.set()
        give_up = time.monotonic() + 10
        while ports.admission.pending._used and time.monotonic() < give_up:
            time.sleep(0.01)
        assert ports.admission.pending._used == ports.admission._inside == 0


def test_requests_without_waiting_for_answers_have_a_bound():
    engine = Slow()
    with front_ends(Models({"m": engine}), workers=2) as ports:
        with socket.create_connection(("127.0.0.1", ports.rest_api_port), timeout=10) as raw:
            body = b'{"instances": [[1]]}'
            head = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            raw.sendall(head + body + b"GET /v1/models/m HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
            assert raw.recv(100).startswith(b"HTTP/1.1 400")
            engine.release.set()


def test_an_unread_response_is_abandoned(monkeypatch):
    monkeypatch.setattr(http_server, "WRITE_SECONDS", 0.3)

    class Large(Slow):
        def run(self, name, inputs):
            return {"x": np.full((1, MB), 0.1234567, np.float32)}

    with front_ends(Models({"m": Large()})) as ports:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", ports.rest_api_port))
        body = b'{"instances": [[1]]}'
        raw.sendall(b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        protocols = ports.rest._server.server_state.connections
        give_up = time.monotonic() + 20
        while not protocols and time.monotonic() < give_up:
            time.sleep(0.01)
        while protocols and time.monotonic() < give_up:
            time.sleep(0.05)
        assert not protocols
        raw.close()


def test_gzip_in_pieces():
    text = json.dumps({"instances": list(range(200_000))}).encode()
    both = gzip.compress(text)
    assert b"".join(body.inflated(both, NO_LIMITS)) == text
    assert b"".join(body.inflated(both + b"more", NO_LIMITS)) == text
    for broken in (b"no gzip", both[:-1], both[: len(both) // 2], both[:-8] + bytes(8), b""):
        with pytest.raises(zlib.error):
            list(body.inflated(broken, NO_LIMITS))


def test_names_of_clients_in_logs_messages_and_metrics():
    assert printable("a\x1b[2J\r\nb\x9b\u202e") == "a\\x1b[2J\\r\\nb\\x9b\\u202e"
    assert printable("é" * 300, MAX_NAME) == "é" * 200 + "..."
    metrics = Metrics()
    metrics.count_request("x" * 10**6, Code.NOT_FOUND)
    assert len(metrics.page()) < 1000
    with front_ends(Models({"m": Slow()})) as ports:
        body = json.dumps({"signature_name": "x" * 10**6, "instances": [1]})
        assert len(call(ports, "POST", "/v1/models/m:predict", body)[2]) < 70_000


def test_a_tensor_of_odd_shape_is_no_surprise():
    info = TensorInfo("x", "string", (None,))
    proto = tensor_pb2.TensorProto(dtype=7, string_val=[b"x"])
    for _ in range(300):
        proto.tensor_shape.dim.add(size=1)
    with pytest.raises(ServingError, match="tensor parsing error: x"):
        tensor_protos.to_array(proto, info, 0, Limits())


def test_the_fields_of_the_limits_are_documented():
    for one in dataclasses.fields(Limits):
        assert f"{one.name}:" in Limits.__doc__ and one.metadata["purpose"]


def test_old_clients_of_http():
    """HTTP/1.0 without keep-alive gets the whole answer, which is written in pieces."""

    class Large(Slow):
        def run(self, name, inputs):
            return {"x": np.ones((1, 10**5), np.float32)}

    with front_ends(Models({"m": Large()})) as ports:
        connection = http.client.HTTPConnection("127.0.0.1", ports.rest_api_port, timeout=30)
        connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"
        connection.request("POST", "/v1/models/m:predict", b'{"instances": [[1]]}')
        assert len(json.loads(connection.getresponse().read())["predictions"][0]) == 10**5
