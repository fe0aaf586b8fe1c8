"""A request's body: received in pieces, counted against what all clients may have pending, and inflated."""

from __future__ import annotations

import asyncio
import concurrent.futures
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from keras_convnets.export.serving.admission.admission import Admission
from keras_convnets.export.serving.admission.limits import Limits
from keras_convnets.export.serving.status import ServingError

# Between two pieces of a body.
BODY_SECONDS = 75.0
PIECE_BYTES = 2**18


class Held:
    """What one request holds: bytes that were received, and its admission."""

    def __init__(self, admission: Admission):
        self._admission = admission
        self.bytes = 0
        self._inside = False
        self._owner: object = self

    def take(self, size: int) -> None:
        """Hold more bytes; raises ServingError where there are none left."""
        self._admission.pending.take(size)
        self.bytes += size

    def enter(self) -> None:
        """Be admitted; raises ServingError where too many are."""
        self._admission.enter()
        self._inside = True

    def release_after(self, work: concurrent.futures.Future) -> None:
        """Leave it to a future's end to release what is held."""
        self._owner = work
        work.add_done_callback(self.release)

    def release(self, owner: object = None) -> None:
        """Give everything back, unless that is left to another."""
        if (owner or self) is not self._owner:
            return
        self._admission.pending.give(self.bytes)
        if self._inside:
            self._admission.leave()
        self.bytes, self._inside = 0, False


class Unread(Exception):
    """A body that was not read to its end, and what is answered."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


async def read_body(receive: Callable[[], Awaitable[dict[str, Any]]], held: Held, limits: Limits) -> bytes | None:
    """Return the whole body of a request, or None when the client went away before it was sent.

    Args:
        receive: ASGI's.
        held: counts its bytes.
        limits: how many there may be.

    Raises:
        Unread: if it takes too long, is too large or finds no room.
    """
    chunks: list[bytes] = []
    while True:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await receive()
        except TimeoutError:
            raise Unread(408, f"No more of the request came for {BODY_SECONDS:.0f} seconds") from None
        if message["type"] == "http.disconnect":
            return None
        chunk = message.get("body", b"")
        try:
            limits.check_bytes(held.bytes + len(chunk), "The request is too large")
            held.take(len(chunk))
        except ServingError as error:
            raise Unread(error.http_status, error.message) from None
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
    # The input in pieces too: what was not used of it is copied each time.
    rests = (body[at : at + PIECE_BYTES] for at in range(0, len(body), PIECE_BYTES))
    while not inflater.eof:
        rest = inflater.unconsumed_tail or next(rests, b"")
        piece = inflater.decompress(rest, PIECE_BYTES)
        if not piece and not rest:
            raise zlib.error("incomplete")
        size += len(piece)
        limits.check_bytes(size, "The inflated request is too large")
        yield piece
