"""The server starts, says why it can't, and stops."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from served_models import predict

from keras_convnets.errors import UserError
from keras_convnets.export.serving import ModelServer


@pytest.mark.parametrize("flag", ["port", "rest_api_port"])
def test_port_in_use(base_paths, flag):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        server = ModelServer({"old": base_paths["old"]}, **({"port": 0, "rest_api_port": 0} | {flag: number}))
        with pytest.raises(UserError, match=rf"port {number} .* in use.*--{flag} "):
            server.start()


def test_two_servers_do_not_share_a_port(server, base_paths):
    with pytest.raises(UserError, match=f"port {server.port} on 127.0.0.1 is in use"):
        ModelServer({"old": base_paths["old"]}, port=server.port, rest_api_port=0).start()
    for number in (70000, -1):
        with pytest.raises(UserError, match=f"port {number} does not exist; give --rest_api_port a number"):
            ModelServer({"old": base_paths["old"]}, port=0, rest_api_port=number).start()
    with pytest.raises(UserError, match="cannot listen on 'nowhere.invalid'"):
        ModelServer({"old": base_paths["old"]}, port=0, rest_api_port=0, host="nowhere.invalid").start()
    with pytest.raises(UserError, match="given twice"):
        ModelServer({"old": base_paths["old"]}, port=8765, rest_api_port=8765).start()


def test_bad_base_paths(tmp_path):
    def start(path):
        ModelServer({"m": path}, port=0, rest_api_port=0).start()

    with pytest.raises(UserError, match=r"nothing.*cannot be read"):
        start(tmp_path / "nothing")
    (tmp_path / "empty" / "latest").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no version"):
        start(tmp_path / "empty")
    (tmp_path / "broken" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"version 1 of model 'm'.*cannot be loaded"):
        start(tmp_path / "broken")
    with pytest.raises(UserError, match="no model"):
        ModelServer({})


def test_ports_are_closed_after_stop(base_paths):
    server = ModelServer({"old": base_paths["old"]}, port=0, rest_api_port=0)
    server.start()
    assert server.port and server.rest_api_port and server.port != server.rest_api_port
    assert not server.wait(timeout=0.01)
    server.stop()
    assert server.wait(timeout=0)
    for port in (server.port, server.rest_api_port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_missing_packages(base_paths, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"pip install 'keras-convnets\[serving\]'"):
        ModelServer({"old": base_paths["old"]}, port=0, rest_api_port=0).start()


SERVE = """
import sys
from keras_convnets.export.serving import ModelServer, serve_forever
server = ModelServer({"m": sys.argv[1]}, port=0, rest_api_port=0)
serve_forever(server, lambda text: print(text, server.rest_api_port, flush=True))
"""


@pytest.mark.heavy  # the command does so in test_serve_command.py
def test_sigterm_answers_what_is_under_way(saved, tmp_path):
    shutil.copytree(saved / "colours1", tmp_path / "m" / "1")
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", SERVE, str(tmp_path / "m")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("Serving m at http://127.0.0.1:")

            class Running:
                rest_api_port = int(line.split()[-1])

            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                body = {"signature_name": "slow", "instances": [300_000]}
                answer = pool.submit(predict, Running, body, "m")
                time.sleep(0.2)
                assert not answer.done()
                process.send_signal(signal.SIGTERM)
                assert answer.result()[0] == 200
            assert process.wait(timeout=20) == 0
            assert process.stdout.read().startswith("Stopping")
        finally:
            process.kill()


def test_importing_the_package_starts_no_tensorflow():
    code = (
        "import sys, keras_convnets.export.serving, keras_convnets.export.client; "
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras', 'grpc', 'uvicorn')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False).returncode == 0
