"""The REST front end: one plain ASGI application."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import re
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from keras_convnets.display import printable
from keras_convnets.export.serving.admission import costs
from keras_convnets.export.serving.admission.admission import Admission
from keras_convnets.export.serving.metrics import Metrics
from keras_convnets.export.serving.models.servables import Servables
from keras_convnets.export.serving.rest import routes
from keras_convnets.export.serving.rest.body import PIECE_BYTES, Held, Unread, inflated, read_body
from keras_convnets.export.serving.rest.verbs import VERBS, Asked, Service, Verb, json_bytes
from keras_convnets.export.serving.scheduling.deadline import deadline
from keras_convnets.export.serving.status import MAX_NAME, Code, ServingError, invalid_argument

_log = logging.getLogger(__name__)

# TensorFlow Serving quotes what a client sent in full, which may be most of a body.
MAX_ERROR_CHARACTERS = 2**16

_JSON = [(b"content-type", b"application/json")]
_CORS = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"POST, GET"),
    (b"access-control-allow-headers", b"Content-Type"),
]
_CLOSE = [(b"connection", b"close")]
_NOT_FOUND = b"<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>\n"
_ORIGIN = re.compile(rb"https?://")

Message = dict[str, Any]


class RestApp:
    """TensorFlow Serving's REST interface as an ASGI application.

    Args:
        servables: the models.
        executor: runs everything that takes time, so that a slow request holds up no other.
        timeout_seconds: after which a request is answered with 504.
        admission: admits requests; by default with the default limits.
        cors: whether pages of other origins may read the answers.
        metrics: what requests are counted in.
        prometheus_path: where the metrics are shown; None for nowhere.
    """

    def __init__(
        self,
        servables: Servables,
        executor: concurrent.futures.Executor,
        *,
        timeout_seconds: float = 30.0,
        admission: Admission | None = None,
        cors: bool = False,
        metrics: Metrics | None = None,
        prometheus_path: str | None = None,
    ):
        self._executor = executor
        self._timeout = timeout_seconds
        self._admission = admission or Admission()
        self._limits = self._admission.limits
        self._cors = _CORS if cors else []
        self._metrics = metrics or Metrics()
        self._service = Service(servables, self._admission, self._metrics)
        self._prometheus_path = prometheus_path

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        target = _target(scope)
        if self._prometheus_path is not None and target.partition("?")[0] == self._prometheus_path:
            status, text = self._page(target)
            await _send(send, status, text.encode("utf-8", "surrogateescape"), [(b"content-type", b"text/plain")])
        elif not routes.is_handled(target):
            headers = [(b"content-type", b"text/html; charset=ISO-8859-1"), *_CLOSE]
            await _send(send, 404, _NOT_FOUND, headers)
        else:
            held = Held(self._admission)
            try:
                body = await read_body(receive, held, self._limits)
                if body is not None:
                    status, answer, headers = await self._answer(scope, target, body, held)
                    del body
                    await _send(send, status, answer, [*headers, *self._cors])
            except Unread as error:
                await _send(send, error.status, _error_body(str(error)), [*_JSON, *self._cors, *_CLOSE])
            finally:
                held.release()

    def _page(self, target: str) -> tuple[int, str]:
        if target != self._prometheus_path:
            return 400, f"Unexpected path: {target}. Should be {self._prometheus_path}"
        return 200, self._metrics.page()

    async def _answer(
        self, scope: dict[str, Any], target: str, body: bytes, held: Held
    ) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        """Answer a request of the REST interface and count it; returns status, body and headers."""
        began = time.monotonic()
        method, headers = scope["method"], dict(scope["headers"])
        if method == "OPTIONS":
            code = Code.OK if _ORIGIN.search(headers.get(b"origin", b"")) else Code.FAILED_PRECONDITION
            self._metrics.count_request("", code)
            return code.http_status, b"", []
        route = routes.NO_ROUTE
        try:
            route = routes.parse(method, target)
            if not route.verb:
                # The bytes as they came, in the answer as well.
                path = target.encode("latin-1").decode("utf-8", "surrogateescape")
                raise invalid_argument(f"Malformed request: {method} {path}")
            gzipped = headers.get(b"content-encoding", b"").strip().lower() == b"gzip"
            status, code, answer = 200, Code.OK, await self._done(VERBS[route.verb], route.asked, body, gzipped, held)
        except routes.VersionOverflow as error:
            route = routes.Route("", Asked(error.model))
            status, code, answer = 400, Code.INVALID_ARGUMENT, b""
        except ServingError as error:
            status, code, answer = error.http_status, error.code, _error_body(error.message)
        except TimeoutError:
            status, code = 504, Code.DEADLINE_EXCEEDED
            answer = _error_body(f"Timed out after {self._timeout * 1000:.0f} ms")
        except Exception as error:
            _log.exception("Answering %s %s failed", method, printable(target, MAX_NAME))
            status, code = 500, Code.INTERNAL
            answer = _error_body(f"Internal error: {type(error).__name__}: {error}")
        self._metrics.count_request(route.asked.model, code)
        if code is Code.OK:
            api = route.verb if method == "POST" else ""
            self._metrics.request_latency(route.asked.model, api, "REST", time.monotonic() - began)
        return status, answer, _JSON

    async def _done(self, verb: Verb, asked: Asked, body: bytes, gzipped: bool, held: Held) -> bytes:
        if not verb.is_slow:
            return verb.answer(self._service, asked, body)
        if verb.runs_model:
            held.enter()
        work = self._executor.submit(self._work, verb, asked, body, gzipped, time.monotonic() + self._timeout)
        # Its memory is in use until the work is done, even if an error was sent meanwhile.
        held.release_after(work)
        # Work that has not started by then is cancelled.
        answer = await asyncio.wait_for(asyncio.wrap_future(work), self._timeout)
        if isinstance(answer, ServingError):
            raise answer
        return answer

    def _work(self, verb: Verb, asked: Asked, body: bytes, gzipped: bool, until: float) -> bytes | ServingError:
        """Return the answer or the error: raised through a future it would keep all of the request for a while."""
        try:
            return self._worked(verb, asked, body, gzipped, until)
        except ServingError as error:
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)

    def _worked(self, verb: Verb, asked: Asked, body: bytes, gzipped: bool, until: float) -> bytes:
        if not verb.runs_model:
            return verb.answer(self._service, asked, b"")
        with deadline(until):
            try:
                # Inflated once without keeping anything, to estimate its memory.
                cost = costs.of_json(inflated(body, self._limits) if gzipped else [body])
            except zlib.error:
                # A broken body reads as empty, as it does in TensorFlow Serving.
                cost, gzipped, body = 0, False, b""
            with self._admission.working(cost):
                return verb.answer(self._service, asked, b"".join(inflated(body, self._limits)) if gzipped else body)


def _target(scope: dict[str, Any]) -> str:
    query = scope.get("query_string", b"")
    target = scope["raw_path"] + (b"?" + query if query else b"")
    return target.decode("latin-1")


def _error_body(message: str) -> bytes:
    if len(message) > MAX_ERROR_CHARACTERS:
        message = message[:MAX_ERROR_CHARACTERS] + "...TRUNCATED"
    return json_bytes({"error": message})


async def _send(
    send: Callable[[Message], Awaitable[None]], status: int, body: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    length = (b"content-length", str(len(body)).encode("ascii"))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    # In pieces, each of which waits until most of those before it were taken: what a slow reader has not taken yet is
    # not kept twice.
    for at in range(0, max(len(body), 1), PIECE_BYTES):
        piece, more = body[at : at + PIECE_BYTES], at + PIECE_BYTES < len(body)
        await send({"type": "http.response.body", "body": piece, "more_body": more})
