"""The client over REST and gRPC against the local endpoint, and against endpoints that misbehave."""

import http.server
import json
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from keras_convnets.errors import UserError
from keras_convnets.export.client import Client, EndpointError

tf = pytest.importorskip("tensorflow")
pytest.importorskip("grpc")
pytest.importorskip("uvicorn")
pytest.importorskip("tensorflow_serving.apis")

LABELS = ["red", "green", "blue"]


class Colours(tf.Module):
    """Classifies an image by its channels' means."""

    def _probabilities(self, images):
        return tf.nn.softmax(tf.reduce_mean(tf.cast(images, tf.float32), [1, 2]) / 255.0)

    def _decode(self, image_bytes):
        decode = lambda one: tf.io.decode_image(one, channels=3, expand_animations=False)  # noqa: E731
        return tf.map_fn(decode, image_bytes, fn_output_signature=tf.TensorSpec([None, None, 3], tf.uint8))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(self, image_bytes):
        return {"probabilities": self._probabilities(self._decode(image_bytes))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def inverse(self, image_bytes):
        return {"probabilities": 1.0 - self._probabilities(self._decode(image_bytes))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def features(self, image_bytes):
        images = self._probabilities(self._decode(image_bytes))
        return {"features": images, "more": images}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def top_k(self, image_bytes):
        scores, indices = tf.math.top_k(self._probabilities(self._decode(image_bytes)), 2)
        return {"classes": tf.gather(tf.constant(LABELS), indices), "scores": scores}

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")])
    def predict_images(self, images):
        return {"probabilities": self._probabilities(images)}


def image(index):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[..., index % 3] = 255
    return pixels


def png(index):
    return tf.io.encode_png(image(index)).numpy()


def expected(indices):
    logits = np.eye(3)[[index % 3 for index in indices]]
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from keras_convnets.export.serving import ModelServer

    base = tmp_path_factory.mktemp("models") / "colours"
    module = Colours()
    signatures = {"serving_default": module.serve, "top_k": module.top_k, "predict_images": module.predict_images}
    signatures |= {"inverse": module.inverse, "features": module.features}
    tf.saved_model.save(module, str(base / "1"), signatures)
    with ModelServer({"colours": base}, port=0, rest_api_port=0) as running:
        yield running


def url(server, scheme, where="colours"):
    if scheme == "http":
        return f"http://127.0.0.1:{server.rest_api_port}/v1/models/{where}"
    return f"grpc://127.0.0.1:{server.port}/{where}"


@pytest.fixture(params=["http", "grpc"])
def scheme(request):
    return request.param


def test_predict_in_batches(server, scheme):
    with Client(url(server, scheme)) as client:
        sizes = []
        inner = client._transport.predict
        client._transport.predict = lambda *given: sizes.append(len(given[2])) or inner(*given)
        answer = client.predict([png(index) for index in range(7)], batch_size=3)
    assert sizes == [3, 3, 1]
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, expected(range(7)), atol=1e-6)


def test_predict_images(server, scheme):
    with Client(url(server, scheme, "colours/versions/1")) as client:
        answer = client.predict_images(np.stack([image(index) for index in range(5)]), batch_size=2)
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected(range(5)), atol=1e-6)
        with pytest.raises(UserError, match=r"float64 \[1, 4, 4, 3\]; allowed is uint8"):
            client.predict_images(np.zeros((1, 4, 4, 3)))


def test_top_k(server, scheme):
    with Client(url(server, scheme)) as client:
        answers = client.top_k([png(2), png(0)])
    assert [answer[0][0] for answer in answers] == ["blue", "red"]
    assert all(isinstance(name, str) and isinstance(score, float) for answer in answers for name, score in answer)
    assert answers[0][0][1] == pytest.approx(expected([2]).max(), abs=1e-6)


def test_no_image_and_no_batch(server, scheme):
    with Client(url(server, scheme)) as client:
        assert client.predict([]).shape == (0, 0)
        assert client.top_k([]) == []
        with pytest.raises(UserError, match="batch_size=0"):
            client.predict([png(0)], batch_size=0)


def test_signature_name(server, scheme):
    with Client(url(server, scheme), signature_name="inverse") as client:
        np.testing.assert_allclose(client.predict([png(1)]), 1 - expected([1]), atol=1e-6)
    with Client(url(server, scheme), signature_name="nope") as client:
        with pytest.raises(UserError, match='"nope" not found'):
            client.predict([png(0)])
    with Client(url(server, scheme), signature_name="features") as client:
        with pytest.raises(UserError, match="no output 'probabilities' but features, more"):
            client.predict([png(0)])


def test_both_protocols_agree(server):
    images = [png(index) for index in range(4)]
    with Client(url(server, "http")) as rest, Client(url(server, "grpc")) as rpc:
        assert np.array_equal(rest.predict(images), rpc.predict(images))
        assert rest.status() == rpc.status()
        assert rest.metadata() == rpc.metadata()
        assert rest.status() == [{"version": 1, "state": "AVAILABLE", "error_code": "OK", "error_message": ""}]
        assert rest.metadata()["model_spec"]["version"] == "1"


def test_a_bad_image_carries_the_servers_message(server, scheme):
    with Client(url(server, scheme)) as client:
        with pytest.raises(UserError, match="refused the request: .*Unknown image file format"):
            client.predict([png(0), b"no image"])
        assert client.predict([png(0)]).shape == (1, 3)


@pytest.mark.parametrize(
    ("where", "message"), [("nope", r"Latest\(nope\)"), ("colours/versions/7", r"Specific\(colours, 7\)")]
)
def test_unknown_model_or_version(server, scheme, where, message):
    with Client(url(server, scheme, where)) as client:
        with pytest.raises(UserError, match=f"does not serve that .*{message}"):
            client.predict([png(0)])


def test_unknown_label(server, scheme):
    with Client(url(server, scheme, "colours/labels/stable")) as client:
        with pytest.raises(UserError, match="Unrecognized servable version label: stable"):
            client.predict([png(0)])


def test_unreachable_endpoint(scheme):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        path = "/v1/models/m" if scheme == "http" else "/m"
        with Client(f"{scheme}://127.0.0.1:{port}{path}", timeout=5) as client:
            for ask in (lambda: client.predict([b"x"]), client.status, client.metadata):
                with pytest.raises(UserError, match=rf"127.0.0.1:{port}.* cannot be reached \(connection refused\)"):
                    ask()


def test_an_endpoint_that_does_not_answer(scheme):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        path = "/v1/models/m" if scheme == "http" else "/m"
        with Client(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}{path}", timeout=0.3) as client:
            with pytest.raises(EndpointError, match="did not answer within 0.3 s"):
                client.status()


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "colours",
        "ftp://127.0.0.1/v1/models/m",
        "http://127.0.0.1:8501",
        "http://127.0.0.1:8501/v1/models/m:predict",
        "http://127.0.0.1:8501/v1/models/m?x=1",
        "http://127.0.0.1:8501/v1/models/m/versions/x",
        "http://127.0.0.1:port/v1/models/m",
        "http:///v1/models/m",
        "grpc://127.0.0.1:8500",
        "grpc://127.0.0.1:8500/a/b",
        None,
    ],
)
def test_bad_urls(bad):
    with pytest.raises(UserError, match="is no endpoint's URL; allowed are http://"):
        Client(bad)


def test_default_ports():
    assert Client("http://example.org/v1/models/m/")._transport._connect().port == 8501


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers what the script says and remembers what came."""

    protocol_version = "HTTP/1.1"
    script: list = []
    seen: list = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, json.loads(body), self.client_address))
        status, answer = self.script.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def scripted():
    Scripted.script, Scripted.seen = [], []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/v1/models/m%20x"
        running.shutdown()
        thread.join()


def test_what_goes_over_the_wire(scripted):
    Scripted.script = [(200, b'{\n    "predictions": [[0.25, NaN]\n    ]\n}')] * 2
    with Client(scripted, signature_name="s") as client:
        answer = client.predict([b"\xff"])
        client.predict([b"\xff"])
    assert answer[0, 0] == 0.25 and np.isnan(answer[0, 1])
    path, request, address = Scripted.seen[0]
    assert path == "/v1/models/m%20x:predict"
    assert request == {"instances": [{"b64": "/w=="}], "signature_name": "s"}
    assert Scripted.seen[1][2] == address, "the connection was not kept"


def test_answers_that_are_errors(scripted):
    with Client(scripted) as client:
        for status, body, kind, message in [
            (500, b'{"error": "broken inside"}', EndpointError, "status 500: broken inside"),
            (429, b'{"error": "queue full"}', EndpointError, "queue full"),
            (400, b'{"error": "bad dog"}', UserError, "refused the request: bad dog"),
            (200, b"<html>", EndpointError, "no JSON"),
            (200, b'{"something": 1}', EndpointError, "something else than predictions"),
            (200, b'{"predictions": [[1.0], [1.0]]}', EndpointError, "2 of 1 images"),
        ]:
            Scripted.script = [(status, body)]
            with pytest.raises(kind, match=message):
                client.predict([b"x"])


def test_a_connection_that_went_stale_is_opened_again(server):
    with Client(url(server, "http")) as client:
        client.status()
        stale = client._transport._local.connection
        stale.sock.shutdown(socket.SHUT_RDWR)
        assert client.status()[0]["version"] == 1
        assert client._transport._local.connection is not stale


def test_rest_needs_no_tensorflow(server):
    code = (
        "import sys; from keras_convnets.export.client import Client; "
        "print(Client(sys.argv[1]).status()[0]['state']); "
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras', 'grpc')))"
    )
    address = url(server, "http")
    run = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "AVAILABLE\n"), run.stderr
