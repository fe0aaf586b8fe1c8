"""The REST front end's HTTP: URLs, methods, CORS, connections, slow and endless requests."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import re
import shutil
import socket
import subprocess
import time

import pytest
import tensorflow as tf
from endpoints import Models, call, front_ends, get
from served_models import ROW, Noted, predict
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_convnets.export.serving.rest import body as rest_body
from keras_convnets.export.serving.rest import http_server as connections


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


def test_many_idle_connections_block_no_request(server):
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
