"""What an engine is: it runs the signatures of one version.

Nothing above the engines knows TensorFlow: signatures are described by names, types and shapes, tensors are NumPy
arrays and failures are `ServingError`s.
"""

from __future__ import annotations

import abc
import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_convnets.export.serving.admission.admission import Admission
from keras_convnets.export.serving.scheduling.concurrency import ConcurrencyLimit
from keras_convnets.export.serving.scheduling.scheduler import Scheduler
from keras_convnets.export.serving.signatures import NAMES, Signature, TensorInfo, dtype_name
from keras_convnets.export.serving.status import Code, ServingError, invalid_argument

# What eager execution adds to the message of the operation that failed: where the node was created, in our files.
_PREAMBLE = re.compile(
    r"^Graph execution error:\s*"
    r'(?:Detected at node [^\n]*\n(?:[ \t]*(?:File "[^\n]*|<stack traces unavailable>)?\n)*)*\s*'
)
# The functions that the failed operation is in, which are named where TensorFlow has not inlined them.
_FUNCTIONS = re.compile(r"^(?:\{\{function_node [^}]*\}\}\s*)+")
# How TensorFlow announces the sentences with which exported graphs refuse images.
_REFUSAL = "StringToNumberOp could not correctly convert string"
_SUFFIX = re.compile(r"\s*\[Op:[^\]]*\](?: name: \S*)?\s*$")


class Engine(abc.ABC):
    """What runs the signatures of one version.

    Args:
        signature_defs: the signatures verbatim, as protocol buffers by name.
        scheduler: runs the requests; by default without batching, with a concurrency limit.
        admission: bounds the pixels that are decoded at a time; by default those of this engine.

    Attributes:
        signature_defs: as given.
        signatures: what can be called, by name.
    """

    def __init__(
        self,
        signature_defs: Mapping[str, Any],
        scheduler: Scheduler | None = None,
        admission: Admission | None = None,
    ):
        self.signature_defs = dict(signature_defs)
        self.signatures = {name: _describe(name, proto) for name, proto in sorted(signature_defs.items())}
        self._admission = admission or Admission()
        scheduler = scheduler or ConcurrencyLimit()
        self._queues = {
            name: scheduler.queue(functools.partial(self._call, name), signature, functools.partial(self._graph, name))
            for name, signature in self.signatures.items()
        }

    def run(self, name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a signature.

        Args:
            name: the signature's key.
            inputs: a tensor for each input by alias, strings as object arrays of bytes; inputs with a default may
                be missing.

        Returns:
            Every output by alias.

        Raises:
            ServingError: with the code and the text of the engine's error; INVALID_ARGUMENT for a type that the
                signature does not take, a shape that the graph does not, or another shape than the signature's as large
                as too many rows; RESOURCE_EXHAUSTED when too many requests wait, or for images of too many pixels;
                DEADLINE_EXCEEDED when the request's deadline passed before it was run.
        """
        signature = self.signatures[name]
        inputs = {**signature.defaults, **inputs}
        for position, (alias, info) in enumerate(sorted(signature.inputs.items())):
            if dtype_name(inputs[alias]) != info.dtype:
                raise invalid_argument(
                    f"Expects arg[{position}] to be {info.dtype} but {dtype_name(inputs[alias])} is provided"
                )
            # One image of the size of many would take what many take.
            self._admission.limits.check_rows(info.rows_worth(inputs[alias].shape))
        inputs = {alias: inputs[alias] for alias in signature.inputs}
        with self._admission.decoding(inputs):
            return dict(self._queues[name](inputs))

    @abc.abstractmethod
    def _call(self, name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a signature on inputs of its types. Their shapes may be others than it says: the graph decides."""

    @abc.abstractmethod
    def _graph(self, name: str, **tensors: Any) -> Mapping[str, Any]:
        """Do the same with tensors by alias, inside the tf.function that runs a batch."""


def _describe(name: str, proto: Any) -> Signature:
    if not proto.defaults:
        return Signature(name, _tensor_infos(proto.inputs), _tensor_infos(proto.outputs))
    import tensorflow as tf

    defaults = {alias: tf.make_ndarray(value) for alias, value in proto.defaults.items()}
    return Signature(name, _tensor_infos(proto.inputs), _tensor_infos(proto.outputs), defaults)


def _tensor_infos(protos: Mapping[str, Any]) -> dict[str, TensorInfo]:
    infos = {}
    for alias, proto in sorted(protos.items()):
        dims = proto.tensor_shape.dim
        shape = None if proto.tensor_shape.unknown_rank else tuple(d.size if d.size >= 0 else None for d in dims)
        infos[alias] = TensorInfo(alias, NAMES.get(proto.dtype, "invalid"), shape)
    return infos


def load_error(error: Exception, path: str) -> ServingError:
    """Return what the status says of a version that does not load."""
    if isinstance(error, ServingError):
        return error
    code = getattr(error, "error_code", None)
    if code is None:
        code = Code.NOT_FOUND if isinstance(error, OSError) else Code.UNKNOWN
    text = _plain_text(error)
    return ServingError(Code(code), text if path in text else f"{path}: {text}")


def run_error(error: Exception) -> ServingError:
    """Return the error message that a client gets for a failed run."""
    code = getattr(error, "error_code", None)
    return ServingError(Code.INVALID_ARGUMENT if code is None else Code(code), _plain_text(error))


def _plain_text(error: Exception) -> str:
    text = str(getattr(error, "message", None) or error)
    if _REFUSAL in text:
        # An image that an exported graph refuses: its sentence alone says what is wrong.
        from keras_convnets.tensorflow_errors import plain_reason

        return plain_reason(error)
    return _SUFFIX.sub("", _FUNCTIONS.sub("", _PREAMBLE.sub("", text))).strip() or type(error).__name__
