"""Requests at once: slow ones, deadlines, full queues, limits."""

from __future__ import annotations

import base64
import concurrent.futures
import gzip
import json
import threading
import time

import numpy as np
from endpoints import Models, assert_fails, call, front_ends, get
from served_models import LABELS, Noted, png, predict, predict_request
from tensorflow_serving.apis import (
    prediction_service_pb2_grpc,
)

from keras_convnets.export.serving import ModelServer
from keras_convnets.export.serving.admission.limits import Limits
from keras_convnets.export.serving.scheduling.concurrency import ConcurrencyLimit
from keras_convnets.export.serving.status import Code, ServingError


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
    """A request whose deadline has passed is not started."""
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
        # The REST front end has its own worker, which the first of these takes.
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
