"""Requests made by chance: every answer is well-formed, and meanwhile a good request is answered as ever."""

import contextlib
import gzip
import http.client
import json
import random
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from endpoints import CLASSIFY, REGRESS, Models, front_ends, post, save_examples, save_many
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
)

from keras_convnets.export.serving.admission.limits import Limits
from keras_convnets.export.serving.engines.saved_model import SavedModelEngine

ROW = {"a": [1.0, 2.0], "b": 5, "s": {"b64": "b25l"}}
VALUES = [
    None,
    True,
    0,
    -1,
    1.5,
    1e300,
    2**31,
    2**63,
    2**64,
    10**400,
    "",
    "\udcff",
    "x",
    [],
    {},
    [[]],
    {"b64": "?"},
    "é",
]
BODIES = {
    "many:predict": [
        {"instances": [ROW, ROW]},
        {"inputs": {"a": [[1, 2]], "b": [1], "s": ["x"]}},
        {"signature_name": "same", "instances": [1, 2.5]},
        {"signature_name": "small", "inputs": [1, 255]},
        {"signature_name": "half", "inputs": [1.0]},
        {"signature_name": "batchless", "inputs": [1.0]},
        {"signature_name": "text", "instances": ["a", {"b64": "YQ=="}]},
    ],
    "examples:classify": [{"examples": [{"x": 0.5, "s": "red"}, {"n": [1]}], "context": {"x": 1.0}}],
    "examples:regress": [{"signature_name": "regress", "examples": [{"x": [0.5]}, {"s": {"b64": "YQ"}}]}],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    save_many(root / "many")
    save_examples(root / "examples")
    models = Models({name: SavedModelEngine(root / name) for name in ("many", "examples")})
    with front_ends(models, cors=True, limits=Limits(max_request_bytes=10**6)) as ports:
        yield ports


@contextlib.contextmanager
def answered_as_ever(server):
    """Ask a good request again and again meanwhile; each must be answered, and soon."""
    stop, problems, times = threading.Event(), [], []

    def ask():
        while not stop.is_set():
            began = time.monotonic()
            answer = post(server, "/v1/models/many:predict", {"signature_name": "same", "instances": [1]})
            times.append(time.monotonic() - began)
            if answer != (200, {"predictions": [1.0]}):
                problems.append(answer)
            time.sleep(0.01)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert problems == []
    assert len(times) > 3 and max(times) < 5


def mutated(rng, data):
    """Change bytes here and there: replaced, inserted, removed, doubled, cut."""
    data = bytearray(data)
    inserted = rb'" [ ] { } , \u NaN 1e - \x'.split() + [b"\xff", b"\x00"]
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            data[at:at] = rng.choice(inserted)
        elif kind == 2:
            del data[at : at + rng.randrange(1, 6)]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randrange(1, 20)]
        else:
            del data[at:]
    return bytes(data)


def rebuilt(rng, value):
    """Put an odd value, or another level, somewhere into a JSON value."""
    if rng.random() < 0.15:
        return rng.choice([rng.choice(VALUES), [value], [value, value], {"b64": value}, {"x": value}])
    if isinstance(value, list):
        return [rebuilt(rng, item) for item in value]
    if isinstance(value, dict):
        return {key: rebuilt(rng, item) for key, item in value.items() if rng.random() < 0.97}
    return value


def ask(connection, method, path, body, headers):
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def check_answer(sent, status, headers, answer):
    assert status in (200, 400, 404, 501), (sent, status, answer)
    assert headers["Content-Type"] == "application/json"
    # Strings leave as the bytes that came, UTF-8 or not.
    document = json.loads(answer.decode("utf-8", "surrogateescape"))
    if status == 200:
        assert set(document) <= {"predictions", "outputs", "results", "model_version_status", "model_spec", "metadata"}
    else:
        assert set(document) == {"error"} and isinstance(document["error"], str) and document["error"], sent


def test_bodies(server):
    rng = random.Random(1)
    seen = {}
    with answered_as_ever(server):
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_api_port, timeout=30)
        for index in range(500):
            path = rng.choice(list(BODIES))
            document = rng.choice(BODIES[path])
            if index % 2:
                body = json.dumps(rebuilt(rng, document), ensure_ascii=rng.random() < 0.5)
                body = body.encode("utf-8", "surrogateescape")
            else:
                body = mutated(rng, json.dumps(document).encode())
            headers = {}
            if rng.random() < 0.1:
                headers = {"Content-Encoding": "gzip"}
                body = rng.choice([body, gzip.compress(body), mutated(rng, gzip.compress(body))])
            status, headers, answer = ask(connection, "POST", f"/v1/models/{path}", body, headers)
            check_answer(body, status, headers, answer)
            seen[status] = seen.get(status, 0) + 1
        connection.close()
    assert seen[200] > 20 and seen[400] > 100, f"the cases tell little: {seen}"


def test_urls(server):
    rng = random.Random(2)
    parts = (
        "/v1 /models /many /versions /labels /1 /0 /007 /abc /metadata :predict :classify :regress : / // ? ?a=b %41"
    )
    parts += " %ff %00 %zz %2F #x /99999999999999999999 . .. ; & @ [ ] \\ ' \" < | ~ /V1 :PREDICT"
    seen = {}
    with answered_as_ever(server):
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_api_port, timeout=30)
        for _ in range(400):
            start = rng.choice(["/v1/models/many", "/v1/models", "/v1/", "/v1/models/examples/versions/1"])
            path = start + "".join(rng.choices(parts.split(), k=rng.randrange(3)))
            method = rng.choice(["GET", "GET", "POST", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
            body = b'{"instances": [1]}' if method == "POST" else None
            status, headers, answer = ask(connection, method, path, body, {})
            seen[status] = seen.get(status, 0) + 1
            if answer:
                check_answer((method, path), status, headers, answer)
            else:
                overflow = "99999999999999999999" in path
                assert status == 400 and (method == "OPTIONS" or overflow), (method, path, status)
        connection.close()
    assert min(seen.get(status, 0) for status in (200, 400, 404)) > 10, f"the cases tell little: {seen}"


def odd_tensor(rng):
    """Make a TensorProto whose type, sizes and values need not fit one another."""
    tensor = tf.make_tensor_proto(rng.choice([np.float32([1, 2]), np.int32([5]), [b"a"], np.zeros((1, 2), np.float32)]))
    for _ in range(rng.randrange(4)):
        kind = rng.randrange(6)
        if kind == 0:
            tensor.dtype = rng.randrange(0, 130)
        elif kind == 1:
            tensor.tensor_shape.dim.add(size=rng.choice([-1, 0, 1, 3, 2**31, 2**62]))
        elif kind == 2:
            tensor.tensor_shape.unknown_rank = True
        elif kind == 3:
            tensor.tensor_content = rng.randbytes(rng.randrange(20))
        elif kind == 4:
            tensor.float_val.extend([1.0] * rng.randrange(3))
        else:
            tensor.string_val.append(rng.randbytes(3))
    return tensor


def grpc_requests():
    """Return a good request for each method."""
    predict = predict_pb2.PredictRequest()
    predict.model_spec.name = "many"
    for alias, value in {"a": np.float32([[1, 2]]), "b": np.int32([5]), "s": [b"one"]}.items():
        predict.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    predict.output_filter.append("text")
    example = tf.train.Example()
    example.features.feature["x"].float_list.value.append(0.5)
    classify, regress = classification_pb2.ClassificationRequest(), regression_pb2.RegressionRequest()
    multi = inference_pb2.MultiInferenceRequest()
    for method, name in ((CLASSIFY, "serving_default"), (REGRESS, "regress")):
        task = multi.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = "examples", name
    for request in (classify, regress, multi):
        request.input.example_list.examples.append(example)
    classify.model_spec.name = regress.model_spec.name = "examples"
    regress.model_spec.signature_name = "regress"
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    status = get_model_status_pb2.GetModelStatusRequest()
    metadata.model_spec.name = status.model_spec.name = "many"
    service = "/tensorflow.serving.PredictionService/"
    return {
        f"{service}Predict": predict,
        f"{service}Classify": classify,
        f"{service}Regress": regress,
        f"{service}MultiInference": multi,
        f"{service}GetModelMetadata": metadata,
        "/tensorflow.serving.ModelService/GetModelStatus": status,
    }


def test_protocol_buffers(server):
    rng = random.Random(3)
    good = grpc_requests()
    seen = {}
    with answered_as_ever(server):
        methods = {name: server.channel.unary_unary(name) for name in good}
        for index in range(500):
            name = rng.choice(list(good))
            if index % 2:
                name = "/tensorflow.serving.PredictionService/Predict"
                request = predict_pb2.PredictRequest.FromString(good[name].SerializeToString())
                request.inputs[rng.choice(["a", "b", "s"])].CopyFrom(odd_tensor(rng))
                data = request.SerializeToString()
            else:
                data = mutated(rng, good[name].SerializeToString())
            code, details = "OK", ""
            try:
                methods[name](data, timeout=20)
            except grpc.RpcError as error:
                code, details = error.code().name, error.details()
            seen[code] = seen.get(code, 0) + 1
            # What is no protocol buffer at all is refused by gRPC itself.
            unread = code == "INTERNAL" and details == "Exception deserializing request!"
            allowed = ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED")
            assert unread or code in allowed, (name, data, code, details)
            assert code == "OK" or details, (name, data)
    assert seen["OK"] > 20 and seen["INVALID_ARGUMENT"] > 100, f"the cases tell little: {seen}"
