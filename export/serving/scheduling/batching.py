"""Batching by TensorFlow's batch operation, which contains TensorFlow Serving's scheduler.

`tf.nondifferentiable_batch_function` uses the same operation, but creates threads for each signature of each version
and never releases them. Here all signatures share one thread pool, and each has a queue while it is loaded.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_convnets.errors import UserError
from keras_convnets.export.serving.request_record import current_record
from keras_convnets.export.serving.scheduling.concurrency import ConcurrencyLimit
from keras_convnets.export.serving.scheduling.deadline import check_deadline
from keras_convnets.export.serving.scheduling.scheduler import Execute, Graph, Tensors
from keras_convnets.export.serving.signatures import NUMBERS, Signature
from keras_convnets.export.serving.status import Code, ServingError

_log = logging.getLogger(__name__)

# Parts of the TensorFlow scheduler's error messages, for requests that it rejects and outputs that it can't split.
_FULL, _TOO_LARGE, _NOT_IN_ROWS = "batch scheduling queue", "maximum input batch size", "Batched output tensor"
# Each takes a thread.
MOST_REQUESTS = 1000
_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class BatchingParameters:
    """TensorFlow Serving's batching parameters, with its defaults.

    Attributes:
        max_batch_size: maximum rows of a batch; a larger request is rejected, unless it may be split.
        batch_timeout_micros: how long a batch waits for more rows, in microseconds.
        max_enqueued_batches: maximum queued batches of a signature, including the one that is being filled.
        num_batch_threads: maximum concurrent batches, over all models.
        allowed_batch_sizes: sizes to which batches are padded, ascending up to the largest that runs; empty for any.
        enable_large_batch_splitting: whether a request with more rows than a batch is split over several.
        max_execution_batch_size: maximum rows of an executed batch if requests are split; None for max_batch_size.
            max_batch_size then limits only the size of a request.

    Raises:
        UserError: if a number is invalid.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    allowed_batch_sizes: tuple[int, ...] = ()
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int | None = None

    def __post_init__(self) -> None:
        least = {"max_batch_size": 1, "batch_timeout_micros": 0, "max_enqueued_batches": 1, "num_batch_threads": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UserError(f"batching parameter {name} is {getattr(self, name)}; it must be at least {low}.")
        most = self.max_execution_batch_size
        if most is not None and not (self.enable_large_batch_splitting and 1 <= most <= self.max_batch_size):
            raise UserError(
                f"batching parameter max_execution_batch_size is {most}; it must be from 1 to max_batch_size, "
                f"{self.max_batch_size}, and goes with enable_large_batch_splitting."
            )
        sizes = self.allowed_batch_sizes
        if sizes and (sizes[-1] != self.largest or list(sizes) != sorted(set(sizes)) or sizes[0] < 1):
            last = "max_batch_size" if most is None else "max_execution_batch_size"
            raise UserError(
                f"batching parameter allowed_batch_sizes is {', '.join(map(str, sizes))}; the sizes must ascend and "
                f"end with {last}, {self.largest}."
            )

    @property
    def largest(self) -> int:
        """The maximum rows of an executed batch."""
        return self.max_execution_batch_size or self.max_batch_size


class Batching:
    """The scheduler that runs requests to a signature in batches.

    Args:
        parameters: TensorFlow Serving's batching parameters.
    """

    def __init__(self, parameters: BatchingParameters):
        self.parameters = parameters
        # Requests that can't be batched run alone.
        self.alone = ConcurrencyLimit(parameters.num_batch_threads)
        self._name = f"keras_convnets_batching_{next(_numbers)}"
        self._free: collections.deque[str] = collections.deque()

    @property
    def requests_at_once(self) -> int:
        """The number of requests that fill two batches: one that runs and one that is being filled."""
        return min(2 * self.parameters.max_batch_size, MOST_REQUESTS)

    def queue(self, execute: Execute, signature: Signature, graph: Graph) -> Execute:
        """Return a function that runs requests in a batch with concurrent ones.

        Args:
            execute: runs a single request.
            signature: its inputs and outputs.
            graph: does the same with tensors, by alias, inside a tf.function.
        """
        batched = _Queue(self, execute, signature, graph).run
        return batched if _is_in_rows(signature) else self.alone.queue(execute)

    def queue_name(self, owner: object) -> str:
        """Return the name of a TensorFlow queue that is used only by `owner`, until it is garbage-collected.

        TensorFlow never deletes queues, so those of unloaded versions are reused: all have the same parameters, and a
        batch runs the function of its last request.
        """
        try:
            name = self._free.popleft()
        except IndexError:
            name = f"queue_{next(_numbers)}"
        weakref.finalize(owner, self._free.append, name).atexit = False
        return name

    def operation(self, tensors: Sequence[Any], function: Any, queue_name: str) -> list[Any]:
        """Return the outputs of a concrete function of these tensors, batched with those of other requests."""
        import tensorflow as tf

        parameters = self.parameters
        sizes: Sequence[int] = parameters.allowed_batch_sizes
        if parameters.largest < parameters.max_batch_size and not sizes:
            # The operation takes the maximum executed batch size from the last allowed size.
            sizes = range(1, parameters.largest + 1)
        return tf.raw_ops.BatchFunction(
            in_tensors=tensors,
            captured_tensors=function.captured_inputs,
            f=function,
            num_batch_threads=parameters.num_batch_threads,
            max_batch_size=parameters.max_batch_size,
            batch_timeout_micros=parameters.batch_timeout_micros,
            max_enqueued_batches=parameters.max_enqueued_batches,
            allowed_batch_sizes=list(sizes),
            enable_large_batch_splitting=parameters.enable_large_batch_splitting,
            Tout=[output.dtype for output in function.outputs],
            shared_name=self._name,
            batching_queue=queue_name,
        )


class _Queue:
    """The requests to one signature of one version."""

    def __init__(self, batching: Batching, execute: Execute, signature: Signature, graph: Graph):
        self._batching = batching
        self._execute = execute
        self._signature = signature
        self._graph = graph
        self._lock = threading.Lock()
        self._together: Callable | None = None
        # Outputs without a batch dimension are detected when the signature is first run in a batch.
        self._in_rows = True

    def run(self, inputs: Tensors) -> Mapping[str, np.ndarray]:
        import tensorflow as tf

        check_deadline()
        always = False
        # A batch is compiled for the signature's shapes; inputs of other shapes are run alone.
        if self._in_rows and all(info.fits(inputs[alias].shape) for alias, info in self._signature.inputs.items()):
            try:
                *outputs, places = self._batched()(*(tf.constant(inputs[alias]) for alias in sorted(inputs)))
                _note_batches(places.numpy())
                check_deadline()
                return {alias: array.numpy() for alias, array in zip(self._signature.outputs, outputs, strict=True)}
            except (tf.errors.OpError, ValueError, TypeError) as error:
                # One bad image must not fail the other requests of the batch: each is run again alone.
                self._check(str(error))
                always = True
        with self._batching.alone.slot(always=always):
            return self._execute(inputs)

    def _check(self, message: str) -> None:
        """Raise what the scheduler refused; note that a signature's outputs are not in rows."""
        line = next((line for line in message.splitlines() if _FULL in line or _TOO_LARGE in line), None)
        if line is not None:
            raise ServingError(Code.RESOURCE_EXHAUSTED if _FULL in line else Code.INVALID_ARGUMENT, line.strip())
        if _NOT_IN_ROWS in message:
            self._in_rows = False

    def _batched(self) -> Callable:
        with self._lock:
            if self._together is None:
                self._together = self._compile()
        return self._together

    def _compile(self) -> Callable:
        import tensorflow as tf

        aliases, outputs = sorted(self._signature.inputs), list(self._signature.outputs)
        infos = [self._signature.inputs[alias] for alias in aliases]
        specs = [tf.TensorSpec(info.shape, tf.as_dtype(NUMBERS[info.dtype]), name=info.alias) for info in infos]

        @tf.function(input_signature=specs, autograph=False)
        def single(*tensors: tf.Tensor) -> list[tf.Tensor]:
            if _log.isEnabledFor(logging.DEBUG):
                tf.numpy_function(_log_rows, [tf.shape(tensors[0])[0]], [])
            answers = self._graph(**dict(zip(aliases, tensors, strict=True)))
            # Each row's place in its batch, and the batch's rows. Counting in Python instead would make each batch wait
            # for the interpreter.
            rows = tf.shape(tensors[0])[0]
            places = tf.stack([tf.range(rows), tf.fill([rows], rows)], axis=1)
            return [*(answers[alias] for alias in outputs), places]

        function = single.get_concrete_function()
        queue_name = self._batching.queue_name(self)
        together = tf.function(
            lambda *tensors: self._batching.operation(tensors, function, queue_name),
            input_signature=specs,
            autograph=False,
        )
        return together.get_concrete_function()


def _note_batches(places: np.ndarray) -> None:
    """Note in the request's record in which batches it ran, and which of them it began, so that each counts once."""
    record = current_record()
    if len(places):
        record.batch_size = int(places[-1, 1])
        record.batches_begun += places[places[:, 0] == 0, 1].tolist()


def graph_of(execute: Execute, signature: Signature) -> Graph:
    """Return a function of tensors, by alias, that calls one of arrays, which must not use TensorFlow itself."""
    import tensorflow as tf

    aliases, outputs = list(signature.inputs), signature.outputs
    dtypes = [tf.as_dtype(NUMBERS[info.dtype]) for info in outputs.values()]

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        answers = execute(dict(zip(aliases, arrays, strict=True)))
        return [answers[alias] for alias in outputs]

    def graph(**tensors: Any) -> Mapping[str, Any]:
        answers = tf.numpy_function(run, [tensors[alias] for alias in aliases], dtypes)
        return dict(zip(outputs, answers, strict=True))

    return graph


def _is_in_rows(signature: Signature) -> bool:
    """Return whether all inputs and outputs may have any number of rows, according to their shapes."""
    infos = [*signature.inputs.values(), *signature.outputs.values()]
    return bool(signature.inputs) and all(
        info.shape is None or (len(info.shape) > 0 and info.shape[0] is None) for info in infos
    )


def _log_rows(rows: np.ndarray) -> None:
    _log.debug("Running a batch of %d", rows)
