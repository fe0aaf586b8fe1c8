"""Predict and health over gRPC."""

from __future__ import annotations

import sys

import grpc
import numpy as np
import pytest
import tensorflow as tf
from endpoints import Models, assert_fails, front_ends
from served_models import png, predict_request
from tensorflow_serving.apis import (
    predict_pb2,
)

from keras_convnets.errors import UserError
from keras_convnets.export.serving.rpc import tensor_protos

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
