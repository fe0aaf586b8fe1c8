"""The concurrency limit: a maximum number of running requests and of queued ones, without batching."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping

import numpy as np

from keras_convnets.export.serving.scheduling.deadline import deadline_passed, seconds_left, too_late
from keras_convnets.export.serving.scheduling.scheduler import Execute, Tensors
from keras_convnets.export.serving.status import Code, ServingError

AT_ONCE = max(8, 2 * (os.cpu_count() or 1))
MAX_QUEUED_REQUESTS = 128


class ConcurrencyLimit:
    """The scheduler that runs each request alone, with a concurrency limit and a queue limit.

    Args:
        at_once: the concurrency limit.
        waiting: how many may wait; one more is refused.
    """

    def __init__(self, at_once: int = AT_ONCE, waiting: int = MAX_QUEUED_REQUESTS):
        self._at_once = at_once
        self._most_waiting = waiting
        self._running = self._waiting = 0
        self._condition = threading.Condition()

    @property
    def requests_at_once(self) -> int:
        """How many requests run at a time."""
        return self._at_once

    @contextlib.contextmanager
    def slot(self, *, always: bool = False) -> Iterator[None]:
        """Wait until one more may run, and hold its place.

        Args:
            always: wait even where as many wait as may.

        Raises:
            ServingError: RESOURCE_EXHAUSTED when too many wait already; DEADLINE_EXCEEDED when the deadline passed.
        """
        with self._condition:
            if self._running >= self._at_once:
                if self._waiting >= self._most_waiting and not always:
                    raise ServingError(
                        Code.RESOURCE_EXHAUSTED, f"The queue is full: {self._waiting} wait already; try again later."
                    )
                self._waiting += 1
                try:
                    self._condition.wait_for(lambda: self._running < self._at_once, seconds_left())
                finally:
                    self._waiting -= 1
            if self._running >= self._at_once or deadline_passed():
                # A place that came free for this one goes to the next.
                self._condition.notify()
                raise too_late()
            self._running += 1
        try:
            yield
        finally:
            with self._condition:
                self._running -= 1
                self._condition.notify()

    def queue(self, execute: Execute, *_: object) -> Execute:
        """Return a function that runs each request alone; see `Scheduler.queue`."""

        def run(inputs: Tensors) -> Mapping[str, np.ndarray]:
            with self.slot():
                return execute(inputs)

        return run
