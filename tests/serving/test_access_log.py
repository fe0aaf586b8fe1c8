"""What is noted of requests: ids in answers, the access log, batches, traces."""

import concurrent.futures
import io
import json
import re
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from endpoints import Models, call, front_ends
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from test_metrics import Doubling, series

from keras_convnets.export.serving import ModelServer
from keras_convnets.export.serving.access_log import AccessLog, log_entry
from keras_convnets.export.serving.metrics import PROMETHEUS_PATH
from keras_convnets.export.serving.observer import Observer
from keras_convnets.export.serving.request_record import RequestRecord, request_id
from keras_convnets.export.serving.scheduling.batching import BatchingParameters
from keras_convnets.export.serving.tracing import Tracer

PREDICT = "/v1/models/m:predict"


class Failing(Doubling):
    def run(self, name, inputs):
        raise RuntimeError("out of order")


@pytest.fixture
def logged():
    """A server and a function that waits for a number of entries in its log and returns them."""
    stream = io.StringIO()
    log = AccessLog(stream)
    with front_ends(Models({"m": Doubling(), "bad": Failing()}), observer=Observer(access_log=log)) as server:

        def entries(count):
            until(lambda: stream.getvalue().count("\n") >= count)
            return [json.loads(line) for line in stream.getvalue().splitlines()]

        yield server, entries
    log.close()


def predict_request(model="m"):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0, 2.0]))
    return request


def until(condition):
    """Wait until a condition holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ids_of_requests():
    assert request_id("a1:b/c=d") == "a1:b/c=d"
    for unfit in (None, "", "a b", "a\nb", "ä", "x" * 129, '"'):
        assert re.fullmatch("[0-9a-f]{32}", request_id(unfit))


def test_a_rest_request_in_the_log(logged):
    server, entries = logged
    body = json.dumps({"instances": [1, 2]})
    _, headers, answer = call(server, "POST", PREDICT, body, {"X-Request-Id": "mine-7"})
    assert headers["X-Request-Id"] == "mine-7"
    (entry,) = entries(1)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", entry.pop("time"))
    assert re.fullmatch(r"127\.0\.0\.1:\d+", entry.pop("peer"))
    assert 0 < entry.pop("runtime_seconds") <= entry.pop("seconds") < 30
    assert entry == {
        "request_id": "mine-7",
        "interface": "REST",
        "call": f"POST {PREDICT}",
        "model": "m",
        "version": 1,
        "api": "predict",
        "status": 200,
        "code": "OK",
        "request_bytes": len(body),
        "response_bytes": len(answer),
    }


def test_requests_that_fail_are_logged_with_their_message(logged, caplog):
    server, entries = logged
    ids = []
    for method, path, body in (
        ("POST", PREDICT, "{"),
        ("POST", "/v1/models/nope:predict", '{"instances": [1]}'),
        ("GET", "/v1/models/m/versions/9223372036854775808", None),
        ("GET", "/elsewhere%1b[2J", None),
        ("POST", "/v1/models/bad:predict", '{"instances": [1]}'),
    ):
        ids.append(call(server, method, path, body)[1]["X-Request-Id"])
    found = entries(5)
    assert [entry["request_id"] for entry in found] == ids and len(set(ids)) == 5
    assert [(entry["status"], entry["code"], entry.get("model")) for entry in found] == [
        (400, "INVALID_ARGUMENT", "m"),
        (404, "NOT_FOUND", "nope"),
        (400, "INVALID_ARGUMENT", "m"),
        (404, "NOT_FOUND", None),
        (500, "INTERNAL", "bad"),
    ]
    assert "JSON" in found[0]["error"] and "Latest(nope)" in found[1]["error"]
    assert found[4]["error"] == "Internal error: RuntimeError: out of order"
    # What the operator reads of the failure names the request, too.
    assert ids[4] in caplog.text


def test_a_grpc_request_in_the_log(logged):
    server, entries = logged
    stub = prediction_service_pb2_grpc.PredictionServiceStub(server.channel)
    request = predict_request()
    _, done = stub.Predict.with_call(request, metadata=[("x-request-id", "mine-8")])
    assert dict(done.trailing_metadata())["x-request-id"] == "mine-8"
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(predict_request("nope"))
    other = dict(caught.value.trailing_metadata())["x-request-id"]
    first, second = entries(2)
    assert first["request_id"] == "mine-8" and second["request_id"] == other
    assert first["call"] == "/tensorflow.serving.PredictionService/Predict" and first["interface"] == "gRPC"
    assert (first["model"], first["version"], first["api"], first["code"]) == ("m", 1, "Predict", "OK")
    assert first["request_bytes"] == request.ByteSize()
    assert (second["model"], second["code"]) == ("nope", "NOT_FOUND") and "status" not in second
    assert "Latest(nope)" in second["error"]


def test_lines_are_plain_text_whatever_a_client_sends():
    record = RequestRecord("7", "REST", "GET /\x1b[2J\n" + "x" * 5000, model="\ud800", error="e" * 5000)
    line = json.dumps(log_entry(record))
    assert line.isascii() and line.isprintable() and len(line) < 4000


def test_a_reader_that_stops_reading_holds_up_nothing():
    class Stuck(io.StringIO):
        def __init__(self):
            super().__init__()
            self.reads = threading.Event()

        def write(self, text):
            self.reads.wait(30)
            return super().write(text)

    stream = Stuck()
    log = AccessLog(stream, max_waiting=3)
    began = time.monotonic()
    for index in range(10):
        log.write(RequestRecord(str(index), "REST", "GET /"))
    assert time.monotonic() - began < 5
    stream.reads.set()
    until(lambda: len(stream.getvalue().splitlines()) >= 3)
    log.write(RequestRecord("last", "REST", "GET /"))
    log.close()
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    left_out = sum(entry.get("lines_left_out", 0) for entry in entries)
    assert entries[0]["request_id"] == "0" and entries[-1]["request_id"] == "last"
    assert left_out >= 6 and len(entries) + left_out == 11


def test_a_stream_that_fails_ends_the_log_and_nothing_else(caplog):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError("reader gone")

    log = AccessLog(Broken(), max_waiting=3)
    for index in range(20):
        log.write(RequestRecord(str(index), "REST", "GET /"))
        time.sleep(0.001)
    log.close()
    assert caplog.text.count("takes no more") == 1


def test_batches_count_once_each(base_paths):
    stream = io.StringIO()
    batching = BatchingParameters(max_batch_size=4, batch_timeout_micros=20_000_000)
    options = {"prometheus_path": PROMETHEUS_PATH, "access_log": stream, "batching": batching}
    models = {"colours": base_paths["colours"]}
    with ModelServer(models, port=0, rest_api_port=0, **options) as server:
        body = json.dumps({"signature_name": "which", "instances": [0, 0]})
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            paths = ["/v1/models/colours:predict"] * 8
            statuses = list(pool.map(lambda path: call(server, "POST", path, body)[0], paths))
        samples = series(call(server, "GET", PROMETHEUS_PATH)[2].decode())
    assert statuses == [200] * 8
    labels = 'model_name="colours",model_version="3"'
    # Sixteen rows in batches of four.
    assert samples[f":keras_convnets:serving:batch_size_count{{{labels}}}"] == 4
    assert samples[f":keras_convnets:serving:batch_size_sum{{{labels}}}"] == 16
    assert samples[f':keras_convnets:serving:batch_size_bucket{{{labels},le="2"}}'] == 0
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(entry["batch_size"], entry["version"]) for entry in entries[:8]] == [(4, 3)] * 8
    # The page of metrics was asked for, too.
    assert entries[8]["call"] == f"GET {PROMETHEUS_PATH}" and "batch_size" not in entries[8]


def test_a_request_over_several_batches():
    from keras_convnets.export.serving.request_record import recording
    from keras_convnets.export.serving.scheduling.batching import _note_batches

    record = RequestRecord("", "gRPC", "")
    # Its first row is the last of another's batch of 4, then it fills one of 4, and begins one of 2.
    places = [[3, 4], [0, 4], [1, 4], [2, 4], [3, 4], [0, 2]]
    with recording(record):
        _note_batches(np.array(places))
    assert record.batches_begun == [4, 2] and record.batch_size == 2


def test_spans_of_requests():
    export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    exporter, provider = export.InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    parent = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "x-request-id": "mine-9"}
    with front_ends(Models({"m": Doubling()}), observer=Observer(tracer=Tracer(provider))) as server:
        call(server, "POST", PREDICT, '{"instances": [1]}', parent)
        call(server, "POST", PREDICT + "?", "{")
        stub = prediction_service_pb2_grpc.PredictionServiceStub(server.channel)
        stub.Predict(predict_request(), metadata=list(parent.items()))
        until(lambda: len(exporter.get_finished_spans()) == 3)
    rest, malformed, rpc = exporter.get_finished_spans()
    assert (rest.name, rpc.name) == ("POST predict", "tensorflow.serving.PredictionService/Predict")
    for span in (rest, rpc):
        assert f"{span.context.trace_id:032x}" == trace_id and span.attributes["request.id"] == "mine-9"
        assert (span.attributes["model.name"], span.attributes["model.version"]) == ("m", 1)
        assert 0 < span.attributes["model.runtime_seconds"] <= (span.end_time - span.start_time) / 1e9
        assert span.status.is_unset
    assert rest.attributes["http.response.status_code"] == 200 and rpc.attributes["rpc.grpc.status_code"] == 0
    assert malformed.attributes["http.response.status_code"] == 400 and not malformed.status.is_ok
    assert malformed.attributes["url.path"] == PREDICT and malformed.parent is None


def test_without_opentelemetry_nothing_is_traced(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    tracer = Tracer()
    record = RequestRecord("7", "REST", "GET /")
    assert tracer.span(record, {}) is None
    tracer.end(None, record)
