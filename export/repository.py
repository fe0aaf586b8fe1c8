"""The model repository: `<root>/<model>/<version>/`, the layout that TensorFlow Serving reads."""

from __future__ import annotations

import os
import re
from pathlib import Path

from keras_convnets.errors import UserError

SAVED_MODEL = "saved_model.pb"
ONNX = "model.onnx"
EXTRA = "assets.extra"


def versions(model_folder: Path) -> list[int]:
    """Return the version numbers under a model's folder, ascending; other names are passed over."""
    if not model_folder.is_dir():
        return []
    return sorted(int(path.name) for path in model_folder.iterdir() if path.name.isdigit() and path.is_dir())


def new_version(root: str | os.PathLike, name: str, version: int | None) -> Path:
    """Return the folder of a version that is still to be written.

    Args:
        root: the repository.
        name: the model's name there.
        version: its number; None takes the highest and one.

    Raises:
        UserError: if the name or number can't be one, or the version exists.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(
            f"model name is {name!r}; use letters, digits, '.', '_' and '-', beginning with a letter or digit."
        )
    folder = Path(root) / name
    taken = versions(folder)
    if version is None:
        version = max(taken, default=0) + 1
    if version < 1:
        raise UserError(f"version is {version}; it must be a whole number of at least 1.")
    if version in taken:
        raise UserError(
            f"{folder / str(version)} exists; published versions are never overwritten: "
            f"leave --version out for {max(taken) + 1}, or give another number."
        )
    return folder / str(version)


def models(root: str | os.PathLike) -> dict[str, Path]:
    """Return the models of a repository that have at least one version, by name.

    Raises:
        UserError: if the folder does not exist or holds none.
    """
    root = Path(root)
    found = {path.name: path for path in sorted(root.iterdir()) if versions(path)} if root.is_dir() else {}
    if not found:
        raise UserError(
            f"{root} holds no model (<model>/<version>/); make one with keras-convnets export SOURCE --to {root}."
        )
    return found
