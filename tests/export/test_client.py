"""The client over REST and gRPC against the local endpoint, and against endpoints that misbehave."""

import concurrent.futures
import contextlib
import http.server
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
from endpoints import Models

from keras_convnets.errors import UserError
from keras_convnets.export.client import Client, EndpointError
from keras_convnets.export.credentials import Credentials

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
    for address, port in [
        ("http://h/v1/models/m/", 8501),
        ("https://h/a/v1/models/m", 443),
        ("https://h:9/v1/models/m", 9),
    ]:
        assert Client(address)._transport._connect().port == port


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of 127.0.0.1 that signed itself, and its key: files for both sides."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl that makes a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=local"
    command += " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out certificate.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder / "certificate.pem", folder / "key.pem"


STATUS = [{"version": 1, "state": "AVAILABLE", "error_code": "OK", "error_message": ""}]
SECRET = "Bearer abc"


class Guarded(http.server.BaseHTTPRequestHandler):
    """The state of a model behind a prefix, for those who know the secret."""

    def do_GET(self):
        known = self.headers["Authorization"] == SECRET
        entry = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        answer = json.dumps({"model_version_status": [entry]}) if known else "<html>who are you?</html>"
        right = self.path == "/behind/a/v1/models/m"
        self.send_response((200 if right else 404) if known else 401)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def guarded_rest(certificate, key):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as running:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate)
        context.load_cert_chain(certificate, key)
        context.verify_mode = ssl.CERT_REQUIRED
        running.socket = context.wrap_socket(running.socket, server_side=True)
        running.handle_error = lambda *given: None
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"https://127.0.0.1:{running.server_port}/behind/a/v1/models/m"
        running.shutdown()
        thread.join()


class Guard(grpc.ServerInterceptor):
    """Lets in who knows the secret."""

    def intercept_service(self, continuation, details):
        if dict(details.invocation_metadata).get("authorization") == SECRET:
            return continuation(details)

        def refuse(request, context):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

        return grpc.unary_unary_rpc_method_handler(refuse)


@contextlib.contextmanager
def guarded_grpc(certificate, key):
    from tensorflow_serving.apis import model_service_pb2_grpc

    from keras_convnets.export.serving.metrics import Metrics
    from keras_convnets.export.serving.rpc.service import ModelService

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), interceptors=[Guard()])
    service = ModelService(Models({"m": None}), Metrics(), lambda config: None)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    pair = (key.read_bytes(), certificate.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], certificate.read_bytes(), require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"grpcs://127.0.0.1:{port}/m"
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize("guarded", [guarded_rest, guarded_grpc])
def test_tls_with_certificates_and_headers(certificate, tmp_path, guarded):
    pem, key = certificate
    both = tmp_path / "both.pem"
    both.write_bytes(pem.read_bytes() + key.read_bytes())
    trusted = {"timeout": 10, "root_certificates": pem, "client_certificate": pem, "client_key": key}
    with guarded(*certificate) as address:
        in_one_file = {**trusted, "client_certificate": both, "client_key": None}
        for options in (trusted, in_one_file):
            with Client(address, headers={"Authorization": SECRET}, **options) as client:
                assert client.status() == client.status() == STATUS
        with Client(address, headers={"authorization": "Bearer xyz"}, **trusted) as client:
            with pytest.raises(UserError, match=r"wants other credentials \(status 401: .*Authorization\.$"):
                client.status()
        with Client(address, headers={"Authorization": SECRET}, timeout=10, client_certificate=both) as client:
            with pytest.raises(UserError, match=r"certificate of the endpoint .* is not trusted"):
                client.status()


def test_credentials_that_cannot_be_used(certificate, tmp_path):
    pem, key = certificate
    encrypted, rest, rpc = tmp_path / "encrypted.pem", "https://127.0.0.1/v1/models/m", "grpcs://127.0.0.1/m"
    command = ["openssl", "pkcs8", "-topk8", "-in", key, "-out", encrypted, "-passout", "pass:x"]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    (tmp_path / "no.pem").write_text("nothing")
    for options, sentence in [
        ({"headers": {"a b": "x"}}, "'a b' can't be sent; allowed"),
        ({"headers": {"a": "x\r\ny: z"}}, "'a' can't be sent; allowed"),
        ({"headers": {"Content-length": "1"}}, "'Content-length' is set by the client itself"),
        ({"root_certificates": tmp_path / "nowhere"}, r"root certificates can't be used: .*nowhere \(No such file"),
        ({"root_certificates": tmp_path / "no.pem"}, r"root certificates can't be used: .*no\.pem"),
        ({"client_certificate": pem}, r"client certificate and key can't be used: .*certificate\.pem"),
        ({"client_certificate": pem, "client_key": encrypted}, "key is encrypted"),
        ({"client_key": key}, "key was given without its certificate"),
    ]:
        for address in (rest, rpc):
            with pytest.raises(UserError, match=sentence):
                Client(address, **options)
    with pytest.raises(UserError, match="gRPC takes no header 'X-bin'"):
        Client(rpc, headers={"X-bin": "x"})
    for address in ("http://127.0.0.1/v1/models/m", "grpc://127.0.0.1/m"):
        with pytest.raises(UserError, match="which is not encrypted; give its https:// or grpcs://"):
            Client(address, root_certificates=pem)
    with pytest.raises(UserError, match="holds a name or a password") as caught:
        Client("http://me:secret@127.0.0.1/v1/models/m")
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(Credentials({"Authorization": "secret"}))


def test_the_flags_of_endpoints(tmp_path, monkeypatch, capsys):
    from keras_convnets import export
    from keras_convnets.commands.main import main

    asked = []

    def client(url, **options):
        asked.append((url, options))
        raise UserError("that is all.")

    monkeypatch.setattr(export, "Client", client, raising=False)
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "headers").write_text("X-One: 1\n\nAuthorization: Bearer a:b\n")
    files = {"root_certificates": "r.pem", "client_certificate": "c.pem", "client_key": "k.pem"}
    flags = [f"--{name}={file}" for name, file in files.items()] + [f"--header=@{tmp_path / 'headers'}"]
    flags += ["--header", "X-Two:2"]
    assert main(["predict", str(tmp_path / "a.png"), "--url", "grpcs://h/m", *flags]) == 2
    assert "that is all" in capsys.readouterr().err
    headers = {"X-One": "1", "Authorization": "Bearer a:b", "X-Two": "2"}
    assert asked == [("grpcs://h/m", {"headers": headers, **files})]
    assert main(["evaluate", "grpcs://h/m", "--dataset", "digits", *flags]) == 2
    assert "that is all" in capsys.readouterr().err and asked[1] == asked[0]
    for command in (["evaluate", "resnet20:cifar10"], ["predict", str(tmp_path / "a.png"), "--run", "nowhere"]):
        assert main([*command, "--header", "a:b", "--client-key", "k"]) == 2
        assert "--header, --client_key came without an endpoint; give its URL" in capsys.readouterr().err
    for bad, sentence in (
        ("secret", "a header has no name followed by a colon"),
        ("@nowhere", "nowhere can't be read"),
    ):
        assert main(["predict", str(tmp_path / "a.png"), "--url", "grpcs://h/m", "--header", bad]) == 2
        said = capsys.readouterr().err
        assert sentence in said and "secret" not in said


def test_an_endpoints_classes_are_compared_with_images_of_every_class(tmp_path):
    from keras_convnets import training
    from keras_convnets.commands.evaluation_sources import CLASS_CHECK_IMAGES, _class_check_images

    sizes = {"a": 2 * CLASS_CHECK_IMAGES, "b": 5, "c": 5}
    for index, (name, size) in enumerate(sizes.items()):
        (tmp_path / name).mkdir()
        for number in range(size):
            (tmp_path / name / f"{number}.png").write_bytes(png(index))
    split = training.load_dataset(tmp_path).split("train")
    images = _class_check_images(split, 3)
    assert len(images) == CLASS_CHECK_IMAGES and set(images) == {png(0), png(1), png(2)}


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
