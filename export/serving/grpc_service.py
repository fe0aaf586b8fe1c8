"""The gRPC front end: PredictionService and ModelService on tensorflow-serving-api's stubs."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from keras_convnets.errors import UserError
from keras_convnets.export.serving import costs, inference
from keras_convnets.export.serving.admission import Admission
from keras_convnets.export.serving.concurrency import deadline
from keras_convnets.export.serving.metrics import Metrics
from keras_convnets.export.serving.servables import Servables
from keras_convnets.export.serving.status import Code, ServingError, invalid_argument

_log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 2**31 - 1
# Methods whose requests are worked on, and not answered by what the server knows anyway.
_WORK = frozenset(
    f"/tensorflow.serving.PredictionService/{name}" for name in ("Predict", "Classify", "Regress", "MultiInference")
)
# Longer than this counts as for ever: clocks and locks take no numbers of any size.
_LONG_SECONDS = 1e6


def _answers(
    api: str | None = None, *, with_context: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Turn a method that raises ServingError into one that aborts the call with its code and details.

    Args:
        api: the name under which its requests are counted; None for a method that is not counted.
        with_context: whether the method also takes the call's context.
    """

    def decorate(method: Callable[..., Any]) -> Callable[[Any, Any, grpc.ServicerContext], Any]:
        @functools.wraps(method)
        def wrapped(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
            began = time.monotonic()
            response, code, details = None, Code.OK, ""
            try:
                with deadline(_until(context)):
                    response = method(self, request, context) if with_context else method(self, request)
            except ServingError as error:
                code, details = error.code, error.grpc_details
            except Exception as error:
                _log.exception("Answering %s failed", method.__name__)
                code, details = Code.INTERNAL, f"Internal error: {type(error).__name__}: {error}"
            if api is not None:
                model = request.model_spec.name
                self._metrics.count_request(model, code)
                if code is Code.OK:
                    self._metrics.request_latency(model, api, "GRPC", time.monotonic() - began)
            if code is not Code.OK:
                context.abort(grpc.StatusCode[code.name], details)
            return response

        return wrapped

    return decorate


def _until(context: grpc.ServicerContext) -> float | None:
    """Return when the client waits no longer, in seconds of `time.monotonic`; None where it says nothing of it.

    A call that is over before its turn comes is not begun by gRPC itself.
    """
    remaining = context.time_remaining()
    return None if remaining is None or remaining > _LONG_SECONDS else time.monotonic() + remaining


class _Admitting(grpc.ServerInterceptor):
    """Has a request received, parsed and answered only when there is room for it.

    gRPC itself would receive and parse one in every thread. To it, the methods take a stream of requests, which is the
    same on the wire: so the first and only one is received when it is asked for.

    Args:
        admission: lets requests in.
    """

    def __init__(self, admission: Admission):
        self._admission = admission

    def intercept_service(self, continuation: Callable[..., Any], details: grpc.HandlerCallDetails) -> Any:
        """Return the method's handler in this form."""
        handler = continuation(details)
        if handler is None or handler.request_streaming or handler.response_streaming:
            return handler
        # The deserializer is a class method of the message.
        kind = handler.request_deserializer.__self__
        answer = functools.partial(self._answer, handler.unary_unary, kind, details.method in _WORK)
        return grpc.stream_unary_rpc_method_handler(answer, None, handler.response_serializer)

    def _answer(
        self, method: Callable[..., Any], kind: Any, counts: bool, messages: Iterator[bytes], context: Any
    ) -> Any:
        try:
            with deadline(_until(context)):
                with self._admission.receiving(context.cancel):
                    data = next(messages, b"")
                with self._counted() if counts else contextlib.nullcontext():
                    return self._parsed(method, kind, data, context)
        except ServingError as error:
            code, details = grpc.StatusCode[error.code.name], error.grpc_details
        except DecodeError:
            # As gRPC itself says it.
            code, details = grpc.StatusCode.INTERNAL, "Exception deserializing request!"
        context.abort(code, details)

    def _parsed(self, method: Callable[..., Any], kind: Any, data: bytes, context: Any) -> Any:
        admission, size = self._admission, len(data)
        admission.pending.take(size)
        try:
            with admission.working(costs.of_message(data, kind.DESCRIPTOR, admission.limits)):
                request = kind.FromString(data)
                del data
                return method(request, context)
        finally:
            admission.pending.give(size)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._admission.enter()
        try:
            yield
        finally:
            self._admission.leave()


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference and GetModelMetadata.

    Args:
        servables: the models.
        metrics: what requests are counted in.
        admission: its limits hold for requests.
    """

    def __init__(self, servables: Servables, metrics: Metrics, admission: Admission):
        self._servables = servables
        self._metrics = metrics
        self._admission = admission

    @_answers("Predict")
    def Predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        """Run a signature on the request's tensors and return the outputs asked for, or all."""
        with self._servables.use(*_spec(request)) as servable:
            return inference.predict(servable, request, self._metrics, self._admission)

    @_answers("Classify")
    def Classify(self, request: classification_pb2.ClassificationRequest) -> classification_pb2.ClassificationResponse:
        """Return labels and scores for the request's tf.Examples."""
        with self._servables.use(*_spec(request)) as servable:
            return inference.classify(servable, request, self._metrics, self._admission.limits)

    @_answers("Regress")
    def Regress(self, request: regression_pb2.RegressionRequest) -> regression_pb2.RegressionResponse:
        """Return a number for each of the request's tf.Examples."""
        with self._servables.use(*_spec(request)) as servable:
            return inference.regress(servable, request, self._metrics, self._admission.limits)

    @_answers()
    def MultiInference(self, request: inference_pb2.MultiInferenceRequest) -> inference_pb2.MultiInferenceResponse:
        """Run several classifiers and regressors of one model on the same tf.Examples."""
        limits = self._admission.limits
        return inference.multi_inference(self._servables.use, request, self._metrics, limits)

    @_answers()
    def GetModelMetadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Return the SavedModel's signatures, verbatim."""
        spec = _spec(request)
        if not request.metadata_field:
            raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid_argument(f"Metadata field {field} is not supported")
        signatures = get_model_metadata_pb2.SignatureDefMap()
        with self._servables.use(*spec) as servable:
            for name, proto in servable.engine.signature_defs.items():
                signatures.signature_def[name].CopyFrom(proto)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = servable.model
        response.model_spec.version.value = servable.version
        response.metadata["signature_def"].Pack(signatures)
        return response


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest.

    Args:
        servables: the models.
        metrics: what a reload reports of.
        check_reload: raises ServingError for a configuration that clients may not have served.
    """

    def __init__(self, servables: Servables, metrics: Metrics, check_reload: Callable[[Any], None]):
        self._servables = servables
        self._metrics = metrics
        self._check_reload = check_reload

    @_answers()
    def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Return the states of a model's versions, newest first; a label is ignored."""
        name, version, _ = _spec(request)
        response = get_model_status_pb2.GetModelStatusResponse()
        for entry in self._servables.status(name, version):
            added = response.model_version_status.add(version=entry.version, state=int(entry.state))
            added.status.SetInParent()
            if entry.error is not None:
                added.status.error_code = int(entry.error.code)
                added.status.error_message = entry.error.message
        return response

    @_answers(with_context=True)
    def HandleReloadConfigRequest(
        self, request: model_management_pb2.ReloadConfigRequest, context: grpc.ServicerContext
    ) -> model_management_pb2.ReloadConfigResponse:
        """Serve the models of the request's configuration, and no others, where clients may have them served."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            )
        self._check_reload(request.config)
        before = {name: self._metrics.value(name) for name in request.metric_names}
        self._servables.reload(request.config, is_active=context.is_active)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        for name in request.metric_names:
            response.metric.add(name=name, int64_value_increase=self._metrics.value(name) - before[name])
        return response


def make_server(
    servables: Servables,
    workers: int,
    *,
    metrics: Metrics | None = None,
    health: bool = False,
    admission: Admission | None = None,
    check_reload: Callable[[Any], None] = lambda config: None,
    options: Sequence[tuple[str, int | str]] = (),
) -> grpc.Server:
    """Return a gRPC server with both services, without a port.

    Args:
        servables: the models.
        workers: how many requests are worked on at once.
        metrics: what requests are counted in.
        health: whether to answer `grpc.health.v1` too: the server as a whole ("") is serving.
        admission: lets requests in; by default with the default limits.
        check_reload: raises ServingError for a configuration that clients may not have served.
        options: further ones of gRPC's own; they replace those that are set here.

    Raises:
        UserError: the health service is wanted and its package is not installed.
    """
    metrics, admission = metrics or Metrics(), admission or Admission()
    limits = admission.limits
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
        interceptors=[_Admitting(admission)],
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
    # Watching blocks no worker: the callers are told of changes from a thread of its own.
    servicer = health.HealthServicer(experimental_non_blocking=True)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)


def _spec(request: Any) -> tuple[str, int | None, str | None]:
    """Return the model's name, version and label of a request."""
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    return inference.version_asked(request.model_spec)
