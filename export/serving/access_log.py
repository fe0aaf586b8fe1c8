"""The access log: one line of JSON for each request that was answered."""

from __future__ import annotations

import datetime
import json
import logging
import queue
import threading
from typing import Any, TextIO

from keras_convnets.export.serving.request_record import RequestRecord

# Lines that wait to be written: a reader that stops reading must neither stop the server nor fill its memory.
MAX_WAITING = 10_000
# Characters of what comes from a client.
_MAX_CALL, _MAX_MODEL, _MAX_ERROR = 2048, 256, 1000

_log = logging.getLogger(__name__)


def log_entry(record: RequestRecord) -> dict[str, Any]:
    """Return the fields of a request's line in the access log; what is not known or does not apply is left out.

    Example:
        >>> entry = log_entry(RequestRecord("3f2a", "REST", "GET /v1/models/photos", received=0.0, http_status=200))
        >>> entry["time"], entry["status"], entry["code"]
        ('1970-01-01T00:00:00.000000Z', 200, 'OK')
    """
    received = datetime.datetime.fromtimestamp(record.received, datetime.UTC)
    entry = {
        "time": received.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "request_id": record.id,
        "interface": record.interface,
        "call": record.call[:_MAX_CALL],
        "peer": record.peer,
        "model": record.model[:_MAX_MODEL] or None,
        "version": record.version,
        "api": record.api or None,
        "status": record.http_status,
        "code": record.code.name,
        "seconds": round(record.seconds, 6),
        "runtime_seconds": None if record.runtime_seconds is None else round(record.runtime_seconds, 6),
        "request_bytes": record.request_bytes,
        "response_bytes": record.response_bytes,
        "batch_size": record.batch_size,
        "error": record.error[:_MAX_ERROR] or None,
    }
    return {name: value for name, value in entry.items() if value is not None}


class AccessLog:
    """Writes a line for each request, in a thread of its own.

    Lines that the reader of the stream does not take in time are left out; the next line that is written says how many,
    as "lines_left_out".

    Args:
        stream: where the lines go.
        max_waiting: how many lines may wait to be written.
    """

    def __init__(self, stream: TextIO, max_waiting: int = MAX_WAITING):
        self._stream = stream
        self._waiting: queue.Queue[RequestRecord | None] = queue.Queue(max_waiting)
        self._lock = threading.Lock()
        self._left_out = 0
        self._thread = threading.Thread(target=self._write_all, name="access-log", daemon=True)
        self._thread.start()

    def write(self, record: RequestRecord) -> None:
        """Have a request's line written; returns at once."""
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            with self._lock:
                self._left_out += 1

    def close(self, timeout: float = 5.0) -> None:
        """Write what waits and end; lines that are not taken within the timeout, in seconds, are lost."""
        try:
            self._waiting.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)

    def _write_all(self) -> None:
        try:
            while (record := self._waiting.get()) is not None:
                entry = log_entry(record)
                with self._lock:
                    left_out, self._left_out = self._left_out, 0
                if left_out:
                    entry["lines_left_out"] = left_out
                # In ASCII: a name with escape sequences or half characters does no harm in a terminal.
                self._stream.write(json.dumps(entry, separators=(",", ":")) + "\n")
                if self._waiting.empty():
                    self._stream.flush()
            self._stream.flush()
        except (OSError, ValueError) as error:
            _log.error("The access log ends, as its stream takes no more: %s", error)
            # What comes now is dropped as it is written.
            while self._waiting.get() is not None:
                pass
