"""What runs the signatures of one version: a row and a file for each engine."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from keras_convnets.errors import unknown_name

if TYPE_CHECKING:
    from keras_convnets.export.serving.admission.admission import Admission
    from keras_convnets.export.serving.engines.engine import Engine
    from keras_convnets.export.serving.scheduling.scheduler import Scheduler

# What `--engine` calls them, and the module and class of each here.
ENGINES = {"tensorflow": ("saved_model", "SavedModelEngine"), "onnxruntime": ("onnx", "OnnxEngine")}


def check_engine(name: str) -> None:
    """Check the name of an engine.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in ENGINES:
        raise unknown_name("engine", name, tuple(ENGINES))


def load_engine(name: str, folder: Path, scheduler: Scheduler, admission: Admission) -> Engine:
    """Load a version with an engine; what that needs is imported now.

    Args:
        name: the engine's.
        folder: the version's directory.
        scheduler: runs its requests.
        admission: bounds the pixels that are decoded at a time.

    Raises:
        UserError: if there is no engine of that name.
        ServingError: if the directory holds nothing that the engine loads.
    """
    check_engine(name)
    module, kind = ENGINES[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), kind)(folder, scheduler, admission)
