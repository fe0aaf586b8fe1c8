"""Admission: a request waits until what it will cost is free, before anything is made of it."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from keras_convnets.export.serving.admission import costs
from keras_convnets.export.serving.admission.limits import Limits, TooLarge, too_large_text
from keras_convnets.export.serving.scheduling.deadline import check_deadline, seconds_left
from keras_convnets.export.serving.status import Code, ServingError

# Smaller requests never wait: all that there are threads for need less than 300 MiB together.
SMALL_BYTES = 2**21
# A message that takes longer to come is given up where others wait to be received.
RECEIVE_SECONDS = 20.0


class Budget:
    """An amount that requests share, granted in the order in which they ask.

    Args:
        limit: how much there is; 0 for any amount.
        what: what one request needs, in a sentence with a number for `{}`.
        flag: the flag that sets the limit.
    """

    def __init__(self, limit: int, what: str, flag: str):
        self._limit, self._what, self._flag = limit, what, flag
        self._used = 0
        self._queue: collections.deque[object] = collections.deque()
        self._condition = threading.Condition()

    @contextlib.contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Wait until an amount is free, and hold it.

        Raises:
            ServingError: RESOURCE_EXHAUSTED for more than the limit; DEADLINE_EXCEEDED when the request's deadline
                passed.
        """
        if not self._limit or not amount:
            yield
            return
        if amount > self._limit:
            raise TooLarge(too_large_text(self._what.format(amount), self._limit, self._flag))
        ticket = object()
        with self._condition:
            self._queue.append(ticket)
            try:
                while self._queue[0] is not ticket or self._used + amount > self._limit:
                    self._condition.wait(seconds_left())
                    check_deadline()
                self._used += amount
            finally:
                self._queue.remove(ticket)
                self._condition.notify_all()
        try:
            yield
        finally:
            self.give(amount)

    def take(self, amount: int) -> None:
        """Take an amount now or not at all; `give` it back.

        Raises:
            ServingError: RESOURCE_EXHAUSTED where that is not free.
        """
        with self._condition:
            if self._limit and self._used + amount > self._limit:
                raise ServingError(
                    Code.RESOURCE_EXHAUSTED,
                    f"The server holds {self._used} bytes of requests that are not answered yet and allows "
                    f"{self._limit} (--{self._flag}); try again later.",
                )
            self._used += amount

    def give(self, amount: int) -> None:
        """Give back what was taken."""
        with self._condition:
            self._used -= amount
            self._condition.notify_all()


class Admission:
    """Admits requests to being received, parsed, converted and decoded, within a server's limits.

    A request acquires what it holds in this order, so that no two wait for each other.

    Args:
        limits: the limits.
        most: requests for a model that are admitted at a time, those that wait to run included; None for any number.
    """

    def __init__(self, limits: Limits | None = None, most: int | None = None):
        self.limits = limits = limits or Limits()
        self.pending = Budget(limits.max_pending_bytes, "The request has {} bytes", "max_pending_bytes")
        working, flag = limits.max_working_bytes, "max_working_bytes"
        self._working = Budget(working, "The request takes up to {} bytes to be read", flag)
        self._answers = Budget(working, "The answer takes up to {} bytes to be written", flag)
        what = "The request's images have {} pixels to be decoded at a time"
        self._pixels = Budget(limits.max_decoded_pixels, what, "max_decoded_pixels")
        self._most = most
        self._inside = 0
        self._lock = threading.Lock()
        self._receivers = _Receivers(limits)

    def enter(self) -> None:
        """Admit a request for a model; `leave` counts it out.

        Raises:
            ServingError: RESOURCE_EXHAUSTED where as many are admitted as can run and wait.
        """
        with self._lock:
            if self._most is not None and self._inside >= self._most:
                raise ServingError(
                    Code.RESOURCE_EXHAUSTED,
                    f"The queue is full: {self._inside} requests run or wait already; try again later.",
                )
            self._inside += 1

    def leave(self) -> None:
        """Count a request out."""
        with self._lock:
            self._inside -= 1

    def receiving(self, cancel: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
        """Wait until a gRPC message may be received, whose size is not known before, and hold a place for it.

        Args:
            cancel: ends the call; used where the message does not come and others wait.
        """
        return self._receivers.place(cancel)

    def working(self, amount: int) -> contextlib.AbstractContextManager[None]:
        """Wait until the bytes that reading a request takes are free, and hold them."""
        return self._working.hold(amount if amount > SMALL_BYTES else 0)

    def answering(self, amount: int) -> contextlib.AbstractContextManager[None]:
        """Wait until the bytes that writing an answer takes are free, and hold them."""
        return self._answers.hold(amount if amount > SMALL_BYTES else 0)

    def decoding(self, inputs: Mapping[str, np.ndarray]) -> contextlib.AbstractContextManager[None]:
        """Wait until the images among a request's inputs may be decoded, and hold their pixels.

        Args:
            inputs: tensors by name. By TensorFlow Serving's rule `inputs` are tf.Examples.
        """
        strings = {alias: array for alias, array in inputs.items() if array.dtype == object}
        pixels = (costs.decoded_pixels(array.flat, alias == "inputs") for alias, array in strings.items())
        return self._pixels.hold(sum(pixels))


class _Receivers:
    """The gRPC messages that come in at a time: as many as may be pending if each were as large as any may be."""

    def __init__(self, limits: Limits):
        bounded = limits.max_pending_bytes and limits.max_request_bytes
        self._most = max(limits.max_pending_bytes // limits.max_request_bytes, 1) if bounded else None
        self._begun: dict[object, tuple[float, Callable[[], object]]] = {}
        self._condition = threading.Condition()

    @contextlib.contextmanager
    def place(self, cancel: Callable[[], object]) -> Iterator[None]:
        if self._most is None:
            yield
            return
        ticket = object()
        with self._condition:
            while len(self._begun) >= self._most:
                began, end = next(iter(self._begun.values()))
                late = began + RECEIVE_SECONDS - time.monotonic()
                if late <= 0:
                    self._begun.pop(next(iter(self._begun)))
                    end()
                    break
                left = seconds_left()
                self._condition.wait(late if left is None else min(late, left))
                check_deadline()
            self._begun[ticket] = time.monotonic(), cancel
        try:
            yield
        finally:
            with self._condition:
                self._begun.pop(ticket, None)
                self._condition.notify()
