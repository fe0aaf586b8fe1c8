"""The Prometheus page: names, labels, buckets, and what counts where."""

import concurrent.futures
import re

import grpc
import numpy as np
import pytest
from endpoints import Models, call, front_ends, post
from tensorflow_serving.apis import (
    classification_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from keras_convnets.export.serving.metrics import PROMETHEUS_PATH, Metrics
from keras_convnets.export.serving.request_record import RequestRecord, recording
from keras_convnets.export.serving.signatures import Signature, TensorInfo
from keras_convnets.export.serving.status import Code


class Doubling:
    """An engine that doubles numbers, and whose "regress" gives 0.5 for each example."""

    def __init__(self):
        from tensorflow.core.protobuf import meta_graph_pb2

        info = TensorInfo("x", "float", (None,))
        self.signatures = {"serving_default": Signature("serving_default", {"x": info}, {"y": info})}
        regress = meta_graph_pb2.SignatureDef()
        regress.inputs["inputs"].name = "examples:0"
        regress.outputs["outputs"].name = "y:0"
        self.signature_defs = {"regress": regress}

    def run(self, name, inputs):
        if name == "regress":
            return {"outputs": np.full(len(inputs["inputs"]), 0.5, np.float32)}
        return {"y": inputs["x"] * 2}


def series(text):
    """Return the samples of a page, by name and labels, and check that every line is well-formed."""
    samples = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# TYPE :[a-z_:]+ (counter|histogram)", line)
            continue
        match = re.fullmatch(r'(:[a-z_:]+\{(?:[A-Za-z_]+="(?:[^"\\]|\\.)*",?)+\}) (\d+)', line)
        assert match, line
        samples[match[1]] = int(match[2])
    return samples


@pytest.fixture
def server():
    with front_ends(Models({"m": Doubling()}), prometheus_path=PROMETHEUS_PATH) as ports:
        yield ports


def page(server):
    status, headers, body = call(server, "GET", PROMETHEUS_PATH)
    assert (status, headers["Content-Type"]) == (200, "text/plain")
    return body.decode()


def counts(server):
    found = {}
    pattern = r':tensorflow:serving:request_count\{model_name="(.*)",status="(.*)",model_version="(.*)"\}'
    for name, value in series(page(server)).items():
        match = re.fullmatch(pattern, name)
        if match:
            found[match.groups()] = value
    return found


def latencies(server, kind="request"):
    labels = r'model_name="(.*)",API="(.*)",\w+="(.*)",model_version="(.*)"'
    pattern = rf":tensorflow:serving:{kind}_latency_count\{{{labels}\}}"
    matches = ((re.fullmatch(pattern, name), value) for name, value in series(page(server)).items())
    return {match.groups(): value for match, value in matches if match}


def test_the_page_before_any_request(server):
    assert page(server) == (
        "# TYPE :tensorflow:serving:request_count counter\n"
        "# TYPE :tensorflow:serving:request_latency histogram\n"
        "# TYPE :tensorflow:serving:runtime_latency histogram\n"
        "# TYPE :keras_convnets:serving:batch_size histogram\n"
    )


def test_the_text_of_a_histogram():
    metrics = Metrics()
    for seconds in (9e-6, 10e-6, 30e-6, 1e5):
        metrics.request_latency("m", "predict", "REST", seconds)
    lines = metrics.page().splitlines()
    labels = 'model_name="m",API="predict",entrypoint="REST",model_version=""'
    buckets = [line for line in lines if "_bucket" in line]
    assert buckets[:4] == [
        f':tensorflow:serving:request_latency_bucket{{{labels},le="{bound}"}} {count}'
        for bound, count in (("10", 1), ("18", 2), ("32.4", 3), ("58.32", 3))
    ]
    assert len(buckets) == 34
    assert '"1.27482e+06"' in buckets[20]
    assert buckets[-1] == f':tensorflow:serving:request_latency_bucket{{{labels},le="+Inf"}} 4'
    assert f":tensorflow:serving:request_latency_sum{{{labels}}} 100000000049" in lines
    assert f":tensorflow:serving:request_latency_count{{{labels}}} 4" in lines


def test_what_rest_counts(server):
    assert post(server, "/v1/models/m:predict", {"instances": [1]}) == (200, {"predictions": [2.0]})
    body = {"signature_name": "regress", "examples": [{}, {}]}
    assert post(server, "/v1/models/m:regress", body) == (200, {"results": [0.5, 0.5]})
    for method, path in (
        ("GET", "/v1/models/m"),
        ("GET", "/v1/models/nope"),
        ("GET", "/v1/models/m%20%22x%22/metadata"),
        ("GET", "/v1/models/m/versions/9223372036854775808"),
        ("POST", "/v1/models/m:PREDICT"),
        ("DELETE", "/v1/models/m"),
        ("OPTIONS", "/v1/models/m"),
        ("GET", "/elsewhere"),
    ):
        call(server, method, path)
    assert counts(server) == {
        ("", "FAILED_PRECONDITION", ""): 1,
        ("", "INVALID_ARGUMENT", ""): 1,
        ("m", "INVALID_ARGUMENT", ""): 2,
        # The status of all versions is asked of none of them.
        ("m", "OK", ""): 1,
        ("m", "OK", "1"): 2,
        ('m \\"x\\"', "NOT_FOUND", ""): 1,
        ("nope", "NOT_FOUND", ""): 1,
    }
    rest = {("m", "predict", "REST", "1"): 1, ("m", "regress", "REST", "1"): 1, ("m", "", "REST", ""): 1}
    assert latencies(server) == rest
    assert latencies(server, "runtime") == {("m", "Predict", "TF1", "1"): 1, ("m", "Regress", "TF1", "1"): 1}


def test_what_grpc_counts(server):
    import tensorflow as tf

    stub = prediction_service_pb2_grpc.PredictionServiceStub(server.channel)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))
    stub.Predict(request)
    regression = regression_pb2.RegressionRequest()
    regression.model_spec.name, regression.model_spec.signature_name = "m", "regress"
    regression.input.example_list.examples.add()
    stub.Regress(regression)
    classification = classification_pb2.ClassificationRequest()
    classification.model_spec.name = "nope"
    with pytest.raises(grpc.RpcError):
        stub.Classify(classification)
    assert counts(server) == {("m", "OK", "1"): 2, ("nope", "NOT_FOUND", ""): 1}
    assert latencies(server) == {("m", "Predict", "GRPC", "1"): 1, ("m", "Regress", "GRPC", "1"): 1}
    assert latencies(server, "runtime") == {("m", "Predict", "TF1", "1"): 1, ("m", "Regress", "TF1", "1"): 1}


def test_the_path(server):
    status, headers, body = call(server, "GET", PROMETHEUS_PATH + "?x=1")
    assert (status, headers["Content-Type"]) == (400, "text/plain")
    assert body.decode().startswith(f"Unexpected path: {PROMETHEUS_PATH}?x=1")
    assert call(server, "GET", PROMETHEUS_PATH + "/")[0] == 404
    with front_ends(Models({})) as without:
        assert call(without, "GET", PROMETHEUS_PATH)[0] == 404
    with front_ends(Models({}), prometheus_path="/v1/metrics") as other:
        assert call(other, "GET", "/v1/metrics")[1]["Content-Type"] == "text/plain"


def test_invented_names_do_not_fill_the_memory():
    metrics = Metrics()
    for index in range(3000):
        metrics.count_request(f"invented{index}", Code.NOT_FOUND)
    metrics.count_request("invented7", Code.NOT_FOUND)
    samples = series(metrics.page())
    assert len(samples) <= 1001
    assert sum(samples.values()) == 3001
    assert samples[':tensorflow:serving:request_count{model_name="invented7",status="NOT_FOUND",model_version=""}'] == 2


def test_versions_that_come_and_go_do_not_fill_the_memory():
    metrics = Metrics()
    for version in range(3000):
        metrics.batch_size("m", version, 1)
    samples = series(metrics.page())
    counted = [name for name in samples if name.startswith(":keras_convnets:serving:batch_size_count")]
    assert len(counted) == 1001 and sum(samples[name] for name in counted) == 3000


def test_a_batch_of_a_bucket_bound_belongs_to_it():
    metrics = Metrics()
    for rows in (1, 16, 17):
        metrics.batch_size("m", 3, rows)
    samples = series(metrics.page())
    name = ':keras_convnets:serving:batch_size_bucket{model_name="m",model_version="3",le="%s"}'
    assert [samples[name % bound] for bound in (1, 8, 16, 32, 4096, "+Inf")] == [1, 1, 2, 3, 3, 3]


def test_a_counter_of_several_versions_is_one_to_a_reload():
    metrics = Metrics()
    for version in (1, 2, None):
        record = RequestRecord("", "gRPC", "", version=version)
        with recording(record):
            metrics.count_request("m", Code.OK)
    assert metrics.value("/tensorflow/serving/request_count") == 3


def test_counting_from_many_threads():
    metrics = Metrics()

    def count(_):
        for _ in range(500):
            metrics.count_request("m", Code.OK)
            with metrics.runtime("m", "Predict"):
                pass

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    assert metrics.value("/tensorflow/serving/request_count") == 4000
    assert (
        ':tensorflow:serving:runtime_latency_count{model_name="m",API="Predict",runtime="TF1",model_version=""} 4000'
        in metrics.page()
    )
    metrics.count_request("other", Code.OK)
    assert metrics.value("/tensorflow/serving/request_count") == 0, "two series: which of them?"


def test_a_run_that_fails_has_no_latency():
    metrics = Metrics()
    with pytest.raises(ValueError), metrics.runtime("m", "Predict"):
        raise ValueError
    assert "_count{" not in metrics.page()
