"""What an engine is, and the one that runs a SavedModel: TensorFlow itself.

Nothing above this module knows TensorFlow: signatures are described by names, types and shapes, tensors are NumPy
arrays and failures are `ServingError`s.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from keras_convnets.export.serving.admission import Admission
from keras_convnets.export.serving.batching import Batching
from keras_convnets.export.serving.concurrency import Turns
from keras_convnets.export.serving.dtypes import NAMES, TensorInfo, dtype_name
from keras_convnets.export.serving.old_graphs import with_free_placeholders
from keras_convnets.export.serving.status import Code, ServingError, invalid_argument

SERVE_TAG = "serve"
DEFAULT_SIGNATURE = "serving_default"

# What eager execution adds to the message of the operation that failed: where the node was made, in files of ours.
_PREAMBLE = re.compile(
    r"^Graph execution error:\s*"
    r'(?:Detected at node [^\n]*\n(?:[ \t]*(?:File "[^\n]*|<stack traces unavailable>)?\n)*)*\s*'
)
_SUFFIX = re.compile(r"\s*\[Op:[^\]]*\](?: name: \S*)?\s*$")


@dataclasses.dataclass(frozen=True)
class Signature:
    """A way to call the model.

    Attributes:
        name: the signature's key.
        inputs: the inputs by alias.
        outputs: the outputs by alias, sorted.
        defaults: values for inputs that a request may leave out, by alias.
    """

    name: str
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    defaults: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def check_input_names(self, names: Collection[str]) -> None:
        """Check that the inputs that came are the signature's.

        Raises:
            ServingError: INVALID_ARGUMENT, with what is missing and what is too much.
        """
        expected, sent = set(self.inputs), set(names)
        extra, missing = sent - expected, expected - sent - set(self.defaults)
        if len(sent) > len(expected) or (len(sent) < len(expected) and missing):
            raise invalid_argument(
                f"input size does not match signature: {len(sent)}!={len(expected)} "
                f"len({{{_joined(sent)}}}) != len({{{_joined(expected)}}}). Sent extra: {{{_joined(extra)}}}. "
                f"Missing but required: {{{_joined(expected - sent)}}}."
            )
        if missing or extra:
            what, name = ("Signature input", min(missing)) if missing else ("Request's input", min(extra))
            raise invalid_argument(
                f"{what} {name} has no counterpart. Inputs expected to be in the set {{{_joined(expected)}}}."
            )

    def check_outputs(self, names: Collection[str]) -> None:
        """Check the outputs that a request asks for.

        Raises:
            ServingError: INVALID_ARGUMENT for an unknown or a repeated one.
        """
        seen = set()
        for name in names:
            if name not in self.outputs:
                raise invalid_argument(
                    f"output tensor alias not found in signature: {name} "
                    f"Outputs expected to be in the set {{{_joined(self.outputs)}}}."
                )
            if name in seen:
                raise invalid_argument(f"duplicate output tensor alias: {name}")
            seen.add(name)


class Engine(abc.ABC):
    """What runs the signatures of one version.

    Args:
        signature_defs: the signatures verbatim, as protocol buffers by name.
        scheduler: gives requests their turns; by default each runs by itself, a few at once.
        admission: bounds the pixels that are decoded at a time; by default those of this engine.

    Attributes:
        signature_defs: as given.
        signatures: what can be called, by name.
    """

    def __init__(
        self,
        signature_defs: Mapping[str, Any],
        scheduler: Turns | Batching | None = None,
        admission: Admission | None = None,
    ):
        self.signature_defs = dict(signature_defs)
        self.signatures = {name: _describe(name, proto) for name, proto in sorted(signature_defs.items())}
        self._admission = admission or Admission()
        scheduler = scheduler or Turns()
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
                DEADLINE_EXCEEDED when the request's deadline passed before its turn came.
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


class SavedModelEngine(Engine):
    """A SavedModel of any kind, TF1-style or TF2, loaded through `tf.saved_model.load`.

    Args:
        path: the version's directory, the one that holds `saved_model.pb`.
        scheduler: gives requests their turns.
        admission: bounds the pixels that are decoded at a time.

    Raises:
        ServingError: the directory holds no SavedModel that loads.

    Example:
        >>> engine = SavedModelEngine("saved_models/resnet20/1")
        >>> engine.run("serving_default", {"image_bytes": np.array([png], object)})["probabilities"].shape
        (1, 10)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        scheduler: Turns | Batching | None = None,
        admission: Admission | None = None,
    ):
        # Loading is the first thing that needs TensorFlow.
        import tensorflow as tf

        self._tf = tf
        path = os.fspath(path)
        try:
            graph = _read_graph(path)
            super().__init__(graph.signature_def, scheduler, admission)
            self._folder = with_free_placeholders(path, graph)
            # Kept as a whole: the signatures alone do not keep variables and tables alive.
            self._model: Any = tf.saved_model.load(self._folder.name if self._folder else path, tags={SERVE_TAG})
        except Exception as error:
            raise load_error(error, path) from error
        self._functions = dict(self._model.signatures)

    def _call(self, name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        from keras_convnets.tensorflow_errors import unless_cancelled

        function = self._functions.get(name)
        if function is None:
            raise invalid_argument(f"Signature {name} cannot be called: it only initialises the model.")
        try:
            tensors = {alias: self._tf.constant(array) for alias, array in inputs.items()}
            outputs = unless_cancelled(lambda: function(**tensors))
            return {alias: _as_array(outputs[alias]) for alias in self.signatures[name].outputs}
        except (self._tf.errors.OpError, TypeError, ValueError) as error:
            raise run_error(error) from error

    def _graph(self, name: str, **tensors: Any) -> Mapping[str, Any]:
        return self._functions[name](**tensors)


def _describe(name: str, proto: Any) -> Signature:
    if not proto.defaults:
        return Signature(name, _tensor_infos(proto.inputs), _tensor_infos(proto.outputs))
    import tensorflow as tf

    defaults = {alias: tf.make_ndarray(value) for alias, value in proto.defaults.items()}
    return Signature(name, _tensor_infos(proto.inputs), _tensor_infos(proto.outputs), defaults)


def _joined(names: Collection[str]) -> str:
    return ",".join(sorted(names))


def _as_array(tensor: Any) -> np.ndarray:
    array = tensor.numpy()
    # A scalar string comes as bare bytes.
    return (
        array if isinstance(array, np.ndarray) else np.array(array, dtype=object if isinstance(array, bytes) else None)
    )


def _tensor_infos(protos: Mapping[str, Any]) -> dict[str, TensorInfo]:
    infos = {}
    for alias, proto in sorted(protos.items()):
        dims = proto.tensor_shape.dim
        shape = None if proto.tensor_shape.unknown_rank else tuple(d.size if d.size >= 0 else None for d in dims)
        infos[alias] = TensorInfo(alias, NAMES.get(proto.dtype, "invalid"), shape)
    return infos


def read_signature_defs(path: str) -> dict[str, Any]:
    """Return a SavedModel's signatures from the file itself, because loading adds, drops and renames some.

    Args:
        path: the directory that holds `saved_model.pb`.

    Raises:
        ServingError: NOT_FOUND if it has no graph for serving.
    """
    return dict(_read_graph(path).signature_def)


def _read_graph(path: str) -> Any:
    """Return the `MetaGraphDef` for serving."""
    from tensorflow.python.saved_model import loader_impl

    for graph in loader_impl.parse_saved_model(path).meta_graphs:
        if set(graph.meta_info_def.tags) == {SERVE_TAG}:
            return graph
    raise ServingError(
        Code.NOT_FOUND,
        f"Could not find meta graph def matching supplied tags: {{ {SERVE_TAG} }} in {path}",
    )


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
    """Return what a client is told of a run that failed."""
    code = getattr(error, "error_code", None)
    return ServingError(Code.INVALID_ARGUMENT if code is None else Code(code), _plain_text(error))


def _plain_text(error: Exception) -> str:
    text = str(getattr(error, "message", None) or error)
    return _SUFFIX.sub("", _PREAMBLE.sub("", text)).strip() or type(error).__name__
