"""Numbered versions that tests serve."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    predict_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from keras_convnets.errors import UserError
from keras_convnets.export.serving.models.model import State
from keras_convnets.export.serving.models.servables import Servables
from keras_convnets.export.serving.status import Code, ServingError


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


def eventually(holds, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ServingError, OSError, UserError):
            if holds():
                return
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


def publish(saved_numbers, base, number):
    base.mkdir(parents=True, exist_ok=True)
    shutil.copytree(saved_numbers / str(number), base / f"tmp-{number}")
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


@contextlib.contextmanager
def clients(functions):
    """Call functions in separate threads for as long as the block takes; gives the answers and the failures."""
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
