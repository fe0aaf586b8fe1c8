"""The export formats: a file each, with its writer, its loader and its tolerance, and a row in the table below.

Importing this package imports neither Keras nor any runtime: command-line help reads the table.
"""

from __future__ import annotations

from pathlib import Path

from keras_convnets.export.formats import litert, onnx, onnx_int8, saved_model
from keras_convnets.export.formats.format import Format

# In the order in which they are written: one that requires another stands after it.
FORMATS = {form.name: form for form in (saved_model.FORMAT, onnx.FORMAT, onnx_int8.FORMAT, litert.FORMAT)}
# Every version has it: to TensorFlow Serving, a version without one is none.
VERSION_FORMAT = saved_model.FORMAT
DEFAULT_FORMATS = ("saved_model", "onnx")


def format_of_file(path: Path) -> Format | None:
    """Return the format of a file by how its name ends, or None of another file or a folder."""
    return next((form for form in FORMATS.values() if form.suffix and path.suffix.lower() == form.suffix), None)
