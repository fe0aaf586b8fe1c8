"""The engine that runs a SavedModel with TensorFlow itself, also one of TensorFlow before 1.0."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_convnets.export.serving.admission.admission import Admission
from keras_convnets.export.serving.engines.engine import Engine, load_error, run_error
from keras_convnets.export.serving.scheduling.scheduler import Scheduler
from keras_convnets.export.serving.status import Code, ServingError, invalid_argument

SERVE_TAG = "serve"

# From this version of its graphs on, TensorFlow takes a placeholder's shape at its word. Before it, no dimensions
# stood for a shape that is not known. TensorFlow's own graph importer knows that, and what takes the signatures out
# of the graph, in today's version, does not.
_SCALARS_MEANT = 22
_PLACEHOLDER = "Placeholder"
_FILES = ("saved_model.pb", "saved_model.pbtxt")


class SavedModelEngine(Engine):
    """A SavedModel of any kind, TF1-style or TF2, loaded through `tf.saved_model.load`.

    Args:
        path: the version's directory, the one that holds `saved_model.pb`.
        scheduler: runs the requests; by default without batching, with a concurrency limit.
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
        scheduler: Scheduler | None = None,
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


def _as_array(tensor: Any) -> np.ndarray:
    array = tensor.numpy()
    # A scalar string comes as bare bytes.
    return (
        array if isinstance(array, np.ndarray) else np.array(array, dtype=object if isinstance(array, bytes) else None)
    )


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


def with_free_placeholders(path: str, meta_graph: Any) -> tempfile.TemporaryDirectory[str] | None:
    """Return a folder that loads as an old SavedModel does, with placeholders of any shape where it means that.

    Args:
        path: the SavedModel's directory.
        meta_graph: its `MetaGraphDef`.

    Returns:
        A folder that holds the changed graph and links to the rest, to be kept as long as the model; None for a
        SavedModel that loads as it is.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    if meta_graph.graph_def.versions.producer >= _SCALARS_MEANT:
        return None
    saved = saved_model_pb2.SavedModel(saved_model_schema_version=1, meta_graphs=[meta_graph])
    (changed,) = saved.meta_graphs
    for node in changed.graph_def.node:
        if node.op == _PLACEHOLDER and not node.attr["shape"].shape.dim:
            node.attr["shape"].shape.unknown_rank = True
    for signature in changed.signature_def.values():
        for info in (*signature.inputs.values(), *signature.outputs.values()):
            info.tensor_shape.unknown_rank = info.tensor_shape.unknown_rank or not info.tensor_shape.dim
    folder = tempfile.TemporaryDirectory(prefix="keras_convnets_old_graph_")
    for entry in Path(path).absolute().iterdir():
        if entry.name not in _FILES:
            os.symlink(entry, Path(folder.name, entry.name))
    Path(folder.name, _FILES[0]).write_bytes(saved.SerializeToString())
    return folder
