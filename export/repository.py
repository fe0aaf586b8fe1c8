"""The model repository: `<root>/<model>/<version>/`, the layout that TensorFlow Serving reads."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_convnets.card import ModelCard
from keras_convnets.errors import UserError, unknown_name
from keras_convnets.export import model_config
from keras_convnets.files import TEMPORARY_PREFIX, wrap_write_errors
from keras_convnets.numbers import whole_number

SAVED_MODEL = "saved_model.pb"
EXTRA = "assets.extra"
MAX_VERSION = 2**63 - 1


@dataclass(frozen=True)
class Version:
    """A published version.

    Attributes:
        model: the model's name in the repository.
        number: the version.
        path: its folder.
        served: whether `models.config` has it served: the highest one, or the one a rollback holds the model at.
        card: its model card, or None of a version that was not exported here.
        size: of its files, in bytes.
    """

    model: str
    number: int
    path: Path
    served: bool
    card: ModelCard | None
    size: int


def version_number(name: str) -> int | None:
    """Return the version number of a folder's name, or None if the name is not a version.

    As TensorFlow Serving reads it, leading zeros do not matter. It also takes a sign and spaces around the number,
    which are ignored here, because such names are accidental.

    Example:
        >>> version_number("00000123"), version_number("²"), version_number("-7")
        (123, None, None)
    """
    digits = name.lstrip("0") or name[:1]
    if not (digits.isascii() and digits.isdigit()) or len(digits) > len(str(MAX_VERSION)):
        return None
    return int(digits) if int(digits) <= MAX_VERSION else None


def version_folders(model_folder: Path) -> dict[int, Path]:
    """Return the version folders under a model's folder by their numbers, ascending; other names are ignored.

    Of several folders with one number the last name in sorted order counts, "1" before "0001", as in TensorFlow
    Serving.

    Raises:
        OSError: if the folder can't be read.
    """
    with os.scandir(model_folder) as entries:
        names = sorted(entry.name for entry in entries if version_number(entry.name) is not None and entry.is_dir())
    found = {number: model_folder / name for name in names if (number := version_number(name)) is not None}
    return dict(sorted(found.items()))


def versions(model_folder: Path) -> list[int]:
    """Return the version numbers under a model's folder, ascending; none where there is no such folder."""
    return list(version_folders(model_folder)) if model_folder.is_dir() else []


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
    number = whole_number(version)
    if number is None or not 1 <= number <= MAX_VERSION:
        raise UserError(f"version is {version!r}; it must be a whole number of at least 1.")
    version = number
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


def published(root: str | os.PathLike, name: str | None = None) -> list[Version]:
    """Return the versions of a repository, by model and number.

    Args:
        root: the repository.
        name: one model; by default all.

    Raises:
        UserError: if the repository holds no model, or none of that name.
    """
    pins = model_config.pinned(root)
    found = []
    for model, folder in _chosen(root, name).items():
        folders = version_folders(folder)
        served = pins.get(model) or (max(folders),)
        for number, path in folders.items():
            card = ModelCard.read(path / EXTRA) if (path / EXTRA / "model.json").is_file() else None
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            found.append(Version(model, number, path, number in served, card, size))
    return found


def prune(root: str | os.PathLike, keep: int, name: str | None = None) -> list[Path]:
    """Delete all but the highest versions of each model; a version that a rollback serves is kept besides.

    Args:
        root: the repository.
        keep: how many of the highest versions stay, at least 1.
        name: one model; by default all.

    Returns:
        The folders that are gone.

    Raises:
        UserError: if `keep` is below 1, or there is no such model.
    """
    if (whole_number(keep) or 0) < 1:
        raise UserError(f"keep is {keep!r}; it must be a whole number of at least 1.")
    pins = model_config.pinned(root)
    gone = []
    for model, folder in _chosen(root, name).items():
        for number in versions(folder)[:-keep]:
            if number in pins.get(model, ()):
                continue
            # All folders of this number: otherwise another one, such as 0001, would be served in place of the deleted.
            for path in [path for path in folder.iterdir() if version_number(path.name) == number and path.is_dir()]:
                # Atomically renamed first, so that a server never sees a partially deleted version.
                doomed = folder / f"{TEMPORARY_PREFIX}deleted-{number}-{uuid.uuid4().hex[:8]}"
                with wrap_write_errors(folder, "nothing more was deleted: allow writing there"):
                    path.rename(doomed)
                    shutil.rmtree(doomed)
                gone.append(path)
    return gone


def rollback(root: str | os.PathLike, name: str, version: int | None = None) -> int:
    """Have an earlier version served: write a `specific` version policy into models.config; nothing is deleted.

    Args:
        root: the repository.
        name: the model.
        version: the one to serve; by default the next lower than what is served now.

    Returns:
        The version that is served from now on.

    Raises:
        UserError: if there is no such model or version, or none before.
    """
    folder = _chosen(root, name)[name]
    known = versions(folder)
    if version is None:
        now = max(model_config.pinned(root).get(name) or (known[-1],))
        before = [number for number in known if number < now]
        if not before:
            raise UserError(f"{folder} has no version before {now}; its versions: {', '.join(map(str, known))}.")
        version = before[-1]
    elif version not in known:
        raise UserError(f"{folder} has no version {version}; its versions: {', '.join(map(str, known))}.")
    model_config.register(root, name)
    with model_config.changing_config(root) as config:
        _entry(config, name).model_version_policy.specific.versions[:] = [version]
    return version


def serve_latest(root: str | os.PathLike, name: str) -> int:
    """Take a rollback back: the highest version is served again, and those to come.

    Returns:
        The highest version.
    """
    folder = _chosen(root, name)[name]
    model_config.register(root, name)
    with model_config.changing_config(root) as config:
        _entry(config, name).ClearField("model_version_policy")
    return versions(folder)[-1]


def _entry(config: Any, name: str) -> Any:
    """Return the entry of a model that was registered just before."""
    found = model_config.entry(config, name)
    assert found is not None, f"{name} is registered"
    return found


def _chosen(root: str | os.PathLike, name: str | None) -> dict[str, Path]:
    found = models(root)
    if name is not None and name not in found:
        raise unknown_name(f"model of {root}", name, found)
    return {key: path for key, path in found.items() if name in (None, key)}
