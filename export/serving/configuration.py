"""What a server is told in files: the models, the batching parameters and the monitoring, as text protocol buffers."""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib
import logging
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from keras_convnets.errors import UserError, unknown_name
from keras_convnets.export import model_config, repository
from keras_convnets.export.model_config import PLATFORM
from keras_convnets.export.serving.batching import BatchingParameters
from keras_convnets.export.serving.metrics import PROMETHEUS_PATH
from keras_convnets.export.serving.names import printable
from keras_convnets.export.serving.status import Code, ServingError, invalid_argument

_log = logging.getLogger(__name__)

_WRAPPERS = "google/protobuf/wrappers.proto"


def require_packages() -> None:
    """Check that what serving needs besides the package is installed.

    Raises:
        UserError: if it is not.
    """
    try:
        for package in ("grpc", "grpc_health.v1", "uvicorn", "tensorflow_serving.apis"):
            importlib.import_module(package)
    except ImportError as error:
        raise UserError("serving needs the extra packages: pip install 'keras-convnets[serving]'.") from error


def of_base_paths(models: Mapping[str, str | os.PathLike[str]]) -> Any:
    """Return the configuration, a `ModelServerConfig`, that serves the highest version of each base path.

    Args:
        models: base paths by model name.
    """
    from tensorflow_serving.config import model_server_config_pb2

    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.SetInParent()
    for name, path in models.items():
        added = config.model_config_list.config.add(name=name, model_platform=PLATFORM)
        # Not resolved: a base path may be a link that is set to another folder later.
        added.base_path = os.path.abspath(path)
    return config


def of_file(path: str | os.PathLike[str]) -> Any:
    """Return the `ModelServerConfig` of a `--model_config_file`.

    Raises:
        UserError: if it can't be read or holds something else.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no configuration file {path}; give --model_config_file an existing one.")
    return model_config.read_config(path)


def check(config: Any, served: Collection[str]) -> None:
    """Check what a configuration says, as TensorFlow Serving does before it changes anything.

    Args:
        config: a `ModelServerConfig`.
        served: the models that are configured now.

    Raises:
        ServingError: INVALID_ARGUMENT or FAILED_PRECONDITION.
    """
    items = config.model_config_list.config
    for name, count in collections.Counter(item.name for item in items).items():
        if count > 1:
            raise invalid_argument(f"Illegal to list model {name} multiple times in config list")
    for item in items:
        if not (os.path.isabs(item.base_path) or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", item.base_path)):
            raise invalid_argument(
                f"Expected model {item.name} to have an absolute path or URI; got base_path()={item.base_path}"
            )
    for item in items:
        platform = _platform(item)
        if platform != PLATFORM and item.name in served:
            raise invalid_argument(
                f"Illegal to change a model's platform. For model {item.name} platform was {PLATFORM} and new "
                f"platform requested is {platform}"
            )
        if platform != PLATFORM:
            raise ServingError(Code.FAILED_PRECONDITION, f"PlatformConfigMap has no entry for platform {platform}")


def check_folders(config: Any, folders: Collection[str], served: Collection[str]) -> None:
    """Check that the models which a client wants to have served lie where they may.

    Links are followed, because a link in a folder may lead anywhere; a base path of the server's own stays one.

    Args:
        config: a `ModelServerConfig`.
        folders: those whose models may be served, with all that is in them; "/" for any path or URI.
        served: base paths that the server itself was given.

    Raises:
        ServingError: PERMISSION_DENIED.
    """
    roots = [Path(folder).resolve() for folder in folders]
    if Path("/") in roots:
        return
    own = {os.path.abspath(path) for path in served}
    roots += [Path(path).resolve() for path in served]
    for item in config.model_config_list.config:
        path = item.base_path
        if path in own or any(Path(path).resolve().is_relative_to(root) for root in roots):
            continue
        raise ServingError(
            Code.PERMISSION_DENIED,
            f"The base path {printable(path)} of model {printable(item.name)} lies outside the folders whose models "
            "clients may have served; start the server with --reload_folders for others.",
        )


def _platform(item: Any) -> str:
    """Return a model's platform; the deprecated type knows only one that is supported."""
    if item.model_type and item.model_platform:
        raise invalid_argument(
            "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform."
        )
    if not item.model_type and not item.model_platform:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform, "
            f"model name is {item.name}"
        )
    return item.model_platform or {1: PLATFORM}.get(item.model_type, "other")


class RepositoryConfig:
    """Tells how a repository is served: as its `models.config` says, and every other model at its highest version.

    Called again it looks again, so that a rollback or a model that is new is followed.

    Args:
        root: the repository.
        model: serve this one only; by default all.

    Attributes:
        root: as given.
    """

    def __init__(self, root: str | os.PathLike[str], model: str | None = None):
        self.root = Path(root)
        self._model = model
        self._seen: dict[str, Path] = {}

    def __call__(self) -> Any:
        """Return the configuration, a `ModelServerConfig`.

        Raises:
            UserError: if the repository holds no model or not the one asked for, or `models.config` can't be read.
        """
        # A model whose folder is gone for the moment stays: nothing changes as long as its base path can't be read.
        self._seen |= repository.models(self.root)
        config = model_config.read_config(self.root / model_config.FILE_NAME)
        entries = config.model_config_list.config
        for item in entries:
            here = self.root / item.name
            if here.is_dir():
                # The repository was moved or copied, or is seen under another path: the one that was named is served.
                item.base_path = os.path.abspath(here)
        known = {item.name for item in entries}
        others = {name: path for name, path in self._seen.items() if name not in known}
        entries.extend(of_base_paths(others).model_config_list.config)
        if self._model is not None:
            kept = [item for item in entries if item.name == self._model]
            if not kept:
                raise unknown_name(f"model of {self.root}", self._model, (item.name for item in entries))
            del entries[:]
            entries.extend(kept)
        return config

    def is_its_file(self) -> bool:
        """Return whether `models.config` alone says the same."""
        return model_config.read_config(self.root / model_config.FILE_NAME) == self()


def read_batching(path: str | os.PathLike[str]) -> BatchingParameters:
    """Return the parameters of a `--batching_parameters_file`.

    Raises:
        UserError: if it can't be read, holds something else, or a number in it can't be used.
    """
    message = _parsed(path, "BatchingParameters", "--batching_parameters_file")
    if message.pad_variable_length_inputs:
        _log.warning("pad_variable_length_inputs is not done here: a request of another shape is run by itself.")
    names = (field.name for field in dataclasses.fields(BatchingParameters) if field.name != "allowed_batch_sizes")
    numbers = {name: getattr(message, name).value for name in names if message.HasField(name)}
    return BatchingParameters(**numbers, allowed_batch_sizes=tuple(message.allowed_batch_sizes))


def read_monitoring(path: str | os.PathLike[str]) -> str | None:
    """Return the path under which a `--monitoring_config_file` wants metrics, or None if it does not enable them.

    Raises:
        UserError: if it can't be read or holds something else.
    """
    message = _parsed(path, "MonitoringConfig", "--monitoring_config_file").prometheus_config
    return (message.path or PROMETHEUS_PATH) if message.enable else None


def channel_arguments(text: str) -> list[tuple[str, int | str]]:
    """Return gRPC's options from `--grpc_channel_arguments`; a value that is a number of 32 bits is one.

    Raises:
        UserError: if it is not of the form.

    Example:
        >>> channel_arguments("grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb")
        [('grpc.max_connection_age_ms', 2000), ('grpc.lb_policy_name', 'grpclb')]
    """
    options: list[tuple[str, int | str]] = []
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not (key and equals and value):
            raise UserError(
                f"got {item!r} in --grpc_channel_arguments; allowed is KEY=VALUE with commas between, such as "
                "grpc.max_connection_age_ms=2000; add the value."
            )
        is_number = re.fullmatch(r"[+-]?[0-9]{1,10}", value) and -(2**31) <= int(value) < 2**31
        options.append((key, int(value) if is_number else value))
    return options


def _parsed(path: str | os.PathLike[str], kind: str, flag: str) -> Any:
    from google.protobuf import message_factory, text_format

    message = message_factory.GetMessageClass(_messages().message_types_by_name[kind])()
    try:
        return text_format.Parse(Path(path).read_text(encoding="utf-8"), message)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}); give {flag} an existing file.") from error
    except text_format.ParseError as error:
        remedy = f"mend the file or leave {flag} out"
        raise UserError(model_config.parse_error_text(path, kind, error, remedy)) from error


@functools.cache
def _messages() -> Any:
    """Return the descriptions of TensorFlow Serving's messages that tensorflow-serving-api leaves out.

    They are session_bundle_config.proto and monitoring_config.proto, under a name of their own.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, wrappers_pb2  # noqa: F401

    file = descriptor_pb2.FileDescriptorProto(
        name="keras_convnets/serving.proto", package="keras_convnets.serving", syntax="proto3", dependency=[_WRAPPERS]
    )
    kinds = descriptor_pb2.FieldDescriptorProto

    def message(name: str, **fields: tuple[int, Any] | tuple[int, Any, str]) -> None:
        added = file.message_type.add(name=name)
        for field, (number, kind, *named) in fields.items():
            label = kinds.LABEL_REPEATED if field == "allowed_batch_sizes" else kinds.LABEL_OPTIONAL
            added.field.add(name=field, number=number, type=kind, label=label, type_name=named[0] if named else None)

    integer, text, boolean = (
        (kinds.TYPE_MESSAGE, f".google.protobuf.{name}Value") for name in ("Int64", "String", "Bool")
    )
    message(
        "BatchingParameters",
        max_batch_size=(1, *integer),
        batch_timeout_micros=(2, *integer),
        max_enqueued_batches=(3, *integer),
        num_batch_threads=(4, *integer),
        thread_pool_name=(5, *text),
        allowed_batch_sizes=(6, kinds.TYPE_INT64),
        pad_variable_length_inputs=(7, kinds.TYPE_BOOL),
        enable_large_batch_splitting=(8, *boolean),
        max_execution_batch_size=(9, *integer),
    )
    message("PrometheusConfig", enable=(1, kinds.TYPE_BOOL), path=(2, kinds.TYPE_STRING))
    message("MonitoringConfig", prometheus_config=(1, kinds.TYPE_MESSAGE, ".keras_convnets.serving.PrometheusConfig"))
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName(file.name)
