"""Writes the folder of deployment files: fills the templates for every server."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import string
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from keras_convnets.errors import UserError
from keras_convnets.export import model_config
from keras_convnets.export.deployment import models as deployed
from keras_convnets.export.deployment.dashboard import dashboard
from keras_convnets.export.deployment.models import MIB, DeployedModel
from keras_convnets.export.deployment.pins import pinned
from keras_convnets.export.deployment.servers import (
    CONFIG,
    MODELS,
    SERVERS,
    SERVING_VERSION,
    Server,
    container_mounts,
)
from keras_convnets.files import atomic_folder
from keras_convnets.version import __version__

CLAIM = "models"
# Files of a subfolder that need nothing filled in but the names of the model and of the server before them.
_PLAIN = {
    "config/batching.txt": "batching.txt",
    "config/monitoring.txt": "monitoring.txt",
    "monitoring/prometheus.yml": "prometheus.yml",
    "monitoring/alerts.yml": "alerts.yml",
    "monitoring/compose.yaml": "monitoring_compose.yaml",
    "monitoring/grafana_sources.yml": "grafana_sources.yml",
    "monitoring/grafana_dashboards.yml": "grafana_dashboards.yml",
    "proxy/compose.yaml": "nginx_compose.yaml",
}


class _Template(string.Template):
    # Not "$", which NGINX and docker compose use themselves.
    delimiter = "@"


def write(
    to: str | os.PathLike, repository: str | os.PathLike = "saved_models", names: Sequence[str] = ()
) -> list[DeployedModel]:
    """Write a folder of deployment files for exported models.

    Args:
        to: the folder; it must not exist, and appears whole or not at all.
        repository: what the models were exported to.
        names: some of its models; by default all.

    Returns:
        The models. Those without `model.onnx` in each served version are not in Triton's and OpenVINO's files.

    Raises:
        UserError: if the repository holds no such model, or the folder exists or can't be written.

    Example:
        >>> write("deployment", "saved_models", ["photos"])[0].name
        'photos'
    """
    to, root = Path(to), Path(repository)
    if to.exists():
        raise UserError(f"{to} exists, and nothing in it is written over; delete it, or name another folder with --to.")
    models = deployed.read(root, names)
    files = _files(models, root)
    with atomic_folder(to) as temporary:
        for path, text in files.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_text(text, encoding="utf-8")
    return models


def _files(models: Sequence[DeployedModel], root: Path) -> dict[str, str]:
    """Return the texts by their paths in the folder."""
    files = {path: _template(template).template for path, template in _PLAIN.items()}
    files["config/models.config"] = _models_config(models, root)
    files["monitoring/dashboard.json"] = json.dumps(dashboard(), indent=2) + "\n"
    files["proxy/nginx.conf"] = _filled("nginx.conf", service=SERVERS[0].name)
    shared = {name: files[f"config/{name}"] for name in ("models.config", "batching.txt", "monitoring.txt")}
    with_onnx = [model for model in models if model.has_onnx]
    for server in SERVERS:
        served = with_onnx if server.from_onnx else models
        if not served:
            continue
        own = server.config(served)
        files.update({f"{server.name}/{name}": text for name, text in own.items()})
        config = dict(own) if server.from_onnx else {**shared, **own}
        files[f"{server.name}/compose.yaml"] = _compose(server, served, root, config)
        files[f"{server.name}/kubernetes.yaml"] = _kubernetes(server, served, root, config)
    python, image = platform.python_version(), SERVERS[1].image
    files[f"{SERVERS[1].name}/Dockerfile"] = _filled("Dockerfile", python=python, image=image)
    files[f"{SERVERS[1].name}/requirements.txt"] = "\n".join(pinned()) + "\n"
    stored = -(-sum(model.size for model in models) // MIB)
    reason = f"Five versions of each model: 5 x {stored:,} MiB."
    files["volume.yaml"] = _filled("volume.yaml", claim=CLAIM, storage_mib=5 * stored, storage_reason=reason)
    files["README.md"] = _readme(models, root, bool(with_onnx))
    return files


def _template(name: str) -> _Template:
    folder = resources.files("keras_convnets.export.deployment") / "templates"
    return _Template(folder.joinpath(name).read_text(encoding="utf-8"))


def _filled(template: str, **values: Any) -> str:
    return _template(template).substitute(values)


def _models_config(models: Sequence[DeployedModel], root: Path) -> str:
    """Return the repository's `models.config` with the container's paths; versions that are held stay held."""
    from google.protobuf import text_format

    given = model_config.read_config(root / model_config.FILE_NAME)
    config = type(given)()
    for model in models:
        entry = config.model_config_list.config.add()
        found = model_config.entry(given, model.name)
        if found is not None:
            entry.CopyFrom(found)
        entry.name, entry.base_path = model.name, f"{MODELS}/{model.name}"
        entry.model_platform = entry.model_platform or model_config.PLATFORM
    return text_format.MessageToString(config)


def _compose(server: Server, models: Sequence[DeployedModel], root: Path, config: dict[str, str]) -> str:
    given = f"${{MODELS:-{root.resolve()}}}"
    volumes = [(f"{given}/{path}".rstrip("/"), target) for path, target in container_mounts(server, models, root)]
    folder = server.name if server.from_onnx else "config"
    volumes += [(f"./{folder}/{name}", target) for name, target in _config_mounts(server, config)]
    ports = [port for port in (server.grpc_port, server.http_port, server.metrics[0]) if port != server.http_port]
    return _filled(
        "compose.yaml",
        title=server.title,
        versions_note=", but for Triton, which gets each version by itself" if server.mounts_versions else "",
        service=server.name,
        image=server.image,
        build=f"    build: ./{server.name}\n" if server.is_built else "",
        arguments=json.dumps(server.arguments),
        environment='{TF_CPP_MIN_LOG_LEVEL: "1"}',
        ports="\n".join(f'      - "127.0.0.1:{port}:{port}"' for port in dict.fromkeys([*ports, server.http_port])),
        volumes="\n".join(f"      - {json.dumps(f'{source}:{target}:ro')}" for source, target in volumes),
        memory_reason=_memory_reason(models),
        memory_mib=deployed.memory_mib(models),
        http_port=server.http_port,
    )


def _kubernetes(server: Server, models: Sequence[DeployedModel], root: Path, config: dict[str, str]) -> str:
    mounts = []
    for path, target in container_mounts(server, models, root):
        part = f", subPath: {json.dumps(path)}" if path else ""
        mounts.append(f"{{name: models, mountPath: {json.dumps(target)}, readOnly: true{part}}}")
    for name, target in _config_mounts(server, config):
        mounts.append(f"{{name: config, mountPath: {json.dumps(target)}, subPath: {json.dumps(name)}, readOnly: true}}")
    metrics_port, metrics_path = server.metrics
    is_further = metrics_port not in (server.grpc_port, server.http_port)
    texts = "".join(sorted(f"{name}\n{text}" for name, text in config.items()))
    return _filled(
        "kubernetes.yaml",
        title=server.title,
        claim=CLAIM,
        service=server.name,
        image=server.image,
        arguments=json.dumps(server.arguments),
        environment='[{name: TF_CPP_MIN_LOG_LEVEL, value: "1"}]',
        config="\n".join(_config_entry(name, text) for name, text in config.items()),
        config_sha256=hashlib.sha256(texts.encode()).hexdigest(),
        grpc_port=server.grpc_port,
        http_port=server.http_port,
        further_ports=f"            - {{name: metrics, containerPort: {metrics_port}}}\n" if is_further else "",
        metrics_port=metrics_port,
        metrics_path=metrics_path,
        memory_reason=_memory_reason(models),
        memory_mib=deployed.memory_mib(models),
        cpus=2,
        ready_path=server.ready_path.format(model=models[0].name),
        ready_reason=server.ready_reason,
        volume_mounts="\n".join(f"            - {mount}" for mount in mounts),
    )


def _config_mounts(server: Server, config: dict[str, str]) -> list[tuple[str, str]]:
    """Return the configuration files by name, with their places in the container."""
    if not server.mounts_versions:
        return [(name, f"{CONFIG}/{name}") for name in config]
    # Triton wants a model's beside its versions.
    return [(name, f"{MODELS}/{name.removesuffix('.pbtxt')}/config.pbtxt") for name in config]


def _config_entry(name: str, text: str) -> str:
    lines = "".join(f"    {line}\n" if line else "\n" for line in text.splitlines())
    return f"  {json.dumps(name)}: |\n{lines}".rstrip("\n")


def _memory_reason(models: Sequence[DeployedModel]) -> str:
    size = -(-sum(model.size for model in models) // MIB)
    return (
        f"{deployed.BASE_MIB:,} MiB for the server, and {deployed.WEIGHTS_HELD} x {size:,} MiB of weights: two "
        "versions while a new one loads, and the work on a batch."
    )


def _readme(models: Sequence[DeployedModel], root: Path, has_onnx: bool) -> str:
    rows = []
    for model in models:
        size = " x ".join(map(str, model.input_size)) if model.input_size else "–"
        onnx = "" if model.has_onnx else " (no model.onnx)"
        versions = ", ".join(map(str, sorted(model.versions)))
        rows.append(f"| {model.name}{onnx} | {versions} | {model.size / 1e6:,.1f} MB | {size} |")
    onnx_rows = (
        "| `triton/`, `openvino/` | the same for NVIDIA Triton and OpenVINO Model Server, over `model.onnx`, which "
        "take pixels of the input's size, not encoded images; a new version needs new files |\n"
        if has_onnx
        else ""
    )
    return _filled(
        "README.md",
        names=", ".join(model.name for model in models),
        version=f"keras_convnets {__version__}",
        repository=root.resolve(),
        model_rows="\n".join(rows),
        serving_version=SERVING_VERSION,
        onnx_rows=onnx_rows,
        first=models[0].name,
        claim=CLAIM,
    )
