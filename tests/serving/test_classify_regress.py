"""Classify, Regress and MultiInference: tf.Examples over REST and gRPC, on a TF1-style SavedModel."""

import json

import numpy as np
import pytest
import tensorflow as tf
from endpoints import (
    CLASSIFY,
    REGRESS,
    Models,
    assert_fails,
    call,
    front_ends,
    post,
    save_examples,
)
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from keras_convnets.export.serving.engines.saved_model import SavedModelEngine
from keras_convnets.export.serving.rest import json_examples


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tmp_path_factory.mktemp("examples") / "1"
    save_examples(path)
    return SavedModelEngine(path)


@pytest.fixture(scope="module")
def server(engine):
    with front_ends(Models({"m": engine})) as ports:
        yield ports


@pytest.fixture(scope="module")
def stub(server):
    return prediction_service_pb2_grpc.PredictionServiceStub(server.channel)


def rest(server, verb, items, **more):
    return post(server, f"/v1/models/m:{verb}", {"examples": items, **more})


# REST


def test_classify_over_rest(server):
    items = [{"x": 0.25, "s": "red"}, {"s": {"b64": "Z3JlZW4="}, "x": [1.5], "unused": []}]
    status, headers, body = call(server, "POST", "/v1/models/m:classify", json.dumps({"examples": items}))
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert body == b'{"results":[[["red",0.5],["other",0.5]],[["green",3.0],["other",-2.0]]]}'
    assert rest(server, "classify", items[:1], signature_name="classes_only") == (
        200,
        {"results": [[["red", 0.0], ["other", 0.0]]]},
    )
    assert rest(server, "classify", items[:1], signature_name="scores_only") == (
        200,
        {"results": [[["", 0.5], ["", 0.5]]]},
    )
    raw = call(server, "POST", "/v1/models/m:classify", b'{"examples": [{"s": "\xff"}], "signature_name": ""}')
    assert raw[2].startswith(b'{"results":[[["\xff",0.0]'), "bytes that are no UTF-8 leave as they are"


def test_regress_over_rest(server):
    for name in ("regress", "regress_column"):
        items = [{"x": 0.5}, {"n": True, "x": 0.05}, {"n": [7]}]
        assert rest(server, "regress", items, signature_name=name) == (200, {"results": [1.0, 1.1, 7.0]})
    not_finite = '{"signature_name": "regress", "examples": [{"x": NaN}, {"x": 1e300}, {"x": 1e30}]}'
    assert call(server, "POST", "/v1/models/m:regress", not_finite)[2] == b'{"results":[NaN,Infinity,2e+30]}'


def test_the_context_belongs_to_every_example(server):
    context = {"x": 3.0, "n": 4}
    answer = rest(server, "regress", [{}, {"x": 1.0}, {"n": 1}], context=context, signature_name="regress")
    assert answer == (200, {"results": [10.0, 6.0, 7.0]}), "an example's own feature comes before the context's"


def quoted(text):
    return f"JSON Value: {text} "


BAD = [
    ("", "JSON Parse error: The document is empty"),
    ("[1]", quoted("[1]") + "Is not object"),
    ('{"signature_name": 1}', "'signature_name' key must be a string value."),
    ("{}", quoted("{}") + "When method is classify, key 'examples' is expected and was not found"),
    ('{"examples": {}}', "Expecting 'examples' value to be an list/array"),
    ('{"examples": []}', "'examples' value is an empty array"),
    ('{"examples": [1]}', "Example must be JSON object but got JSON Number"),
    ('{"examples": [{}, null]}', "Example must be JSON object but got JSON Null"),
    ('{"context": 1}', "Example must be JSON object but got JSON Number"),
    ('{"examples": [{"f": null}]}', "Feature: f has element with unexpected JSON type: Null"),
    ('{"examples": [{"f": [1, [2]]}]}', "Feature: f has element with unexpected JSON type: Array"),
    ('{"examples": [{"f": [1, 2.0]}]}', "Unexpected element type in feature: f expecting type: int64"),
    ('{"examples": [{"f": ["a", true]}]}', "Unexpected element type in feature: f expecting type: bytes"),
    ('{"examples": [{"f": [1.5, 1]}]}', "Unexpected element type in feature: f expecting type: float"),
    ('{"examples": [{"f": 9223372036854775808}]}', "Feature: f has uint64_t element. Only int64_t is supported."),
    ('{"examples": [{"f": {"b64": "?"}}]}', "Unable to base64 decode"),
    ('{"examples": [{"f": {"b64": "YQ", "x": 1}}]}', "Feature: f has element with unexpected JSON type: Object"),
    ('{"examples": [{"f": [1, {"b64": 1}]}]}', "Feature: f has element with unexpected JSON type: Object"),
    ('{"examples": [{"f": [1, {"b64": "?"}]}]}', "Unexpected element type in feature: f expecting type: int64"),
    ('{"examples": [{"f": ["a", 9223372036854775808]}]}', "element type in feature: f expecting type: bytes"),
]


@pytest.mark.parametrize("verb", ["classify", "regress"])
@pytest.mark.parametrize(("body", "message"), BAD)
def test_bad_bodies_are_found_before_the_model_is_looked_up(server, verb, body, message):
    status, answer = post(server, f"/v1/models/nope:{verb}", body)
    assert status == 400
    assert message in answer["error"]


def test_the_model_is_looked_up_next(server):
    for verb in ("classify", "regress"):
        assert post(server, f"/v1/models/nope:{verb}", {"examples": [{}]}) == (
            404,
            {"error": "Servable not found for request: Latest(nope)"},
        )


BAD_SIGNATURES = [
    ("classify", "no", "No signature was found with the name: no"),
    ("classify", "two_inputs", "Expected one input Tensor."),
    ("classify", "three_outputs", "Expected one or two output Tensors, found 3"),
    ("classify", "other_input", "No classification inputs found in SignatureDef: "),
    (
        "classify",
        "other_output",
        'Expected classification signature outputs to contain at least one of "classes" or "scores". ',
    ),
    ("classify", "flat_scores", "Expected Tensor shape: [batch_size num_classes] but got [1]"),
    ("classify", "double_scores", "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
    ("classify", "number_classes", "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
    ("classify", "short_scores", "Expected scores output batch size of 1. Got: 3"),
    ("classify", "uneven", "Tensors class and score should match in dim_size(1). Got 2 vs. 1"),
    ("regress", "no", "No signature was found with the name: no"),
    ("regress", "two_inputs", "Expected one input Tensor."),
    ("regress", "serving_default", "Expected one output Tensor."),
    ("regress", "scores_only", "No regression outputs found in SignatureDef: "),
    (
        "regress",
        "wide",
        "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [1,2]",
    ),
    ("regress", "constant", "Input batch size did not match output batch size: 1 vs. 3"),
    ("regress", "double", "Expected output Tensor of DT_FLOAT. Got: DT_DOUBLE"),
]


@pytest.mark.parametrize(("verb", "name", "message"), BAD_SIGNATURES)
def test_signatures_of_another_kind(server, stub, verb, name, message):
    status, answer = rest(server, verb, [{"x": 1.0}], signature_name=name)
    assert status == 400
    assert answer["error"].startswith(message)
    request = REQUESTS[verb](name, [example(x=1.0)])
    method = stub.Classify if verb == "classify" else stub.Regress
    assert assert_fails("INVALID_ARGUMENT", None, method, request).startswith(message)


def test_an_example_that_the_graph_refuses(server):
    status, answer = rest(server, "regress", [{"x": "text"}], signature_name="regress")
    assert status == 400
    assert "Key: x" in answer["error"]


# gRPC


def example(**features):
    """Make a tf.Example; a feature is a float, an int or bytes."""
    message = tf.train.Example()
    for name, value in features.items():
        kind = {float: "float_list", int: "int64_list", bytes: "bytes_list"}[type(value)]
        getattr(message.features.feature[name], kind).value.append(value)
    return message


def fill(request, signature, items, context=None):
    request.model_spec.name = "m"
    request.model_spec.signature_name = signature
    if context is None:
        request.input.example_list.examples.extend(items)
    else:
        request.input.example_list_with_context.examples.extend(items)
        request.input.example_list_with_context.context.CopyFrom(context)
    return request


REQUESTS = {
    "classify": lambda *args: fill(classification_pb2.ClassificationRequest(), *args),
    "regress": lambda *args: fill(regression_pb2.RegressionRequest(), *args),
}


def test_classify_over_grpc(stub):
    response = stub.Classify(REQUESTS["classify"]("", [example(x=0.25, s=b"red"), example(x=1.5, s=b"\xff")]))
    spec = response.model_spec
    assert (spec.name, spec.signature_name, spec.version.value) == ("m", "serving_default", 1)
    found = [[(c.label, c.score) for c in one.classes] for one in response.result.classifications]
    assert found == [[("red", 0.5), ("other", 0.5)], [("\ufffd", 3.0), ("other", -2.0)]]


def test_regress_over_grpc(stub):
    response = stub.Regress(REQUESTS["regress"]("regress", [example(x=0.5), example(n=7)]))
    assert response.model_spec.signature_name == "regress"
    assert [one.value for one in response.result.regressions] == [1.0, 7.0]
    request = REQUESTS["regress"]("regress", [example(), example(x=1.0)], example(x=3.0))
    assert [one.value for one in stub.Regress(request).result.regressions] == [6.0, 2.0]


def test_requests_without_model_or_examples(stub):
    for method, name, kind in (
        (stub.Classify, "serving_default", classification_pb2.ClassificationRequest),
        (stub.Regress, "regress", regression_pb2.RegressionRequest),
    ):
        assert_fails("INVALID_ARGUMENT", "Missing ModelSpec", method, kind())
        request = kind()
        request.model_spec.SetInParent()
        assert_fails("INVALID_ARGUMENT", "ModelSpec has no name specified.", method, request)
        request.model_spec.name = "m"
        request.model_spec.signature_name = "no"
        assert_fails("INVALID_ARGUMENT", "No signature was found with the name: no", method, request)
        request.model_spec.signature_name = name
        assert_fails("INVALID_ARGUMENT", "Input is empty.", method, request)
        request.input.example_list_with_context.context.SetInParent()
        assert_fails("INVALID_ARGUMENT", "Input is empty.", method, request)


def tasks(*wanted, items=(), model="m"):
    request = inference_pb2.MultiInferenceRequest()
    for name, method in wanted:
        task = request.tasks.add(method_name=method)
        task.model_spec.name = model
        task.model_spec.signature_name = name
    request.input.example_list.examples.extend(items)
    return request


def test_multi_inference(stub):
    wanted = [("regress", REGRESS), ("", CLASSIFY)]
    response = stub.MultiInference(tasks(*wanted, items=[example(x=0.25, s=b"red"), example(n=1)]))
    regression, classification = response.results
    assert [one.value for one in regression.regression_result.regressions] == [0.5, 1.0]
    spec = classification.model_spec
    assert (spec.name, spec.signature_name, spec.version.value) == ("m", "serving_default", 1)
    first = classification.classification_result.classifications[0].classes
    assert [(one.label, one.score) for one in first] == [("red", 0.5), ("other", 0.5)]
    assert regression.model_spec.signature_name == "regress"
    # Signatures with input tensors of their own get the same examples.
    items = [example(x=1.0), example(n=2)]
    response = stub.MultiInference(tasks(("elsewhere", REGRESS), ("regress", REGRESS), items=items))
    values = [[one.value for one in result.regression_result.regressions] for result in response.results]
    assert values == [[float(len(item.SerializeToString())) for item in items], [2.0, 2.0]]


def test_multi_inference_errors(stub):
    good = ("regress", REGRESS)
    items = [example(x=1.0)]

    def fails(details, *wanted, code="INVALID_ARGUMENT", items=items, change=None):
        request = tasks(*wanted, items=items)
        if change:
            change(request)
        return assert_fails(code, details, stub.MultiInference, request)

    def rename(request):
        request.tasks[1].model_spec.name = "other"

    def unname(request):
        request.tasks[1].model_spec.name = ""

    unsupported = "Unsupported signature method_name: tensorflow/serving/predict"
    fails(unsupported, ("regress", "tensorflow/serving/predict"), code="UNIMPLEMENTED")
    nameless = assert_fails("INVALID_ARGUMENT", None, stub.MultiInference, inference_pb2.MultiInferenceRequest())
    assert nameless == "ModelSpec has no name specified."
    fails("Requested signature not found in model graph: no", ("no", REGRESS))
    fails("Duplicate evaluation of signature: regress", good, good)
    fails("Duplicate evaluation of signature: serving_default", ("", CLASSIFY), ("serving_default", CLASSIFY))
    different = "All ModelSpecs in a MultiInferenceRequest must access the same model name."
    fails(different, good, ("", CLASSIFY), change=rename)
    fails("Found ModelSpec with an empty model name.", good, ("", CLASSIFY), change=unname)
    fails("Expected one output Tensor.", ("", REGRESS))
    fails("Input is empty.", good, items=[])
    unknown = tasks(good, items=items, model="nope")
    assert_fails("NOT_FOUND", "Servable not found for request: Latest(nope)", stub.MultiInference, unknown)


def test_features_of_every_kind():
    """The bytes are tf.train's own."""
    body = {"examples": [{"i": [1, -2, True], "f": [0.5], "s": ["a", {"b64": "/w"}], "e": [], "big": 2**70}]}
    name, (serialized,) = json_examples.parse_request(json.dumps(body | {"signature_name": "x"}).encode())
    assert name == "x"
    features = tf.train.Example.FromString(serialized).features.feature
    assert set(features) == {"i", "f", "s", "e", "big"}
    assert list(features["i"].int64_list.value) == [1, -2, 1]
    assert list(features["f"].float_list.value) == [0.5]
    assert list(features["s"].bytes_list.value) == [b"a", b"\xff"]
    assert features["e"].WhichOneof("kind") is None
    assert list(features["big"].float_list.value) == [np.float32(2**70)]


def test_the_reload_method(server, engine):
    from tensorflow_serving.apis import model_management_pb2

    models = Models({"m": engine})
    with front_ends(models) as ports:
        stub = model_service_pb2_grpc.ModelServiceStub(ports.channel)
        request = model_management_pb2.ReloadConfigRequest()
        message = (
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
        assert_fails("INVALID_ARGUMENT", message, stub.HandleReloadConfigRequest, request)
        assert models.configurations == []
        request.config.model_config_list.config.add(name="x", base_path="/models/x")
        request.metric_names.extend(["/tensorflow/serving/request_count", "unknown"])
        response = stub.HandleReloadConfigRequest(request)
        assert response.HasField("status") and response.status.error_code == 0
        assert [(one.name, one.int64_value_increase) for one in response.metric] == [
            ("/tensorflow/serving/request_count", 0),
            ("unknown", 0),
        ]
        assert models.configurations == [request.config]
