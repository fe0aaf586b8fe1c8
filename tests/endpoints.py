"""Helpers of the endpoint's tests: SavedModels, requests over both interfaces, front ends without versions."""

import concurrent.futures
import contextlib
import http.client
import json
import types

import grpc
import pytest
import tensorflow as tf

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"


def call(server, method, path, body=None, headers=None):
    """Send one request; returns the status, the headers and the body's bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_api_port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def get(server, path):
    status, _, body = call(server, "GET", path)
    return status, json.loads(body)


def post(server, path, body):
    body = body if isinstance(body, (bytes, str)) else json.dumps(body)
    status, _, answer = call(server, "POST", path, body)
    return status, json.loads(answer)


def assert_fails(code, details, function, *args, **kwargs):
    """Check the status of a failing call over gRPC; returns its details."""
    with pytest.raises(grpc.RpcError) as caught:
        function(*args, **kwargs)
    assert caught.value.code().name == code
    if details is not None:
        assert caught.value.details() == details
    return caught.value.details()


class Models:
    """Stands in for `Servables`: engines by name, each of version 1; notes the labels and configurations asked for."""

    def __init__(self, engines):
        self.engines = engines
        self.labels = []
        self.configurations = []

    @contextlib.contextmanager
    def use(self, model, version=None, label=None):
        from keras_convnets.export.serving.models.servables import Servable
        from keras_convnets.export.serving.request_record import current_record
        from keras_convnets.export.serving.status import Code, ServingError, invalid_argument

        if label is not None:
            self.labels.append(label)
        if not model:
            raise invalid_argument("ModelSpec has no name specified.")
        if model not in self.engines:
            raise ServingError(Code.NOT_FOUND, f"Servable not found for request: Latest({model})")
        current_record().version = 1
        yield Servable(model, 1, self.engines[model])

    def status(self, model, version=None):
        from keras_convnets.export.serving.models.model import State, VersionStatus
        from keras_convnets.export.serving.status import Code, ServingError

        if model not in self.engines:
            raise ServingError(Code.NOT_FOUND, f"Could not find any versions of model {model}")
        return [VersionStatus(1, State.AVAILABLE)]

    def reload(self, configuration, *, is_active):
        self.configurations.append(configuration)


@contextlib.contextmanager
def front_ends(models, *, workers=4, health=False, limits=None, observer=None, **options):
    """Open both front ends over models; gives their ports and a channel. Options are those of `RestApp`."""
    from keras_convnets.export.serving.admission.admission import Admission
    from keras_convnets.export.serving.observer import Observer
    from keras_convnets.export.serving.rest.app import RestApp
    from keras_convnets.export.serving.rest.http_server import RestServer
    from keras_convnets.export.serving.rpc.server import make_server
    from keras_convnets.export.serving.sockets import bind

    executor = concurrent.futures.ThreadPoolExecutor(workers)
    bound = bind("127.0.0.1", 0, "--rest_api_port")
    bound.listen()
    admission, observer = Admission(limits), observer or Observer()
    app = RestApp(models, executor, admission=admission, observer=observer, **options)
    rest = RestServer(app, bound, admission.limits.max_connections)
    server = make_server(models, workers, observer=observer, health=health, admission=admission)
    port = server.add_insecure_port("127.0.0.1:0")
    ports = types.SimpleNamespace(rest_api_port=bound.getsockname()[1], port=port, rest=rest, admission=admission)
    rest.start()
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            ports.channel = channel
            yield ports
    finally:
        server.stop(0).wait()
        rest.stop(0.1)
        executor.shutdown()


class Many(tf.Module):
    """Several inputs and outputs of different types."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.float32, name="a"),
            tf.TensorSpec([None], tf.int32, name="b"),
            tf.TensorSpec([None], tf.string, name="s"),
        ]
    )
    def serve(self, a, b, s):
        return {"double_a": a * 2, "long_b": tf.cast(b, tf.int64) * 3_000_000_000, "s_bytes": s, "text": s}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def batchless(self, x):
        return {"sum": tf.reduce_sum(x), "x": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def uneven(self, x):
        return {"ten": tf.zeros([10]), "x": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float16, name="x")])
    def half(self, x):
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def to_half(self, x):
        return {"y": tf.cast(x, tf.float16)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def same(self, x):
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float64, name="x")])
    def same_double(self, x):
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.uint8, name="x")])
    def small(self, x):
        return {"y": tf.cast(x, tf.int32)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="x")])
    def text(self, x):
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.bool, name="x")])
    def negate(self, x):
        return {"y": ~x}


def save_many(path):
    module = Many()
    names = ["batchless", "uneven", "half", "to_half", "same", "same_double", "small", "negate", "text"]
    signatures = {"serving_default": module.serve} | {name: getattr(module, name) for name in names}
    tf.saved_model.save(module, str(path), signatures)


def signatures_of(graph):
    """Name signatures over a graph of `serialized` and a few outputs: key: (inputs, outputs, method name)."""
    inputs = {"inputs": graph["serialized"]}
    both = {"classes": graph["classes"], "scores": graph["scores"]}
    return {
        "serving_default": (inputs, both, CLASSIFY),
        "classes_only": (inputs, {"classes": graph["classes"]}, CLASSIFY),
        "scores_only": (inputs, {"scores": graph["scores"]}, "tensorflow/serving/predict"),
        "regress": (inputs, {"outputs": graph["flat"]}, REGRESS),
        "regress_column": (inputs, {"outputs": graph["column"]}, REGRESS),
        "elsewhere": ({"inputs": graph["other"]}, {"outputs": graph["of_other"]}, REGRESS),
        "two_inputs": ({**inputs, "more": graph["other"]}, both, CLASSIFY),
        "three_outputs": (inputs, {**both, "more": graph["flat"]}, CLASSIFY),
        "other_input": ({"examples": graph["serialized"]}, both, CLASSIFY),
        "other_output": (inputs, {"y": graph["flat"]}, CLASSIFY),
        "flat_scores": (inputs, {"scores": graph["flat"]}, CLASSIFY),
        "double_scores": (inputs, {"scores": graph["double"]}, CLASSIFY),
        "number_classes": (inputs, {"classes": graph["scores"]}, CLASSIFY),
        "short_scores": (inputs, {"scores": graph["constant"]}, CLASSIFY),
        "uneven": (inputs, {"classes": graph["classes"], "scores": graph["column"]}, CLASSIFY),
        "wide": (inputs, {"outputs": graph["scores"]}, REGRESS),
        "constant": (inputs, {"outputs": graph["constant"]}, REGRESS),
        "double": (inputs, {"outputs": graph["double"][:, 0]}, REGRESS),
    }


def save_examples(path):
    """A TF1-style SavedModel that takes tf.Examples: classifiers and regressors, and some that are neither."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        serialized = v1.placeholder(tf.string, [None], name="examples")
        other = v1.placeholder(tf.string, [None], name="other")
        features = {
            "x": tf.io.FixedLenFeature([], tf.float32, 0.0),
            "n": tf.io.FixedLenFeature([], tf.int64, 0),
            "s": tf.io.FixedLenFeature([], tf.string, ""),
        }
        parsed = tf.io.parse_example(serialized, features)
        slope = v1.get_variable("slope", initializer=2.0, use_resource=False)
        flat = parsed["x"] * slope + tf.cast(parsed["n"], tf.float32)
        column = flat[:, None]
        labels = tf.stack([parsed["s"], tf.fill(tf.shape(parsed["s"]), "other")], axis=1)
        graph = {
            "serialized": serialized,
            "other": other,
            "flat": flat,
            "column": column,
            "of_other": tf.cast(tf.strings.length(other), tf.float32),
            "scores": tf.concat([column, 1.0 - column], axis=1),
            "classes": labels,
            "double": tf.cast(column, tf.float64),
            "constant": tf.zeros([3, 1]),
        }
        session.run(v1.global_variables_initializer())
        info = v1.saved_model.utils.build_tensor_info
        build = v1.saved_model.build_signature_def
        signatures = {
            name: build({k: info(v) for k, v in ins.items()}, {k: info(v) for k, v in outs.items()}, method)
            for name, (ins, outs, method) in signatures_of(graph).items()
        }
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
