"""Download of published files into the user's cache: resumed, verified, and renamed only when they are right."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from keras_convnets.errors import UserError
from keras_convnets.files import sha256
from keras_convnets.version import __version__

if TYPE_CHECKING:
    from keras_convnets.weights.pretrained import WeightsRecord

MIRRORS, OFFLINE = "KERAS_CONVNETS_MIRRORS", "KERAS_CONVNETS_OFFLINE"
TIMEOUT = 30.0
# In seconds, before each further try at an address; one that got further than any before begins them anew.
WAITS = (0.5, 2.0, 5.0)
BLOCK = 1 << 16
log = logging.getLogger("keras_convnets")


class DownloadError(OSError):
    """A download that failed, by network or disk; the sentence says where to put the file by hand."""


class _Unusable(Exception):
    """Why an address does not give the file; the next one may."""


class _Cut(Exception):
    """Why a connection ended before the file did; the same address may resume it."""


def cache_folder() -> Path:
    """Return the folder that downloaded files are kept in, existing or not: `models/keras_convnets` of Keras' own.

    Keras' own is `$KERAS_HOME`, else `~/.keras`.
    """
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models" / "keras_convnets"


def download(record: WeightsRecord) -> Path:
    """Return the path of a record's file in the cache; it is downloaded where the cache does not hold it.

    The file's sha256 is verified on every call. What arrives is kept in a `.part` file beside it, and a later call goes
    on there. Of several processes one downloads, and the others wait for it.

    Args:
        record: its file, locations, size in bytes and sha256 are used.

    Returns:
        The path of a file with the record's sha256.

    Raises:
        UserError: if `KERAS_CONVNETS_OFFLINE` forbids the download, or `KERAS_CONVNETS_MIRRORS` holds a wrong address.
        DownloadError: if no address gives the file, or the disk does not take it.
    """
    path = cache_folder() / record.file
    try:
        if _is_right(path, record):
            return path
        if path.exists():
            log.warning("%s does not have the sha256 %s and is not used", path, record.sha256)
        places = _places(record)
        if os.environ.get(OFFLINE, "").lower() not in ("", "0", "false"):
            raise UserError(_sentence(record, path, places, f"because {OFFLINE} is set"))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{record.sha256[:12]}.part")
        with _alone(part.with_suffix(".lock"), record.file):
            if not _is_right(path, record):
                _download(record, path, part, places)
    except DownloadError:
        raise
    except OSError as error:
        raise _not_kept(record, path, error.strerror or str(error)) from error
    return path


def _download(record: WeightsRecord, path: Path, part: Path, places: list[str]) -> None:
    """Make `path` the right file, from the first address that gives it."""
    missing, free = record.size - _size(part), shutil.disk_usage(path.parent).free
    if missing > free:
        raise _not_kept(record, path, f"{missing:,} bytes more are needed and {free:,} are free")
    failed = []
    with _progress(record, _size(part)) as show:
        for place in places:
            log.info("downloading %s (%s of %s bytes are here) from %s", path, _size(part), record.size, place)
            try:
                _verified(place, part, record, show)
            except _Unusable as reason:
                log.warning("%s can't be had from %s: %s", record.file, place, reason)
                failed.append(f"{place} ({reason})")
                continue
            with open(part, "r+b") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
            log.info("downloaded %s, and its sha256 is right", path)
            return
    raise DownloadError(_sentence(record, path, failed, "because no address gave it"))


def _verified(place: str, part: Path, record: WeightsRecord, show: Callable[[int], None]) -> None:
    """Complete the part from one address and verify it; a wrong part is deleted."""
    resumed = _size(part) > 0
    _complete(place, part, record, show)
    found = sha256(part)
    if found == record.sha256:
        return
    part.unlink()
    if not resumed:
        raise _Unusable(f"its file has the sha256 {found}")
    # What was there before may have been the wrong bytes, and this address may have the right ones.
    log.warning("the resumed %s has the sha256 %s and is downloaded anew", record.file, found)
    _verified(place, part, record, show)


def _complete(place: str, part: Path, record: WeightsRecord, show: Callable[[int], None]) -> None:
    """Bring the part to its whole size; a connection that is cut is tried again."""
    furthest, waits = -1, iter(WAITS)
    while _size(part) < record.size:
        try:
            _receive(place, part, record, show)
        except _Cut as reason:
            if _size(part) > furthest:
                furthest, waits = _size(part), iter(WAITS)
            wait = next(waits, None)
            if wait is None:
                raise _Unusable(f"{reason} after {_size(part):,} of {record.size:,} bytes") from reason
            log.warning("%s: %s after %s bytes; again in %s s", place, reason, _size(part), wait)
            time.sleep(wait)


def _receive(place: str, part: Path, record: WeightsRecord, show: Callable[[int], None]) -> None:
    """Write what one connection gives: at the part's end, or from the start where the server sends all of it."""
    response, done = _answer(place, _size(part), record.size)
    with response, open(part, "ab" if done else "wb") as file:
        for block in _blocks(response):
            done += len(block)
            if done > record.size:
                part.unlink()
                raise _Unusable(f"its file has more than {record.size:,} bytes")
            file.write(block)
            show(done)
    if done < record.size:
        raise _Cut("the connection ended")


def _answer(place: str, have: int, size: int) -> tuple[Any, int]:
    """Return a server's answer and the position that it starts from: `have`, or 0 from a server that can't resume."""
    response = _open(place, have)
    start, total = 0, response.headers.get("Content-Length", "")
    if response.status in (206, 416):
        given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        start, total = (int(given[1]), given[2]) if given else (-1, "")
        if start != have:
            response.close()
            if not have:
                raise _Unusable("it answers with another range than it was asked for")
            return _answer(place, 0, size)
    # Told before a byte is written, so that a log-in page does not replace what has been downloaded.
    if total.isdigit() and int(total) != size:
        response.close()
        raise _Unusable(f"its file has {int(total):,} bytes and not {size:,}")
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise _Unusable("it answers with a web page")
    return response, start


def _open(place: str, have: int) -> Any:
    headers = {"User-Agent": f"keras-convnets/{__version__}"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(place, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            return error
        error.close()
        raise _Unusable(f"HTTP {error.code} {error.reason}".strip()) from error
    except urllib.error.URLError as error:
        raise _Unusable(str(getattr(error.reason, "strerror", None) or error.reason)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Cut(str(error) or type(error).__name__) from error


def _blocks(response: Any) -> Iterator[bytes]:
    """Yield what arrives; the network's errors become `_Cut`, which tells them from the disk's."""
    while True:
        try:
            block = response.read(BLOCK)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Cut(str(error) or type(error).__name__) from error
        if not block:
            return
        yield block


def _places(record: WeightsRecord) -> list[str]:
    """Return the addresses to try: the mirrors' where the user named some, else the record's own."""
    return [_place(base, record.file) for base in os.environ.get(MIRRORS, "").split()] or list(record.locations)


def _place(base: str, file: str) -> str:
    try:
        parts = urllib.parse.urlsplit(base)
        usable = parts.scheme == "file" or (parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
    except ValueError:
        usable = False
    if not usable:
        raise UserError(
            f"{MIRRORS} holds {base!r}; it takes http://, https:// and file:// addresses with spaces between, each a "
            "folder's or one with {file} where the file's name goes; mend or unset it."
        )
    return base.replace("{file}", file) if "{file}" in base else f"{base.rstrip('/')}/{file}"


@contextlib.contextmanager
def _alone(lock: Path, file: str) -> Iterator[None]:
    """Hold a lock file, which goes with the process; wait for another that holds it."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        log.info("%s is being downloaded by another process; waiting for it", file)
        held.acquire()
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def _progress(record: WeightsRecord, done: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr where that is a terminal; gives what takes the number of bytes that are here."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(record.file, total=record.size, completed=done)
        yield lambda now: progress.update(task, completed=now)


def _is_right(path: Path, record: WeightsRecord) -> bool:
    return path.is_file() and sha256(path) == record.sha256


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _sentence(record: WeightsRecord, path: Path, places: list[str], why: str) -> str:
    return (
        f"{record.file} can't be downloaded, {why}; get it another way, from {' or '.join(places)}, and put it "
        f"at {path} ({record.size:,} bytes, sha256 {record.sha256})."
    )


def _not_kept(record: WeightsRecord, path: Path, reason: str) -> DownloadError:
    return DownloadError(
        f"the {record.size:,} bytes of {record.file} can't be kept in {path.parent} ({reason}); make room there or let "
        f"KERAS_HOME name another folder and try again, or put the file at {path} (sha256 {record.sha256})."
    )
