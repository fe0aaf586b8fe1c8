"""Warm-up: requests that a version brings along are answered before it is available."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from served_versions import ONE, RPC, ask, fails, publish
from tensorflow_serving.apis import (
    prediction_log_pb2,
)

from keras_convnets.errors import UserError
from keras_convnets.export.serving import ModelServer, warmup
from keras_convnets.export.serving.status import Code, ServingError


@pytest.fixture(scope="module")
def engine(saved_numbers):
    from keras_convnets.export.serving.engines.saved_model import SavedModelEngine

    return SavedModelEngine(saved_numbers / "1")


def warm_up_file(version, *records):
    path = version / warmup.PLACE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def predict_log(value, signature="serving_default"):
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(RPC)
    log.predict_log.request.model_spec.name = "recorded somewhere else"
    log.predict_log.request.model_spec.signature_name = signature
    log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([value])))
    return log.SerializeToString()


class Counting:
    """An engine whose runs are counted."""

    def __init__(self, engine):
        self.runs = []
        self.signatures, self.signature_defs = engine.signatures, engine.signature_defs
        self._engine = engine

    def run(self, name, inputs):
        self.runs.append(name)
        return self._engine.run(name, inputs)


def test_warm_up_answers_every_record(engine, tmp_path):
    counting = Counting(engine)
    warmup.warm_up(counting, tmp_path)
    assert counting.runs == [], "a version need not bring any"
    warm_up_file(tmp_path, predict_log(1.0), predict_log(2.0))
    warmup.warm_up(counting, tmp_path)
    assert counting.runs == ["serving_default"] * 2


@pytest.mark.parametrize(
    ("records", "code", "message"),
    [
        ([predict_log(1.0), predict_log(np.nan)], Code.INVALID_ARGUMENT, "not a number"),
        ([predict_log(1.0, "no")], Code.FAILED_PRECONDITION, 'Serving signature key "no" not found.'),
        ([b"\xff"], Code.INVALID_ARGUMENT, "Failed to parse warmup record: "),
        ([b""], Code.UNIMPLEMENTED, "Unsupported log_type for warmup"),
        ([prediction_log_pb2.PredictionLog(session_run_log={}).SerializeToString()], Code.UNIMPLEMENTED, "log_type"),
    ],
)
def test_any_failing_warm_up_record_fails_the_load(engine, tmp_path, records, code, message):
    warm_up_file(tmp_path, *records)
    with pytest.raises(ServingError) as caught:
        warmup.warm_up(engine, tmp_path)
    assert caught.value.code is code and message in caught.value.message


def test_warm_up_of_too_many_or_no_records(tmp_path, engine, monkeypatch):
    monkeypatch.setattr(warmup, "MOST_RECORDS", 3)
    path = warm_up_file(tmp_path, *[predict_log(1.0)] * 3)
    warmup.warm_up(engine, tmp_path)
    warm_up_file(tmp_path, *[predict_log(1.0)] * 4)
    message = f"Number of warmup records exceeds the maximum (3) at {path}"
    fails(Code.INVALID_ARGUMENT, message, warmup.warm_up, engine, tmp_path)
    path.write_bytes(b"this is no TFRecord at all")
    with pytest.raises(ServingError, match=r"\. Please verify your warmup data is in TFRecord format\.$") as caught:
        warmup.warm_up(engine, tmp_path)
    assert caught.value.code is Code.DATA_LOSS


def test_a_version_that_does_not_warm_up_is_not_served(saved_numbers, tmp_path):
    publish(saved_numbers, tmp_path, 1)
    warm_up_file(tmp_path / "1", predict_log(np.nan))
    with pytest.raises(UserError, match="version 1 of model 'm' .* cannot be loaded"):
        ModelServer({"m": tmp_path}, port=0, rest_api_port=0).start()
    with ModelServer({"m": tmp_path}, port=0, rest_api_port=0, enable_model_warmup=False) as server:
        assert ask(server.rest_api_port, ONE) == [1.0]
