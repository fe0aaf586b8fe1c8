"""Fixtures of several test modules of the endpoint."""

from __future__ import annotations

import shutil

import grpc
import pytest
import tensorflow as tf
from endpoints import save_many
from served_models import save_colours, save_tf1
from served_versions import Number
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from keras_convnets.export.serving import ModelServer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """SavedModels to copy versions from."""
    root = tmp_path_factory.mktemp("saved")
    save_colours(root / "colours1", 1.0)
    save_colours(root / "colours2", 2.0)
    return root


@pytest.fixture(scope="module")
def base_paths(tmp_path_factory, saved):
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(saved / "colours1", root / "colours" / "00000003")
    (root / "colours" / "notes").mkdir()
    save_many(root / "many" / "1")
    save_tf1(root / "old" / "7")
    return {name: root / name for name in ("colours", "many", "old")}


@pytest.fixture(scope="module")
def server(base_paths):
    with ModelServer(base_paths, port=0, rest_api_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def stubs(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield (
            prediction_service_pb2_grpc.PredictionServiceStub(channel),
            model_service_pb2_grpc.ModelServiceStub(channel),
        )


@pytest.fixture(scope="module")
def saved_numbers(tmp_path_factory):
    """SavedModels to copy versions from, one for each number."""
    root = tmp_path_factory.mktemp("numbers")
    for number in (1, 2, 3):
        module = Number(number)
        tf.saved_model.save(module, str(root / str(number)), {"serving_default": module.serve, "slow": module.slow})
    return root
