"""A request's body: received in chunks, counted against the limit of pending bytes, and inflated."""

from __future__ import annotations

import asyncio
import concurrent.futures
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from keras_convnets.export.serving.admission.admission import Admission
from keras_convnets.export.serving.admission.limits import Limits
from keras_convnets.export.serving.status import Code, ServingError

# Timeout between two chunks of a body.
BODY_SECONDS = 75.0
PIECE_BYTES = 2**18


class Held:
    """The resources that one request holds: received bytes, and its admission."""

    def __init__(self, admission: Admission):
        self._admission = admission
        self.bytes = 0
        self._inside = False
        self._owner: object = self

    def acquire(self, size: int) -> None:
        """Hold more bytes; raises ServingError if the limit of pending bytes is reached."""
        self._admission.pending.acquire(size)
        self.bytes += size

    def enter(self) -> None:
        """Admit the request; raises ServingError if too many are admitted."""
        self._admission.enter()
        self._inside = True

    def release_after(self, work: concurrent.futures.Future) -> None:
        """Release the resources when a future is done, instead of by `release()`."""
        self._owner = work
        work.add_done_callback(self.release)

    def release(self, owner: object = None) -> None:
        """Release everything, unless `release_after` left that to another owner."""
        if (owner or self) is not self._owner:
            return
        self._admission.pending.release(self.bytes)
        if self._inside:
            self._admission.leave()
        self.bytes, self._inside = 0, False


class Unread(Exception):
    """A body that was not read completely, and the response."""

    def __init__(self, status: int, code: Code, text: str):
        super().__init__(text)
        self.status = status
        self.code = code


async def read_body(receive: Callable[[], Awaitable[dict[str, Any]]], held: Held, limits: Limits) -> bytes | None:
    """Return the body of a request, or None if the client disconnected before it was complete.

    Args:
        receive: ASGI's `receive`.
        held: counts its bytes.
        limits: give the maximum size.

    Raises:
        Unread: if it takes too long, is too large or exceeds the limit of pending bytes.
    """
    chunks: list[bytes] = []
    while True:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await receive()
        except TimeoutError:
            raise Unread(
                408, Code.DEADLINE_EXCEEDED, f"No more of the request came for {BODY_SECONDS:.0f} seconds"
            ) from None
        if message["type"] == "http.disconnect":
            return None
        chunk = message.get("body", b"")
        try:
            limits.check_bytes(held.bytes + len(chunk), "The request is too large")
            held.acquire(len(chunk))
        except ServingError as error:
            raise Unread(error.http_status, error.code, error.message) from None
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def inflated(body: bytes, limits: Limits) -> Iterator[bytes]:
    """Inflate a gzip body in pieces.

    Raises:
        zlib.error: for a broken body, at the latest at its end.
        ServingError: RESOURCE_EXHAUSTED as soon as it inflates to too much.
    """
    inflater, size = zlib.decompressobj(wbits=31), 0
    # The input in chunks too, because its unused rest is copied each time.
    rests = (body[at : at + PIECE_BYTES] for at in range(0, len(body), PIECE_BYTES))
    while not inflater.eof:
        rest = inflater.unconsumed_tail or next(rests, b"")
        piece = inflater.decompress(rest, PIECE_BYTES)
        if not piece and not rest:
            raise zlib.error("incomplete")
        size += len(piece)
        limits.check_bytes(size, "The inflated request is too large")
        yield piece
