"""uvicorn in a thread, with a hardened HTTP protocol: limits for slow or endless headers, for connections, for
pipelined requests and for responses that the client does not read; and no upgrades.

A client that offers HTTP/2 (`curl --http2`, Java's HttpClient) sends "Upgrade: h2c" with its request, which an HTTP/1.1
server ignores. uvicorn's parser takes it for the end of HTTP instead, and the body would be lost.

uvicorn has an option for none of these: `limit_concurrency` counts requests whose headers came, and closes nothing. The
range of versions that setup.cfg allows is the one that this is tested with.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Between two requests on a connection.
KEEP_ALIVE_SECONDS = 75
HEADER_SECONDS = 30.0
MAX_HEADER_BYTES = 2**16
# Pipelined requests on one connection.
MAX_PIPELINED = 16
# Time without the client reading any byte of a response.
WRITE_SECONDS = 75.0

_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    b"connection: close\r\n\r\n%s"
)
_TOO_MANY_TEXT = b'{"error":"The server has as many connections as it allows (--max_connections); try again later."}'
_TOO_MANY %= len(_TOO_MANY_TEXT), _TOO_MANY_TEXT
_END = re.compile(rb"\r?\n\r?\n")
_UPGRADE = re.compile(rb"\nUpgrade:", re.IGNORECASE)


class LimitedProtocol(HttpToolsProtocol):
    """Buffers the headers of a request until they are complete, and closes the connection if they never are.

    uvicorn itself limits only the time between two requests.
    """

    _timer: asyncio.TimerHandle | None = None
    # Whether the next byte begins a request; inside headers the parser may be only for requests sent without waiting.
    _between = True
    _inside = False
    _inside_bytes = 0
    _write_timer: asyncio.TimerHandle | None = None
    # Maximum number of concurrent connections; 0 for no limit.
    max_connections = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Wait for the first request, or refuse the connection if there are too many."""
        super().connection_made(transport)
        self._head = bytearray()
        if self.max_connections and len(self.connections) > self.max_connections:
            transport.write(_TOO_MANY)
            transport.close()
            return
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._stop_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the timeout for unread responses when the write buffer is full."""
        super().pause_writing()
        self._await_taken(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Resume writing."""
        self._stop_write_timer()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Pass complete headers to the parser, and the data after them as they arrive."""
        if self.transport.is_closing():
            return
        if self._between:
            self._start_timer()
            searched = max(len(self._head) - 3, 0)
            self._head += data
            end = _END.search(self._head, searched)
            if end is None:
                self._check_size(len(self._head))
                return
            received, self._head = bytes(self._head), bytearray()
            data = _UPGRADE.sub(b"\nX-Upgrade:", received[: end.start()]) + received[end.start() :]
        super().data_received(data)
        if self._inside:
            self._inside_bytes += len(data)
            self._check_size(self._inside_bytes)

    def on_message_begin(self) -> None:
        """Begin to await the end of the headers."""
        if len(self.pipeline) >= MAX_PIPELINED:
            # The parser ends at the error, and the connection is answered with 400.
            raise ValueError("too many requests on one connection wait for their answers")
        super().on_message_begin()
        self._between, self._inside, self._inside_bytes = False, True, 0
        self._start_timer()

    def on_headers_complete(self) -> None:
        """Leave the rest of the request to the application."""
        self._inside, self._inside_bytes = False, 0
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Be ready for the next request."""
        super().on_message_complete()
        self._between = True

    def _check_size(self, size: int) -> None:
        if size > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's headers are too long.")

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _await_taken(self, size: int) -> None:
        """Close the connection if the client has read nothing of the pending bytes for `WRITE_SECONDS`."""

        def check() -> None:
            left = self.transport.get_write_buffer_size()
            if left < size:
                self._await_taken(left)
            else:
                self.transport.abort()

        self._stop_write_timer()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, check)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            # The request before is still being answered.
            self._start_timer()


class RestServer:
    """uvicorn, in a thread, on a socket that is bound already.

    Args:
        app: the ASGI application.
        bound: the socket; it is made to listen by `start` and closed by `stop`.
        max_connections: at a time; 0 for any number.
    """

    def __init__(self, app: Any, bound: socket.socket, max_connections: int = 0):
        protocol = type("Protocol", (LimitedProtocol,), {"max_connections": max_connections})

        self._socket = bound
        config = uvicorn.Config(
            app,
            http=protocol,
            log_level="warning",
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        self._config = config
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [bound]}, name="rest-server", daemon=True
        )

    def start(self) -> None:
        """Start to answer."""
        self._thread.start()

    def stop(self, grace_seconds: float) -> None:
        """Take no more requests and return when those under way are answered, or when the grace is over."""
        # uvicorn says int, and hands it to asyncio, which takes fractions.
        self._config.timeout_graceful_shutdown = grace_seconds  # type: ignore[assignment]
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(grace_seconds + 5)
        self._socket.close()
