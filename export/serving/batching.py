"""How requests take turns at a model, and how small ones are run together.

TensorFlow's own batch operation is not used: its queue and its threads live as long as the process, one set for each
signature of each version that was ever loaded, and they poll while idle. Here the first request of a batch runs it in
its own thread, so that nothing is left of a version that was unloaded. As in TensorFlow Serving a batch takes more
requests in until its turn comes.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from keras_convnets.errors import UserError
from keras_convnets.export.serving.status import Code, ServingError

_log = logging.getLogger(__name__)

Tensors = Mapping[str, np.ndarray]
Execute = Callable[[Tensors], Mapping[str, np.ndarray]]

AT_ONCE = max(8, 2 * (os.cpu_count() or 1))
MAX_QUEUED_REQUESTS = 128

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
    def turn(self, until: float | None = None, *, always: bool = False) -> Iterator[None]:
        """Wait for a turn and hold it.

        Args:
            until: the moment after which it is not worth having.
            always: wait even where as many wait as may.

        Raises:
            ServingError: RESOURCE_EXHAUSTED when too many wait already; DEADLINE_EXCEEDED when the moment passed.
        """
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

    def queue(self, execute: Execute) -> Execute:
        """Return a function that runs each request by itself, in its turn."""

        def run(inputs: Tensors) -> Mapping[str, np.ndarray]:
            with self.turn(_DEADLINE.get()):
                return execute(inputs)

        return run


@dataclasses.dataclass(frozen=True)
class BatchingParameters:
    """TensorFlow Serving's batching parameters, with its defaults.

    Attributes:
        max_batch_size: rows of a batch; a request of more runs by itself.
        batch_timeout_micros: how long a batch waits for more rows before it asks for its turn.
        max_enqueued_batches: batches that may wait for their turn.
        num_batch_threads: batches that run at once.
        allowed_batch_sizes: sizes to which batches are filled up, ascending up to max_batch_size; empty for any.

    Raises:
        UserError: if a number can't be used.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    allowed_batch_sizes: tuple[int, ...] = ()

    def __post_init__(self):
        for name, least in (("max_batch_size", 1), ("batch_timeout_micros", 0), ("max_enqueued_batches", 0)):
            if getattr(self, name) < least:
                raise UserError(f"batching parameter {name} is {getattr(self, name)}; it must be at least {least}.")
        if self.num_batch_threads < 1:
            raise UserError(f"batching parameter num_batch_threads is {self.num_batch_threads}; it must be at least 1.")
        sizes = self.allowed_batch_sizes
        if sizes and (sizes[-1] != self.max_batch_size or list(sizes) != sorted(set(sizes)) or sizes[0] < 1):
            raise UserError(
                f"batching parameter allowed_batch_sizes is {', '.join(map(str, sizes))}; the sizes must ascend and "
                f"end with max_batch_size, {self.max_batch_size}."
            )


class Batching:
    """Lets the requests to a signature be run together.

    Args:
        parameters: how large batches become and how long they wait.
    """

    def __init__(self, parameters: BatchingParameters):
        self.parameters = parameters
        self.turns = Turns(parameters.num_batch_threads, parameters.max_enqueued_batches)

    def queue(self, execute: Execute) -> Execute:
        """Return a function that runs requests together with others that come at the same time."""
        return _Queue(self.parameters, self.turns, execute).run


class _Task:
    """One request in a batch; `alone` says that it has to be run again by itself."""

    def __init__(self, inputs: Tensors, rows: int):
        self.inputs = inputs
        self.rows = rows
        self.until = _DEADLINE.get()
        self.outputs: Mapping[str, np.ndarray] | None = None
        self.error: ServingError | None = None
        self.alone = False
        self.done = threading.Event()


class _Batch:
    def __init__(self):
        self.tasks: list[_Task] = []
        self.rows = 0
        self.full = threading.Event()


class _Queue:
    """The requests to one signature of one version."""

    def __init__(self, parameters: BatchingParameters, turns: Turns, execute: Execute):
        self._parameters = parameters
        self._turns = turns
        self._execute = execute
        self._lock = threading.Lock()
        # By the inputs' types and shapes without the rows: what differs in them cannot be stacked.
        self._open: dict[object, _Batch] = {}
        # A signature whose outputs are not in rows shows when it is first run with others.
        self._in_rows = True

    def run(self, inputs: Tensors) -> Mapping[str, np.ndarray]:
        rows = _rows(inputs)
        if not self._in_rows or not 0 < rows < self._parameters.max_batch_size:
            with self._turns.turn(_DEADLINE.get()):
                return self._execute(inputs)
        task = _Task(inputs, rows)
        key = tuple((alias, array.dtype.str, array.shape[1:]) for alias, array in sorted(inputs.items()))
        batch = self._join(key, task)
        if batch is not None:
            self._lead(key, batch)
        task.done.wait()
        if task.alone:
            with self._turns.turn(task.until, always=True):
                return self._execute(inputs)
        if task.error is not None:
            raise ServingError(task.error.code, task.error.message)
        return task.outputs

    def _join(self, key: object, task: _Task) -> _Batch | None:
        """Put a request into the open batch; returns the batch if this request is its first, and so has to run it."""
        with self._lock:
            batch, leads = self._open.get(key), False
            if batch is not None and batch.rows + task.rows > self._parameters.max_batch_size:
                batch.full.set()
                batch = None
            if batch is None:
                batch, leads = _Batch(), True
                self._open[key] = batch
            batch.tasks.append(task)
            batch.rows += task.rows
            if batch.rows == self._parameters.max_batch_size:
                batch.full.set()
                del self._open[key]
        return batch if leads else None

    def _close(self, key: object, batch: _Batch) -> list[_Task]:
        with self._lock:
            if self._open.get(key) is batch:
                del self._open[key]
        return batch.tasks

    def _lead(self, key: object, batch: _Batch) -> None:
        try:
            if self._parameters.batch_timeout_micros:
                batch.full.wait(self._parameters.batch_timeout_micros / 1e6)
            with self._turns.turn():
                self._run_together(self._close(key, batch))
        except Exception as error:
            if not isinstance(error, ServingError):
                _log.exception("A batch failed")
                error = ServingError(Code.INTERNAL, f"Internal error: {type(error).__name__}: {error}")
            for task in self._close(key, batch):
                task.error = task.error or error
        finally:
            for task in batch.tasks:
                task.done.set()

    def _run_together(self, tasks: list[_Task]) -> None:
        for task in tasks:
            if _is_past(task.until):
                task.error = _too_late()
        tasks = [task for task in tasks if task.error is None]
        if not tasks:
            return
        inputs, rows = self._stacked(tasks)
        _log.debug("Running %d requests as a batch of %d", len(tasks), rows)
        try:
            outputs = self._execute(inputs)
        except ServingError:
            if len(tasks) == 1:
                raise
            # One bad image must not spoil the answers of the others.
            for task in tasks:
                task.alone = True
            return
        self._in_rows = all(array.ndim and len(array) == rows for array in outputs.values())
        start = 0
        for task in tasks:
            task.alone = not self._in_rows
            task.outputs = {alias: array[start : start + task.rows] for alias, array in outputs.items() if array.ndim}
            start += task.rows

    def _stacked(self, tasks: list[_Task]) -> tuple[Tensors, int]:
        """Return the inputs of several requests in one, filled up to an allowed size with copies of the first row."""
        rows = sum(task.rows for task in tasks)
        size = next((size for size in self._parameters.allowed_batch_sizes if size >= rows), rows)
        if len(tasks) == 1 and size == rows:
            return tasks[0].inputs, rows
        parts = {alias: [task.inputs[alias] for task in tasks] for alias in tasks[0].inputs}
        if size > rows:
            for arrays in parts.values():
                arrays.append(np.repeat(arrays[0][:1], size - rows, axis=0))
        return {alias: np.concatenate(arrays) for alias, arrays in parts.items()}, size


def _rows(inputs: Tensors) -> int:
    """Return the number of rows that all inputs have, or 0 where they have none in common."""
    sizes = {array.shape[0] if array.ndim else 0 for array in inputs.values()}
    return sizes.pop() if len(sizes) == 1 else 0


def _is_past(moment: float | None) -> bool:
    return moment is not None and time.monotonic() >= moment


def _seconds_to(moment: float | None) -> float | None:
    return None if moment is None else max(0.0, moment - time.monotonic())


def _too_late() -> ServingError:
    return ServingError(Code.DEADLINE_EXCEEDED, "The deadline passed before the request was run")
