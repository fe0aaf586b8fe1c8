"""Which versions are served: policies, labels, configurations, warm-up, and the command's flags."""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from keras_convnets.errors import UserError
from keras_convnets.export import repository
from keras_convnets.export.serving.status import Code, ServingError

tf = pytest.importorskip("tensorflow")
grpc = pytest.importorskip("grpc")
pytest.importorskip("uvicorn")
pytest.importorskip("tensorflow_serving.apis")

from google.protobuf import text_format  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2  # noqa: E402

from keras_convnets.export.serving import ModelServer, flag_files, warmup  # noqa: E402
from keras_convnets.export.serving.models import configuration  # noqa: E402
from keras_convnets.export.serving.models.model import State  # noqa: E402
from keras_convnets.export.serving.models.servables import Servables  # noqa: E402
from keras_convnets.export.serving.rpc.server import make_server  # noqa: E402


class FakeEngine:
    """An engine that costs nothing."""

    def __init__(self, path):
        if (path / "broken").exists():
            raise ServingError(Code.DATA_LOSS, "broken on purpose")


def folders(base, *numbers):
    for number in numbers:
        (base / str(number)).mkdir(parents=True)


def parse(text):
    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())


def entry(base, policy="", labels="", name="m"):
    return f'config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" {policy} {labels} }} '


def config_of(*entries):
    return parse(f"model_config_list {{ {' '.join(entries)} }}")


def label(name, version):
    return f'version_labels {{ key: "{name}" value: {version} }}'


SPECIFIC = "model_version_policy {{ specific {{ {} }} }}"
ALL = "model_version_policy { all {} }"


def specific(*numbers):
    return SPECIFIC.format(" ".join(f"versions: {number}" for number in numbers))


def latest(count):
    return f"model_version_policy {{ latest {{ num_versions: {count} }} }}"


def started(config, **options):
    servables = Servables(config, load=FakeEngine, **options)
    servables.load_initial()
    return servables


def available(servables, model="m"):
    return [entry.version for entry in servables.status(model) if entry.state is State.AVAILABLE]


def fails(code, message, function, *arguments, **options):
    with pytest.raises(ServingError) as caught:
        function(*arguments, **options)
    assert (caught.value.code, caught.value.message) == (code, message)


def denied(part, function):
    with pytest.raises(ServingError) as caught:
        function()
    assert caught.value.code is Code.PERMISSION_DENIED and part in caught.value.message


@pytest.mark.parametrize(
    ("policy", "served"),
    [("", [12]), (latest(2), [12, 3]), (latest(0), [12]), (latest(9), [12, 3, 2]), (ALL, [12, 3, 2])]
    + [(specific(2), [2]), (specific(3, 2), [3, 2])],
)
def test_policies(tmp_path, policy, served):
    folders(tmp_path, "2", "0003", "12", "no")
    assert available(started(config_of(entry(tmp_path, policy)))) == served


def test_missing_specific_versions_only_warn(tmp_path, caplog):
    folders(tmp_path, 1, 2)
    servables = started(config_of(entry(tmp_path, specific(2, 7))))
    servables.poll()
    assert available(servables) == [2]
    assert [record.getMessage() for record in caplog.records] == [
        f"Model m has no version 7 in {tmp_path}, which its policy asks for"
    ]
    folders(tmp_path, 7)
    servables.poll()
    assert available(servables) == [7, 2]
    with pytest.raises(UserError, match="holds versions 1, 2, 7, and its version policy asks for 9"):
        started(config_of(entry(tmp_path, specific(9))))


def test_a_policy_changes_while_serving(tmp_path):
    folders(tmp_path, 1, 2, 3)
    servables = started(config_of(entry(tmp_path)))
    for policy, served in [(ALL, [3, 2, 1]), (specific(1), [1]), (latest(2), [3, 2]), ("", [3])]:
        servables.reload(config_of(entry(tmp_path, policy)))
        assert available(servables) == served
    assert [(item.version, item.state) for item in servables.status("m")] == [
        (3, State.AVAILABLE),
        (2, State.END),
        (1, State.END),
    ]


def test_the_new_version_is_there_before_the_old_one_goes(tmp_path):
    folders(tmp_path, 1)
    seen = []

    class Watching(FakeEngine):
        def __init__(self, path):
            seen.append((path.name, available(servables) if path.name != "1" else []))

    servables = Servables({"m": tmp_path}, load=Watching)
    servables.load_initial()
    folders(tmp_path, 2)
    servables.poll()
    assert seen == [("1", []), ("2", [1])]
    assert available(servables) == [2]


def test_a_rollback_to_a_broken_version_keeps_what_is_served(tmp_path):
    folders(tmp_path, 1, 2)
    (tmp_path / "1" / "broken").mkdir()
    servables = started({"m": tmp_path}, max_num_load_retries=0)
    servables.reload(config_of(entry(tmp_path, specific(1))))
    assert available(servables) == [2]
    assert servables.status("m", 1)[0].error.code is Code.DATA_LOSS


def test_one_broken_version_of_several_is_reported_and_tried_again(tmp_path):
    folders(tmp_path, 1, 2)
    (tmp_path / "2" / "broken").mkdir()
    servables = started(config_of(entry(tmp_path, ALL)), load_retry_interval_seconds=0.0)
    assert available(servables) == [1]
    assert servables.status("m", 2)[0].state is State.LOADING
    (tmp_path / "2" / "broken").rmdir()
    servables.poll()
    assert available(servables) == [2, 1]


def test_labels(tmp_path):
    folders(tmp_path, 1, 2, 3)
    both = latest(2)
    servables = started(config_of(entry(tmp_path, both)))
    stable = label("stable", 2)
    servables.reload(config_of(entry(tmp_path, both, stable + label("canary", 3))))
    for name, version in [("stable", 2), ("canary", 3)]:
        with servables.use("m", label=name) as servable:
            assert servable.version == version
    for model in ("m", "unknown"):
        fails(
            Code.INVALID_ARGUMENT, "Unrecognized servable version label: x", servables.use(model, None, "x").__enter__
        )
    message = "Request to assign label to version 1 of model m, which is not currently available for inference"
    for labels in (stable + label("old", 1), label("stable", 1)):
        changed = config_of(entry(tmp_path, both, labels))
        fails(Code.FAILED_PRECONDITION, message, servables.reload, changed)
    with servables.use("m", label="canary"):
        pass
    servables.reload(config_of(entry(tmp_path, both, stable)))
    gone = "Unrecognized servable version label: canary"
    fails(Code.INVALID_ARGUMENT, gone, servables.use("m", None, "canary").__enter__)


def test_labels_for_versions_that_are_not_available(tmp_path):
    folders(tmp_path, 1, 2)
    labelled = config_of(entry(tmp_path, labels=label("stable", 2)))
    with pytest.raises(UserError, match="version 2 of model m, which is not currently available"):
        started(labelled)
    servables = started(labelled, allow_version_labels_for_unavailable_models=True)
    new = config_of(entry(tmp_path, labels=label("stable", 2) + label("old", 1)))
    servables.reload(new)
    fails(Code.NOT_FOUND, "Servable not found for request: Specific(m, 1)", servables.use("m", None, "old").__enter__)
    moved = config_of(entry(tmp_path, labels=label("stable", 1)))
    message = "Request to assign label to version 1 of model m, which is not currently available for inference"
    fails(Code.FAILED_PRECONDITION, message, servables.reload, moved)


NEITHER = (
    "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform, "
    "model name is {}"
)
CHANGED = "Illegal to change a model's platform. For model m platform was tensorflow and new platform requested is x"
ONLY = "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
TWICE = "Illegal to list model m multiple times in config list"
RELATIVE = "Expected model n to have an absolute path or URI; got base_path()=here/n"


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("", Code.INVALID_ARGUMENT, ONLY),
        ("custom_model_config {}", Code.INVALID_ARGUMENT, ONLY),
        (f"model_config_list {{ {entry('/a')} {entry('/b')} }}", Code.INVALID_ARGUMENT, TWICE),
        (f"model_config_list {{ {entry('here/n', name='n')} }}", Code.INVALID_ARGUMENT, RELATIVE),
        ('model_config_list { config { name: "m" base_path: "/a" } }', Code.INVALID_ARGUMENT, NEITHER.format("m")),
        (
            'model_config_list { config { name: "m" base_path: "/a" model_platform: "x" } }',
            Code.INVALID_ARGUMENT,
            CHANGED,
        ),
        (
            'model_config_list { config { name: "n" base_path: "/a" model_platform: "x" } }',
            Code.FAILED_PRECONDITION,
            "PlatformConfigMap has no entry for platform x",
        ),
    ],
)
def test_a_configuration_that_cannot_be_used_changes_nothing(tmp_path, text, code, message):
    folders(tmp_path, 1)
    servables = started({"m": tmp_path})
    fails(code, message, servables.reload, parse(text))
    assert available(servables) == [1] and servables.names() == ["m"]


@contextlib.contextmanager
def watched(config, **options):
    servables = started(config, file_system_poll_wait_seconds=0.02, **options)
    servables.start_polling()
    try:
        yield servables
    finally:
        servables.stop()


@pytest.mark.parametrize("missing", ["nowhere", "empty", "broken"])
def test_a_model_without_a_version_is_waited_for_while_another_has_one(tmp_path, caplog, missing):
    folders(tmp_path / "m", 1)
    (tmp_path / "empty").mkdir()
    folders(tmp_path / "broken", 3)
    (tmp_path / "broken" / "3" / "broken").mkdir()
    both = {"late": tmp_path / missing, "m": tmp_path / "m"}
    options = {"load": FakeEngine, "file_system_poll_wait_seconds": 0.01, "load_retry_interval_seconds": 0}
    asked = []

    def is_active():
        asked.append(0)
        if len(asked) == 3:
            (tmp_path / missing / "7").mkdir(parents=True)
        return len(asked) < 1000

    servables = Servables(both, max_num_load_retries=10_000, **options)
    servables.load_initial(is_active)
    assert (available(servables, "late"), available(servables, "m")) == ([7], [1])
    assert len(asked) >= 3 and "The server waits for it." in caplog.text


def test_what_is_not_waited_for(tmp_path):
    folders(tmp_path / "m", 1)
    folders(tmp_path / "broken", 3)
    (tmp_path / "broken" / "3" / "broken").mkdir()
    for models, options, sentence in [
        ({"a": "nowhere"}, {}, "cannot be read"),
        ({"a": "nowhere", "b": "broken"}, {}, "model 'a' cannot be read"),
        ({"m": "m", "a": "nowhere"}, {"file_system_poll_wait_seconds": 0}, "model 'a' cannot be read"),
        (
            {"m": "m", "b": "broken"},
            {"file_system_poll_wait_seconds": 0.01, "load_retry_interval_seconds": 0, "max_num_load_retries": 2},
            "version 3 of model 'b' .*broken on purpose",
        ),
    ]:
        servables = Servables({name: tmp_path / path for name, path in models.items()}, load=FakeEngine, **options)
        with pytest.raises(UserError, match=sentence):
            servables.load_initial()
    servables = Servables({"m": tmp_path / "m", "a": tmp_path / "nowhere"}, load=FakeEngine)
    servables.load_initial(lambda: False)
    assert available(servables) == [1], "the server was stopped while it waited"


def test_a_server_that_is_stopped_while_it_waits_opens_no_port(saved, tmp_path):
    publish(saved, tmp_path / "m", 1)
    server = ModelServer({"m": tmp_path / "m", "late": tmp_path / "late"}, port=0, rest_api_port=0)
    server.request_stop()
    server.start()
    assert (server.port, server.rest_api_port) == (0, 0)
    server.stop()


def test_a_reload_replaces_the_list_and_waits_for_new_models(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    folders(one, 1)
    folders(two, 4)
    with watched({"one": one}) as servables:
        servables.reload(config_of(entry(two, name="two")))
        assert available(servables, "two") == [4]
        eventually(lambda: available(servables, "one") == [])
        assert [(item.version, item.state) for item in servables.status("one")] == [(1, State.END)]
        fails(Code.NOT_FOUND, "Servable not found for request: Latest(one)", servables.use("one").__enter__)
        servables.reload(parse("model_config_list {}"))
        eventually(lambda: available(servables, "two") == [])
        servables.reload(config_of(entry(one, name="one")))
        assert available(servables, "one") == [1]


def test_a_reload_reports_new_models_that_do_not_load(tmp_path):
    folders(tmp_path / "m", 1)
    folders(tmp_path / "n", 3)
    (tmp_path / "n" / "3" / "broken").mkdir()
    both = config_of(entry(tmp_path / "m"), entry(tmp_path / "n", name="n"))
    with watched({"m": tmp_path / "m"}, max_num_load_retries=0) as servables:
        message = (
            "1 model(s) did not become available: {{{name: n version: 3} due to error: DATA_LOSS: broken on purpose}, }"
        )
        fails(Code.UNKNOWN, message, servables.reload, both)
        assert available(servables) == [1]
        folders(tmp_path / "mended", 3)
        servables.reload(config_of(entry(tmp_path / "m"), entry(tmp_path / "mended", name="n")))
        eventually(lambda: available(servables, "n") == [3])
        nowhere = config_of(entry(tmp_path / "m"), entry(tmp_path / "nowhere", name="o"))
        until = time.monotonic() + 0.5
        with pytest.raises(ServingError) as caught:
            servables.reload(nowhere, is_active=lambda: time.monotonic() < until)
        assert caught.value.code is Code.CANCELLED and time.monotonic() >= until
        folders(tmp_path / "nowhere", 8)
        eventually(lambda: available(servables, "o") == [8])


def eventually(holds, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ServingError, OSError, UserError):
            if holds():
                return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_repository_is_served_as_its_models_config_says(tmp_path):
    root = tmp_path / "repository"
    folders(root / "m", 1, 2)
    folders(root / "n", 1, 2)
    repository.rollback(root, "m")
    source = configuration.RepositoryConfig(root)
    servables = started(source())
    assert (available(servables, "m"), available(servables, "n")) == ([1], [2])
    assert not source.is_its_file()
    copied = Path(shutil.copytree(root, tmp_path / "copied"))
    of_copy = configuration.RepositoryConfig(copied)().model_config_list.config
    assert {item.name: item.base_path for item in of_copy} == {"m": str(copied / "m"), "n": str(copied / "n")}
    moved = root.rename(tmp_path / "moved")
    again = configuration.RepositoryConfig(moved)
    assert {item.name: item.base_path for item in again().model_config_list.config} == {
        "m": str(moved / "m"),
        "n": str(moved / "n"),
    }
    only = configuration.RepositoryConfig(moved, "m")().model_config_list.config
    assert [(item.name, list(item.model_version_policy.specific.versions)) for item in only] == [("m", [1])]
    with pytest.raises(UserError, match="unknown model of .*'k'"):
        configuration.RepositoryConfig(moved, "k")()
    repository.serve_latest(moved, "m")
    servables.reload(again())
    assert available(servables, "m") == [2]
    shutil.rmtree(moved / "n")
    assert "n" in {item.name for item in again().model_config_list.config}, "nothing changes where a base path is gone"


class Number(tf.Module):
    """Answers with its number."""

    def __init__(self, number):
        super().__init__()
        self.number = tf.Variable(float(number))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def serve(self, x):
        return {"y": tf.debugging.check_numerics(x, "not a number") * 0.0 + self.number}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="steps")])
    def slow(self, steps):
        """A step takes about a microsecond or two."""
        total = tf.while_loop(lambda i, t: i < steps[0], lambda i, t: (i + 1, t + 0.001), [0, 0.0])[1]
        return {"total": total[None]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """SavedModels to copy versions from, one for each number."""
    root = tmp_path_factory.mktemp("numbers")
    for number in (1, 2, 3):
        module = Number(number)
        tf.saved_model.save(module, str(root / str(number)), {"serving_default": module.serve, "slow": module.slow})
    return root


def publish(saved, base, number):
    base.mkdir(parents=True, exist_ok=True)
    shutil.copytree(saved / str(number), base / f"tmp-{number}")
    (base / f"tmp-{number}").rename(base / str(number))


def ask(port, body, model="m", where=""):
    url = f"http://127.0.0.1:{port}/v1/models/{model}{where}:predict"
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=30) as response:
        return json.load(response)["predictions"]


def states(port, model="m"):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models/{model}", timeout=30) as response:
        return {int(item["version"]): item["state"] for item in json.load(response)["model_version_status"]}


ONE = {"instances": [0.0]}
RPC = predict_pb2.PredictRequest()
RPC.model_spec.name = "m"
RPC.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([0])))


def calls(server):
    """Return a call for each protocol and for the status, none of which may ever fail."""
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(f"127.0.0.1:{server.port}"))
    return [
        lambda: ask(server.rest_api_port, ONE)[0],
        lambda: stub.Predict(RPC, timeout=30).outputs["y"].float_val[0],
        lambda: "AVAILABLE" in states(server.rest_api_port).values() or 1 / 0,
    ]


@contextlib.contextmanager
def clients(functions):
    """Call functions in threads of their own for as long as the block takes; gives the answers and the failures."""
    stop, answers, failures = threading.Event(), [], []

    def work(function):
        while not stop.is_set():
            try:
                answers.append(function())
            except Exception as error:
                failures.append(repr(error))
            time.sleep(0.005)

    threads = [threading.Thread(target=work, args=[function]) for function in functions]
    for thread in threads:
        thread.start()
    try:
        yield answers, failures
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_no_request_fails_while_versions_come_break_go_and_are_rolled_back(saved, tmp_path):
    root = tmp_path / "repository"
    publish(saved, root / "m", 1)
    options = {"file_system_poll_wait_seconds": 0.05, "config_poll_wait_seconds": 0.05, "max_num_load_retries": 0}
    source = configuration.RepositoryConfig(root)
    with ModelServer(source, port=0, rest_api_port=0, **options) as server, clients(calls(server)) as (seen, failures):
        port = server.rest_api_port
        publish(saved, root / "m", 2)
        eventually(lambda: states(port) == {1: "END", 2: "AVAILABLE"})
        (root / "m" / "3").mkdir()
        eventually(lambda: states(port) == {1: "END", 2: "AVAILABLE", 3: "END"})
        shutil.rmtree(root / "m" / "3")
        assert repository.rollback(root, "m") == 1
        eventually(lambda: states(port) == {1: "AVAILABLE", 2: "END", 3: "END"})
        assert ask(port, ONE) == [1.0]
        publish(saved, root / "m", 3)
        publish(saved, root / "other", 1)
        eventually(lambda: states(port, "other") == {1: "AVAILABLE"})
        assert states(port)[3] == "END", "held at the version that the rollback chose"
        repository.serve_latest(root, "m")
        eventually(lambda: states(port) == {1: "END", 2: "END", 3: "AVAILABLE"})
        shutil.rmtree(root / "m" / "3")
        eventually(lambda: states(port) == {1: "END", 2: "AVAILABLE", 3: "END"})
    assert failures == []
    assert {1.0, 2.0, 3.0} <= set(seen)


def test_reload_over_grpc_with_labels(saved, tmp_path):
    for number in (1, 2):
        publish(saved, tmp_path / "m", number)
    with (
        ModelServer({"m": tmp_path / "m"}, port=0, rest_api_port=0, file_system_poll_wait_seconds=0.05) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        for labels in ("", label("stable", 1)):
            request = model_management_pb2.ReloadConfigRequest(config=config_of(entry(tmp_path / "m", ALL, labels)))
            assert stub.HandleReloadConfigRequest(request, timeout=30).status.error_code == 0
            eventually(lambda: states(server.rest_api_port) == {1: "AVAILABLE", 2: "AVAILABLE"})
        assert ask(server.rest_api_port, ONE, where="/labels/stable") == [1.0]
        assert ask(server.rest_api_port, ONE) == [2.0]
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask(server.rest_api_port, ONE, where="/labels/canary")


@pytest.mark.parametrize(
    ("path", "folders", "allowed"),
    [
        ("root/m", ["root"], True),
        ("root/m/../n", ["root"], True),
        ("root", ["root"], True),
        ("root/../outside", ["root"], False),
        ("root/link", ["root"], False),
        ("rooted/m", ["root"], False),
        ("outside", ["root", "outside"], True),
        ("outside", ["/"], True),
        ("root/link", [], True),
        ("root/link/inside", [], True),
        ("root/m", [], False),
    ],
)
def test_where_models_of_a_client_may_lie(tmp_path, path, folders, allowed):
    for name in ("root/m", "root/n", "outside/inside", "rooted/m"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    config = config_of(entry(f"{tmp_path}/{path}"))
    # The server itself was given a link that leads outside, which stays allowed.
    served = [] if folders else [str(tmp_path / "root" / "link")]
    check = functools.partial(configuration.check_folders, config, [tmp_path / name for name in folders], served)
    if allowed:
        check()
    else:
        denied("lies outside the folders whose models clients may have served", check)


@pytest.mark.parametrize(
    ("host", "folders", "sentence"),
    [
        ("127.0.0.1", None, "lies outside the folders whose models clients may have served"),
        ("0.0.0.0", None, "HandleReloadConfigRequest is off where others than this machine reach the server"),
        ("::", None, "HandleReloadConfigRequest is off"),
        ("0.0.0.0", ["elsewhere"], "lies outside the folders"),
        ("0.0.0.0", ["."], None),
        ("localhost", ["/"], None),
    ],
)
def test_who_may_reload(tmp_path, host, folders, sentence):
    base = tmp_path / "repository" / "m"
    base.joinpath("1").mkdir(parents=True)
    folders = None if folders is None else [tmp_path / folder for folder in folders]
    server = ModelServer({"m": base}, host=host, reload_folders=folders)
    other = config_of(entry(tmp_path / "other"))
    if sentence is None:
        server._check_reload(other)
    else:
        denied(sentence, functools.partial(server._check_reload, other))
    if host == "127.0.0.1":
        server._check_reload(config_of(entry(base)))
        in_repository = ModelServer(configuration.RepositoryConfig(tmp_path / "repository"))
        in_repository._check_reload(config_of(entry(tmp_path / "repository" / "new")))


def test_a_client_that_reloads_what_it_may_not(saved, tmp_path):
    publish(saved, tmp_path / "m", 1)
    publish(saved, tmp_path / "other", 1)
    with (
        ModelServer({"m": tmp_path / "m"}, port=0, rest_api_port=0) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        request = model_management_pb2.ReloadConfigRequest(config=config_of(entry(tmp_path / "m" / ".." / "other")))
        with pytest.raises(grpc.RpcError, match="PERMISSION_DENIED"):
            stub.HandleReloadConfigRequest(request, timeout=30)
        assert ask(server.rest_api_port, ONE) == [1.0]


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


@pytest.fixture(scope="module")
def engine(saved):
    from keras_convnets.export.serving.engines.saved_model import SavedModelEngine

    return SavedModelEngine(saved / "1")


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


def test_a_version_that_does_not_warm_up_is_not_served(saved, tmp_path):
    publish(saved, tmp_path, 1)
    warm_up_file(tmp_path / "1", predict_log(np.nan))
    with pytest.raises(UserError, match="version 1 of model 'm' .* cannot be loaded"):
        ModelServer({"m": tmp_path}, port=0, rest_api_port=0).start()
    with ModelServer({"m": tmp_path}, port=0, rest_api_port=0, enable_model_warmup=False) as server:
        assert ask(server.rest_api_port, ONE) == [1.0]


def test_signals_a_socket_and_a_configuration_file(saved, tmp_path):
    for number in (1, 2):
        publish(saved, tmp_path / "m", number)
    file, path = tmp_path / "served.config", tmp_path / "grpc.socket"
    file.write_text(text_format.MessageToString(config_of(entry(tmp_path / "m", specific(1)))))
    command = [sys.executable, "-m", "keras_convnets", "serve", "--model_config_file", str(file), "--port", "0"]
    command += ["--rest_api_port", "0", "--grpc_socket_path", str(path), "--engine", "tensorflow"]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("Serving m at http://127.0.0.1:"), line
            port = int(line.split("127.0.0.1:")[1].split("/")[0])
            stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(f"unix:{path}"))
            functions = [lambda: ask(port, ONE)[0], lambda: stub.Predict(RPC, timeout=30).outputs["y"].float_val[0]]
            with clients(functions) as (seen, failures):
                eventually(lambda: 1.0 in seen)
                file.write_text(text_format.MessageToString(config_of(entry(tmp_path / "m", ALL))))
                assert states(port) == {1: "AVAILABLE"}, "it is read again on request only"
                process.send_signal(signal.SIGHUP)
                eventually(lambda: states(port) == {1: "AVAILABLE", 2: "AVAILABLE"})
                file.write_text("nonsense {")
                process.send_signal(signal.SIGHUP)
                time.sleep(0.3)
                assert states(port) == {1: "AVAILABLE", 2: "AVAILABLE"}
            assert failures == [] and set(seen) == {1.0, 2.0}
            slow = {"signature_name": "slow", "instances": [400_000]}
            with clients([lambda: ask(port, slow), lambda: time.sleep(0.01)]) as (seen, failures):
                time.sleep(0.3)
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=20)
            assert process.returncode == 0
            assert any(isinstance(answer, list) for answer in seen), "what was under way was answered"
            assert all("refused" in failure for failure in failures), failures[:3]
        finally:
            process.kill()


def test_a_configuration_file_is_followed(saved, tmp_path):
    for number in (1, 2):
        publish(saved, tmp_path / "m", number)
    file = tmp_path / "served.config"
    file.write_text(text_format.MessageToString(config_of(entry(tmp_path / "m", specific(1)))))
    options = {"config_poll_wait_seconds": 0.05, "file_system_poll_wait_seconds": 0.05}
    with ModelServer(lambda: configuration.of_file(file), port=0, rest_api_port=0, **options) as server:
        assert server.models == ["m"]
        assert states(server.rest_api_port) == {1: "AVAILABLE"}
        file.write_text(text_format.MessageToString(config_of(entry(tmp_path / "m"))))
        eventually(lambda: states(server.rest_api_port) == {1: "END", 2: "AVAILABLE"})


FAKE = '#!/bin/sh\nfor argument in "$@"; do echo "$argument"; done\n'


@pytest.fixture
def model_server(tmp_path):
    """An executable on PATH that prints its arguments in the place of TensorFlow Serving's."""
    program = tmp_path / "bin" / "tensorflow_model_server"
    program.parent.mkdir()
    program.write_text(FAKE)
    program.chmod(0o755)

    def run(*arguments, fails=False):
        environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
        command = [sys.executable, "-m", "keras_convnets", "serve", *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
        if fails:
            assert (done.returncode, done.stdout) == (2, ""), done.stdout
            return done.stderr
        assert done.returncode == 0, done.stderr
        said, *printed = done.stdout.splitlines()
        assert str(program) in said
        return printed

    return run


def test_tensorflow_model_server_gets_the_same_flags(model_server, tmp_path):
    root = tmp_path / "repository"
    folders(root / "m", 1, 2)
    printed = model_server(root, "--enable_batching", "--port", 9000, "--enable-model-warmup=false")
    assert {"--model_name=m", f"--model_base_path={root / 'm'}", "--port=9000", "--rest_api_port=8501"} <= set(printed)
    assert {"--enable_batching=true", "--enable_model_warmup=false"} <= set(printed)
    repository.rollback(root, "m")
    printed = model_server(root)
    file = root / "models.config"
    assert {f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=1"} <= set(printed)
    folders(root / "n", 1)
    printed = model_server(root, "--engine=tensorflow_model_server")
    (written,) = (line.partition("=")[2] for line in printed if line.startswith("--model_config_file="))
    with open(written) as file:
        names = [item.name for item in parse(file.read()).model_config_list.config]
    Path(written).unlink()
    assert names == ["m", "n"] and Path(written).parent != root
    printed = model_server("--model_base_path", root / "m", "--monitoring_config_file=a")
    assert {"--model_name=default", f"--monitoring_config_file={tmp_path / 'a'}"} <= set(printed)


def test_flags_that_tensorflow_model_server_cannot_honour(model_server, tmp_path):
    folders(tmp_path / "repository" / "m", 1)
    flags = ["--host", "127.0.0.1", "--max_request_bytes", 1000, "--max_queued_requests", 5, "--port", 0]
    flags += ["--reload_folders", tmp_path]
    said = model_server(tmp_path / "repository", *flags, fails=True)
    named = "--host, --max_queued_requests, --reload_folders, --max_request_bytes, --port=0"
    assert f"which is on PATH and is used, cannot do what {named} say; add --engine tensorflow" in said
    honoured = ["--host=0.0.0.0", "--max_request_bytes=0", "--max_connections=0", "--reload_folders=/"]
    printed = model_server(tmp_path / "repository", *honoured)
    assert not any("host" in line or "max_" in line or "reload" in line for line in printed)


def test_every_flag_goes_over_or_is_refused():
    """A new flag of `serve` must be given to TensorFlow Serving's server, or be refused for it."""
    from keras_convnets.commands import serve
    from keras_convnets.commands.arguments import Parser
    from keras_convnets.export.serving import command

    parser = Parser(prog="serve")
    serve.add_flags(parser)
    names = {action.dest for action in parser._actions} - {"help"}
    chosen = {"repository", "engine", "model_name", "model_base_path", "model_config_file"}
    waits = {"file_system_poll_wait_seconds", "model_config_file_poll_wait_seconds"}
    assert names == chosen | waits | set(command._SHARED) | set(command._FILES) | set(command._LOCAL)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--max_request_rows=-1", "-1 is not a whole number of at least 0"),
        (
            "--batching_parameters_file x",
            "server_options.batching_parameters_file is set without setting server_options.enable_batching to true.",
        ),
        ("--enable_batching=maybe", "'maybe' is not true or false"),
        ("--engine tensorflow_model_server", "tensorflow_model_server is not on PATH"),
        ("--engine none", "invalid choice: 'none'"),
        ("--model_config_file nowhere", "there is no configuration file nowhere"),
        ("--file_system_poll_wait_seconds=-1", "-1 is not a number of at least 0"),
        (
            "--enable_batching=true --batching_parameters_file bad.txt --model_base_path .",
            "serving.BatchingParameters: 1:",
        ),
        ("--enable_batching=true --batching_parameters_file sizes.txt --model_base_path .", "end with max_batch_size"),
        ("--model_config_file bad.txt", "bad.txt: Error parsing text-format tensorflow.serving.ModelServerConfig: 1:1"),
        ("--grpc_channel_arguments=a=1,b --model_base_path .", "got 'b' in --grpc_channel_arguments; allowed is KEY"),
        ("--monitoring_config_file nowhere --model_base_path .", "nowhere can't be read"),
    ],
)
def test_flags_that_cannot_be_used(tmp_path, monkeypatch, capsys, arguments, sentence):
    from keras_convnets.commands.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    Path("bad.txt").write_text("nonsense: 3")
    Path("sizes.txt").write_text("max_batch_size { value: 8 } allowed_batch_sizes: 2 allowed_batch_sizes: 4")
    assert main(["serve", *arguments.split()]) == 2
    assert sentence in capsys.readouterr().err


def test_options_of_grpc():
    text = "grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb,a=99999999999,b=-1,"
    options = [("grpc.max_connection_age_ms", 2000), ("grpc.lb_policy_name", "grpclb"), ("a", "99999999999"), ("b", -1)]
    assert flag_files.channel_arguments(text) == options
    server = make_server(None, 1, options=[("grpc.max_receive_message_length", 5)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(f"127.0.0.1:{port}"))
        with pytest.raises(grpc.RpcError, match="larger than max"):
            stub.Predict(RPC, timeout=30)
    finally:
        server.stop(0).wait()


def test_parameter_files(tmp_path):
    batching = tmp_path / "batching.txt"
    batching.write_text(
        "max_batch_size { value: 8 } batch_timeout_micros { value: 5000 } max_enqueued_batches { value: 3 } "
        "num_batch_threads { value: 2 } allowed_batch_sizes: 2 allowed_batch_sizes: 4 thread_pool_name { value: 'x' } "
        "enable_large_batch_splitting { value: true } max_execution_batch_size { value: 4 }"
    )
    assert vars(flag_files.read_batching(batching)) == {
        "max_batch_size": 8,
        "batch_timeout_micros": 5000,
        "max_enqueued_batches": 3,
        "num_batch_threads": 2,
        "allowed_batch_sizes": (2, 4),
        "enable_large_batch_splitting": True,
        "max_execution_batch_size": 4,
    }
    monitoring = tmp_path / "monitoring.txt"
    for text, path in [
        ("", None),
        ("prometheus_config { enable: true }", "/monitoring/prometheus/metrics"),
        ('prometheus_config { enable: true path: "/m" }', "/m"),
    ]:
        monitoring.write_text(text)
        assert flag_files.read_monitoring(monitoring) == path
