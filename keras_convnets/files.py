"""Atomic writes of files and folders, lock files, safe file names and the errors of failed writes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from keras_convnets.errors import UserError

# Prefix of temporary files and folders: no server takes such a name for a version, no reader for a finished file.
TEMPORARY_PREFIX = ".writing-"
# Suffix of the lock file of a temporary folder.
LOCK_SUFFIX = ".lock"


# Characters with a special meaning to some file system, shell or terminal, and "%", which begins their encoding.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff/\\:*?"<>|%]')
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# In bytes; file systems allow 255, and temporary names add a prefix and a suffix.
MAX_NAME_BYTES = 160


def safe_name(name: str) -> str:
    """Return a name from data as one path component: no separators, not hidden, valid on any file system.

    Unsafe characters are percent-encoded as in URLs, "/" as "%2F"; most names stay unchanged. Different names stay
    different; a name that is too long is truncated and ends in a digest.

    Example:
        >>> safe_name("/a/abbey"), safe_name("..")
        ('%2Fa%2Fabbey', '%2E%2E')
    """
    safe = _UNSAFE.sub(lambda found: _percent_encoded(found[0]), name)
    # A leading dot hides a file, and some file systems drop trailing dots and spaces.
    safe = re.sub(r"^[. ]|[. ]$", lambda found: _percent_encoded(found[0]), safe) or "%"
    if len(safe.encode()) > MAX_NAME_BYTES:
        digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
        safe = f"{safe.encode()[: MAX_NAME_BYTES - 18].decode(errors='ignore')}%~{digest[:16]}"
    return safe


def safe_names(names: Sequence[str]) -> list[str]:
    """Return each name as one path component, all different, also on case-insensitive file systems.

    Of names that collide, the second ends in "%~2" and so on; the result depends only on the names and their order.

    Example:
        >>> safe_names(["Ant", "ant", "../ant"])
        ['Ant', 'ant%~2', '%2E.%2Fant']
    """
    counts: dict[str, int] = {}
    parts = []
    for part in map(safe_name, names):
        folded = folded_name(part)
        counts[folded] = counts.get(folded, 0) + 1
        parts.append(part if counts[folded] == 1 else f"{part}%~{counts[folded]}")
    return parts


def path_text(path: Any, what: str, takes: str = "a path") -> str:
    """Return a path argument (str, bytes or `os.PathLike`) as a string.

    Args:
        path: the path.
        what: the argument's name, for the error message.
        takes: what the argument accepts, for the error message.

    Raises:
        UserError: if the path has another type, is empty or is a URL.

    Example:
        >>> path_text(b"runs/digits", "run")
        'runs/digits'
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise UserError(f"{what} is {repr(path)[:80]}, of type {type(path).__name__}; it takes {takes}.")
    text = os.fsdecode(path)
    if not text:
        raise UserError(f"{what} is empty; it takes {takes}.")
    if _URL.match(text):
        raise UserError(f"{what} is {text!r}, a URL, from which nothing is read; it takes {takes}: download it first.")
    return text


def folded_name(name: str) -> str:
    """Return a name case-folded and Unicode-normalised; names that become equal may collide on some file system."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _percent_encoded(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode(errors="surrogatepass"))


# errno values of a full disk or quota, of a path that can't be written to, and of a failing device.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG)
_DEVICE_ERROR = (errno.EIO, errno.ESTALE, errno.ENXIO)


class UnwritableError(UserError, OSError):
    """A file or folder that can't be written to.

    Attributes:
        reason: the operating system's message, such as "No space left on device".
    """

    def __init__(self, path: str | os.PathLike, reason: str, advice: str):
        super().__init__(f"{path} can't be written to ({reason}); {advice}.")
        self.reason = reason


@contextlib.contextmanager
def wrap_write_errors(
    path: str | os.PathLike, advice: str = "free some space, allow writing there, or write to another place"
) -> Iterator[None]:
    """Convert exceptions raised because a path can't be written to into `UnwritableError`; others are not changed.

    Recognised are `OSError` and the errors that TensorFlow and HDF5 raise for a full disk or quota, and for a path that
    is read-only, forbidden, missing or on a failing device. Errors that name another file come from reading and are
    not converted.

    Args:
        path: the file or folder that the message names.
        advice: the state that remains and what to do, without a full stop.

    Raises:
        UnwritableError: in place of such an error; one raised by a nested call is raised again with this path.
    """
    try:
        yield
    except UnwritableError as error:
        raise UnwritableError(path, error.reason, advice) from error
    except Exception as error:
        reason = _write_failure(error, Path(path))
        if reason is None:
            raise
        raise UnwritableError(path, reason, advice) from error


def _write_failure(error: Exception, path: Path) -> str | None:
    """Return the operating system's reason why a path can't be written to, or None for any other error."""
    text = str(error)
    if isinstance(error, FileExistsError):
        return None
    if isinstance(error, OSError):
        number = error.errno
    elif type(error).__module__.startswith("tensorflow."):
        # "{{node}} /a/file; No space left on device [Op:SaveV2]", without an errno.
        known = (*_DISK_FULL, *_NOT_WRITABLE, *_DEVICE_ERROR)
        number = next((number for number in known if f"; {os.strerror(number)}" in text), None)
    else:
        found = re.search(r"errno = (\d+)", text)
        number = int(found[1]) if found else None
    if number in _DISK_FULL:
        return os.strerror(number)
    if number not in (*_NOT_WRITABLE, *_DEVICE_ERROR):
        return None
    named = getattr(error, "filename", None)
    if isinstance(error, OSError) and named is None and "name = " not in text:
        return os.strerror(number)
    is_ours = TEMPORARY_PREFIX in text or str(path) in text or str(named) in map(str, path.parents)
    return os.strerror(number) if is_ours or any(f"{parent};" in text for parent in path.parents) else None


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it is atomically renamed to `path`.

    The temporary path keeps the suffix of `path`, because writers such as Keras choose their format by it.

    Raises:
        UnwritableError: if the file can't be written; see `wrap_write_errors`.
    """
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    try:
        with wrap_write_errors(path):
            yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"{temporary} was not written")
        with wrap_write_errors(path):
            _fsync(temporary)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside `path` to fill; on success it is atomically renamed to `path`.

    Raises:
        FileExistsError: if `path` exists when the folder is complete; nothing is overwritten.
        UnwritableError: if the folder can't be written; see `wrap_write_errors`.
    """
    with wrap_write_errors(path), temporary_folder(path) as temporary:
        yield temporary
        commit_folder(temporary, path)


@contextlib.contextmanager
def temporary_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, for `commit_folder` to rename; it is deleted at the end if it was not.

    A lock file beside the folder is held until then, so that `remove_abandoned` can distinguish the folder from one
    that a killed process left. The lock file is not in the folder because Windows can't rename a folder with open
    files.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, lock = _make_locked_folder(path)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _release(lock)


def _make_locked_folder(path: Path) -> tuple[Path, FileLock]:
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{path.name}-", dir=path.parent))
        lock = FileLock(_lock_path(temporary))
        lock.acquire()
        # Another process may have removed it as abandoned before it was locked.
        if temporary.is_dir() and _lock_path(temporary).exists():
            return temporary, lock
        _release(lock)


def _lock_path(temporary: Path) -> Path:
    return temporary.with_name(f"{temporary.name}{LOCK_SUFFIX}")


def _release(lock: FileLock) -> None:
    lock.release()
    # Windows can't delete a file that another process has open.
    with contextlib.suppress(OSError):
        os.unlink(lock.lock_file)


def commit_folder(temporary: Path, path: str | os.PathLike) -> None:
    """Flush a complete temporary folder to disk and atomically rename it to `path`.

    Raises:
        FileExistsError: if `path` exists; nothing is overwritten.
    """
    path = Path(path)
    temporary.chmod(0o755)
    for file in temporary.rglob("*"):
        if file.is_file():
            _fsync(file)
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    try:
        os.rename(temporary, path)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(f"{path} exists already") from error
        raise


def remove_abandoned(folder: str | os.PathLike) -> None:
    """Delete the temporary folders that killed processes left in a folder; those of running processes are kept."""
    left = set(Path(folder).glob(f"{TEMPORARY_PREFIX}*/"))
    # A process that was killed between the two deletions leaves the lock file alone.
    locks = Path(folder).glob(f"{TEMPORARY_PREFIX}*{LOCK_SUFFIX}")
    left |= {lock.with_name(lock.name.removesuffix(LOCK_SUFFIX)) for lock in locks}
    for temporary in left:
        with contextlib.suppress(OSError, Timeout):
            lock = FileLock(_lock_path(temporary), timeout=0)
            lock.acquire()
            shutil.rmtree(temporary, ignore_errors=True)
            _release(lock)


def check_disk_space(path: str | os.PathLike, size: int) -> None:
    """Raise `OSError` if there is no disk space for a new file of this size; the probe file is deleted.

    For writers that can't handle a full disk: HDF5 retries to write a file that it could not close, and crashes the
    interpreter at exit. Does nothing on systems without `posix_fallocate`.

    Args:
        path: the file that will be written; the probe file is created beside it.
        size: in bytes.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with tempfile.NamedTemporaryFile(dir=Path(path).parent, prefix=TEMPORARY_PREFIX) as probe:
        os.posix_fallocate(probe.fileno(), 0, max(size, 1))


def _fsync(path: Path) -> None:
    # Windows flushes only files that are open for writing.
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json_text(data) + "\n")


def json_text(data: Any) -> str:
    """Return data as JSON that can be encoded as UTF-8: undecodable bytes of file names become JSON escapes."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()


def read_json(path: str | os.PathLike, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        what: what the file is, for the error message.

    Raises:
        UserError: if the file is missing, can't be read or does not hold JSON.
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
def exclusive_lock(folder: str | os.PathLike, doing: str) -> Iterator[None]:
    """Hold a folder's lock file, without waiting for it; the operating system releases it when the process ends.

    Args:
        folder: an existing folder.
        doing: what is done to the folder, for the error message, such as "trained in".

    Raises:
        UserError: if another process holds the lock.
    """
    lock = FileLock(Path(folder) / ".lock", timeout=0)
    try:
        with wrap_write_errors(folder):
            lock.acquire()
    except Timeout:
        raise UserError(f"{folder} is being {doing} by another process; wait for it or use another folder.") from None
    try:
        yield
    finally:
        lock.release()
