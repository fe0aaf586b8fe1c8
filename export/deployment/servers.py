"""The servers that deployment files are written for: an entry each, with what differs between them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from keras_convnets.export.deployment.models import DeployedModel
from keras_convnets.export.serving.metrics import PROMETHEUS_PATH
from keras_convnets.version import __version__

SERVING_VERSION, TRITON_VERSION, OPENVINO_VERSION = "2.19.1", "25.01", "2025.0"
# Where the repository is mounted in a container, and the configuration.
MODELS, CONFIG = "/models", "/config"
# The largest batch, as in templates/batching.txt.
MAX_BATCH = 16


@dataclass(frozen=True)
class Server:
    """A server of models.

    Attributes:
        name: of its folder and of the service.
        title: the first line of its files.
        image: with its version.
        arguments: of the container.
        grpc_port: in the container.
        http_port: in the container.
        metrics: the port and the path of its metrics for Prometheus.
        ready_path: answers with 200 once a model can answer; `{model}` stands for the first model's name.
        ready_reason: why this path.
        config: from the models to its own configuration files, by name; they are in `CONFIG`.
        from_onnx: whether it runs `model.onnx`, not the SavedModel.
        mounts_versions: whether each served version is mounted by itself, beside a configuration of the model.
        is_built: whether its image is built from the Dockerfile in its folder.
    """

    name: str
    title: str
    image: str
    arguments: tuple[str, ...]
    grpc_port: int
    http_port: int
    metrics: tuple[int, str]
    ready_path: str
    ready_reason: str
    config: Callable[[Sequence[DeployedModel]], Mapping[str, str]] = lambda models: {}
    from_onnx: bool = False
    mounts_versions: bool = False
    is_built: bool = False


def _triton_config(models: Sequence[DeployedModel]) -> dict[str, str]:
    return {f"{model.name}.pbtxt": triton_text(model) for model in models}


def triton_text(model: DeployedModel) -> str:
    """Return a model's `config.pbtxt`, Triton's ModelConfig in text format."""

    def tensors(kind: str, found: Sequence) -> str:
        items = (
            f"  {{ name: {json.dumps(one.name)} data_type: {one.type} dims: [{', '.join(map(str, one.shape))}] }}"
            for one in found
        )
        return f"{kind} [\n" + ",\n".join(items) + "\n]\n"

    versions = ", ".join(map(str, sorted(model.versions)))
    return (
        f"# Triton's configuration of {model.name}; labels of the classes are in the version's assets.extra.\n"
        f"name: {json.dumps(model.name)}\n"
        'backend: "onnxruntime"\n'
        f"max_batch_size: {MAX_BATCH}\n"
        + tensors("input", model.onnx_inputs)
        + tensors("output", model.onnx_outputs)
        + "# Requests that come within 5 ms run together: about a tenth of what a batch takes on a CPU.\n"
        "dynamic_batching { max_queue_delay_microseconds: 5000 }\n"
        "# One instance, which uses all processors; on GPUs: KIND_GPU.\n"
        "instance_group [{ count: 1 kind: KIND_CPU }]\n"
        f"version_policy {{ specific {{ versions: [{versions}] }} }}\n"
    )


def _openvino_config(models: Sequence[DeployedModel]) -> dict[str, str]:
    entries = [
        {
            "config": {
                "name": model.name,
                "base_path": f"{MODELS}/{model.name}",
                "model_version_policy": {"specific": {"versions": sorted(model.versions)}},
            }
        }
        for model in models
    ]
    return {"config.json": json.dumps({"model_config_list": entries}, indent=2) + "\n"}


_FLAGS = (
    f"--model_config_file={CONFIG}/models.config",
    "--model_config_file_poll_wait_seconds=60",
    "--enable_batching=true",
    f"--batching_parameters_file={CONFIG}/batching.txt",
    f"--monitoring_config_file={CONFIG}/monitoring.txt",
)
_READY = "Answers only while a version is available; the model's status answers before, too."

SERVERS = (
    Server(
        "tensorflow-serving",
        "TensorFlow Serving: the SavedModels of the repository, over gRPC and REST.",
        f"tensorflow/serving:{SERVING_VERSION}",
        _FLAGS,
        grpc_port=8500,
        http_port=8501,
        metrics=(8501, PROMETHEUS_PATH),
        ready_path="/v1/models/{model}/metadata",
        ready_reason=_READY,
    ),
    Server(
        "keras-convnets",
        "This package's endpoint: TensorFlow Serving's interface, with limits for every request.",
        f"keras-convnets-endpoint:{__version__}",
        ("--host=0.0.0.0", "--engine=tensorflow", "--page=false", "--access_log=json", *_FLAGS),
        grpc_port=8500,
        http_port=8501,
        metrics=(8501, PROMETHEUS_PATH),
        ready_path="/v1/models/{model}/metadata",
        ready_reason=_READY,
        is_built=True,
    ),
    Server(
        "triton",
        "NVIDIA Triton Inference Server: each served version's model.onnx, in ONNX Runtime.",
        f"nvcr.io/nvidia/tritonserver:{TRITON_VERSION}-py3",
        ("tritonserver", f"--model-repository={MODELS}", "--disable-auto-complete-config"),
        grpc_port=8001,
        http_port=8000,
        metrics=(8002, "/metrics"),
        ready_path="/v2/health/ready",
        ready_reason="Answers with 200 when all models are loaded.",
        config=_triton_config,
        from_onnx=True,
        mounts_versions=True,
    ),
    Server(
        "openvino",
        "OpenVINO Model Server: model.onnx, which it takes before a version's SavedModel.",
        f"openvino/model_server:{OPENVINO_VERSION}",
        (f"--config_path={CONFIG}/config.json", "--port=9000", "--rest_port=8000", "--metrics_enable"),
        grpc_port=9000,
        http_port=8000,
        metrics=(8000, "/metrics"),
        ready_path="/v2/health/ready",
        ready_reason="Answers with 200 when all models are loaded.",
        config=_openvino_config,
        from_onnx=True,
    ),
)


def container_mounts(server: Server, models: Sequence[DeployedModel], root: Path) -> list[tuple[str, str]]:
    """Return what of the repository a container mounts, and where: (path in the repository, path in the container)."""
    if not server.mounts_versions:
        return [("", MODELS)]
    return [
        (str(path.relative_to(root)), f"{MODELS}/{model.name}/{number}")
        for model in models
        for number, path in model.versions.items()
    ]
