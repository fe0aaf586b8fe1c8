"""Admission control: a request waits until its estimated memory is available, before it is parsed."""

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

# Smaller requests never wait: as many as there are threads need less than 300 MiB in total.
SMALL_BYTES = 2**21
# A message that takes longer to arrive is cancelled if others wait to be received.
RECEIVE_SECONDS = 20.0


class Budget:
    """A fair semaphore over an amount such as bytes, granted to requests in the order in which they ask (FIFO).

    Args:
        limit: the total amount; 0 for no limit.
        what: a clause on what one request needs, with `{}` for the amount, for error messages.
        flag: the flag that sets the limit.
    """

    def __init__(self, limit: int, what: str, flag: str):
        self._limit, self._what, self._flag = limit, what, flag
        self._used = 0
        self._queue: collections.deque[object] = collections.deque()
        self._condition = threading.Condition()

    @contextlib.contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Wait until an amount is available, and hold it.

        Raises:
            ServingError: RESOURCE_EXHAUSTED if the amount exceeds the limit; DEADLINE_EXCEEDED if the request's
                deadline passes.
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
            self.release(amount)

    def acquire(self, amount: int) -> None:
        """Acquire an amount without waiting; `release` it later.

        Raises:
            ServingError: RESOURCE_EXHAUSTED if it is not available.
        """
        with self._condition:
            if self._limit and self._used + amount > self._limit:
                raise ServingError(
                    Code.RESOURCE_EXHAUSTED,
                    f"The server holds {self._used} bytes of requests that are not answered yet and allows "
                    f"{self._limit} (--{self._flag}); try again later.",
                )
            self._used += amount

    def release(self, amount: int) -> None:
        """Release an acquired amount."""
        with self._condition:
            self._used -= amount
            self._condition.notify_all()


class Admission:
    """Admits requests to receiving, parsing, conversion and decoding, within a server's limits.

    Requests acquire the budgets in this order, which prevents deadlocks.

    Args:
        limits: the limits.
        most: maximum number of admitted requests, running or queued; None for no limit.
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
        """Admit a request for a model; call `leave` when it is done.

        Raises:
            ServingError: RESOURCE_EXHAUSTED if the maximum number of requests is admitted already.
        """
        with self._lock:
            if self._most is not None and self._inside >= self._most:
                raise ServingError(
                    Code.RESOURCE_EXHAUSTED,
                    f"The queue is full: {self._inside} requests run or wait already; try again later.",
                )
            self._inside += 1

    def leave(self) -> None:
        """End the admission of a request."""
        with self._lock:
            self._inside -= 1

    def receiving(self, cancel: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
        """Wait until a gRPC message of unknown size may be received, and hold a slot for it.

        Args:
            cancel: ends the call; used if the message does not arrive while others wait.
        """
        return self._receivers.slot(cancel)

    def working(self, amount: int) -> contextlib.AbstractContextManager[None]:
        """Wait until the memory for parsing a request, in bytes, is available, and hold it."""
        return self._working.hold(amount if amount > SMALL_BYTES else 0)

    def answering(self, amount: int) -> contextlib.AbstractContextManager[None]:
        """Wait until the memory for writing a response, in bytes, is available, and hold it."""
        return self._answers.hold(amount if amount > SMALL_BYTES else 0)

    def decoding(self, inputs: Mapping[str, np.ndarray]) -> contextlib.AbstractContextManager[None]:
        """Wait until a request's images may be decoded, and hold their number of pixels.

        Args:
            inputs: tensors by name. By TensorFlow Serving's rule `inputs` are tf.Examples.
        """
        strings = {alias: array for alias, array in inputs.items() if array.dtype == object}
        pixels = (costs.decoded_pixels(array.flat, alias == "inputs") for alias, array in strings.items())
        return self._pixels.hold(sum(pixels))


class _Receivers:
    """Limits the gRPC messages that are received concurrently, to as many of the maximum size as may be pending."""

    def __init__(self, limits: Limits):
        bounded = limits.max_pending_bytes and limits.max_request_bytes
        self._most = max(limits.max_pending_bytes // limits.max_request_bytes, 1) if bounded else None
        self._begun: dict[object, tuple[float, Callable[[], object]]] = {}
        self._condition = threading.Condition()

    @contextlib.contextmanager
    def slot(self, cancel: Callable[[], object]) -> Iterator[None]:
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
