"""One model: what its configuration says, and its versions with their states."""

from __future__ import annotations

import dataclasses
import enum
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_convnets.display import printable
from keras_convnets.export.serving.engines.engine import Engine
from keras_convnets.export.serving.status import ServingError

_log = logging.getLogger(__name__)

MAX_LOGGED = 2000


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
    """The status of one version: its number, its state, and the error if loading it failed."""

    version: int
    state: State
    error: ServingError | None = None


@dataclasses.dataclass
class Version:
    """One version that was ever seen; it stays in the status after it is gone."""

    number: int
    state: State = State.START
    error: ServingError | None = None
    engine: Engine | None = None
    in_use: int = 0
    attempts: int = 0
    next_attempt: float = 0.0


class Model:
    """One model that was ever configured; `found` is None until its base path was looked at."""

    def __init__(self, name: str):
        self.name = name
        self.configured = False
        self.base_path = Path()
        self.policy: Any = None
        self.labels: dict[str, int] = {}
        self.versions: dict[int, Version] = {}
        self.found: dict[int, Path] | None = None
        self.complaint = ""

    def configure(self, item: Any) -> None:
        """Take over a `ModelConfig`."""
        base_path = Path(item.base_path)
        if not self.configured or base_path != self.base_path:
            for version in self.versions.values():
                # What failed somewhere else, or before the model was taken out, gets another chance.
                if version.state is State.END:
                    version.attempts, version.error = 0, None
        self.configured = True
        self.base_path = base_path
        self.policy = item.model_version_policy
        self.labels = dict(item.version_labels)
        self.found = None

    def drop(self) -> None:
        """Take the model out; its versions stay in the status."""
        self.configured = False
        self.labels = {}

    def available(self) -> list[Version]:
        """Return the versions that answer requests."""
        return [version for version in self.versions.values() if version.state is State.AVAILABLE]

    def aspired(self, found: Mapping[int, Path]) -> set[int]:
        """Return the versions that are to be served of those found."""
        kind = self.policy.WhichOneof("policy_choice")
        if kind == "all":
            return set(found)
        if kind == "specific":
            wanted = set(self.policy.specific.versions)
            if missing := sorted(wanted - set(found)):
                numbers = ", ".join(map(str, missing))
                self.complain(
                    f"Model {self.name} has no version {numbers} in {self.base_path}, which its policy asks for"
                )
            return wanted & set(found)
        return set(sorted(found)[-(self.policy.latest.num_versions or 1) :])

    def given_up(self) -> tuple[int, ServingError] | None:
        """Return the highest version whose loading failed and is not tried again, with its error, or None."""
        ended = (version for version in self.versions.values() if version.state is State.END)
        failed = ((version.number, version.error) for version in ended if version.error is not None)
        return max(failed, key=lambda failure: failure[0], default=None)

    def complain(self, text: str) -> None:
        """Warn once of what stays so."""
        if text != self.complaint:
            _log.warning("%s", printable(text, MAX_LOGGED))
        self.complaint = text
