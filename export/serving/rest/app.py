"""The REST front end: one plain ASGI application."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import re
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from keras_convnets.display import printable
from keras_convnets.export.serving.admission import costs
from keras_convnets.export.serving.admission.admission import Admission
from keras_convnets.export.serving.models.servables import Servables
from keras_convnets.export.serving.observer import Observer
from keras_convnets.export.serving.request_record import REQUEST_ID, RequestRecord
from keras_convnets.export.serving.rest import page, routes
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
        observer: counts, logs and traces requests.
        prometheus_path: where the metrics are shown; None for nowhere.
        has_page: whether "/" is a page that classifies photographs.
    """

    def __init__(
        self,
        servables: Servables,
        executor: concurrent.futures.Executor,
        *,
        timeout_seconds: float = 30.0,
        admission: Admission | None = None,
        cors: bool = False,
        observer: Observer | None = None,
        prometheus_path: str | None = None,
        has_page: bool = False,
    ):
        self._executor = executor
        self._timeout = timeout_seconds
        self._admission = admission or Admission()
        self._limits = self._admission.limits
        self._cors = _CORS if cors else []
        self._observer = observer or Observer()
        self._metrics = self._observer.metrics
        self._service = Service(servables, self._admission, self._metrics)
        self._prometheus_path = prometheus_path
        self._has_page = has_page

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        target = _target(scope)
        client, headers = scope.get("client"), _texts(scope["headers"])
        peer = f"{client[0]}:{client[1]}" if client else ""
        with self._observer.request("REST", f"{scope['method']} {target}", peer, headers) as record:
            await self._answered(scope, target, receive, _Answer(send, record))

    async def _answered(
        self, scope: dict[str, Any], target: str, receive: Callable[[], Awaitable[Message]], answer: _Answer
    ) -> None:
        path, _, query = target.partition("?")
        if self._has_page and path == page.PATH and scope["method"] in ("GET", "HEAD"):
            await answer.send(200, page.content(), page.headers(query))
        elif self._has_page and path == page.MODELS_PATH and scope["method"] == "GET":
            await answer.send(200, json_bytes({"models": self._service.servables.names()}), _JSON)
        elif self._prometheus_path is not None and path == self._prometheus_path:
            status, text = self._page(target)
            await answer.send(status, text.encode("utf-8", "surrogateescape"), [(b"content-type", b"text/plain")])
        elif not routes.is_handled(target):
            headers = [(b"content-type", b"text/html; charset=ISO-8859-1"), *_CLOSE]
            answer.record.fail(Code.NOT_FOUND, "Not Found")
            await answer.send(404, _NOT_FOUND, headers)
        else:
            held = Held(self._admission)
            try:
                body = await read_body(receive, held, self._limits)
                if body is None:
                    answer.record.fail(Code.CANCELLED, "The client left before its request was received.")
                else:
                    answer.record.request_bytes = len(body)
                    status, content, headers = await self._answer(scope, target, body, held, answer.record)
                    del body
                    await answer.send(status, content, [*headers, *self._cors])
            except Unread as error:
                answer.record.fail(error.code, str(error))
                await answer.send(error.status, _error_body(str(error)), [*_JSON, *self._cors, *_CLOSE])
            finally:
                held.release()

    def _page(self, target: str) -> tuple[int, str]:
        if target != self._prometheus_path:
            return 400, f"Unexpected path: {target}. Should be {self._prometheus_path}"
        return 200, self._metrics.page()

    async def _answer(
        self, scope: dict[str, Any], target: str, body: bytes, held: Held, record: RequestRecord
    ) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        """Answer a request of the REST interface and count it; returns status, body and headers."""
        began = time.monotonic()
        method, headers = scope["method"], dict(scope["headers"])
        if method == "OPTIONS":
            if not _ORIGIN.search(headers.get(b"origin", b"")):
                record.fail(Code.FAILED_PRECONDITION, "OPTIONS without an origin")
            self._metrics.count_request("", record.code)
            return record.code.http_status, b"", []
        route = routes.NO_ROUTE
        try:
            route = routes.parse(method, target)
            record.model, record.api = route.asked.model, route.verb
            if not route.verb:
                # The bytes as they came, in the answer as well.
                path = target.encode("latin-1").decode("utf-8", "surrogateescape")
                raise invalid_argument(f"Malformed request: {method} {path}")
            gzipped = headers.get(b"content-encoding", b"").strip().lower() == b"gzip"
            status, answer = 200, await self._done(VERBS[route.verb], route.asked, body, gzipped, held)
        except routes.VersionOverflow as error:
            record.model = error.model
            record.fail(Code.INVALID_ARGUMENT, "The version does not fit 64 bits")
            status, answer = 400, b""
        except ServingError as error:
            record.fail(error.code, error.message)
            status, answer = error.http_status, _error_body(error.message)
        except TimeoutError:
            record.fail(Code.DEADLINE_EXCEEDED, f"Timed out after {self._timeout * 1000:.0f} ms")
            status, answer = 504, _error_body(record.error)
        except Exception as error:
            _log.exception("Answering %s %s, request %s, failed", method, printable(target, MAX_NAME), record.id)
            record.fail(Code.INTERNAL, f"Internal error: {type(error).__name__}: {error}")
            status, answer = 500, _error_body(record.error)
        self._metrics.count_request(record.model, record.code)
        if record.code is Code.OK:
            api = route.verb if method == "POST" else ""
            self._metrics.request_latency(record.model, api, "REST", time.monotonic() - began)
        return status, answer, _JSON

    async def _done(self, verb: Verb, asked: Asked, body: bytes, gzipped: bool, held: Held) -> bytes:
        if not verb.is_slow:
            return verb.answer(self._service, asked, body)
        if verb.runs_model:
            held.enter()
        # In the request's own context, so that its record is known in the thread.
        run = contextvars.copy_context().run
        work = self._executor.submit(run, self._work, verb, asked, body, gzipped, time.monotonic() + self._timeout)
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
                cost = costs.of_json(inflated(body, self._limits)) if gzipped else costs.of_whole_json(body)
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


def _texts(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}


class _Answer:
    """Sends the answer to a request, and notes it.

    Args:
        send: ASGI's `send`.
        record: of the request.
    """

    def __init__(self, send: Callable[[Message], Awaitable[None]], record: RequestRecord):
        self._send = send
        self.record = record

    async def send(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.record.http_status, self.record.response_bytes = status, len(body)
        length = (b"content-length", str(len(body)).encode("ascii"))
        own = (REQUEST_ID.encode("ascii"), self.record.id.encode("ascii"))
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, own, length]})
        # In pieces, each of which waits until most of those before it were taken: what a slow reader has not taken yet
        # is not kept twice.
        for at in range(0, max(len(body), 1), PIECE_BYTES):
            piece, more = body[at : at + PIECE_BYTES], at + PIECE_BYTES < len(body)
            await self._send({"type": "http.response.body", "body": piece, "more_body": more})
