"""Status codes, model status, metadata and lookup, over REST and gRPC."""

from __future__ import annotations

import grpc
import pytest
from endpoints import Models, assert_fails, front_ends, get
from served_models import Noted, predict, predict_request
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_convnets.export.serving.rest import routes
from keras_convnets.export.serving.rest.verbs import STATUS, VERBS, Asked
from keras_convnets.export.serving.status import Code, ServingError


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


def test_an_unexpected_error_is_internal():
    def fail(x):
        raise ZeroDivisionError("of one's own")

    with front_ends(Models({"m": Noted(fail)})) as ports:
        message = "Internal error: ZeroDivisionError: of one's own"
        assert predict(ports, {"instances": [1]}, "m") == (500, {"error": message})
        stub = prediction_service_pb2_grpc.PredictionServiceStub(ports.channel)
        assert_fails("INTERNAL", message, stub.Predict, predict_request("m", x=[1.0]))
        assert get(ports, "/v1/models/m")[0] == 200


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
