"""`models.config`, which tells TensorFlow Serving the models of a repository and the versions to serve.

It is read and written as TensorFlow Serving's own message, so that what a person wrote into it stays, but for comments.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from keras_convnets.errors import UserError
from keras_convnets.extras import require
from keras_convnets.files import wrap_write_errors, write_text

FILE_NAME = "models.config"
PLATFORM = "tensorflow"


def read_config(path: str | os.PathLike) -> Any:
    """Return a `models.config` as a `ModelServerConfig`; an empty one where there is no such file.

    Raises:
        UserError: if the file is there and holds something else.
    """
    require("serving", "models.config", "tensorflow_serving")
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    config = model_server_config_pb2.ModelServerConfig()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return config
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}).") from error
    try:
        return text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise UserError(parse_error_text(path, "ModelServerConfig", error, "fix the file")) from error


def parse_error_text(path: str | os.PathLike, kind: str, error: Exception, remedy: str) -> str:
    """Return the error message for a file that is not a TensorFlow Serving message in text format, as its log has it.

    Args:
        path: the file.
        kind: the message's name, such as "ModelServerConfig".
        error: what is wrong and where.
        remedy: what to do.
    """
    reason = str(error).strip().rstrip(".")
    return f"{path}: Error parsing text-format tensorflow.serving.{kind}: {reason}; {remedy}."


@contextlib.contextmanager
def changing_config(root: str | os.PathLike) -> Iterator[Any]:
    """Give a repository's configuration to change, alone; on success it is written by rename."""
    from google.protobuf import text_format

    root = Path(root)
    # A separate lock file: each writer replaces the configuration file itself.
    lock = FileLock(root / f".{FILE_NAME}.lock")
    with wrap_write_errors(root):
        lock.acquire()
    try:
        config = read_config(root / FILE_NAME)
        before = config.SerializeToString(deterministic=True)
        yield config
        if config.SerializeToString(deterministic=True) != before:
            write_text(root / FILE_NAME, text_format.MessageToString(config))
    finally:
        lock.release()


def entry(config: Any, name: str) -> Any | None:
    """Return a model's entry, or None."""
    return next((item for item in config.model_config_list.config if item.name == name), None)


def register(root: str | os.PathLike, name: str) -> tuple[int, ...]:
    """See to it that a repository's configuration lists a model, where it lies now; a version policy stays.

    Returns:
        The versions that a rollback holds it at; empty where the latest is served.
    """
    with changing_config(root) as config:
        found = entry(config, name)
        if found is None:
            found = config.model_config_list.config.add(name=name)
        # TensorFlow Serving wants an absolute path.
        found.base_path = str((Path(root) / name).resolve())
        found.model_platform = found.model_platform or PLATFORM
        return tuple(found.model_version_policy.specific.versions)


def pinned(root: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """Return the versions that models are held at, by name."""
    if not (Path(root) / FILE_NAME).is_file():
        return {}
    entries = read_config(Path(root) / FILE_NAME).model_config_list.config
    return {item.name: tuple(item.model_version_policy.specific.versions) for item in entries}
