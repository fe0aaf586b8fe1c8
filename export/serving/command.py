"""What the command `serve` makes of its flags: a local server, or TensorFlow Serving's own with the same flags."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_convnets.errors import UserError
from keras_convnets.export import model_config
from keras_convnets.export.serving import flag_files
from keras_convnets.export.serving.admission.limits import Limits
from keras_convnets.export.serving.models import configuration
from keras_convnets.export.serving.scheduling.concurrency import MAX_QUEUED_REQUESTS

if TYPE_CHECKING:
    from keras_convnets.export.serving.server import ModelServer

MODEL_SERVER = "tensorflow_model_server"
# Flags that both servers have, whose values are passed on as they are.
_SHARED = (
    "port",
    "rest_api_port",
    "rest_api_timeout_in_ms",
    "rest_api_enable_cors_support",
    "grpc_channel_arguments",
    "enable_batching",
    "enable_model_warmup",
    "enable_grpc_healthcheck_service",
    "allow_version_labels_for_unavailable_models",
)
_LIMITS = tuple(field.name for field in dataclasses.fields(Limits))
# Flags that only the local server has, with the value that means what TensorFlow Serving does anyway.
_LOCAL = {
    "host": "0.0.0.0",
    "max_queued_requests": None,
    "reload_folders": ["/"],
    "access_log": None,
    "page": False,
    **dict.fromkeys(_LIMITS, 0),
}
_LOCAL_HOST = "127.0.0.1"
_FILES = ("batching_parameters_file", "monitoring_config_file", "grpc_socket_path")


def find_model_server(engine: str | None) -> str | None:
    """Return the path of TensorFlow Serving's own server if it is to be used.

    Args:
        engine: the flag's value; None uses that server where it is on PATH.

    Raises:
        UserError: if it is asked for and is not there.
    """
    if engine not in (None, MODEL_SERVER):
        return None
    found = shutil.which(MODEL_SERVER)
    if found is None and engine is not None:
        raise UserError(f"{MODEL_SERVER} is not on PATH; install it, or use --engine tensorflow.")
    return found


def model_server_arguments(flags: Mapping[str, Any]) -> list[str]:
    """Return the arguments with which TensorFlow Serving's own server does what the flags say.

    Args:
        flags: the values of the command's flags by name.

    Raises:
        UserError: if there is nothing to serve, a file can't be read, or a flag can't be honoured.
    """
    _check_honoured(flags)
    arguments = _model_arguments(flags)
    arguments += [f"--{name}={_written(flags[name])}" for name in _SHARED]
    arguments += [f"--{name}={os.path.abspath(flags[name])}" for name in _FILES if flags[name]]
    # Whole seconds there; a short wait must not become the 0 that looks only once.
    return [*arguments, f"--file_system_poll_wait_seconds={math.ceil(flags['file_system_poll_wait_seconds'])}"]


def _check_honoured(flags: Mapping[str, Any]) -> None:
    given = [f"--{name}" for name, same in _LOCAL.items() if flags[name] is not None and flags[name] != same]
    # Ours take a free port for 0; there it turns the interface off.
    given += [f"--{name}=0" for name in ("port", "rest_api_port") if flags[name] == 0]
    if given:
        raise UserError(
            f"{MODEL_SERVER}, which is on PATH and is used, cannot do what {', '.join(given)} "
            f"{'says' if len(given) == 1 else 'say'}; add --engine tensorflow for the local server, or leave "
            f"{'it' if len(given) == 1 else 'them'} out."
        )


def _model_arguments(flags: Mapping[str, Any]) -> list[str]:
    flag_files.require_packages()
    file, wait = flags["model_config_file"], flags["model_config_file_poll_wait_seconds"]
    if not file and flags["model_base_path"]:
        return _one_model(flags["model_name"] or "default", flags["model_base_path"])
    if not file:
        source = configuration.RepositoryConfig(flags["repository"], flags["model_name"])
        config = source()
        items = config.model_config_list.config
        if len(items) == 1 and not items[0].HasField("model_version_policy") and not items[0].version_labels:
            return _one_model(items[0].name, items[0].base_path)
        file, wait = Path(flags["repository"]) / model_config.FILE_NAME, flags["file_system_poll_wait_seconds"]
        if not source.is_its_file():
            # Paths that moved, or models that its file does not list.
            file, wait = _write(config), 0
    else:
        configuration.of_file(file)
    return [
        f"--model_config_file={os.path.abspath(file)}",
        f"--model_config_file_poll_wait_seconds={math.ceil(wait)}",
    ]


def _one_model(name: str, base_path: str) -> list[str]:
    return [f"--model_name={name}", f"--model_base_path={os.path.abspath(base_path)}"]


def _write(config: Any) -> str:
    from google.protobuf import text_format

    descriptor, path = tempfile.mkstemp(suffix=f".{model_config.FILE_NAME}")
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text_format.MessageToString(config))
    return path


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_batching(flags: Mapping[str, Any]) -> None:
    """Check that batching parameters come with batching.

    Raises:
        UserError: with TensorFlow Serving's message.
    """
    if flags["batching_parameters_file"] and not flags["enable_batching"]:
        raise UserError(
            "server_options.batching_parameters_file is set without setting server_options.enable_batching to true."
        )


def make_local_server(flags: Mapping[str, Any]) -> ModelServer:
    """Return the local server that does what the flags say, not started yet.

    Args:
        flags: the values of the command's flags by name.

    Raises:
        UserError: if there is nothing to serve, or a file can't be read or used.
    """
    flag_files.require_packages()
    from keras_convnets.export.serving.scheduling.batching import BatchingParameters
    from keras_convnets.export.serving.server import ModelServer

    check_batching(flags)
    batching = None
    if flags["enable_batching"]:
        file = flags["batching_parameters_file"]
        batching = flag_files.read_batching(file) if file else BatchingParameters()
    monitoring = flags["monitoring_config_file"]
    models, wait = _source(flags)
    same: tuple[str, ...] = ("port", "rest_api_port", "grpc_socket_path", "reload_folders")
    same += ("enable_model_warmup", "allow_version_labels_for_unavailable_models", "file_system_poll_wait_seconds")
    same += ("rest_api_timeout_in_ms", "rest_api_enable_cors_support", "enable_grpc_healthcheck_service")
    return ModelServer(
        models,
        **{name: flags[name] for name in same},
        host=_LOCAL_HOST if flags["host"] is None else flags["host"],
        max_queued_requests=flags["max_queued_requests"] or MAX_QUEUED_REQUESTS,
        limits=Limits(**{name: flags[name] for name in _LIMITS if flags[name] is not None}),
        engine=flags["engine"] or "tensorflow",
        batching=batching,
        grpc_channel_arguments=flag_files.channel_arguments(flags["grpc_channel_arguments"]),
        config_poll_wait_seconds=wait,
        prometheus_path=flag_files.read_monitoring(monitoring) if monitoring else None,
        access_log=sys.stdout if flags["access_log"] else None,
        page=flags["page"] is not False,
    )


def _source(flags: Mapping[str, Any]) -> tuple[Callable[[], Any], float]:
    """Return what reads the configuration, and how often it is read again."""
    if flags["model_config_file"]:
        path = flags["model_config_file"]
        return lambda: configuration.of_file(path), flags["model_config_file_poll_wait_seconds"]
    if flags["model_base_path"]:
        models = {flags["model_name"] or "default": flags["model_base_path"]}
        return lambda: configuration.of_base_paths(models), 0
    source = configuration.RepositoryConfig(flags["repository"], flags["model_name"])
    return source, flags["file_system_poll_wait_seconds"]
