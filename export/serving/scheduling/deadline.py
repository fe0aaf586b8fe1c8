"""The deadline of the current request; expired requests are not run."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Iterator

from keras_convnets.export.serving.status import Code, ServingError

# The current request's deadline, in seconds of time.monotonic.
_DEADLINE: contextvars.ContextVar[float | None] = contextvars.ContextVar("deadline", default=None)


@contextlib.contextmanager
def deadline(at: float | None) -> Iterator[None]:
    """Set the deadline of the current request.

    Args:
        at: in seconds of `time.monotonic`; None for no deadline.
    """
    token = _DEADLINE.set(at)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


def check_deadline() -> None:
    """Check the deadline of the current request.

    Raises:
        ServingError: DEADLINE_EXCEEDED if it has passed.
    """
    if deadline_passed():
        raise too_late()


def deadline_passed() -> bool:
    """Return whether the deadline of the current request has passed."""
    at = _DEADLINE.get()
    return at is not None and time.monotonic() >= at


def too_late() -> ServingError:
    """Return the error for a request whose deadline has passed."""
    return ServingError(Code.DEADLINE_EXCEEDED, "The deadline passed before the request was run")


def seconds_left() -> float | None:
    """Return the seconds until the current request's deadline, at least 0; None without a deadline."""
    at = _DEADLINE.get()
    return None if at is None else max(0.0, at - time.monotonic())
