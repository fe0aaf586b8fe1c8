"""The models that are served: base paths, the versions in them, their states and how a request finds one.

A base path holds one directory for each version, named by a number; a model's version policy says which are served,
by default the highest. The base paths are looked at again and again: a new version is loaded before the old one is
unloaded, so that there is always one to answer; a version whose directory is gone is unloaded; when the base path
itself is gone, nothing changes. The configuration of the models can be replaced at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.export.repository import version_folders
from keras_convnets.export.serving.engines.engine import Engine
from keras_convnets.export.serving.engines.saved_model import SavedModelEngine
from keras_convnets.export.serving.models import configuration
from keras_convnets.export.serving.models.loader import Loader, log_failure
from keras_convnets.export.serving.models.model import MAX_LOGGED, Model, Version, VersionStatus
from keras_convnets.export.serving.request_record import current_record
from keras_convnets.export.serving.status import Code, ServingError, invalid_argument

_log = logging.getLogger(__name__)

# Seconds between retries of failed versions if the base paths are polled only once.
_TICK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Servable:
    """A loaded version in the hands of a request."""

    model: str
    version: int
    engine: Engine


class Servables:
    """All models of a server.

    Args:
        models: base paths by model name, or a `ModelServerConfig`.
        file_system_poll_wait_seconds: seconds between two looks at the base paths; 0 looks once only.
        max_num_load_retries: how often loading a version that appeared later is tried again.
        load_retry_interval_seconds: the time between two tries.
        allow_version_labels_for_unavailable_models: let a new label name a version that is not available.
        load: makes an engine of a version's directory.

    Example:
        >>> servables = Servables({"resnet20": "saved_models/resnet20"})
        >>> servables.load_initial()
        >>> with servables.use("resnet20") as servable:
        ...     print(servable.version)
        1
    """

    def __init__(
        self,
        models: Mapping[str, str | os.PathLike[str]] | Any,
        *,
        file_system_poll_wait_seconds: float = 1.0,
        max_num_load_retries: int = 5,
        load_retry_interval_seconds: float = 60.0,
        allow_version_labels_for_unavailable_models: bool = False,
        load: Callable[[Path], Engine] = SavedModelEngine,
    ):
        self._initial = configuration.of_base_paths(models) if isinstance(models, Mapping) else models
        self._models: dict[str, Model] = {}
        self._poll_wait = file_system_poll_wait_seconds
        self._allow_labels = allow_version_labels_for_unavailable_models
        # Guards models, versions and their states; never held while a model loads or runs.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # Held while versions are loaded and unloaded, so that each is by one thread only.
        self._polling = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._loader = Loader(load, self._changed, self._stopping, max_num_load_retries, load_retry_interval_seconds)

    def names(self) -> list[str]:
        """Return the names of the models that are configured."""
        with self._lock:
            return [model.name for model in self._models.values() if model.configured]

    def load_initial(self, is_active: Callable[[], bool] = lambda: True) -> None:
        """Load the versions that each model's policy asks for, at least one of each model.

        Where one model has a version that loads, the others are waited for until they have one, as TensorFlow Serving
        does; where none has, there is nothing to start for.

        Args:
            is_active: asked while waiting; waiting ends when it returns False.

        Raises:
            UserError: the configuration can't be used; no model has a version that loads, because base paths do not
                exist or hold no such version, or each fails; a model that was waited for has versions, and each was
                given up; a model has none and the base paths are polled only once.
        """
        try:
            new = self._configure(self._initial)
        except ServingError as error:
            raise UserError(f"the configuration of the models can't be used: {error.message.rstrip('.')}.") from error
        errors: dict[Model, UserError] = {}
        for model in new:
            try:
                self._load_first(model)
            except UserError as error:
                if not self._poll_wait:
                    raise
                errors[model] = error
        if errors and len(errors) == len(new):
            raise next(iter(errors.values()))
        for reason in errors.values():
            _log.warning("%s The server waits for it.", printable(str(reason), MAX_LOGGED))
        self._await_first(list(errors), is_active)

    def _await_first(self, models: Sequence[Model], is_active: Callable[[], bool]) -> None:
        """Poll the base paths until each model has an available version."""
        while waiting := [model for model in models if not model.available()]:
            for model in waiting:
                if failure := model.given_up():
                    raise _does_not_load(model, *failure)
            until = time.monotonic() + self._poll_wait
            while time.monotonic() < until:
                # Poll: there is no notification when the server is stopped.
                self._stopping.wait(min(self._poll_wait, 0.1))
                if self._stopping.is_set() or not is_active():
                    return
            self.poll()

    def _load_first(self, model: Model) -> None:
        where = f"the base path {str(model.base_path)!r} of model {model.name!r}"
        try:
            model.found = found = version_folders(model.base_path)
        except OSError as error:
            raise UserError(
                f"{where} cannot be read ({error.strerror}); give the directory that holds the model's numbered "
                "version directories."
            ) from error
        if not found:
            raise UserError(
                f"{where} holds no version; a version is a directory named by a number, such as 1, so export a model "
                "there first."
            )
        aspired = sorted(model.aspired(found), reverse=True)
        if not aspired:
            wanted = ", ".join(map(str, sorted(model.policy.specific.versions))) or "none"
            raise UserError(
                f"{where} holds versions {', '.join(map(str, sorted(found)))}, and its version policy asks for "
                f"{wanted}; fix the policy in the configuration."
            )
        errors = {number: self._loader.load(model, number, found[number]) for number in aspired}
        failed = {number: error for number, error in errors.items() if error is not None}
        if len(failed) == len(errors):
            number, failure = next(iter(failed.items()))
            raise _does_not_load(model, number, failure)
        for number, failure in failed.items():
            log_failure(model, number, failure)

    def start_polling(self) -> None:
        """Watch the base paths in a separate thread, until `stop`."""
        self._thread = threading.Thread(target=self._poll_forever, name="servables", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; a load under way is waited for."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        with self._changed:
            self._changed.notify_all()

    def poll(self) -> None:
        """Poll every base path once; load new versions and unload superseded or deleted ones."""
        with self._polling:
            with self._lock:
                models = list(self._models.values())
            for model in models:
                if self._stopping.is_set():
                    return
                seen = self._look(model)
                if seen is not None:
                    self._loader.follow(model, *seen)
            if self._loader.has_garbage:
                self._loader.has_garbage = False
                # SavedModels are large and have reference cycles: free them now.
                gc.collect()

    def reload(self, config: Any, *, wait: bool = True, is_active: Callable[[], bool] = lambda: True) -> None:
        """Replace the models by those of a configuration, without a gap for those that stay.

        Args:
            config: a `ModelServerConfig`.
            wait: return only when each new model has a version that is available.
            is_active: asked while waiting; waiting ends when it returns False.

        Raises:
            ServingError: INVALID_ARGUMENT or FAILED_PRECONDITION for a configuration that can't be used, of which
                nothing is done; UNKNOWN when new models did not become available; CANCELLED when waiting was ended.
        """
        if config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            )
        new = self._configure(config)
        if self._thread is None:
            self.poll()
        self._wake.set()
        if wait:
            self._await(new, is_active)

    def _await(self, models: Sequence[Model], is_active: Callable[[], bool]) -> None:
        """Wait until each model has a version that is available, or that was given up."""

        def is_settled(model: Model) -> bool:
            return bool(not model.configured or model.available() or model.given_up())

        with self._changed:
            while not all(is_settled(model) for model in models):
                if self._stopping.is_set() or not is_active():
                    raise ServingError(Code.CANCELLED, "Waiting for the models to become available was ended")
                # Poll: there is no notification when the client disconnects.
                self._changed.wait(0.2)
            waited_for = [model for model in models if model.configured and not model.available()]
            failed = [(model.name, *failure) for model in waited_for if (failure := model.given_up())]
        if failed:
            errors = "".join(
                f"{{{{name: {name} version: {number}}} due to error: {error.code.name}: {error.message}}}, "
                for name, number, error in failed
            )
            raise ServingError(Code.UNKNOWN, f"{len(failed)} model(s) did not become available: {{{errors}}}")

    def _configure(self, config: Any) -> list[Model]:
        """Check a configuration and take it over as a whole; returns the models that are new."""
        items = {item.name: item for item in config.model_config_list.config}
        with self._lock:
            served = {model.name for model in self._models.values() if model.configured}
            configuration.check(config, served)
            for item in items.values():
                self._check_labels(item)
            new = []
            for model in self._models.values():
                if model.name not in items:
                    model.drop()
            for name, item in items.items():
                model = self._models.setdefault(name, Model(name))
                if not model.configured:
                    new.append(model)
                model.configure(item)
        return new

    def _check_labels(self, item: Any) -> None:
        model = self._models.get(item.name)
        for label, number in item.version_labels.items():
            old = model.labels.get(label) if model is not None else None
            if self._allow_labels and old in (None, number):
                continue
            if model is None or number not in {version.number for version in model.available()}:
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    f"Request to assign label to version {number} of model {item.name}, which is not currently "
                    "available for inference",
                )

    @contextlib.contextmanager
    def use(self, model: str, version: int | None = None, label: str | None = None) -> Iterator[Servable]:
        """Find a version for a request and keep it loaded until the request is done.

        Args:
            model: the model's name.
            version: the version, or None for the highest that is available.
            label: a version label, or None.

        Raises:
            ServingError: INVALID_ARGUMENT without a name or for an unknown label; NOT_FOUND when there is no such
                model or version, or it is not available.
        """
        found = self._acquire(model, version, label)
        try:
            assert found.engine is not None, "what is available is loaded"
            current_record().version = found.number
            yield Servable(model, found.number, found.engine)
        finally:
            self._loader.release(model, found)

    def status(self, model: str, version: int | None = None) -> list[VersionStatus]:
        """Return the states of a model's versions, newest first; with a version, of that one.

        Versions that are gone stay in the list with state END, as do those whose load failed, with the error.

        Raises:
            ServingError: NOT_FOUND for a model or a version that was never seen.
        """
        with self._lock:
            versions = self._models[model].versions if model in self._models else {}
            if version is not None:
                if version not in versions:
                    raise ServingError(Code.NOT_FOUND, f"Could not find version {version} of model {model}")
                chosen = [versions[version]]
            elif not versions:
                raise ServingError(Code.NOT_FOUND, f"Could not find any versions of model {model}")
            else:
                chosen = sorted(versions.values(), key=lambda entry: entry.number, reverse=True)
            return [VersionStatus(entry.number, entry.state, entry.error) for entry in chosen]

    def _acquire(self, model: str, number: int | None, label: str | None) -> Version:
        if not model:
            raise invalid_argument("ModelSpec has no name specified.")
        with self._lock:
            if label is not None:
                number = self._models[model].labels.get(label) if model in self._models else None
                if number is None:
                    raise invalid_argument(f"Unrecognized servable version label: {label}")
            available = self._models[model].available() if model in self._models else []
            if number is not None:
                available = [version for version in available if version.number == number]
            if not available:
                asked = f"Latest({model})" if number is None else f"Specific({model}, {number})"
                raise ServingError(Code.NOT_FOUND, f"Servable not found for request: {asked}")
            found = max(available, key=lambda version: version.number)
            found.in_use += 1
            return found

    def _poll_forever(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self._poll_wait or _TICK_SECONDS)
            self._wake.clear()
            try:
                self.poll()
            except Exception:
                # A watcher that dies unnoticed would leave a server that never sees another version.
                _log.exception("Looking for new versions failed; it will be tried again")

    def _look(self, model: Model) -> tuple[Mapping[int, Path], set[int]] | None:
        """Return a model's version directories and which are to be served; None where that is not known now."""
        with self._lock:
            configured, base_path, found = model.configured, model.base_path, model.found
        if not configured:
            return {}, set()
        if found is None or self._poll_wait:
            try:
                found = version_folders(base_path)
            except OSError as error:
                model.complain(f"Cannot read the base path of model {model.name}, nothing changes: {error}")
                return None
        with self._lock:
            if not model.configured or model.base_path != base_path:
                return None
            model.found = found
            return found, model.aspired(found)


def _does_not_load(model: Model, number: int, error: ServingError) -> UserError:
    return UserError(
        f"version {number} of model {model.name!r} in {str(model.base_path)!r} cannot be loaded "
        f"({_first_line(error.message)}); export it again or remove its directory."
    )


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else "no reason given"
