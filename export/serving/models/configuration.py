"""Which models are served and from where: `ModelServerConfig`s, from base paths, a file or a repository."""

from __future__ import annotations

import collections
import logging
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from keras_convnets.display import printable
from keras_convnets.errors import UserError, unknown_name
from keras_convnets.export import model_config, repository
from keras_convnets.export.model_config import PLATFORM
from keras_convnets.export.serving.status import MAX_NAME, Code, ServingError, invalid_argument

_log = logging.getLogger(__name__)


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
            f"The base path {printable(path, MAX_NAME)} of model {printable(item.name, MAX_NAME)} lies outside the "
            "folders whose models clients may have served; start the server with --reload_folders for others.",
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
