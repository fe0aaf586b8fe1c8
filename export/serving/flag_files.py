"""What flags of `serve` say of files and of gRPC: batching parameters, monitoring, channel arguments."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
import os
import re
from pathlib import Path
from typing import Any

from keras_convnets.errors import UserError
from keras_convnets.export import model_config
from keras_convnets.export.serving.metrics import PROMETHEUS_PATH
from keras_convnets.export.serving.scheduling.batching import BatchingParameters

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


def read_batching(path: str | os.PathLike[str]) -> BatchingParameters:
    """Return the parameters of a `--batching_parameters_file`.

    Raises:
        UserError: if it can't be read, holds something else, or a number in it can't be used.
    """
    message = _parsed(path, "BatchingParameters", "--batching_parameters_file")
    if message.pad_variable_length_inputs:
        _log.warning("pad_variable_length_inputs is not supported here: a request of another shape is run alone.")
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
        remedy = f"fix the file or leave {flag} out"
        raise UserError(model_config.parse_error_text(path, kind, error, remedy)) from error


@functools.cache
def _messages() -> Any:
    """Return the descriptions of TensorFlow Serving's messages that tensorflow-serving-api leaves out.

    They are session_bundle_config.proto and monitoring_config.proto, under other names.
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
