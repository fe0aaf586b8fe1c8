"""How versions are loaded, tried again, superseded and unloaded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from keras_convnets.display import printable
from keras_convnets.export.serving.engines.engine import Engine
from keras_convnets.export.serving.models.model import MAX_LOGGED, Model, State, Version
from keras_convnets.export.serving.status import MAX_NAME, Code, ServingError

_log = logging.getLogger(__name__)


class Loader:
    """Loads and unloads the versions of models, by one thread at a time.

    Args:
        load: makes an engine of a version's directory.
        changed: guards models, versions and their states, and is notified when one changes; never held while a model
            loads or runs.
        stopping: set when nothing more is to be loaded.
        max_retries: how often loading a version is tried again.
        retry_seconds: the time between two tries.

    Attributes:
        has_garbage: whether an engine was dropped since this was last set to False.
    """

    def __init__(
        self,
        load: Callable[[Path], Engine],
        changed: threading.Condition,
        stopping: threading.Event,
        max_retries: int,
        retry_seconds: float,
    ):
        self._load_engine = load
        self._changed = changed
        self._stopping = stopping
        self._max_retries = max_retries
        self._retry_interval = retry_seconds
        self.has_garbage = False

    def load(self, model: Model, number: int, path: Path) -> ServingError | None:
        """Load a version; returns the error if it does not load."""
        with self._changed:
            version = model.versions.setdefault(number, Version(number))
            version.state = State.LOADING
            version.error = None
            version.attempts += 1
        try:
            engine = self._load_engine(path)
        except Exception as caught:
            error = caught
            if not isinstance(error, ServingError):
                name = printable(model.name, MAX_NAME)
                _log.exception("Loading version %d of model %s failed unexpectedly", number, name)
                error = ServingError(Code.UNKNOWN, f"{type(caught).__name__}: {caught}")
            with self._changed:
                version.next_attempt = time.monotonic() + self._retry_interval
                if version.attempts > self._max_retries:
                    version.state = State.END
                    version.error = error
                self._changed.notify_all()
            return error
        with self._changed:
            version.engine = engine
            version.attempts = 0
            version.state = State.AVAILABLE
            self._changed.notify_all()
        _log.info("Loaded version %d of model %s", number, printable(model.name, MAX_NAME))
        return None

    def follow(self, model: Model, found: Mapping[int, Path], aspired: set[int]) -> None:
        """Load the aspired versions, the highest first, and unload the versions that they supersede.

        Args:
            model: the model.
            found: its version directories by number.
            aspired: the versions that are to be served.
        """
        self._forget_failures(model, found)
        self._unload_superseded(model, aspired)
        for number in sorted(aspired, reverse=True):
            if self._stopping.is_set() or not self._should_load(model.versions.get(number)):
                continue
            error = self.load(model, number, found[number])
            if error is not None:
                log_failure(model, number, error)
            self._unload_superseded(model, aspired)

    def release(self, model: str, version: Version) -> None:
        """Count a request out of a version that it used."""
        with self._changed:
            version.in_use -= 1
            ended = self._end_if_idle(version)
        if ended:
            _log.info("Unloaded version %d of model %s", version.number, printable(model, MAX_NAME))

    def _unload_superseded(self, model: Model, aspired: set[int]) -> None:
        available = model.available()
        if aspired and not any(version.number in aspired for version in available):
            # Keep serving the current versions until a new one is available.
            return
        for version in available:
            if version.number not in aspired:
                self._unload(model, version)

    def _forget_failures(self, model: Model, found: Mapping[int, Path]) -> None:
        """Reset the retries of failed versions whose directory is gone, so that they are loaded if it reappears."""
        with self._changed:
            for version in model.versions.values():
                if version.number not in found:
                    version.attempts = 0
                    version.next_attempt = 0.0
                    if version.state is State.LOADING:
                        version.state = State.END

    def _should_load(self, version: Version | None) -> bool:
        """Return whether a version that is to be served, but is not yet, is to be loaded now."""
        if version is None:
            return True
        if version.state is State.LOADING:
            return time.monotonic() >= version.next_attempt
        # A version in use is loaded again once it is out of use; one that was given up stays so.
        return version.state is State.END and not (version.error is not None and version.attempts > 0)

    def _unload(self, model: Model, version: Version) -> None:
        with self._changed:
            version.state = State.UNLOADING
            ended = self._end_if_idle(version)
        if ended:
            _log.info("Unloaded version %d of model %s", version.number, printable(model.name, MAX_NAME))

    def _end_if_idle(self, version: Version) -> bool:
        """Drop an unloading version's engine when no request uses it any more; called with the lock held."""
        if version.state is not State.UNLOADING or version.in_use:
            return False
        version.engine = None
        version.state = State.END
        self.has_garbage = True
        self._changed.notify_all()
        return True


def log_failure(model: Model, number: int, error: ServingError) -> None:
    """Log that a version did not load."""
    message = printable(error.message, MAX_LOGGED)
    _log.error("Loading version %d of model %s failed: %s", number, printable(model.name, MAX_NAME), message)
