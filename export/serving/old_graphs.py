"""SavedModels of TensorFlow before 1.0, brought to what today's loader reads."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

# From this version of its graphs on, TensorFlow takes a placeholder's shape at its word. Before it, no dimensions
# stood for a shape that is not known. TensorFlow's own graph importer knows that, and what takes the signatures out
# of the graph, in today's version, does not.
_SCALARS_MEANT = 22
_PLACEHOLDER = "Placeholder"
_FILES = ("saved_model.pb", "saved_model.pbtxt")


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
