"""The REST front end: one plain ASGI application, and the uvicorn server that runs it in a thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import re
import socket
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from keras_convnets.export.serving import classify_regress, codec, costs, urls
from keras_convnets.export.serving.admission import Admission
from keras_convnets.export.serving.concurrency import deadline
from keras_convnets.export.serving.engine import DEFAULT_SIGNATURE
from keras_convnets.export.serving.limits import Limits
from keras_convnets.export.serving.metrics import Metrics
from keras_convnets.export.serving.names import printable
from keras_convnets.export.serving.servables import Servables
from keras_convnets.export.serving.status import Code, ServingError, invalid_argument

_log = logging.getLogger(__name__)

# Between two requests on a connection, and between two pieces of a body.
KEEP_ALIVE_SECONDS = 75
BODY_SECONDS = 75.0
# Of an answer, so that what a slow reader has not taken yet is not kept twice.
PIECE_BYTES = 2**18
# TensorFlow Serving quotes what a client sent in full, which may be most of a body.
MAX_ERROR_CHARACTERS = 2**16
# What writing a number as JSON takes: a float, its text and the number read back.
_JSON_ELEMENT_BYTES = 160

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
        admission: lets requests in; by default with the default limits.
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
        self._servables = servables
        self._executor = executor
        self._timeout = timeout_seconds
        self._admission = admission or Admission()
        self._limits = self._admission.limits
        self._cors = _CORS if cors else []
        self._metrics = metrics or Metrics()
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
        elif not urls.is_handled(target):
            headers = [(b"content-type", b"text/html; charset=ISO-8859-1"), *_CLOSE]
            await _send(send, 404, _NOT_FOUND, headers)
        else:
            held = _Held(self._admission)
            try:
                body = await self._read(receive, held)
                if body is not None:
                    status, answer, headers = await self._answer(scope, target, body, held)
                    del body
                    await _send(send, status, answer, [*headers, *self._cors])
            except _Unread as error:
                await _send(send, error.status, _error_body(str(error)), [*_JSON, *self._cors, *_CLOSE])
            finally:
                held.release()

    async def _read(self, receive: Callable[[], Awaitable[Message]], held: _Held) -> bytes | None:
        """Return the whole body, or None when the client went away before it was sent."""
        chunks: list[bytes] = []
        while True:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    message = await receive()
            except TimeoutError:
                raise _Unread(408, f"No more of the request came for {BODY_SECONDS:.0f} seconds") from None
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            try:
                self._limits.check_bytes(held.bytes + len(chunk), "The request is too large")
                held.take(len(chunk))
            except ServingError as error:
                raise _Unread(error.http_status, error.message) from None
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    def _page(self, target: str) -> tuple[int, str]:
        if target != self._prometheus_path:
            return 400, f"Unexpected path: {target}. Should be {self._prometheus_path}"
        return 200, self._metrics.page()

    async def _answer(
        self, scope: dict[str, Any], target: str, body: bytes, held: _Held
    ) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        """Answer a request of the REST interface and count it; returns status, body and headers."""
        began = time.monotonic()
        method, headers = scope["method"], dict(scope["headers"])
        if method == "OPTIONS":
            code = Code.OK if _ORIGIN.search(headers.get(b"origin", b"")) else Code.FAILED_PRECONDITION
            self._metrics.count_request("", code)
            return code.http_status, b"", []
        route = urls.Route("", "")
        try:
            route = urls.parse(method, target) or route
            if not route.action:
                # The bytes as they came, in the answer as well.
                path = target.encode("latin-1").decode("utf-8", "surrogateescape")
                raise invalid_argument(f"Malformed request: {method} {path}")
            gzipped = headers.get(b"content-encoding", b"").strip().lower() == b"gzip"
            status, code, answer = 200, Code.OK, await self._done(route, body, gzipped, held)
        except urls.VersionOverflow as error:
            route = urls.Route("", error.model)
            status, code, answer = 400, Code.INVALID_ARGUMENT, b""
        except ServingError as error:
            status, code, answer = error.http_status, error.code, _error_body(error.message)
        except TimeoutError:
            status, code = 504, Code.DEADLINE_EXCEEDED
            answer = _error_body(f"Timed out after {self._timeout * 1000:.0f} ms")
        except Exception as error:
            _log.exception("Answering %s %s failed", method, printable(target))
            status, code = 500, Code.INTERNAL
            answer = _error_body(f"Internal error: {type(error).__name__}: {error}")
        self._metrics.count_request(route.model, code)
        if code is Code.OK:
            api = route.action if method == "POST" else ""
            self._metrics.request_latency(route.model, api, "REST", time.monotonic() - began)
        return status, answer, _JSON

    async def _done(self, route: urls.Route, body: bytes, gzipped: bool, held: _Held) -> bytes:
        if route.action == "status":
            return self._status(route)
        if route.action != "metadata":
            held.enter()
        work = self._executor.submit(self._work, route, body, gzipped, time.monotonic() + self._timeout)
        # Its memory is in use until the work is done, whatever was answered meanwhile.
        held.release_after(work)
        # What was not begun by then never is.
        answer = await asyncio.wait_for(asyncio.wrap_future(work), self._timeout)
        if isinstance(answer, ServingError):
            raise answer
        return answer

    def _work(self, route: urls.Route, body: bytes, gzipped: bool, until: float) -> bytes | ServingError:
        """Return the answer or the error: raised through a future it would keep all of the request for a while."""
        try:
            return self._worked(route, body, gzipped, until)
        except ServingError as error:
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)

    def _worked(self, route: urls.Route, body: bytes, gzipped: bool, until: float) -> bytes:
        if route.action == "metadata":
            return self._metadata(route)
        answer = self._predict if route.action == "predict" else self._classify_or_regress
        with deadline(until):
            try:
                # Inflated once without keeping anything, to know what it costs.
                cost = costs.of_json(_inflated(body, self._limits) if gzipped else [body])
            except zlib.error:
                # A broken body reads as empty, as it does in TensorFlow Serving.
                cost, gzipped, body = 0, False, b""
            with self._admission.working(cost):
                return answer(route, b"".join(_inflated(body, self._limits)) if gzipped else body)

    def _predict(self, route: urls.Route, body: bytes) -> bytes:
        document, asked = codec.parse_request(body)
        with self._servables.use(route.model, route.version, route.label) as servable:
            name = asked or DEFAULT_SIGNATURE
            signature = servable.engine.signatures.get(name)
            if signature is None:
                raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
            inputs, format = codec.decode_inputs(document, signature.inputs, asked, self._limits)
            del document, body
            signature.check_input_names(inputs)
            with self._metrics.runtime(route.model, "Predict"):
                outputs = servable.engine.run(name, inputs)
        with self._admission.answering(costs.of_answer(outputs, _JSON_ELEMENT_BYTES)):
            return codec.encode_outputs(outputs, format)

    def _classify_or_regress(self, route: urls.Route, body: bytes) -> bytes:
        asked, serialized = classify_regress.parse_request(body, self._limits)
        with self._servables.use(route.model, route.version, route.label) as servable:
            engine = servable.engine
            name = classify_regress.resolve(engine, asked)
            if route.action == "classify":
                classify_regress.check_classifier(engine, name)
                with self._metrics.runtime(route.model, "Classify"):
                    found = classify_regress.classify(engine, name, serialized)
                arrays = dict(enumerate(array for array in found if array is not None))
                with self._admission.answering(costs.of_answer(arrays, _JSON_ELEMENT_BYTES)):
                    return classify_regress.encode_classification(found)
            classify_regress.check_regressor(engine, name)
            with self._metrics.runtime(route.model, "Regress"):
                values = classify_regress.regress(engine, name, serialized)
            return classify_regress.encode_regression(values)

    def _status(self, route: urls.Route) -> bytes:
        if not route.model:
            raise invalid_argument("Missing model name in request.")
        entries = []
        for entry in self._servables.status(route.model, route.version):
            code, message = (Code.OK, "") if entry.error is None else (entry.error.code, entry.error.message)
            status = {"error_code": code.name, "error_message": message}
            entries.append({"version": str(entry.version), "state": entry.state.name, "status": status})
        return _json_bytes({"model_version_status": entries})

    def _metadata(self, route: urls.Route) -> bytes:
        if not route.model:
            raise invalid_argument("Missing model name in request.")
        from google.protobuf import json_format

        with self._servables.use(route.model, route.version, route.label) as servable:
            signatures = {
                name: json_format.MessageToDict(
                    proto, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
                )
                for name, proto in servable.engine.signature_defs.items()
            }
        spec = {"name": route.model, "signature_name": "", "version": str(servable.version)}
        return _json_bytes({"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}})


class RestServer:
    """uvicorn, in a thread, on a socket that is bound already.

    Args:
        app: the application.
        bound: the socket; it is made to listen by `start` and closed by `stop`.
        max_connections: at a time; 0 for any number.
    """

    def __init__(self, app: RestApp, bound: socket.socket, max_connections: int = 0):
        import uvicorn

        from keras_convnets.export.serving.http_protocol import LimitedProtocol

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
        self._config.timeout_graceful_shutdown = grace_seconds
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(grace_seconds + 5)
        self._socket.close()


class _Held:
    """What one request holds: bytes that were received, and a place among those that are worked on."""

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
        """Take a place; raises ServingError where there is none."""
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


class _Unread(Exception):
    """A body that was not read to its end, and what is answered."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


def _target(scope: dict[str, Any]) -> str:
    query = scope.get("query_string", b"")
    target = scope["raw_path"] + (b"?" + query if query else b"")
    return target.decode("latin-1")


def _inflated(body: bytes, limits: Limits) -> Iterator[bytes]:
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


def _json_bytes(value: Any) -> bytes:
    # Names and messages may hold bytes that are no UTF-8; they leave as they came.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")


def _error_body(message: str) -> bytes:
    if len(message) > MAX_ERROR_CHARACTERS:
        message = message[:MAX_ERROR_CHARACTERS] + "...TRUNCATED"
    return _json_bytes({"error": message})


async def _send(
    send: Callable[[Message], Awaitable[None]], status: int, body: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    length = (b"content-length", str(len(body)).encode("ascii"))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    # In pieces, each of which waits until most of those before it were taken.
    for at in range(0, max(len(body), 1), PIECE_BYTES):
        piece, more = body[at : at + PIECE_BYTES], at + PIECE_BYTES < len(body)
        await send({"type": "http.response.body", "body": piece, "more_body": more})
