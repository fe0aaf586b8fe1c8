"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_convnets.errors import UserError

# Names that no server takes for a version and no reader for a finished thing.
UNFINISHED = ".writing-"


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path to write to; on success it takes the place of `path` by one rename.

    The temporary name ends as `path` does, because writers such as Keras choose their format by the suffix.
    """
    path = Path(path)
    temporary = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    try:
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill; on success it becomes `path` by one rename.

    Raises:
        FileExistsError: if `path` exists when the folder is ready; nothing is overwritten.
    """
    with unfinished_folder(path) as temporary:
        yield temporary
        finish_folder(temporary, path)


@contextlib.contextmanager
def unfinished_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary folder beside `path`, which `finish_folder` renames; what is not renamed is deleted at the end.

    It is locked as long as this process lives, so that `remove_abandoned` can tell it from what a killed one left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, lock = _locked_folder(path)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def _locked_folder(path: Path) -> tuple[Path, int]:
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}{path.name}-", dir=path.parent))
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(temporary, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Between its making and its lock another process may have taken it for abandoned.
            if temporary.is_dir():
                return temporary, lock
            os.close(lock)


def finish_folder(temporary: Path, path: str | os.PathLike) -> None:
    """Write a filled folder to disk and let it become `path` by one rename.

    Raises:
        FileExistsError: if `path` exists; nothing is overwritten.
    """
    path = Path(path)
    temporary.chmod(0o755)
    for file in temporary.rglob("*"):
        if file.is_file():
            _to_disk(file)
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    try:
        os.rename(temporary, path)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(f"{path} exists already") from error
        raise


def remove_abandoned(folder: str | os.PathLike) -> None:
    """Delete what killed processes left unfinished in a folder; what a living one still fills stays."""
    for left in Path(folder).glob(f"{UNFINISHED}*/"):
        with contextlib.suppress(OSError):
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file by rename."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Write a JSON file by rename."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike, what: str) -> Any:
    """Read a JSON file; a missing or broken one is the user's to mend.

    Args:
        path: the file.
        what: what the file is, for the error's sentence.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"there is no {what} at {path}.") from None
    except OSError as error:
        raise UserError(f"the {what} {path} can't be read ({error.strerror}).") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a {what}: it does not hold JSON ({error}).") from error


def sha256(path: str | os.PathLike) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def only_one(folder: str | os.PathLike, doing: str) -> Iterator[None]:
    """Hold a folder's lock; a second process that wants it is refused. The lock goes with the process.

    Args:
        folder: an existing folder.
        doing: what the holder does, for the error's sentence, such as "trained in".
    """
    with open(Path(folder) / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is being {doing} by another process; wait for it or use another folder."
            ) from None
        yield
