"""Files and folders that appear whole or not at all."""

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

# Names that no server takes for a version and no reader for a finished thing.
UNFINISHED = ".writing-"
# What the name of an unfinished folder's lock file ends in.
LOCKED = ".lock"


# What some file system or shell takes for more than a part of a name, and "%", with which it is written.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff/\\:*?"<>|%]')
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# In bytes; a part of a path may have 255, and a temporary name has more beside it.
LONGEST_NAME = 160


def safe_name(name: str) -> str:
    """Return a name from data as one part of a path: never another folder, never hidden, on any file system.

    What is unsafe in it is written as in URLs, "/" as "%2F"; most names stay as they are. Different names stay
    different; one that is too long ends in a digest instead.

    Example:
        >>> safe_name("/a/abbey"), safe_name("..")
        ('%2Fa%2Fabbey', '%2E%2E')
    """
    safe = _UNSAFE.sub(lambda found: _escaped(found[0]), name)
    # Leading dots hide, and some file systems drop dots and spaces at the end.
    safe = re.sub(r"^[. ]|[. ]$", lambda found: _escaped(found[0]), safe) or "%"
    if len(safe.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
        safe = f"{safe.encode()[: LONGEST_NAME - 18].decode(errors='ignore')}%~{digest[:16]}"
    return safe


def safe_names(names: Sequence[str]) -> list[str]:
    """Return each name as one part of a path, all different, on file systems that ignore upper and lower case too.

    Of names that would be one, the second ends in "%~2" and so on: the same names in the same order give the same.

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


def path_text(place: Any, what: str, takes: str = "a path") -> str:
    """Return a path that a caller gave, of any type that Python takes for one, as text.

    Args:
        place: the path.
        what: the argument's name, for the error's sentence.
        takes: what the argument takes, for the error's sentence.

    Raises:
        UserError: if it is of another type, empty or a URL.

    Example:
        >>> path_text(b"runs/digits", "run")
        'runs/digits'
    """
    if not isinstance(place, (str, bytes, os.PathLike)):
        raise UserError(f"{what} is {repr(place)[:80]}, of type {type(place).__name__}; it takes {takes}.")
    text = os.fsdecode(place)
    if not text:
        raise UserError(f"{what} is empty; it takes {takes}.")
    if _URL.match(text):
        raise UserError(f"{what} is {text!r}, a URL, from which nothing is read; it takes {takes}: download it first.")
    return text


def folded_name(name: str) -> str:
    """Return what two names have in common that a file system which ignores case and composition takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _escaped(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode(errors="surrogatepass"))


# A place that takes no more, and one that takes nothing, by the numbers that systems give.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG)
BROKEN = (errno.EIO, errno.ESTALE, errno.ENXIO)


class UnwritableError(UserError, OSError):
    """What was to be written could not be.

    Attributes:
        reason: what the system says, such as "No space left on device".
    """

    def __init__(self, place: str | os.PathLike, reason: str, then: str):
        super().__init__(f"{place} can't be written to ({reason}); {then}.")
        self.reason = reason


@contextlib.contextmanager
def writing(
    place: str | os.PathLike, then: str = "free some space, allow writing there, or write to another place"
) -> Iterator[None]:
    """Turn whatever is raised because a place can't be written to into one sentence; other errors pass.

    The system's own errors count, and those that TensorFlow and HDF5 make of them: of a disk or quota that is full, a
    place that is read-only, forbidden, gone or broken. Errors that name another file pass: they come from reading.

    Args:
        place: the file or folder, as the sentence names it.
        then: what is left and what to do, without a full stop.

    Raises:
        UnwritableError: the sentence, in place of such an error, and of another of these from within.
    """
    try:
        yield
    except UnwritableError as error:
        raise UnwritableError(place, error.reason, then) from error
    except Exception as error:
        reason = _unwritable(error, Path(place))
        if reason is None:
            raise
        raise UnwritableError(place, reason, then) from error


def _unwritable(error: Exception, place: Path) -> str | None:
    """Return why a place can't be written to, in the system's words, or None where an error says something else."""
    text = str(error)
    if isinstance(error, FileExistsError):
        return None
    if isinstance(error, OSError):
        number = error.errno
    elif type(error).__module__.startswith("tensorflow."):
        # "{{node}} /a/file; No space left on device [Op:SaveV2]"; no number comes with it.
        known = (*FULL, *REFUSED, *BROKEN)
        number = next((number for number in known if f"; {os.strerror(number)}" in text), None)
    else:
        found = re.search(r"errno = (\d+)", text)
        number = int(found[1]) if found else None
    if number in FULL:
        return os.strerror(number)
    if number not in (*REFUSED, *BROKEN):
        return None
    named = getattr(error, "filename", None)
    if isinstance(error, OSError) and named is None and "name = " not in text:
        return os.strerror(number)
    is_ours = UNFINISHED in text or str(place) in text or str(named) in map(str, place.parents)
    return os.strerror(number) if is_ours or any(f"{parent};" in text for parent in place.parents) else None


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path to write to; on success it takes the place of `path` by one rename.

    The temporary name ends as `path` does, because writers such as Keras choose their format by the suffix.

    Raises:
        UnwritableError: if the place takes no file; see `writing`.
    """
    path = Path(path)
    temporary = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    try:
        with writing(path):
            yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"{temporary} was not written")
        with writing(path):
            _to_disk(temporary)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill; on success it becomes `path` by one rename.

    Raises:
        FileExistsError: if `path` exists when the folder is ready; nothing is overwritten.
        UnwritableError: if the place takes no folder; see `writing`.
    """
    with writing(path), unfinished_folder(path) as temporary:
        yield temporary
        finish_folder(temporary, path)


@contextlib.contextmanager
def unfinished_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary folder beside `path`, which `finish_folder` renames; what is not renamed is deleted at the end.

    A lock file beside it is held as long as this process lives, so that `remove_abandoned` can tell it from what a
    killed one left. It stands beside, because Windows renames no folder in which a file is open.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, lock = _locked_folder(path)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _give_back(lock)


def _locked_folder(path: Path) -> tuple[Path, FileLock]:
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}{path.name}-", dir=path.parent))
        lock = FileLock(_lock_of(temporary))
        lock.acquire()
        # Between its making and its lock another process may have taken it for abandoned.
        if temporary.is_dir() and _lock_of(temporary).exists():
            return temporary, lock
        _give_back(lock)


def _lock_of(temporary: Path) -> Path:
    return temporary.with_name(f"{temporary.name}{LOCKED}")


def _give_back(lock: FileLock) -> None:
    lock.release()
    # Windows deletes none that another process is just looking at.
    with contextlib.suppress(OSError):
        os.unlink(lock.lock_file)


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
    left = set(Path(folder).glob(f"{UNFINISHED}*/"))
    # A process may also have been killed between the two.
    left |= {place.with_name(place.name.removesuffix(LOCKED)) for place in Path(folder).glob(f"{UNFINISHED}*{LOCKED}")}
    for temporary in left:
        with contextlib.suppress(OSError, Timeout):
            lock = FileLock(_lock_of(temporary), timeout=0)
            lock.acquire()
            shutil.rmtree(temporary, ignore_errors=True)
            _give_back(lock)


def check_room(path: str | os.PathLike, size: int) -> None:
    """Raise the system's error where a new file of this size finds no room; what is tried is deleted again.

    For writers that do not bear a full disk: HDF5 tries again to write a file that it could not close, and ends the
    interpreter with a crash. Systems that can't reserve room are not asked.

    Args:
        path: of a file that is yet to be written; one beside it is tried.
        size: in bytes.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with tempfile.NamedTemporaryFile(dir=Path(path).parent, prefix=UNFINISHED) as tried:
        os.posix_fallocate(tried.fileno(), 0, max(size, 1))


def _to_disk(path: Path) -> None:
    # Windows writes to disk only what is open for writing.
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file by rename."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Write a JSON file by rename."""
    write_text(path, json_text(data) + "\n")


def json_text(data: Any) -> str:
    """Return data as JSON that UTF-8 can write: in file names that are no text, JSON's own escapes stand."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()


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
    lock = FileLock(Path(folder) / ".lock", timeout=0)
    try:
        with writing(folder):
            lock.acquire()
    except Timeout:
        raise UserError(f"{folder} is being {doing} by another process; wait for it or use another folder.") from None
    try:
        yield
    finally:
        lock.release()
