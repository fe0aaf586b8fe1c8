"""What a scheduler is: it decides when a request to a model's signature runs, and with which others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from keras_convnets.export.serving.signatures import Signature

Tensors = Mapping[str, np.ndarray]
Execute = Callable[[Tensors], Mapping[str, np.ndarray]]
# The same with TensorFlow's tensors, by alias, inside a tf.function.
Graph = Callable[..., Mapping[str, Any]]


class Scheduler(Protocol):
    """Queues the requests to signatures and runs them; the models of a server share one."""

    @property
    def requests_at_once(self) -> int:
        """How many requests run, or fill the batches that run, at a time."""

    def queue(self, execute: Execute, signature: Signature, graph: Graph, /) -> Execute:
        """Return a function that runs a request to a signature when the scheduler admits it.

        Args:
            execute: runs a single request.
            signature: what it takes and gives.
            graph: does the same with tensors, inside a tf.function.

        Returns:
            A function like `execute`. It raises ServingError: RESOURCE_EXHAUSTED when too many requests wait,
            DEADLINE_EXCEEDED when the request's deadline passed before it was run.
        """
