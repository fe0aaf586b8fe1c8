"""The export formats: a file each, with its writer, its loader and its tolerance, and a row in the table below.

Their modules are imported when they are asked for: command-line help reads the names alone.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from keras_convnets.errors import unknown_name

if TYPE_CHECKING:
    from keras_convnets.export.formats.format import Format

# What `--formats` calls them, and the module of each here. They are written in this order: a format that requires
# another stands after it.
FORMATS = {
    **{"saved_model": "saved_model", "onnx": "onnx", "int8": "onnx_int8", "litert": "litert"},
    **{"safetensors": "safetensors", "weights_h5": "weights_h5"},
}
# Required in every version: TensorFlow Serving ignores versions without a SavedModel.
VERSION_FORMAT = "saved_model"
DEFAULT_FORMATS = ("saved_model", "onnx")


def get_format(name: str) -> Format:
    """Return a format by its name.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in FORMATS:
        raise unknown_name("format", name, tuple(FORMATS))
    return importlib.import_module(f"{__name__}.{FORMATS[name]}").FORMAT


def all_formats() -> tuple[Format, ...]:
    """Return the formats, in the order of the table."""
    return tuple(map(get_format, FORMATS))


def format_of_file(path: Path) -> Format | None:
    """Return the format of a file by how its name ends, or None of another file or a folder."""
    name = path.name.lower()
    return next((form for form in all_formats() if form.suffix and name.endswith(form.suffix)), None)
