"""The models that are served: base paths, the versions in them, their states and how a request finds one.

A base path holds one directory for each version, named by a number. The highest is served ("latest 1"). The base
paths are looked at again and again: a new version is loaded before the old one is unloaded, so that there is always
one to answer; a version whose directory is gone is unloaded; when the base path itself is gone, nothing changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from keras_convnets.errors import UserError
from keras_convnets.export.serving.engine import SavedModelEngine
from keras_convnets.export.serving.status import Code, ServingError, invalid_argument
from keras_convnets.export.serving.urls import MAX_VERSION

_log = logging.getLogger(__name__)


class State(enum.IntEnum):
    """A version's state, with the numbers of TensorFlow Serving's protocol."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """What the status of one version tells: its number, its state, and the error when loading it failed."""

    version: int
    state: State
    error: ServingError | None = None


@dataclasses.dataclass(frozen=True)
class Servable:
    """A loaded version in the hands of a request."""

    model: str
    version: int
    engine: SavedModelEngine


@dataclasses.dataclass
class _Version:
    """One version that was ever seen; it stays in the status after it is gone."""

    number: int
    state: State = State.START
    error: ServingError | None = None
    engine: SavedModelEngine | None = None
    in_use: int = 0
    attempts: int = 0
    next_attempt: float = 0.0


class _Model:
    def __init__(self, name: str, base_path: Path):
        self.name = name
        self.base_path = base_path
        self.versions: dict[int, _Version] = {}
        self.unreadable = False

    def available(self) -> list[_Version]:
        return [version for version in self.versions.values() if version.state is State.AVAILABLE]


class Servables:
    """All models of a server.

    Args:
        models: base paths by model name.
        file_system_poll_wait_seconds: seconds between two looks at the base paths; 0 looks once only.
        max_num_load_retries: how often loading a version that appeared later is tried again.
        load_retry_interval_seconds: the time between two tries.
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
        models: Mapping[str, str | os.PathLike[str]],
        *,
        file_system_poll_wait_seconds: float = 1.0,
        max_num_load_retries: int = 5,
        load_retry_interval_seconds: float = 60.0,
        load: Callable[[Path], SavedModelEngine] = SavedModelEngine,
    ):
        self._models = {name: _Model(name, Path(path)) for name, path in models.items()}
        self._poll_wait = file_system_poll_wait_seconds
        self._max_retries = max_num_load_retries
        self._retry_interval = load_retry_interval_seconds
        self._load_engine = load
        # Guards versions and their states; never held while a model loads or runs.
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._garbage = False

    def load_initial(self) -> None:
        """Load each model's highest version.

        Raises:
            UserError: a base path does not exist or holds no version, or a version does not load.
        """
        for model in self._models.values():
            try:
                found = _versions_in(model.base_path)
            except OSError as error:
                raise UserError(
                    f"the base path {str(model.base_path)!r} of model {model.name!r} cannot be read "
                    f"({error.strerror}); give the directory that holds the model's numbered version directories."
                ) from error
            if not found:
                raise UserError(
                    f"the base path {str(model.base_path)!r} of model {model.name!r} holds no version; a version is a "
                    "directory named by a number, such as 1, so export a model there first."
                )
            number = max(found)
            if not self._load(model, number, found[number], initial=True):
                error = model.versions[number].error
                raise UserError(
                    f"version {number} of model {model.name!r} in {str(model.base_path)!r} cannot be loaded "
                    f"({_first_line(error.message)}); export it again or remove its directory."
                )

    def start_polling(self) -> None:
        """Watch the base paths in a thread of its own, until `stop`."""
        if self._poll_wait > 0:
            self._thread = threading.Thread(target=self._poll_forever, name="servables", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop watching; a load under way is waited for."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def poll(self) -> None:
        """Look at every base path once, load what is new and unload what is superseded or gone."""
        for model in self._models.values():
            if self._stopping.is_set():
                return
            try:
                found = _versions_in(model.base_path)
            except OSError as error:
                if not model.unreadable:
                    _log.warning("Cannot read the base path of model %s, nothing changes: %s", model.name, error)
                model.unreadable = True
                continue
            model.unreadable = False
            self._follow(model, found)
        if self._garbage:
            self._garbage = False
            # A loaded SavedModel is large and full of reference cycles, so it does not go by itself soon.
            gc.collect()

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
            yield Servable(model, found.number, found.engine)
        finally:
            self._release(model, found)

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

    def _acquire(self, model: str, number: int | None, label: str | None) -> _Version:
        if not model:
            raise invalid_argument("ModelSpec has no name specified.")
        if label is not None:
            raise invalid_argument(f"Unrecognized servable version label: {label}")
        with self._lock:
            available = self._models[model].available() if model in self._models else []
            if number is not None:
                available = [version for version in available if version.number == number]
            if not available:
                asked = f"Latest({model})" if number is None else f"Specific({model}, {number})"
                raise ServingError(Code.NOT_FOUND, f"Servable not found for request: {asked}")
            found = max(available, key=lambda version: version.number)
            found.in_use += 1
            return found

    def _release(self, model: str, version: _Version) -> None:
        with self._lock:
            version.in_use -= 1
            ended = self._end_if_idle(version)
        if ended:
            _log.info("Unloaded version %d of model %s", version.number, model)

    def _end_if_idle(self, version: _Version) -> bool:
        """Drop an unloading version's engine when no request uses it any more; called with the lock held."""
        if version.state is not State.UNLOADING or version.in_use:
            return False
        version.engine = None
        version.state = State.END
        self._garbage = True
        return True

    def _poll_forever(self) -> None:
        while not self._stopping.wait(self._poll_wait):
            try:
                self.poll()
            except Exception:
                # A watcher that dies unnoticed would leave a server that never sees another version.
                _log.exception("Looking for new versions failed; it will be tried again")

    def _follow(self, model: _Model, found: Mapping[int, Path]) -> None:
        aspired = max(found, default=None)
        self._forget_failures(model, found)
        if aspired is not None:
            known = model.versions.get(aspired)
            if known is None or (known.state in (State.LOADING, State.END) and self._is_due(known)):
                self._load(model, aspired, found[aspired])
            if model.versions[aspired].state is not State.AVAILABLE:
                # Whatever is served now goes on until there is something better.
                return
        for version in model.available():
            if version.number != aspired:
                self._unload(model, version)

    def _forget_failures(self, model: _Model, found: Mapping[int, Path]) -> None:
        """Let a version that failed, and whose directory is gone, be tried anew when it comes back."""
        with self._lock:
            for version in model.versions.values():
                if version.number not in found:
                    version.attempts = 0
                    version.next_attempt = 0.0
                    if version.state is State.LOADING:
                        version.state = State.END

    def _is_due(self, version: _Version) -> bool:
        if version.state is State.END and version.error is not None and version.attempts > 0:
            return False
        return time.monotonic() >= version.next_attempt

    def _load(self, model: _Model, number: int, path: Path, *, initial: bool = False) -> bool:
        """Load a version; returns whether it is available now."""
        with self._lock:
            version = model.versions.setdefault(number, _Version(number))
            version.state = State.LOADING
            version.error = None
            version.attempts += 1
        try:
            engine = self._load_engine(path)
        except ServingError as error:
            if not initial:
                # The first load's error goes to the caller instead.
                _log.error("Loading version %d of model %s failed: %s", number, model.name, error.message)
            with self._lock:
                version.next_attempt = time.monotonic() + self._retry_interval
                if initial or version.attempts > self._max_retries:
                    version.state = State.END
                    version.error = error
            return False
        with self._lock:
            version.engine = engine
            version.attempts = 0
            version.state = State.AVAILABLE
        _log.info("Loaded version %d of model %s", number, model.name)
        return True

    def _unload(self, model: _Model, version: _Version) -> None:
        with self._lock:
            version.state = State.UNLOADING
            ended = self._end_if_idle(version)
        if ended:
            _log.info("Unloaded version %d of model %s", version.number, model.name)


def _versions_in(base_path: Path) -> dict[int, Path]:
    """Return the version directories of a base path by number; "00000123" is version 123."""
    with os.scandir(base_path) as entries:
        names = [entry.name for entry in entries if entry.name.isascii() and entry.name.isdigit() and entry.is_dir()]
    return {int(name): base_path / name for name in sorted(names) if len(name) <= 4000 and int(name) <= MAX_VERSION}


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else "no reason given"
