"""Configurations that change while the server runs: files, reloads by clients, repositories."""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from served_versions import (
    ALL,
    ONE,
    RPC,
    FakeEngine,
    ask,
    available,
    clients,
    config_of,
    entry,
    eventually,
    fails,
    folders,
    label,
    parse,
    publish,
    started,
    states,
)
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from keras_convnets.errors import UserError
from keras_convnets.export import repository
from keras_convnets.export.serving import ModelServer
from keras_convnets.export.serving.models import configuration
from keras_convnets.export.serving.models.model import State
from keras_convnets.export.serving.models.servables import Servables
from keras_convnets.export.serving.status import Code, ServingError


def denied(part, function):
    with pytest.raises(ServingError) as caught:
        function()
    assert caught.value.code is Code.PERMISSION_DENIED and part in caught.value.message


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


def test_a_server_that_is_stopped_while_it_waits_opens_no_port(saved_numbers, tmp_path):
    publish(saved_numbers, tmp_path / "m", 1)
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
        folders(tmp_path / "fixed", 3)
        servables.reload(config_of(entry(tmp_path / "m"), entry(tmp_path / "fixed", name="n")))
        eventually(lambda: available(servables, "n") == [3])
        nowhere = config_of(entry(tmp_path / "m"), entry(tmp_path / "nowhere", name="o"))
        until = time.monotonic() + 0.5
        with pytest.raises(ServingError) as caught:
            servables.reload(nowhere, is_active=lambda: time.monotonic() < until)
        assert caught.value.code is Code.CANCELLED and time.monotonic() >= until
        folders(tmp_path / "nowhere", 8)
        eventually(lambda: available(servables, "o") == [8])


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


def calls(server):
    """Return a call for each protocol and for the status, none of which may ever fail."""
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(f"127.0.0.1:{server.port}"))
    return [
        lambda: ask(server.rest_api_port, ONE)[0],
        lambda: stub.Predict(RPC, timeout=30).outputs["y"].float_val[0],
        lambda: "AVAILABLE" in states(server.rest_api_port).values() or 1 / 0,
    ]


def test_no_request_fails_while_versions_come_break_go_and_are_rolled_back(saved_numbers, tmp_path):
    root = tmp_path / "repository"
    publish(saved_numbers, root / "m", 1)
    options = {"file_system_poll_wait_seconds": 0.05, "config_poll_wait_seconds": 0.05, "max_num_load_retries": 0}
    source = configuration.RepositoryConfig(root)
    with ModelServer(source, port=0, rest_api_port=0, **options) as server, clients(calls(server)) as (seen, failures):
        port = server.rest_api_port
        publish(saved_numbers, root / "m", 2)
        eventually(lambda: states(port) == {1: "END", 2: "AVAILABLE"})
        (root / "m" / "3").mkdir()
        eventually(lambda: states(port) == {1: "END", 2: "AVAILABLE", 3: "END"})
        shutil.rmtree(root / "m" / "3")
        assert repository.rollback(root, "m") == 1
        eventually(lambda: states(port) == {1: "AVAILABLE", 2: "END", 3: "END"})
        assert ask(port, ONE) == [1.0]
        publish(saved_numbers, root / "m", 3)
        publish(saved_numbers, root / "other", 1)
        eventually(lambda: states(port, "other") == {1: "AVAILABLE"})
        assert states(port)[3] == "END", "held at the version that the rollback chose"
        repository.serve_latest(root, "m")
        eventually(lambda: states(port) == {1: "END", 2: "END", 3: "AVAILABLE"})
        shutil.rmtree(root / "m" / "3")
        eventually(lambda: states(port) == {1: "END", 2: "AVAILABLE", 3: "END"})
    assert failures == []
    assert {1.0, 2.0, 3.0} <= set(seen)


def test_reload_over_grpc_with_labels(saved_numbers, tmp_path):
    for number in (1, 2):
        publish(saved_numbers, tmp_path / "m", number)
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


def test_a_client_that_reloads_what_it_may_not(saved_numbers, tmp_path):
    publish(saved_numbers, tmp_path / "m", 1)
    publish(saved_numbers, tmp_path / "other", 1)
    with (
        ModelServer({"m": tmp_path / "m"}, port=0, rest_api_port=0) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        request = model_management_pb2.ReloadConfigRequest(config=config_of(entry(tmp_path / "m" / ".." / "other")))
        with pytest.raises(grpc.RpcError, match="PERMISSION_DENIED"):
            stub.HandleReloadConfigRequest(request, timeout=30)
        assert ask(server.rest_api_port, ONE) == [1.0]
