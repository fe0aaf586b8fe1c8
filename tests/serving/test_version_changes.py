"""Versions come and go under load; which directories are versions."""

from __future__ import annotations

import os
import shutil
import threading
import time

from endpoints import get
from served_models import predict

from keras_convnets.export.serving import ModelServer
from keras_convnets.export.serving.status import Code, ServingError


def states(server, model="m"):
    return {
        int(entry["version"]): entry["state"] for entry in get(server, f"/v1/models/{model}")[1]["model_version_status"]
    }


def wait_for(server, expected, seconds=20):
    deadline = time.monotonic() + seconds
    while (now := states(server)) != expected:
        assert time.monotonic() < deadline, f"{now} instead of {expected}"
        time.sleep(0.02)


def publish(saved, name, base, number):
    """Put a version in place as an export does: whole, by rename."""
    shutil.copytree(saved / name, base / "tmp-version")
    os.rename(base / "tmp-version", base / str(number))


def test_versions_come_and_go_without_a_failed_request(saved, tmp_path):
    base = tmp_path / "m"
    base.mkdir()
    publish(saved, "colours1", base, 1)
    options = {"file_system_poll_wait_seconds": 0.05, "max_num_load_retries": 0}
    with ModelServer({"m": base}, port=0, rest_api_port=0, **options) as server:
        seen, failures, stop = [], [], threading.Event()

        def ask():
            while not stop.is_set():
                status, answer = predict(server, {"signature_name": "which", "instances": [0]}, "m")
                (seen if status == 200 else failures).append(answer)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            publish(saved, "colours2", base, 2)
            wait_for(server, {1: "END", 2: "AVAILABLE"})
            version = predict(server, {"signature_name": "which", "instances": [0]}, "m")[1]
            assert version == {"predictions": [2.0]}
            assert predict(server, {"instances": [0]}, "m", "/versions/1")[0] == 404
            (base / "5").mkdir()
            (base / "5" / "saved_model.pb").write_bytes(b"broken")
            wait_for(server, {1: "END", 2: "AVAILABLE", 5: "END"})
            status = get(server, "/v1/models/m/versions/5")[1]["model_version_status"][0]["status"]
            assert status["error_code"] != "OK" and status["error_message"]
            shutil.rmtree(base / "5")
            shutil.rmtree(base / "2")
            wait_for(server, {1: "AVAILABLE", 2: "END", 5: "END"})
            publish(saved, "colours2", base, 5)
            wait_for(server, {1: "END", 2: "END", 5: "AVAILABLE"})
        finally:
            stop.set()
            thread.join()
        assert failures == []
        assert {"predictions": [1.0]} in seen and {"predictions": [2.0]} in seen
        moved = base.rename(tmp_path / "away")
        time.sleep(0.3)
        assert predict(server, {"signature_name": "which", "instances": [0]}, "m")[0] == 200
        moved.rename(base)
        for child in base.iterdir():
            shutil.rmtree(child)
        wait_for(server, {1: "END", 2: "END", 5: "END"})
        assert predict(server, {"instances": [0]}, "m") == (404, {"error": "Servable not found for request: Latest(m)"})


class FakeEngine:
    """An engine that costs nothing, for the bookkeeping of versions."""

    def __init__(self, path):
        if (path / "broken").exists():
            raise ServingError(Code.DATA_LOSS, "broken on purpose")


def test_a_version_in_use_is_unloaded_after_its_request(tmp_path):
    from keras_convnets.export.serving.models.model import State
    from keras_convnets.export.serving.models.servables import Servables

    (tmp_path / "1").mkdir()
    servables = Servables({"m": tmp_path}, load=FakeEngine)
    servables.load_initial()
    with servables.use("m") as servable:
        (tmp_path / "2").mkdir()
        servables.poll()
        assert [(e.version, e.state) for e in servables.status("m")] == [(2, State.AVAILABLE), (1, State.UNLOADING)]
        assert servable.version == 1 and servable.engine is not None
        with servables.use("m") as newer:
            assert newer.version == 2
    assert [(e.version, e.state) for e in servables.status("m")] == [(2, State.AVAILABLE), (1, State.END)]


def test_a_failed_load_is_tried_again_and_then_reported(tmp_path):
    from keras_convnets.export.serving.models.model import State
    from keras_convnets.export.serving.models.servables import Servables

    (tmp_path / "1").mkdir()
    options = {"max_num_load_retries": 1, "load_retry_interval_seconds": 0.0}
    servables = Servables({"m": tmp_path}, load=FakeEngine, **options)
    servables.load_initial()
    (tmp_path / "2" / "broken").mkdir(parents=True)
    servables.poll()
    assert [(e.version, e.state) for e in servables.status("m")] == [(2, State.LOADING), (1, State.AVAILABLE)]
    servables.poll()
    newest, oldest = servables.status("m")
    assert (newest.state, newest.error.code, oldest.state) == (State.END, Code.DATA_LOSS, State.AVAILABLE)
    (tmp_path / "2" / "broken").rmdir()
    servables.poll()
    assert servables.status("m", 2)[0].state is State.END, "a version that was given up stays so"
    (tmp_path / "2").rmdir()
    servables.poll()
    (tmp_path / "2").mkdir()
    servables.poll()
    assert [(e.version, e.state) for e in servables.status("m")] == [(2, State.AVAILABLE), (1, State.END)]


def test_which_directories_are_versions(tmp_path):
    from keras_convnets.export.serving.models.servables import Servables

    for name in ("00000123", "12", "abc", "1.5", "-7", "9223372036854775808", "\u0663", "\u00b2"):
        (tmp_path / name).mkdir()
    (tmp_path / "500").write_text("a file")
    servables = Servables({"m": tmp_path}, load=FakeEngine)
    servables.load_initial()
    assert [entry.version for entry in servables.status("m")] == [123]
