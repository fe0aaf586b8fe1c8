"""The gRPC front end: a server whose requests pass admission before they are received and parsed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from keras_convnets.errors import UserError
from keras_convnets.export.serving.admission import costs
from keras_convnets.export.serving.admission.admission import Admission
from keras_convnets.export.serving.models.servables import Servables
from keras_convnets.export.serving.observer import Observer
from keras_convnets.export.serving.request_record import REQUEST_ID, RequestRecord
from keras_convnets.export.serving.rpc.service import ModelService, PredictionService, until
from keras_convnets.export.serving.scheduling.deadline import deadline
from keras_convnets.export.serving.status import Code, ServingError

MAX_MESSAGE_BYTES = 2**31 - 1
# Methods that run a model, in contrast to status and metadata.
_WORK = frozenset(
    f"/tensorflow.serving.PredictionService/{name}" for name in ("Predict", "Classify", "Regress", "MultiInference")
)


class _Admitting(grpc.ServerInterceptor):
    """Receives, parses and answers a request only when it is admitted.

    gRPC itself would receive and parse a request in every thread. The methods are therefore registered as taking a
    stream of requests, which is identical on the wire: the only request is received when it is read from the stream.

    Args:
        admission: admits requests.
        observer: counts, logs and traces requests.
    """

    def __init__(self, admission: Admission, observer: Observer):
        self._admission = admission
        self._observer = observer

    def intercept_service(self, continuation: Callable[..., Any], details: grpc.HandlerCallDetails) -> Any:
        """Return the method's handler, converted to a stream of requests."""
        handler = continuation(details)
        if handler is None or handler.request_streaming or handler.response_streaming:
            return handler
        # The deserializer is a class method of the message.
        kind = handler.request_deserializer.__self__
        answer = functools.partial(self._answer, handler.unary_unary, kind, details.method)
        return grpc.stream_unary_rpc_method_handler(answer, None, handler.response_serializer)

    def _answer(self, method: Callable[..., Any], kind: Any, name: str, messages: Iterator[bytes], context: Any) -> Any:
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        with self._observer.request("gRPC", name, context.peer(), metadata) as record:
            context.set_trailing_metadata(((REQUEST_ID, record.id),))
            return self._admitted(method, kind, name in _WORK, messages, context, record)

    def _admitted(
        self,
        method: Callable[..., Any],
        kind: Any,
        counts: bool,
        messages: Iterator[bytes],
        context: Any,
        record: RequestRecord,
    ) -> Any:
        try:
            with deadline(until(context)):
                with self._admission.receiving(context.cancel):
                    data = next(messages, b"")
                record.request_bytes = len(data)
                with self._counted() if counts else contextlib.nullcontext():
                    return self._parsed(method, kind, data, context)
        except ServingError as error:
            record.fail(error.code, error.message)
            details = error.grpc_details
        except DecodeError:
            # gRPC's own message.
            details = "Exception deserializing request!"
            record.fail(Code.INTERNAL, details)
        context.abort(grpc.StatusCode[record.code.name], details)

    def _parsed(self, method: Callable[..., Any], kind: Any, data: bytes, context: Any) -> Any:
        admission, size = self._admission, len(data)
        admission.pending.acquire(size)
        try:
            with admission.working(costs.of_message(data, kind.DESCRIPTOR, admission.limits)):
                request = kind.FromString(data)
                del data
                return method(request, context)
        finally:
            admission.pending.release(size)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._admission.enter()
        try:
            yield
        finally:
            self._admission.leave()


def make_server(
    servables: Servables,
    workers: int,
    *,
    observer: Observer | None = None,
    health: bool = False,
    admission: Admission | None = None,
    check_reload: Callable[[Any], None] = lambda config: None,
    options: Sequence[tuple[str, int | str]] = (),
) -> grpc.Server:
    """Return a gRPC server with both services, without a port.

    Args:
        servables: the models.
        workers: maximum number of concurrent requests.
        observer: counts, logs and traces requests.
        health: whether to answer `grpc.health.v1` too: the server as a whole ("") is serving.
        admission: admits requests; by default with the default limits.
        check_reload: raises ServingError for a configuration that clients may not have served.
        options: further ones of gRPC's own; they replace those that are set here.

    Raises:
        UserError: the health service is wanted and its package is not installed.
    """
    observer, admission = observer or Observer(), admission or Admission()
    metrics, limits = observer.metrics, admission.limits
    chosen: dict[str, int | str] = {
        # Of a compressed message too, before it is inflated to more.
        "grpc.max_receive_message_length": min(limits.max_request_bytes or MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES),
        "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
        # Otherwise a second server on the same port would silently take half of the requests.
        "grpc.so_reuseport": 0,
    }
    # Of an option that is given twice gRPC takes the first.
    chosen.update(options)
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="grpc"),
        interceptors=[_Admitting(admission, observer)],
        maximum_concurrent_rpcs=limits.max_connections or None,
        options=list(chosen.items()),
    )
    predictions = PredictionService(servables, metrics, admission)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(predictions, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(servables, metrics, check_reload), server)
    if health:
        _add_health(server)
    return server


def _add_health(server: grpc.Server) -> None:
    try:
        from grpc_health.v1 import health, health_pb2_grpc
    except ImportError as error:
        raise UserError("the health service needs its package: pip install grpcio-health-checking.") from error
    # Watching blocks no worker: a separate thread notifies the callers of changes.
    servicer = health.HealthServicer(experimental_non_blocking=True)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
