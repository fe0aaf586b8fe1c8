"""What the server notes of a request while it answers it: its id, and, once they are known, the version and outcome."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import re
import time
import uuid
from collections.abc import Iterator

from keras_convnets.export.serving.status import Code

# The HTTP header, and the key of gRPC's metadata.
REQUEST_ID = "x-request-id"
# An id that a client chose goes into answers and logs: letters of identifiers only, and not many.
_ID = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")


@dataclasses.dataclass
class RequestRecord:
    """A request and what became of it.

    Attributes:
        id: of the request; the client's own, or a new one.
        interface: "REST" or "gRPC".
        call: the HTTP method and path, or gRPC's method.
        peer: the client's address as far as it is known.
        received: when it came, in seconds since 1970.
        model: the model that was asked for; "" where none was.
        version: the version that answers it; None before one is found.
        api: what was asked of the model, such as "predict"; "" for anything else.
        code: the canonical status.
        http_status: of the answer; None over gRPC.
        error: the answer's message if it failed.
        seconds: from the arrival to the answer.
        runtime_seconds: of these, those of the model's own run, with the wait for a place or a batch.
        request_bytes: the size of the request's body or message as received.
        response_bytes: the size of the answer's body; None over gRPC.
        batch_size: the rows of the batch in which the model ran it; None without batching.
        batches_begun: the rows of every batch of which this request has the first row.
    """

    id: str
    interface: str
    call: str
    peer: str = ""
    received: float = dataclasses.field(default_factory=time.time)
    model: str = ""
    version: int | None = None
    api: str = ""
    code: Code = Code.OK
    http_status: int | None = None
    error: str = ""
    seconds: float = 0.0
    runtime_seconds: float | None = None
    request_bytes: int = 0
    response_bytes: int | None = None
    batch_size: int | None = None
    batches_begun: list[int] = dataclasses.field(default_factory=list)

    def fail(self, code: Code, message: str) -> None:
        """Note that the request failed."""
        self.code, self.error = code, message


_CURRENT: contextvars.ContextVar[RequestRecord | None] = contextvars.ContextVar("request_record", default=None)


def current_record() -> RequestRecord:
    """Return the record of the request that is being answered; outside of any, as in warm-up, one that is not kept."""
    return _CURRENT.get() or RequestRecord("", "", "")


@contextlib.contextmanager
def recording(record: RequestRecord) -> Iterator[None]:
    """Make a record that of the current request."""
    token = _CURRENT.set(record)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def request_id(given: str | None) -> str:
    """Return the id of a request.

    Args:
        given: what the client sent as its id; it is taken if it has 1 to 128 letters, digits and signs of identifiers.

    Example:
        >>> request_id("3f2a-7")
        '3f2a-7'
    """
    return given if given and _ID.fullmatch(given) else uuid.uuid4().hex
