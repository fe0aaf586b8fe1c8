"""The local endpoint against what TensorFlow Serving answers: URLs, bodies, codes, messages, versions."""

import base64
import concurrent.futures
import contextlib
import gzip
import http.client
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from keras_convnets.errors import UserError
from keras_convnets.export.serving import ModelServer
from keras_convnets.export.serving.admission.limits import Limits
from keras_convnets.export.serving.rest import body as rest_body
from keras_convnets.export.serving.rest import routes
from keras_convnets.export.serving.rest.verbs import STATUS, VERBS, Asked
from keras_convnets.export.serving.scheduling.concurrency import ConcurrencyLimit
from keras_convnets.export.serving.signatures import Signature, TensorInfo
from keras_convnets.export.serving.status import Code, ServingError

tf = pytest.importorskip("tensorflow")
grpc = pytest.importorskip("grpc")
pytest.importorskip("uvicorn")
apis = pytest.importorskip("tensorflow_serving.apis")
connections = pytest.importorskip("keras_convnets.export.serving.rest.http_server")
tensor_protos = pytest.importorskip("keras_convnets.export.serving.rpc.tensor_protos")

from endpoints import Models, assert_fails, call, front_ends, get, post, save_many  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

LABELS = ["red", "green", "blue"]


class Colours(tf.Module):
    """Classifies an image by its channels' means; `version` marks which version answered."""

    def __init__(self, version=1.0):
        super().__init__()
        self.version = tf.Variable(version)

    def _probabilities(self, images):
        return tf.nn.softmax(tf.reduce_mean(tf.cast(images, tf.float32), [1, 2]) / 255.0)

    def _decode(self, image_bytes):
        decode = lambda one: tf.io.decode_image(one, channels=3, expand_animations=False)  # noqa: E731
        return tf.map_fn(decode, image_bytes, fn_output_signature=tf.TensorSpec([None, None, 3], tf.uint8))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(self, image_bytes):
        return {"probabilities": self._probabilities(self._decode(image_bytes))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def top_k(self, image_bytes):
        scores, indices = tf.math.top_k(self._probabilities(self._decode(image_bytes)), 2)
        return {"classes": tf.gather(tf.constant(LABELS), indices), "scores": scores}

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")])
    def predict_images(self, images):
        return {"probabilities": self._probabilities(images)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def which(self, x):
        return {"version": x * 0.0 + self.version}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="steps")])
    def slow(self, steps):
        """Adds 0.001 for each step, one after the other; a step takes about a microsecond or two."""
        total = tf.while_loop(lambda i, t: i < steps[0], lambda i, t: (i + 1, t + 0.001), [0, 0.0])[1]
        return {"total": total[None]}


def save_colours(path, version=1.0):
    module = Colours(version)
    names = {"serving_default": "serve", "top_k": "top_k", "predict_images": "predict_images"}
    names |= {"which": "which", "slow": "slow"}
    tf.saved_model.save(module, str(path), {key: getattr(module, name) for key, name in names.items()})


def save_tf1(path):
    """A TF1-style SavedModel: a graph with a variable and a table of no object."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], name="x")
        half = v1.get_variable("half", initializer=0.5, use_resource=False)
        y = tf.add(tf.multiply(x, half), 2.0, name="y")
        session.run(v1.global_variables_initializer())
        build = v1.saved_model.utils.build_tensor_info
        signature = v1.saved_model.build_signature_def({"x": build(x)}, {"y": build(y)}, "tensorflow/serving/predict")
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()


def png(colour, size=4):
    image = np.zeros((size, size, 3), np.uint8)
    image[..., LABELS.index(colour)] = 255
    return tf.io.encode_png(image).numpy()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """SavedModels to copy versions from."""
    root = tmp_path_factory.mktemp("saved")
    save_colours(root / "colours1", 1.0)
    save_colours(root / "colours2", 2.0)
    return root


@pytest.fixture(scope="module")
def base_paths(tmp_path_factory, saved):
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(saved / "colours1", root / "colours" / "00000003")
    (root / "colours" / "notes").mkdir()
    save_many(root / "many" / "1")
    save_tf1(root / "old" / "7")
    return {name: root / name for name in ("colours", "many", "old")}


@pytest.fixture(scope="module")
def server(base_paths):
    with ModelServer(base_paths, port=0, rest_api_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def stubs(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield (
            prediction_service_pb2_grpc.PredictionServiceStub(channel),
            model_service_pb2_grpc.ModelServiceStub(channel),
        )


def predict(server, body, model="many", where=""):
    return post(server, f"/v1/models/{model}{where}:predict", body)


def same(server, text, key="instances", signature="same"):
    """Send the text of a value through an identity signature and return the answer's text."""
    body = f'{{"signature_name": "{signature}", "{key}": {text}}}'
    status, _, answer = call(server, "POST", "/v1/models/many:predict", body)
    assert status == 200, answer
    return answer.decode()


ROW = {"a": [1.0, 2.0], "b": 5, "s": "one"}


# Section 1: URLs


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/colours/"),
        ("GET", "/v1/"),
        ("GET", "/v1/foo"),
        ("GET", "/v1/models/colours/versions/abc"),
        ("GET", "/v1/models/colours/versions/3/labels/x"),
        ("GET", "/v1/models/colours:predict"),
        ("POST", "/v1/models/colours"),
        ("POST", "/v1/models/colours:PREDICT"),
        ("POST", "/v1/models/colours:predict?x=1"),
        ("POST", "/v1/models/colours:guess"),
        ("PUT", "/v1/models/colours:predict"),
        ("DELETE", "/v1/models/colours"),
        ("PATCH", "/v1/models/colours"),
    ],
)
def test_malformed_requests(server, method, path):
    status, headers, body = call(server, method, path, "{}" if method == "POST" else None)
    assert status == 400
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {"error": f"Malformed request: {method} {path}"}


def test_head_is_malformed_and_never_405(server):
    assert call(server, "HEAD", "/v1/models/colours")[0] == 400


def test_outside_v1_is_a_plain_404_that_closes(server):
    status, headers, body = call(server, "GET", "/other")
    assert status == 404
    assert headers["Content-Type"].startswith("text/html")
    assert headers["Connection"] == "close"
    assert b"<html>" in body


def test_case_is_ignored_but_for_verb_and_metadata(server):
    assert get(server, "/V1/MODELS/colours/VERSIONS/3")[0] == 200
    assert "model_version_status" in get(server, "/v1/models/colours/METADATA")[1]


def test_names_are_percent_decoded_and_the_query_belongs_to_the_name(server):
    assert get(server, "/v1/models/%63olours")[0] == 200
    assert get(server, "/v1/models/a%2Fb") == (404, {"error": "Could not find any versions of model a/b"})
    assert get(server, "/v1/models/colours?x=1") == (
        404,
        {"error": "Could not find any versions of model colours?x=1"},
    )


def test_versions_with_zeros_and_overflow(server):
    assert get(server, "/v1/models/colours/versions/0003")[0] == 200
    for digits in ("9223372036854775808", "9" * 5000):
        status, headers, body = call(server, "GET", f"/v1/models/colours/versions/{digits}")
        assert (status, body) == (400, b"")
        assert headers["Content-Type"] == "application/json"
    assert get(server, "/v1/models/colours/versions/9223372036854775807")[0] == 404


def test_no_model_name(server):
    for path in ("/v1/models", "/v1/models/versions/3", "/v1/models/labels/x/metadata"):
        assert get(server, path) == (400, {"error": "Missing model name in request."})
    assert get(server, "/v1/models/metadata") == (404, {"error": "Could not find any versions of model metadata"})


def test_options_wants_an_origin(server):
    assert call(server, "OPTIONS", "/v1/models/colours", headers={"Origin": "https://example.org"})[0::2] == (200, b"")
    assert call(server, "OPTIONS", "/v1/models/colours")[0::2] == (400, b"")


CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}


@pytest.mark.parametrize("cors", [False, True])
def test_cors_headers_are_on_every_answer_or_on_none(cors):
    with front_ends(Models({"m": Noted()}), cors=cors) as ports:
        for method, path, status in (
            ("GET", "/v1/models/m", 200),
            ("GET", "/v1/models/nope", 404),
            ("GET", "/v1/nothing", 400),
            ("GET", "/v1/models/m/versions/9223372036854775808", 400),
            ("OPTIONS", "/v1/models/m:predict", 200),
            ("OPTIONS", "/v1/any", 200),
        ):
            got, headers, _ = call(ports, method, path, headers={"Origin": "http://example.org"})
            assert got == status
            assert {name: headers[name] for name in CORS} == (CORS if cors else dict.fromkeys(CORS))
        assert call(ports, "OPTIONS", "/v1/models/m")[0] == 400
        assert call(ports, "GET", "/other")[1]["Access-Control-Allow-Origin"] is None


class Noted:
    """An engine with one signature that gives back its input, or what `answer` makes of it."""

    def __init__(self, answer=None):
        self._answer = answer or (lambda x: x)
        self.ran = 0
        self.signature_defs = {}
        info = TensorInfo("x", "float", (None,))
        self.signatures = {"serving_default": Signature("serving_default", {"x": info}, {"y": info})}

    def run(self, name, inputs):
        self.ran += 1
        return {"y": self._answer(inputs["x"])}


def test_a_label_goes_to_the_lookup_decoded(server):
    models = Models({"m": Noted()})
    with front_ends(models) as ports:
        assert predict(ports, {"instances": [1]}, "m", "/labels/a%20b%c3%a9") == (200, {"predictions": [1.0]})
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.version_label = "m", "canary"
        request.inputs["x"].CopyFrom(tf.make_tensor_proto([2.0]))
        response = prediction_service_pb2_grpc.PredictionServiceStub(ports.channel).Predict(request)
        assert (response.model_spec.version.value, response.model_spec.version_label) == (1, "")
        assert get(ports, "/v1/models/m/labels/x/metadata")[0] == 200
        assert models.labels == ["a b\u00e9", "canary", "x"]


def test_curl(server):
    curl = shutil.which("curl")
    if not curl:
        pytest.skip("curl is not installed")
    url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/many"
    body = '{"signature_name": "same", "instances": [1, 2]}'
    command = [curl, "--silent", "--max-time", "20"]
    # -d sends a form's content type, --http2 an Upgrade header that HTTP/1.1 servers ignore.
    for options in (["-d", body], ["-X", "POST", "--http2", "-d", body], ["-0", "-d", body]):
        answer = subprocess.run([*command, *options, f"{url}:predict"], capture_output=True, check=True).stdout
        assert json.loads(answer) == {"predictions": [1.0, 2.0]}
    answer = subprocess.run([*command, f"{url}/versions/1"], capture_output=True, check=True).stdout
    assert json.loads(answer)["model_version_status"][0]["state"] == "AVAILABLE"


def test_an_offer_of_http_2_is_ignored_on_a_kept_connection_too(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_api_port, timeout=30)
    offer = {"Connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}
    for _ in range(3):
        connection.request("POST", "/v1/models/many:predict", b'{"signature_name": "same", "instances": [1]}', offer)
        assert connection.getresponse().read() == b'{"predictions":[1.0]}'
    connection.close()


def received(raw):
    """Read until the other side closes."""
    data = b""
    while chunk := raw.recv(65536):
        data += chunk
    return data


def test_pipelined_requests_are_answered_in_order(server):
    paths = ["/v1/models/many", "/v1/models/nope", "/v1/models/old"]
    with socket.create_connection(("127.0.0.1", server.rest_api_port), timeout=30) as raw:
        raw.sendall("".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths).encode())
        for part in ("GET /v1/models/many/met", "adata HTTP/1.1\r\nConnection: close\r", "\n\r\n"):
            time.sleep(0.05)
            raw.sendall(part.encode())
        answers = received(raw)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"404", b"200", b"200"]
    assert answers.index(b"model_version_status") < answers.index(b"error") < answers.index(b"signature_def")


def test_http_1_0_and_full_urls(server):
    with socket.create_connection(("127.0.0.1", server.rest_api_port), timeout=30) as raw:
        raw.sendall(b"GET http://example.org/v1/models/old HTTP/1.0\r\n\r\n")
        assert b'"version":"7"' in received(raw)


def test_bytes_of_the_path_come_back_as_they_were(server):
    with socket.create_connection(("127.0.0.1", server.rest_api_port), timeout=30) as raw:
        raw.sendall(b"GET /v1/%ff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert received(raw).endswith(b'{"error":"Malformed request: GET /v1/%ff"}')
    name = b"%ff%00%22"
    with socket.create_connection(("127.0.0.1", server.rest_api_port), timeout=30) as raw:
        raw.sendall(b"GET /v1/models/" + name + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert received(raw).endswith(b'{"error":"Could not find any versions of model \xff\\u0000\\""}')


@pytest.mark.parametrize(
    "sent", [b"", b"GET /v1/mod", b"GET /v1/models/m HTTP/1.1\r\nHost: x\r\nX-More: ", b"first request"]
)
def test_connections_that_send_no_whole_header_are_closed(monkeypatch, sent):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.4)
    with front_ends(Models({"m": Noted()})) as ports:
        with socket.create_connection(("127.0.0.1", ports.rest_api_port), timeout=10) as raw:
            if sent == b"first request":
                raw.sendall(b"GET /v1/models/m HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = b""
                while not answer.endswith(b"}"):
                    answer += raw.recv(65536)
                sent = b"GET /v1/models/m HTT"
            raw.sendall(sent)
            assert received(raw) == b""


def test_a_body_that_stops_coming_is_given_up(monkeypatch):
    monkeypatch.setattr(rest_body, "BODY_SECONDS", 0.3)
    with front_ends(Models({"m": Noted()})) as ports:
        with socket.create_connection(("127.0.0.1", ports.rest_api_port), timeout=10) as raw:
            raw.sendall(b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert received(raw).startswith(b"HTTP/1.1 408")


def test_slow_requests_are_not_given_up_while_they_run(monkeypatch):
    monkeypatch.setattr(rest_body, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)

    def slowly(x):
        time.sleep(0.6)
        return x

    with front_ends(Models({"m": Noted(slowly)})) as ports:
        connection = http.client.HTTPConnection("127.0.0.1", ports.rest_api_port, timeout=30)
        sockets = set()
        for _ in range(2):
            connection.request("POST", "/v1/models/m:predict", b'{"instances": [1]}')
            sockets.add(connection.sock)
            assert connection.getresponse().read() == b'{"predictions":[1.0]}'
            time.sleep(0.4)
        assert len(sockets) == 1, "between requests another limit counts"
        connection.close()


def test_headers_without_end_are_refused(monkeypatch):
    monkeypatch.setattr(connections, "MAX_HEADER_BYTES", 10_000)
    with front_ends(Models({"m": Noted()})) as ports:
        with socket.create_connection(("127.0.0.1", ports.rest_api_port), timeout=10) as raw:
            raw.sendall(b"GET /v1/models/m HTTP/1.1\r\nX-More: " + b"x" * 20_000)
            assert received(raw).startswith(b"HTTP/1.1 400")
        with socket.create_connection(("127.0.0.1", ports.rest_api_port), timeout=10) as raw:
            raw.sendall(b"GET /v1/models/m HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/models/m HTTP/1.1\r\nX-More: ")
            raw.sendall(b"x" * 20_000)
            assert b"HTTP/1.1 400" in received(raw)
        body = json.dumps({"instances": [1.0] * 10_000})
        assert predict(ports, body, "m")[0] == 200, "a body may be as long as it likes"


def test_an_answer_does_not_wait_for_an_acknowledgement():
    with front_ends(Models({"m": Noted()})) as ports:
        connection = http.client.HTTPConnection("127.0.0.1", ports.rest_api_port, timeout=30)
        times = []
        for _ in range(20):
            began = time.monotonic()
            connection.request("POST", "/v1/models/m:predict", b'{"instances": [1]}')
            assert connection.getresponse().read() == b'{"predictions":[1.0]}'
            times.append(time.monotonic() - began)
        connection.close()
    assert sorted(times)[5] < 0.03, "a delayed acknowledgement takes 0.04 s"


def test_many_idle_connections_hold_up_nobody(server):
    with contextlib.ExitStack() as stack:
        for index in range(200):
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", server.rest_api_port), timeout=30))
            raw.sendall(b"POST /v1/models/many:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"[: index % 80])
        assert predict(server, {"instances": [ROW]})[0] == 200


def test_curl_form_gzip_chunks_and_keep_alive(server):
    body = json.dumps({"instances": [ROW]}).encode()
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    expected = call(server, "POST", "/v1/models/many:predict", body)[2]
    assert json.loads(expected)["predictions"][0]["double_a"] == [2.0, 4.0]
    assert call(server, "POST", "/v1/models/many:predict", body, form)[2] == expected
    gzipped = {"Content-Encoding": "gzip"}
    assert call(server, "POST", "/v1/models/many:predict", gzip.compress(body), gzipped)[2] == expected
    status, _, answer = call(server, "POST", "/v1/models/many:predict", b"no gzip", gzipped)
    assert (status, json.loads(answer)) == (400, {"error": "JSON Parse error: The document is empty"})
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_api_port, timeout=30)
    sockets = set()
    for path, content in [("many", iter([body[:20], body[20:]])), ("nope", body), ("many", body)]:
        connection.request("POST", f"/v1/models/{path}:predict", content)
        sockets.add(connection.sock)
        answer = connection.getresponse().read()
        assert (answer == expected) == (path == "many")
    assert len(sockets) == 1 and None not in sockets
    connection.close()


def test_plain_socket_with_expect_and_odd_bytes(server):
    body = json.dumps({"instances": [ROW]}).encode()
    with socket.create_connection(("127.0.0.1", server.rest_api_port), timeout=30) as raw:
        head = "POST /v1/models/many:predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
        raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        assert raw.recv(4096).startswith(b"HTTP/1.1 100")
        raw.sendall(body)
        assert raw.recv(65536).startswith(b"HTTP/1.1 200")
    with socket.create_connection(("127.0.0.1", server.rest_api_port), timeout=30) as raw:
        raw.sendall(b"\x00\xff nonsense\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 400")
    assert get(server, "/v1/models/many")[0] == 200


# Section 2: codes


def test_codes_and_details():
    expected = {
        400: ["INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE"],
        401: ["UNAUTHENTICATED"],
        403: ["PERMISSION_DENIED"],
        404: ["NOT_FOUND"],
        409: ["ALREADY_EXISTS", "ABORTED"],
        429: ["RESOURCE_EXHAUSTED"],
        499: ["CANCELLED"],
        500: ["UNKNOWN", "INTERNAL", "DATA_LOSS"],
        501: ["UNIMPLEMENTED"],
        503: ["UNAVAILABLE"],
        504: ["DEADLINE_EXCEEDED"],
    }
    for status, names in expected.items():
        assert [ServingError(Code[name], "").http_status for name in names] == [status] * len(names)
    assert {code.name: int(code) for code in Code} == {code.name: code.value[0] for code in grpc.StatusCode}
    assert ServingError(Code.UNKNOWN, "x" * 1024).grpc_details == "x" * 1024
    assert ServingError(Code.UNKNOWN, "x" * 1025).grpc_details == "x" * 1024 + "...TRUNCATED"
    # gRPC's headers are small, so bytes are counted, and no character is cut in two.
    assert ServingError(Code.UNKNOWN, "x" + "\u20ac" * 400).grpc_details == "x" + "\u20ac" * 341 + "...TRUNCATED"


def test_an_error_of_any_code_on_its_way_out():
    def fail(x):
        raise ServingError(Code(int(x[0])), "\u20ac" * 2000)

    with front_ends(Models({"m": Noted(fail)})) as ports:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(ports.channel)
        for code in Code:
            if code is not Code.OK:
                status, answer = predict(ports, {"instances": [int(code)]}, "m")
                assert (status, answer["error"]) == (ServingError(code, "").http_status, "\u20ac" * 2000)
                details = assert_fails(code.name, None, stub.Predict, predict_request("m", x=[float(code)]))
                assert details == "\u20ac" * 341 + "...TRUNCATED"


def test_an_error_that_nobody_thought_of_is_internal():
    def fail(x):
        raise ZeroDivisionError("of one's own")

    with front_ends(Models({"m": Noted(fail)})) as ports:
        message = "Internal error: ZeroDivisionError: of one's own"
        assert predict(ports, {"instances": [1]}, "m") == (500, {"error": message})
        stub = prediction_service_pb2_grpc.PredictionServiceStub(ports.channel)
        assert_fails("INTERNAL", message, stub.Predict, predict_request("m", x=[1.0]))
        assert get(ports, "/v1/models/m")[0] == 200


# Section 3: status


def test_status_over_rest(server):
    entry = {"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for where in ("", "/versions/3", "/labels/whatever"):
        assert get(server, f"/v1/models/colours{where}") == (200, {"model_version_status": [entry]})
    assert get(server, "/v1/models/nope") == (404, {"error": "Could not find any versions of model nope"})
    assert get(server, "/v1/models/colours/versions/8") == (
        404,
        {"error": "Could not find version 8 of model colours"},
    )


def model_status(stub, name=None, version=None, label=None):
    request = get_model_status_pb2.GetModelStatusRequest()
    if name is not None:
        request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    return stub.GetModelStatus(request)


def test_status_over_grpc(stubs):
    _, stub = stubs
    for arguments in ({}, {"version": 3}, {"label": "x"}):
        (entry,) = model_status(stub, "colours", **arguments).model_version_status
        assert (entry.version, entry.state, entry.status.error_code, entry.status.error_message) == (3, 30, 0, "")
        assert entry.HasField("status")
    assert_fails("NOT_FOUND", "Could not find any versions of model nope", model_status, stub, "nope")
    assert_fails("NOT_FOUND", "Could not find version 8 of model colours", model_status, stub, "colours", 8)
    assert_fails("NOT_FOUND", "Could not find any versions of model ", model_status, stub, "")
    assert_fails("INVALID_ARGUMENT", "Missing ModelSpec", model_status, stub)


# Section 4: metadata


def test_metadata_over_rest(server):
    status, answer = get(server, "/v1/models/colours/metadata")
    assert status == 200
    assert answer["model_spec"] == {"name": "colours", "signature_name": "", "version": "3"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert {"serving_default", "top_k", "predict_images", "__saved_model_init_op"} <= set(signatures)
    assert signatures["__saved_model_init_op"]["method_name"] == ""
    init = signatures["__saved_model_init_op"]["outputs"]["__saved_model_init_op"]
    assert (init["dtype"], init["tensor_shape"]) == ("DT_INVALID", {"dim": [], "unknown_rank": True})
    default = signatures["serving_default"]
    assert default["method_name"] == "tensorflow/serving/predict"
    assert default["defaults"] == {}
    assert default["inputs"]["image_bytes"] == {
        "dtype": "DT_STRING",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
        "name": "serving_default_image_bytes:0",
    }
    assert get(server, "/v1/models/colours/versions/3/metadata")[1] == answer
    assert get(server, "/v1/models/nope/metadata") == (404, {"error": "Servable not found for request: Latest(nope)"})


def test_metadata_over_grpc(stubs):
    stub, _ = stubs
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    assert_fails("INVALID_ARGUMENT", "Missing ModelSpec", stub.GetModelMetadata, request)
    request.model_spec.name = "nope"
    message = "GetModelMetadataRequest must specify at least one metadata_field"
    assert_fails("INVALID_ARGUMENT", message, stub.GetModelMetadata, request)
    request.metadata_field.append("foo")
    assert_fails("INVALID_ARGUMENT", "Metadata field foo is not supported", stub.GetModelMetadata, request)
    request.metadata_field[:] = ["signature_def"]
    assert_fails("NOT_FOUND", "Servable not found for request: Latest(nope)", stub.GetModelMetadata, request)
    request.model_spec.name = "old"
    response = stub.GetModelMetadata(request)
    assert (response.model_spec.name, response.model_spec.version.value) == ("old", 7)
    assert response.model_spec.signature_name == ""
    assert response.metadata["signature_def"].type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["serving_default"].inputs["x"].name == "x:0"
    assert set(signatures.signature_def) == {"serving_default"}


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_is_a_row_of_the_table(name):
    """Each is reached by the one URL that its row gives it, and by the other method not at all."""
    path = f"/v1/models/m/versions/2:{name}" if VERBS[name].runs_model else f"/v1/models/m/versions/2/{name}"
    path = path.removesuffix(f"/{STATUS}")
    method, other = ("POST", "GET") if VERBS[name].runs_model else ("GET", "POST")
    assert routes.parse(method, path) == routes.Route(name, Asked("m", 2))
    assert routes.parse(other, path) == routes.NO_ROUTE


# Section 5: lookup


@pytest.mark.parametrize(
    ("model", "where", "status", "message"),
    [
        ("nope", "", 404, "Servable not found for request: Latest(nope)"),
        ("nope", "/versions/2", 404, "Servable not found for request: Specific(nope, 2)"),
        ("many", "/versions/9", 404, "Servable not found for request: Specific(many, 9)"),
        ("many", "/versions/0", 404, "Servable not found for request: Specific(many, 0)"),
        ("many", "/labels/stable", 400, "Unrecognized servable version label: stable"),
    ],
)
def test_lookup(server, stubs, model, where, status, message):
    assert predict(server, {"instances": [1]}, model, where) == (status, {"error": message})
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    kind, _, value = where.lstrip("/").partition("/")
    if kind == "versions":
        request.model_spec.version.value = int(value)
    elif kind:
        request.model_spec.version_label = value
    assert_fails("NOT_FOUND" if status == 404 else "INVALID_ARGUMENT", message, stubs[0].Predict, request)


# Section 6: :predict


MANY_ROW = "Failed to process element: {} key: {} of 'instances' list. Error: INVALID_ARGUMENT: {}"
BAD_BODIES = [
    ("", "JSON Parse error: The document is empty"),
    ("  \n", "JSON Parse error: The document is empty. at offset: 3"),
    ("{,}", "JSON Parse error: Missing a name for object member. at offset: 1"),
    ('{"instances": [1, x]}', "JSON Parse error: Invalid value. at offset: 18"),
    ('{"instances": nul}', "JSON Parse error: Invalid value. at offset: 14"),
    ('{"instances" [1]}', "JSON Parse error: Missing a colon after a name of object member. at offset: 13"),
    ('{"instances": [1 2]}', "JSON Parse error: Missing a comma or ] after an array element. at offset: 17"),
    ('{"instances": [1]', "JSON Parse error: Missing a comma or } after an object member. at offset: 17"),
    ('{"instances": ["a', "JSON Parse error: Missing a closing quotation mark in string. at offset: 17"),
    ('{"instances": ["\\x"]}', "JSON Parse error: Invalid escape character in string. at offset: 16"),
    ('{"instances": ["\\ud800"]}', "JSON Parse error: The surrogate pair in string is invalid. at offset: 16"),
    ('{"instances": [1.]}', "JSON Parse error: Miss fraction part in number. at offset: 17"),
    ('{"instances": [1e999]}', "JSON Parse error: Number too big to be stored in double. at offset: 15"),
    ("[1]", "JSON Value: [1] Is not object"),
    ('{"signature_name": null}', " not formatted correctly. 'signature_name' key must be a string value."),
    ("{}", "Missing 'inputs' or 'instances' key"),
    ('{"signature_name": "no"}', 'Serving signature name: "no" not found in signature def'),
    (
        '{"signature_name": "__saved_model_init_op"}',
        "Failed to get input map for signature: __saved_model_init_op",
    ),
    (
        '{"instances": [1], "inputs": [1]}',
        " Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ",
    ),
    ('{"instances": 1}', " Expecting 'instances' to be an list/array"),
    ('{"instances": []}', " No values in 'instances' array"),
    (
        '{"instances": [[1, 2]]}',
        "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
        "tensorinfo_map",
    ),
    (
        '{"inputs": [1]}',
        "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
        "tensorinfo_map",
    ),
    ({"instances": [{**ROW, "z": 1}]}, MANY_ROW.format(0, "z", "JSON object: does not have named input: z")),
    ({"instances": [ROW, {"a": [1, 2]}]}, "Failed to process element: 1 of 'instances' list. JSON object: {"),
    ({"instances": [ROW, {"a": [1, 2]}]}, "keys must be equal to: a,b,s"),
    ({"instances": [ROW, [1]]}, "Expecting object but got list at item 1 of input list"),
    ({"instances": [ROW, {**ROW, "a": [1]}]}, MANY_ROW.format(1, "a", "Expecting tensor size: 2 but got: 1")),
    ({"instances": [ROW, {**ROW, "b": [1]}]}, MANY_ROW.format(1, "b", "Expecting shape [] but got: [1]")),
    (
        {"instances": [{**ROW, "b": 1.5}]},
        MANY_ROW.format(0, "b", "JSON Value: 1.5 Type: Number is not of expected type: int32"),
    ),
    ({"instances": [{**ROW, "b": 2**31}]}, "Type: Number is not of expected type: int32"),
    ({"instances": [{**ROW, "b": True}]}, "JSON Value: true Type: True is not of expected type: int32"),
    ({"instances": [{**ROW, "a": [1, None]}]}, "JSON Value: null Type: Null is not of expected type: float"),
    ({"instances": [{**ROW, "a": [1, "x"]}]}, 'JSON Value: "x" Type: String is not of expected type: float'),
    ({"instances": [{**ROW, "s": 4}]}, "JSON Value: 4 Type: Number is not of expected type: string"),
    ({"instances": [{**ROW, "s": {"b64": "a-_b"}}]}, MANY_ROW.format(0, "s", "Unable to base64 decode")),
    ({"instances": [{**ROW, "s": {"b64": "YQ="}}]}, "Unable to base64 decode"),
    ({"instances": [{**ROW, "s": {"x": "YQ"}}]}, "not formatted correctly for base64 data"),
    ({"inputs": {"a": [[1, 2]], "b": [1]}}, "Missing named input: s in 'inputs' object."),
    (
        {"inputs": {"a": [[1, 2], [3]], "b": [1], "s": ["x"]}},
        "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
    ),
    (
        {"inputs": {"a": [[1, 2]], "b": [1, [2]], "s": ["x"]}},
        "Encountered list at unexpected level: 1 expected < 1",
    ),
    (
        {"inputs": {"a": [[1, 2], 3], "b": [1], "s": ["x"]}},
        "JSON Value: 3 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
    ),
    (
        {"signature_name": "text", "instances": [{"b64": 4}]},
        MANY_ROW.format(0, "b64", "JSON object: does not have named input: b64"),
    ),
    (
        {"signature_name": "text", "instances": [{"b64": "YQ", "x": "a"}]},
        MANY_ROW.format(0, "b64", "JSON object: does not have named input: b64"),
    ),
    ({"signature_name": "text", "instances": [{"x": {"b64": 4}}]}, "not formatted correctly for base64 data"),
    ({"signature_name": "negate", "instances": [1]}, "JSON Value: 1 Type: Number is not of expected type: bool"),
    ({"signature_name": "small", "instances": [2**31]}, "Type: Number is not of expected type: uint8"),
    ({"signature_name": "small", "instances": [1.0]}, "JSON Value: 1.0 Type: Number is not of expected type: uint8"),
    ({"instances": [{**ROW, "b": math.nan}]}, "JSON Value: NaN Type: Number is not of expected type: int32"),
    ({"signature_name": 7, "instances": []}, "'signature_name' key must be a string value."),
    ({"signature_name": "same", "instances": [1, {"a": 1}]}, "Expecting value/list but got object at item 1 of input"),
    (
        {"signature_name": "same", "instances": [1, [2]]},
        "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting shape [] but got: [1]",
    ),
    (
        {"signature_name": "batchless", "instances": [1.0]},
        "Tensor name: sum has no shape information ",
    ),
    (
        {"signature_name": "uneven", "instances": [1.0]},
        "Tensor name: x has inconsistent batch size: 1 expecting: 10",
    ),
    ({"signature_name": "to_half", "instances": [1.0]}, "Failed to write JSON value for tensor type: half"),
]


@pytest.mark.parametrize(("body", "message"), BAD_BODIES)
def test_bad_bodies(server, body, message):
    status, answer = predict(server, body)
    assert status == 400
    assert message in answer["error"]


def test_a_shape_that_the_signature_does_not_say_is_left_to_the_graph(server):
    for x in ([[1.0]], 1.0, [[[1.0], [2.0]]]):
        assert predict(server, {"signature_name": "same", "inputs": x}) == (200, {"outputs": x})
    assert predict(server, {"signature_name": "same", "instances": [[1.0, 2.0]]}) == (
        200,
        {"predictions": [[1.0, 2.0]]},
    )


def test_a_type_that_json_cannot_carry(server):
    message = "Conversion of JSON Value: 1.5 to type: half"
    assert predict(server, {"signature_name": "half", "inputs": [1.5]}) == (501, {"error": message})
    # In row format the error is wrapped with the element's number, and what wraps it is an invalid argument.
    wrapped = f"Failed to process element: 0 of 'instances' list. Error: UNIMPLEMENTED: {message}"
    assert predict(server, {"signature_name": "half", "instances": [1.5]}) == (400, {"error": wrapped})


def test_a_long_value_is_cut_in_the_message(server):
    status, answer = predict(server, {"instances": [{**ROW, "b": ["x" * 9000]}]})
    assert status == 400
    assert "is not of expected type: int32" in answer["error"]
    assert len(answer["error"]) < 600


def test_row_and_columnar_format(server):
    rows = [ROW, {"a": [3, 4.5], "b": -6, "s": {"b64": "//8"}}]
    status, answer = predict(server, {"instances": rows[:1] * 2, "signature_name": ""})
    one = {"double_a": [2.0, 4.0], "long_b": 15_000_000_000, "s_bytes": {"b64": "b25l"}, "text": "one"}
    assert (status, answer) == (200, {"predictions": [one, one]})
    columns = {"a": [[1, 2], [3, 4.5]], "b": [5, -6], "s": ["one", {"b64": " d H\nc="}], "extra": "ignored"}
    status, answer = predict(server, {"inputs": columns})
    assert status == 200
    assert answer == {
        "outputs": {
            "double_a": [[2.0, 4.0], [6.0, 9.0]],
            "long_b": [15_000_000_000, -18_000_000_000],
            "s_bytes": [{"b64": "b25l"}, {"b64": "dHc="}],
            "text": ["one", "tw"],
        }
    }
    raw = call(server, "POST", "/v1/models/many:predict", json.dumps({"instances": rows}))[2]
    assert b'"text":"\xff\xff"' in raw, "bytes that are no UTF-8 leave as they are"
    assert predict(server, {"inputs": [2.0], "signature_name": "batchless"})[1] == {"outputs": {"sum": 2.0, "x": [2.0]}}


def test_number_formats(server):
    assert same(server, "[1, 0.5, 0.1, 16777217, 9000000, 0.00003, -0.0]") == (
        '{"predictions":[1.0,0.5,0.1,16777216.0,9e+06,3e-05,-0.0]}'
    )
    assert same(server, "[0.123456789, 3.14159274]") == '{"predictions":[0.123456791,3.14159274]}'
    assert same(server, "[NaN, Infinity, -Infinity, 1e300]") == '{"predictions":[NaN,Infinity,-Infinity,Infinity]}'
    assert same(server, "[0.1, 0.12345678901234567, 2]", signature="same_double") == (
        '{"predictions":[0.1,0.12345678901234566,2.0]}'
    )
    assert same(server, "[7, 255, 256, -1]", signature="small") == '{"predictions":[7,255,0,255]}'
    assert same(server, "[true, false]", signature="negate") == '{"predictions":[false,true]}'
    assert same(server, "[1, 2]", key="inputs") == '{"outputs":[1.0,2.0]}'


def test_every_float32_reads_back(server):
    values = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    answer = json.loads(same(server, json.dumps(values.tolist())))["predictions"]
    assert np.array_equal(np.float32(answer), values)


def test_lenient_json(server):
    deep = "[" * 100_000 + "]" * 100_000
    for text in (
        b'\xef\xbb\xbf {"signature_name": "same", "instances": [1]}',
        b'{"signature_name": "same", "instances": [1]} and what follows',
        b'{"signature_name": "same", "instances": [1], "instances": [2, 3]}',
        b'{"signature_name": "same", "instances": [{"x": 1}]}',
        b'{"signature_name": "same", "instances": [1], "more": ' + deep.encode() + b"}",
        b'{"signature_name": "same", "instances": [1], "emoji": "\\ud83d\\ude00"}',
    ):
        assert predict(server, text) == (200, {"predictions": [1.0]}), text[:60]
    status, answer = predict(server, f'{{"signature_name": "same", "instances": [{deep}]}}')
    assert status == 400 and "tensor parsing error: x" in answer["error"]


def test_the_slow_parser_reads_what_the_fast_one_reads():
    from keras_convnets.export.serving.rest import json_text

    value = {
        "a": [1, -2.5, [], {}, {"b": None, "c": [True, False]}],
        "e\n\u00e9": '"\\/\t',
        "z": [[], [[1]]],
        "n": 2**63,
    }
    for indent in (None, 2):
        text = json.dumps(value, indent=indent)
        assert json_text.parse(text.encode()) == value
        assert json_text.parse(f'{{"\\ud83d\\ude00": {text}}}'.encode()) == {"\U0001f600": value}


def test_images_by_bytes_and_a_bad_one(server):
    images = [{"b64": base64.b64encode(png(colour)).decode()} for colour in LABELS]
    status, answer = predict(server, {"instances": images}, "colours", "/versions/3")
    assert status == 200
    assert np.argmax(answer["predictions"], axis=1).tolist() == [0, 1, 2]
    status, answer = predict(server, {"signature_name": "top_k", "instances": images[:1]}, "colours")
    assert answer["predictions"][0]["classes"][0] == "red"
    for bad in ("plain text", {"b64": "YWJj"}):
        status, answer = predict(server, {"instances": [images[0], bad]}, "colours")
        assert status == 400
        assert "Unknown image file format" in answer["error"]
        assert "Graph execution error" not in answer["error"] and "[Op:" not in answer["error"]
    assert predict(server, {"instances": images}, "colours")[0] == 200


def test_tf1_style_model(server):
    assert predict(server, {"instances": [1, 2]}, "old") == (200, {"predictions": [2.5, 3.0]})


# Section 7: gRPC


def predict_request(model="many", signature="", **arrays):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for alias, value in arrays.items():
        tensor = value if hasattr(value, "tensor_shape") else tf.make_tensor_proto(value)
        request.inputs[alias].CopyFrom(tensor)
    return request


GOOD = {"a": np.float32([[1, 2]]), "b": np.int32([5]), "s": [b"one"]}


def test_predict_answers_in_typed_fields(stubs):
    response = stubs[0].Predict(predict_request(**GOOD))
    spec = response.model_spec
    assert (spec.name, spec.signature_name, spec.version.value) == ("many", "serving_default", 1)
    outputs = response.outputs
    assert set(outputs) == {"double_a", "long_b", "s_bytes", "text"}
    assert list(outputs["double_a"].float_val) == [2.0, 4.0]
    assert [dim.size for dim in outputs["double_a"].tensor_shape.dim] == [1, 2]
    assert list(outputs["long_b"].int64_val) == [15_000_000_000]
    assert list(outputs["text"].string_val) == [b"one"]
    assert all(output.tensor_content == b"" for output in outputs.values())
    half = stubs[0].Predict(predict_request(signature="half", x=np.float16([1.5]))).outputs["y"]
    assert list(half.half_val) == [np.float16(1.5).view(np.uint16)]
    small = stubs[0].Predict(predict_request(signature="small", x=np.uint8([7, 255]))).outputs["y"]
    assert (small.dtype, list(small.int_val)) == (tf.int32.as_datatype_enum, [7, 255])
    double = stubs[0].Predict(predict_request(signature="same_double", x=np.float64([0.1]))).outputs["y"]
    assert list(double.double_val) == [0.1]
    scalar = stubs[0].Predict(predict_request(signature="batchless", x=np.float32([2, 3]))).outputs["sum"]
    assert (list(scalar.float_val), len(scalar.tensor_shape.dim)) == ([5.0], 0)
    assert list(stubs[0].Predict(predict_request(signature="negate", x=[True])).outputs["y"].bool_val) == [False]


def test_predict_reads_content_and_repeated_values(stubs):
    tensor = tf.make_tensor_proto(np.float32([0]), shape=[1])
    tensor.tensor_shape.dim[0].size = 4
    tensor.tensor_content = b""
    tensor.float_val[:] = [1.0, 2.0]
    assert list(stubs[0].Predict(predict_request(signature="same", x=tensor)).outputs["y"].float_val) == [1, 2, 2, 2]
    content = tf.make_tensor_proto(np.float32([3, 4]))
    assert content.tensor_content
    assert list(stubs[0].Predict(predict_request(signature="same", x=content)).outputs["y"].float_val) == [3, 4]


def test_predict_refuses_to_fill_all_memory(stubs):
    tensor = tf.make_tensor_proto(np.float32([1]))
    tensor.tensor_shape.dim[0].size = 2**34
    request = predict_request(signature="same", x=tensor)
    message = (
        "Input x has 17179869184 elements; the server allows 67108864 (--max_request_elements): send a smaller "
        "tensor, or have the limit raised."
    )
    assert_fails("INVALID_ARGUMENT", message, stubs[0].Predict, request)


def test_messages_may_be_large(stubs):
    values = np.ones(2**21, np.float32)
    for tensor in (tf.make_tensor_proto(values), tensor_protos.from_array(values)):
        request = predict_request(signature="batchless", x=tensor)
        assert request.ByteSize() > 2**23
        request.output_filter.append("sum")
        assert list(stubs[0].Predict(request).outputs["sum"].float_val) == [2**21]


def test_predict_output_filter(stubs):
    request = predict_request(**GOOD)
    request.output_filter.append("text")
    assert set(stubs[0].Predict(request).outputs) == {"text"}
    request.output_filter.append("text")
    assert_fails("INVALID_ARGUMENT", "duplicate output tensor alias: text", stubs[0].Predict, request)
    request.output_filter[:] = ["no"]
    message = (
        "output tensor alias not found in signature: no "
        "Outputs expected to be in the set {double_a,long_b,s_bytes,text}."
    )
    assert_fails("INVALID_ARGUMENT", message, stubs[0].Predict, request)


def test_predict_errors_over_grpc(stubs):
    call_it = stubs[0].Predict
    assert_fails("INVALID_ARGUMENT", "Missing ModelSpec", call_it, predict_pb2.PredictRequest())
    assert_fails("INVALID_ARGUMENT", "ModelSpec has no name specified.", call_it, predict_request(""))
    assert_fails("FAILED_PRECONDITION", 'Serving signature key "S" not found.', call_it, predict_request(signature="S"))
    message = (
        "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. Missing but required: {x}."
    )
    assert_fails("INVALID_ARGUMENT", message, call_it, predict_request(signature="same"))
    message = (
        "input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent extra: {z}. Missing but required: {}."
    )
    assert_fails("INVALID_ARGUMENT", message, call_it, predict_request(signature="same", x=[1.0], z=[1.0]))
    assert_fails("INVALID_ARGUMENT", None, call_it, predict_request(signature="same", z=[1.0]))
    empty = predict_request(signature="same")
    empty.inputs["x"].SetInParent()
    assert_fails("INVALID_ARGUMENT", "tensor parsing error: x", call_it, empty)
    short = tf.make_tensor_proto(np.float32([1, 2]))
    short.tensor_content = b"123"
    broken = predict_request(signature="same", x=short)
    assert_fails("INVALID_ARGUMENT", "tensor parsing error: x", call_it, broken)
    mismatch = assert_fails("INVALID_ARGUMENT", None, call_it, predict_request(signature="same", x=[b"text"]))
    assert "to be float but string is provided" in mismatch
    # A shape that the signature does not say is no error.
    other = call_it(predict_request(signature="same", x=np.float32([[1.0]]))).outputs["y"]
    assert [dim.size for dim in other.tensor_shape.dim] == [1, 1]
    bad_image = predict_request("colours", image_bytes=[png("red"), b"no image"])
    assert "Unknown image file format" in assert_fails("INVALID_ARGUMENT", None, call_it, bad_image)
    assert call_it(predict_request("colours", image_bytes=[png("red")])).model_spec.version.value == 3


def test_other_services_are_unimplemented(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        for method in ("tensorflow.serving.SessionService/SessionRun", "grpc.health.v1.Health/Check"):
            assert_fails("UNIMPLEMENTED", None, channel.unary_unary(f"/{method}"), b"")


def test_health_when_asked_for():
    health_pb2 = pytest.importorskip("grpc_health.v1.health_pb2")
    from grpc_health.v1 import health_pb2_grpc

    with front_ends(Models({}), health=True) as ports:
        stub = health_pb2_grpc.HealthStub(ports.channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        assert stub.Check(health_pb2.HealthCheckRequest()).status == serving
        assert next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)).status == serving
        unknown = health_pb2.HealthCheckRequest(service="tensorflow.serving.PredictionService")
        assert_fails("NOT_FOUND", None, stub.Check, unknown)


def test_health_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc_health.v1", None)
    with pytest.raises(UserError, match="pip install grpcio-health-checking"), front_ends(Models({}), health=True):
        pass


# Many at once


def test_parallel_requests_and_a_slow_one(server):
    body = json.dumps({"signature_name": "slow", "instances": [1_000_000]})
    ended = {}

    def slow():
        status = call(server, "POST", "/v1/models/colours:predict", body)[0]
        ended["slow"] = (status, time.monotonic())

    thread = threading.Thread(target=slow)
    thread.start()
    time.sleep(0.2)
    images = [(index, png(LABELS[index % 3])) for index in range(20)]

    def one(item):
        instances = [{"b64": base64.b64encode(item[1]).decode()}]
        status, answer = predict(server, {"instances": instances}, "colours")
        return status, int(np.argmax(answer["predictions"][0]))

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(one, images))
    done = time.monotonic()
    thread.join()
    assert answers == [(200, index % 3) for index in range(20)]
    assert ended["slow"][0] == 200
    assert done < ended["slow"][1], "the quick requests waited for the slow one"


def test_timeout_is_504_and_the_next_request_works(base_paths):
    models = {"colours": base_paths["colours"]}
    with ModelServer(models, port=0, rest_api_port=0, rest_api_timeout_in_ms=200) as server:
        status, answer = predict(server, {"signature_name": "slow", "instances": [1_000_000]}, "colours")
        assert status == 504 and "200 ms" in answer["error"]
        assert predict(server, {"signature_name": "which", "instances": [0]}, "colours")[0] == 200


def test_deadlines():
    """Nobody waits for what is late: it is not begun."""
    release = threading.Event()

    def wait(x):
        release.wait(20)
        return x

    engine = Noted(wait)
    with front_ends(Models({"m": engine}), workers=1, timeout_seconds=0.3) as ports:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(ports.channel)
        request = predict_request("m", x=[1.0])
        first = stub.Predict.future(request, timeout=20)
        while not engine.ran:
            time.sleep(0.01)
        late = stub.Predict.future(request, timeout=0.2)
        cancelled = stub.Predict.future(request)
        assert_fails("DEADLINE_EXCEEDED", None, late.result)
        cancelled.cancel()
        # The REST front end has a worker of its own, which the first of these takes.
        for _ in range(2):
            assert predict(ports, {"instances": [1]}, "m") == (504, {"error": "Timed out after 300 ms"})
        assert get(ports, "/v1/models/m")[0] == 200
        release.set()
        assert list(first.result().outputs["y"].float_val) == [1.0]
        assert predict(ports, {"instances": [1]}, "m")[0] == 200
        assert list(stub.Predict(request).outputs["y"].float_val) == [1.0]
    assert engine.ran == 4, "two that were in time, one that ran past its time, and the first"


def test_the_engine_is_told_of_deadlines():
    turns, errors = ConcurrencyLimit(at_once=1), []

    def wait(x):
        try:
            return turns.queue(lambda inputs: inputs)({"x": x})["x"]
        except ServingError as error:
            errors.append(error.code)
            raise

    with front_ends(Models({"m": Noted(wait)}), timeout_seconds=0.3) as ports:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(ports.channel)
        request = predict_request("m", x=[1.0])
        with turns.slot():
            assert predict(ports, {"instances": [1]}, "m")[0] == 504
            assert_fails("DEADLINE_EXCEEDED", None, stub.Predict, request, timeout=0.3)
            give_up = time.monotonic() + 10
            while len(errors) < 2 and time.monotonic() < give_up:
                time.sleep(0.01)
            patient = [stub.Predict.future(request, timeout=timeout) for timeout in (None, 20, 1e9)]
            time.sleep(0.2)
        assert [list(one.result().outputs["y"].float_val) for one in patient] == [[1.0]] * 3
        assert errors == [Code.DEADLINE_EXCEEDED] * 2


def test_a_full_queue_is_429():
    turns = ConcurrencyLimit(at_once=1, waiting=0)
    with front_ends(Models({"m": Noted(lambda x: turns.queue(lambda inputs: inputs)({"x": x})["x"])})) as ports:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(ports.channel)
        with turns.slot():
            status, answer = predict(ports, {"instances": [1]}, "m")
            assert status == 429 and answer["error"]
            assert_fails("RESOURCE_EXHAUSTED", answer["error"], stub.Predict, predict_request("m", x=[1.0]))
        assert predict(ports, {"instances": [1]}, "m")[0] == 200


def test_request_size_limit(base_paths):
    models = {"old": base_paths["old"]}
    with ModelServer(models, port=0, rest_api_port=0, limits=Limits(max_request_bytes=1000)) as server:
        big = json.dumps({"instances": [1.0] * 1000}).encode()
        assert call(server, "POST", "/v1/models/old:predict", big)[0] == 413
        status, _, body = call(
            server, "POST", "/v1/models/old:predict", gzip.compress(big), {"Content-Encoding": "gzip"}
        )
        assert status == 413 and b"allows 1000 (--max_request_bytes)" in body
        assert predict(server, {"instances": [1]}, "old")[0] == 200


# Section 10: versions


def states(server, model="m"):
    return {
        int(entry["version"]): entry["state"] for entry in get(server, f"/v1/models/{model}")[1]["model_version_status"]
    }


def wait_for(server, expected, seconds=20):
    deadline = time.monotonic() + seconds
    while (now := states(server)) != expected:
        assert time.monotonic() < deadline, f"{now} instead of {expected}"
        time.sleep(0.02)


def publish(saved, name, base, number):
    """Put a version in place as an export does: whole, by rename."""
    shutil.copytree(saved / name, base / "tmp-version")
    os.rename(base / "tmp-version", base / str(number))


def test_versions_come_and_go_without_a_failed_request(saved, tmp_path):
    base = tmp_path / "m"
    base.mkdir()
    publish(saved, "colours1", base, 1)
    options = {"file_system_poll_wait_seconds": 0.05, "max_num_load_retries": 0}
    with ModelServer({"m": base}, port=0, rest_api_port=0, **options) as server:
        seen, failures, stop = [], [], threading.Event()

        def ask():
            while not stop.is_set():
                status, answer = predict(server, {"signature_name": "which", "instances": [0]}, "m")
                (seen if status == 200 else failures).append(answer)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            publish(saved, "colours2", base, 2)
            wait_for(server, {1: "END", 2: "AVAILABLE"})
            version = predict(server, {"signature_name": "which", "instances": [0]}, "m")[1]
            assert version == {"predictions": [2.0]}
            assert predict(server, {"instances": [0]}, "m", "/versions/1")[0] == 404
            (base / "5").mkdir()
            (base / "5" / "saved_model.pb").write_bytes(b"broken")
            wait_for(server, {1: "END", 2: "AVAILABLE", 5: "END"})
            status = get(server, "/v1/models/m/versions/5")[1]["model_version_status"][0]["status"]
            assert status["error_code"] != "OK" and status["error_message"]
            shutil.rmtree(base / "5")
            shutil.rmtree(base / "2")
            wait_for(server, {1: "AVAILABLE", 2: "END", 5: "END"})
            publish(saved, "colours2", base, 5)
            wait_for(server, {1: "END", 2: "END", 5: "AVAILABLE"})
        finally:
            stop.set()
            thread.join()
        assert failures == []
        assert {"predictions": [1.0]} in seen and {"predictions": [2.0]} in seen
        moved = base.rename(tmp_path / "away")
        time.sleep(0.3)
        assert predict(server, {"signature_name": "which", "instances": [0]}, "m")[0] == 200
        moved.rename(base)
        for child in base.iterdir():
            shutil.rmtree(child)
        wait_for(server, {1: "END", 2: "END", 5: "END"})
        assert predict(server, {"instances": [0]}, "m") == (404, {"error": "Servable not found for request: Latest(m)"})


class FakeEngine:
    """An engine that costs nothing, for the bookkeeping of versions."""

    def __init__(self, path):
        if (path / "broken").exists():
            raise ServingError(Code.DATA_LOSS, "broken on purpose")


def test_a_version_in_use_is_unloaded_after_its_request(tmp_path):
    from keras_convnets.export.serving.models.model import State
    from keras_convnets.export.serving.models.servables import Servables

    (tmp_path / "1").mkdir()
    servables = Servables({"m": tmp_path}, load=FakeEngine)
    servables.load_initial()
    with servables.use("m") as servable:
        (tmp_path / "2").mkdir()
        servables.poll()
        assert [(e.version, e.state) for e in servables.status("m")] == [(2, State.AVAILABLE), (1, State.UNLOADING)]
        assert servable.version == 1 and servable.engine is not None
        with servables.use("m") as newer:
            assert newer.version == 2
    assert [(e.version, e.state) for e in servables.status("m")] == [(2, State.AVAILABLE), (1, State.END)]


def test_a_failed_load_is_tried_again_and_then_reported(tmp_path):
    from keras_convnets.export.serving.models.model import State
    from keras_convnets.export.serving.models.servables import Servables

    (tmp_path / "1").mkdir()
    options = {"max_num_load_retries": 1, "load_retry_interval_seconds": 0.0}
    servables = Servables({"m": tmp_path}, load=FakeEngine, **options)
    servables.load_initial()
    (tmp_path / "2" / "broken").mkdir(parents=True)
    servables.poll()
    assert [(e.version, e.state) for e in servables.status("m")] == [(2, State.LOADING), (1, State.AVAILABLE)]
    servables.poll()
    newest, oldest = servables.status("m")
    assert (newest.state, newest.error.code, oldest.state) == (State.END, Code.DATA_LOSS, State.AVAILABLE)
    (tmp_path / "2" / "broken").rmdir()
    servables.poll()
    assert servables.status("m", 2)[0].state is State.END, "a version that was given up stays so"
    (tmp_path / "2").rmdir()
    servables.poll()
    (tmp_path / "2").mkdir()
    servables.poll()
    assert [(e.version, e.state) for e in servables.status("m")] == [(2, State.AVAILABLE), (1, State.END)]


def test_which_directories_are_versions(tmp_path):
    from keras_convnets.export.serving.models.servables import Servables

    for name in ("00000123", "12", "abc", "1.5", "-7", "9223372036854775808", "\u0663", "\u00b2"):
        (tmp_path / name).mkdir()
    (tmp_path / "500").write_text("a file")
    servables = Servables({"m": tmp_path}, load=FakeEngine)
    servables.load_initial()
    assert [entry.version for entry in servables.status("m")] == [123]


# Starting and stopping


@pytest.mark.parametrize("flag", ["port", "rest_api_port"])
def test_port_in_use(base_paths, flag):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        server = ModelServer({"old": base_paths["old"]}, **({"port": 0, "rest_api_port": 0} | {flag: number}))
        with pytest.raises(UserError, match=rf"port {number} .* in use.*--{flag} "):
            server.start()


def test_two_servers_do_not_share_a_port(server, base_paths):
    with pytest.raises(UserError, match=f"port {server.port} on 127.0.0.1 is in use"):
        ModelServer({"old": base_paths["old"]}, port=server.port, rest_api_port=0).start()
    for number in (70000, -1):
        with pytest.raises(UserError, match=f"port {number} does not exist; give --rest_api_port a number"):
            ModelServer({"old": base_paths["old"]}, port=0, rest_api_port=number).start()
    with pytest.raises(UserError, match="cannot listen on 'nowhere.invalid'"):
        ModelServer({"old": base_paths["old"]}, port=0, rest_api_port=0, host="nowhere.invalid").start()
    with pytest.raises(UserError, match="given twice"):
        ModelServer({"old": base_paths["old"]}, port=8765, rest_api_port=8765).start()


def test_bad_base_paths(tmp_path):
    def start(path):
        ModelServer({"m": path}, port=0, rest_api_port=0).start()

    with pytest.raises(UserError, match=r"nothing.*cannot be read"):
        start(tmp_path / "nothing")
    (tmp_path / "empty" / "latest").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no version"):
        start(tmp_path / "empty")
    (tmp_path / "broken" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"version 1 of model 'm'.*cannot be loaded"):
        start(tmp_path / "broken")
    with pytest.raises(UserError, match="no model"):
        ModelServer({})


def test_ports_are_closed_after_stop(base_paths):
    server = ModelServer({"old": base_paths["old"]}, port=0, rest_api_port=0)
    server.start()
    assert server.port and server.rest_api_port and server.port != server.rest_api_port
    assert not server.wait(timeout=0.01)
    server.stop()
    assert server.wait(timeout=0)
    for port in (server.port, server.rest_api_port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_missing_packages(base_paths, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"pip install 'keras-convnets\[serving\]'"):
        ModelServer({"old": base_paths["old"]}, port=0, rest_api_port=0).start()


SERVE = """
import sys
from keras_convnets.export.serving import ModelServer, serve_forever
server = ModelServer({"m": sys.argv[1]}, port=0, rest_api_port=0)
serve_forever(server, lambda text: print(text, server.rest_api_port, flush=True))
"""


def test_sigterm_answers_what_is_under_way(saved, tmp_path):
    shutil.copytree(saved / "colours1", tmp_path / "m" / "1")
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", SERVE, str(tmp_path / "m")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("Serving m at http://127.0.0.1:")

            class Running:
                rest_api_port = int(line.split()[-1])

            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                body = {"signature_name": "slow", "instances": [300_000]}
                answer = pool.submit(predict, Running, body, "m")
                time.sleep(0.2)
                assert not answer.done()
                process.send_signal(signal.SIGTERM)
                assert answer.result()[0] == 200
            assert process.wait(timeout=20) == 0
            assert process.stdout.read().startswith("Stopping")
        finally:
            process.kill()


def test_importing_the_package_starts_no_tensorflow():
    code = (
        "import sys, keras_convnets.export.serving, keras_convnets.export.client; "
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras', 'grpc', 'uvicorn')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False).returncode == 0
