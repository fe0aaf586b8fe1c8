"""Exporters: SavedModel and ONNX into the model repository, verified; the local endpoint; the client.

Example:
    >>> from keras_convnets import export
    >>> version = export.publish("runs/digits", name="digits", to="saved_models")
    >>> classifier = export.load(version)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keras_convnets.extras import require

if TYPE_CHECKING:
    from keras_convnets.export.client import Client as Client
    from keras_convnets.export.loading import load as load
    from keras_convnets.export.publishing import publish as publish

_HOMES = {"Client": "client", "load": "loading", "publish": "publishing"}
# What needs an extra as a whole; loading an ONNX file asks for its own.
_EXTRAS = {"Client": ("serving", "the client"), "publish": ("export", "exporting")}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _EXTRAS:
        require(*_EXTRAS[name])
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
