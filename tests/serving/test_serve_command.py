"""The command `serve`: flags, files of configuration, signals, TensorFlow Serving's own server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf import text_format
from served_versions import (
    ALL,
    ONE,
    RPC,
    ask,
    clients,
    config_of,
    entry,
    eventually,
    folders,
    parse,
    publish,
    specific,
    states,
)
from tensorflow_serving.apis import (
    prediction_service_pb2_grpc,
)

from keras_convnets.export import repository
from keras_convnets.export.serving import ModelServer, flag_files
from keras_convnets.export.serving.models import configuration
from keras_convnets.export.serving.rpc.server import make_server


def test_signals_a_socket_and_a_configuration_file(saved_numbers, tmp_path):
    for number in (1, 2):
        publish(saved_numbers, tmp_path / "m", number)
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


def test_a_configuration_file_is_followed(saved_numbers, tmp_path):
    for number in (1, 2):
        publish(saved_numbers, tmp_path / "m", number)
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
