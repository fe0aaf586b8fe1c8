"""Downloads of published weights into the cache: resumable, verified by sha256 and atomically renamed."""

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
# Seconds to wait before each retry of a URL; an attempt that made progress resets the count.
RETRY_DELAYS = (0.5, 2.0, 5.0)
CHUNK_BYTES = 1 << 16
log = logging.getLogger("keras_convnets")


class DownloadError(OSError):
    """A download that failed because of the network or the disk; the message says where to put the file by hand."""


class _SourceFailed(Exception):
    """The file can't be downloaded from a URL; the next URL is tried."""


class _ConnectionLost(Exception):
    """The connection failed or closed early; the same URL is retried and the download resumed."""


def cache_folder() -> Path:
    """Return the cache folder of downloaded files, `$KERAS_HOME/models/keras_convnets`; it need not exist.

    `KERAS_HOME` defaults to `~/.keras`.
    """
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models" / "keras_convnets"


def download(record: WeightsRecord) -> Path:
    """Return the path of a record's file in the cache, downloading it if it is not cached.

    The file's sha256 is verified on every call. A partial download is kept in a `.part` file beside it, which a later
    call resumes. If several processes request the file, one downloads it and the others wait.

    Args:
        record: gives the file name, URLs, size in bytes (None where the server says it) and sha256 (or its beginning).

    Returns:
        The path of a file with the record's sha256.

    Raises:
        UserError: if `KERAS_CONVNETS_OFFLINE` forbids the download, or `KERAS_CONVNETS_MIRRORS` holds an invalid URL.
        DownloadError: if every URL fails, or the file can't be written to the cache.
    """
    path = cache_folder() / record.file
    try:
        if _is_file_of(record, path):
            return path
        if path.exists():
            log.warning("%s does not have the sha256 %s and is not used", path, record.sha256)
        urls = _urls(record)
        if os.environ.get(OFFLINE, "").lower() not in ("", "0", "false"):
            raise UserError(_failure_message(record, path, urls, f"because {OFFLINE} is set"))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{record.sha256[:12]}.part")
        with _locked(part.with_suffix(".lock"), record.file):
            if not _is_file_of(record, path):
                _download(record, path, part, urls)
    except DownloadError:
        raise
    except OSError as error:
        raise _cache_error(record, path, error.strerror or str(error)) from error
    return path


def _download(record: WeightsRecord, path: Path, part: Path, urls: list[str]) -> None:
    """Download `path` from the first URL that works, resuming the partial download `part`."""
    if record.size is not None:
        missing, free = record.size - _size(part), shutil.disk_usage(path.parent).free
        if missing > free:
            raise _cache_error(record, path, f"{missing:,} more bytes are needed and {free:,} are free")
    failed = []
    with _progress(record, _size(part)) as show:
        for url in urls:
            log.info("downloading %s from %s (%s of %s already downloaded)", path, url, _size(part), _bytes(record))
            try:
                _download_verified(url, part, record, show)
            except _SourceFailed as reason:
                log.warning("%s can't be downloaded from %s: %s", record.file, url, reason)
                failed.append(f"{url} ({reason})")
                continue
            with open(part, "r+b") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
            log.info("downloaded %s and verified its sha256", path)
            return
    raise DownloadError(_failure_message(record, path, failed, "because every URL failed"))


def _download_verified(url: str, part: Path, record: WeightsRecord, show: Callable[[int, int], None]) -> None:
    """Complete the partial download from one URL and verify its sha256; it is deleted if that does not match."""
    resumed = _size(part) > 0
    _download_with_retries(url, part, record, show)
    found = sha256(part)
    if record.has_sha256(found):
        return
    part.unlink()
    if not resumed:
        raise _SourceFailed(f"its file has the sha256 {found}")
    # The bytes downloaded earlier may have been wrong: start again from this URL.
    log.warning("the resumed download of %s has the sha256 %s; restarting it from the beginning", record.file, found)
    _download_verified(url, part, record, show)


def _download_with_retries(url: str, part: Path, record: WeightsRecord, show: Callable[[int, int], None]) -> None:
    """Download until the file has its full size, retrying lost connections with increasing delays."""
    size, furthest, delays = record.size, -1, iter(RETRY_DELAYS)
    while size is None or _size(part) < size:
        try:
            size = _receive(url, part, record, show)
        except _ConnectionLost as reason:
            if _size(part) > furthest:
                furthest, delays = _size(part), iter(RETRY_DELAYS)
            delay = next(delays, None)
            if delay is None:
                raise _SourceFailed(f"{reason} after {_size(part):,} of {_bytes(record)}") from reason
            log.warning("%s: %s after %s bytes; retrying in %s s", url, reason, _size(part), delay)
            time.sleep(delay)


def _receive(url: str, part: Path, record: WeightsRecord, show: Callable[[int, int], None]) -> int:
    """Append a response to the partial download; overwrite it if the server can't resume and sends the whole file.

    Returns:
        The size of the whole file in bytes.
    """
    response, done, size = _request(url, _size(part), record.size)
    with response, open(part, "ab" if done else "wb") as file:
        for chunk in _chunks(response):
            done += len(chunk)
            if done > size:
                part.unlink()
                raise _SourceFailed(f"its file has more than {size:,} bytes")
            file.write(chunk)
            show(done, size)
    if done < size:
        raise _ConnectionLost("the connection ended")
    return size


def _request(url: str, offset: int, size: int | None) -> tuple[Any, int, int]:
    """Request the file from a byte offset on.

    Returns:
        The response; the offset of its first byte, `offset`, or 0 if the server does not support range requests; and
        the size of the whole file: `size`, or as the server says where that is None.
    """
    response = _open(url, offset)
    start, total = 0, response.headers.get("Content-Length", "")
    if response.status in (206, 416):
        content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        start, total = (int(content_range[1]), content_range[2]) if content_range else (-1, "")
        if start != offset:
            response.close()
            if not offset:
                raise _SourceFailed("it answers with another range than requested")
            return _request(url, 0, size)
    # Checked before anything is written, so that a log-in page does not overwrite the partial download.
    stated = int(total) if total.isdigit() else None
    if size is not None and stated not in (None, size):
        response.close()
        raise _SourceFailed(f"its file has {stated:,} bytes and not {size:,}")
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise _SourceFailed("it answers with a web page")
    whole = stated if size is None else size
    if whole is None:
        response.close()
        raise _SourceFailed("it does not say how many bytes its file has")
    return response, start, whole


def _open(url: str, offset: int) -> Any:
    headers = {"User-Agent": f"keras-convnets/{__version__}"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and offset:
            return error
        error.close()
        raise _SourceFailed(f"HTTP {error.code} {error.reason}".strip()) from error
    except urllib.error.URLError as error:
        raise _SourceFailed(str(getattr(error.reason, "strerror", None) or error.reason)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _ConnectionLost(str(error) or type(error).__name__) from error


def _chunks(response: Any) -> Iterator[bytes]:
    """Yield the response's body; network errors become `_ConnectionLost`, to distinguish them from disk errors."""
    while True:
        try:
            chunk = response.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _ConnectionLost(str(error) or type(error).__name__) from error
        if not chunk:
            return
        yield chunk


def _urls(record: WeightsRecord) -> list[str]:
    """Return the URLs to try in order: those of the mirrors if any are set, else the record's."""
    return [_mirror_url(base, record.file) for base in os.environ.get(MIRRORS, "").split()] or list(record.locations)


def _mirror_url(base: str, file: str) -> str:
    try:
        parts = urllib.parse.urlsplit(base)
        usable = parts.scheme == "file" or (parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
    except ValueError:
        usable = False
    if not usable:
        raise UserError(
            f"{MIRRORS} holds {base!r}; it takes http://, https:// and file:// URLs separated by spaces, each of a "
            "folder or with {file} in place of the file name; correct or unset it."
        )
    return base.replace("{file}", file) if "{file}" in base else f"{base.rstrip('/')}/{file}"


@contextlib.contextmanager
def _locked(lock_path: Path, file: str) -> Iterator[None]:
    """Hold a lock file, waiting while another process holds it; it is released when the process ends."""
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s is being downloaded by another process; waiting for it", file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _progress(record: WeightsRecord, done: int) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr if that is a terminal; yield a function of the bytes downloaded so far and all."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(record.file, total=record.size, completed=done)
        yield lambda now, size: progress.update(task, completed=now, total=size)


def _is_file_of(record: WeightsRecord, path: Path) -> bool:
    return path.is_file() and record.has_sha256(sha256(path))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _failure_message(record: WeightsRecord, path: Path, urls: list[str], why: str) -> str:
    return (
        f"{record.file} can't be downloaded, {why}; download it by other means, from {' or '.join(urls)}, and put it "
        f"at {path} ({'' if record.size is None else f'{record.size:,} bytes, '}{_sum(record)})."
    )


def _cache_error(record: WeightsRecord, path: Path, reason: str) -> DownloadError:
    return DownloadError(
        f"the {_bytes(record)} of {record.file} can't be stored in {path.parent} ({reason}); free disk space "
        f"there or set KERAS_HOME to another folder and try again, or put the file at {path} ({_sum(record)})."
    )


def _bytes(record: WeightsRecord) -> str:
    return "all bytes" if record.size is None else f"{record.size:,} bytes"


def _sum(record: WeightsRecord) -> str:
    whole = len(record.sha256) == 64
    return f"sha256 {record.sha256}" if whole else f"its sha256 begins with {record.sha256}"
