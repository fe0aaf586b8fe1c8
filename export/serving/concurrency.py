"""How requests take turns at a model: so many run at once, so many wait, and none is run that came too late."""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from keras_convnets.export.serving.status import Code, ServingError

Tensors = Mapping[str, np.ndarray]
Execute = Callable[[Tensors], Mapping[str, np.ndarray]]

AT_ONCE = max(8, 2 * (os.cpu_count() or 1))
MAX_QUEUED_REQUESTS = 128

# When the request at hand is no longer worth an answer, in seconds of time.monotonic.
_DEADLINE: contextvars.ContextVar[float | None] = contextvars.ContextVar("deadline", default=None)


def check_deadline() -> None:
    """Check that the request at hand is still worth an answer.

    Raises:
        ServingError: DEADLINE_EXCEEDED.
    """
    if _is_past(_DEADLINE.get()):
        raise _too_late()


def seconds_left() -> float | None:
    """Return how long the request at hand is worth waiting for, at least 0; None for ever."""
    return _seconds_to(_DEADLINE.get())


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


class Turns:
    """At most so many runs at once, and at most so many that wait.

    Args:
        at_once: how many run at once.
        waiting: how many may wait; one more is refused.
    """

    def __init__(self, at_once: int = AT_ONCE, waiting: int = MAX_QUEUED_REQUESTS):
        self._at_once = at_once
        self._most_waiting = waiting
        self._running = self._waiting = 0
        self._condition = threading.Condition()

    @contextlib.contextmanager
    def turn(self, *, always: bool = False) -> Iterator[None]:
        """Wait for a turn and hold it.

        Args:
            always: wait even where as many wait as may.

        Raises:
            ServingError: RESOURCE_EXHAUSTED when too many wait already; DEADLINE_EXCEEDED when the deadline passed.
        """
        until = _DEADLINE.get()
        with self._condition:
            if self._running >= self._at_once:
                if self._waiting >= self._most_waiting and not always:
                    raise ServingError(
                        Code.RESOURCE_EXHAUSTED, f"The queue is full: {self._waiting} wait already; try again later."
                    )
                self._waiting += 1
                try:
                    self._condition.wait_for(lambda: self._running < self._at_once, _seconds_to(until))
                finally:
                    self._waiting -= 1
            if self._running >= self._at_once or _is_past(until):
                # A turn that came free for this one goes to the next.
                self._condition.notify()
                raise _too_late()
            self._running += 1
        try:
            yield
        finally:
            with self._condition:
                self._running -= 1
                self._condition.notify()

    def queue(self, execute: Execute, *_: object) -> Execute:
        """Return a function that runs each request by itself, in its turn."""

        def run(inputs: Tensors) -> Mapping[str, np.ndarray]:
            with self.turn():
                return execute(inputs)

        return run


def _is_past(moment: float | None) -> bool:
    return moment is not None and time.monotonic() >= moment


def _seconds_to(moment: float | None) -> float | None:
    return None if moment is None else max(0.0, moment - time.monotonic())


def _too_late() -> ServingError:
    return ServingError(Code.DEADLINE_EXCEEDED, "The deadline passed before the request was run")
