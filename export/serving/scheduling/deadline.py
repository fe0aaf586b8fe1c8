"""The deadline of the request at hand: none is run that came too late."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Iterator

from keras_convnets.export.serving.status import Code, ServingError

# When the request at hand is no longer worth an answer, in seconds of time.monotonic.
_DEADLINE: contextvars.ContextVar[float | None] = contextvars.ContextVar("deadline", default=None)


@contextlib.contextmanager
def deadline(at: float | None) -> Iterator[None]:
    """Let what runs inside not begin a run after a moment.

    Args:
        at: the moment, in seconds of `time.monotonic`; None for never.
    """
    token = _DEADLINE.set(at)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


def check_deadline() -> None:
    """Check that the request at hand is still worth an answer.

    Raises:
        ServingError: DEADLINE_EXCEEDED.
    """
    if deadline_passed():
        raise too_late()


def deadline_passed() -> bool:
    """Return whether the request at hand came too late."""
    at = _DEADLINE.get()
    return at is not None and time.monotonic() >= at


def too_late() -> ServingError:
    """Return the error for a request that came too late."""
    return ServingError(Code.DEADLINE_EXCEEDED, "The deadline passed before the request was run")


def seconds_left() -> float | None:
    """Return how long the request at hand is worth waiting for, at least 0; None for ever."""
    at = _DEADLINE.get()
    return None if at is None else max(0.0, at - time.monotonic())
