"""PredictionService and ModelService, on tensorflow-serving-api's stubs."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
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

from keras_convnets.export.serving.admission.admission import Admission
from keras_convnets.export.serving.metrics import Metrics
from keras_convnets.export.serving.models.servables import Servables
from keras_convnets.export.serving.request_record import current_record
from keras_convnets.export.serving.rpc import methods
from keras_convnets.export.serving.scheduling.deadline import deadline
from keras_convnets.export.serving.status import Code, ServingError, invalid_argument

_log = logging.getLogger(__name__)

# Longer timeouts count as unlimited, because clocks and locks do not accept arbitrarily large numbers.
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
            began, record = time.monotonic(), current_record()
            response, details = None, ""
            if hasattr(request, "model_spec"):
                record.model = request.model_spec.name
            record.api = api or ""
            try:
                with deadline(until(context)):
                    response = method(self, request, context) if with_context else method(self, request)
            except ServingError as error:
                record.fail(error.code, error.message)
                details = error.grpc_details
            except Exception as error:
                _log.exception("Answering %s, request %s, failed", method.__name__, record.id)
                details = f"Internal error: {type(error).__name__}: {error}"
                record.fail(Code.INTERNAL, details)
            if api is not None:
                self._metrics.count_request(record.model, record.code)
                if record.code is Code.OK:
                    self._metrics.request_latency(record.model, api, "GRPC", time.monotonic() - began)
            if record.code is not Code.OK:
                context.abort(grpc.StatusCode[record.code.name], details)
            return response

        return wrapped

    return decorate


def until(context: grpc.ServicerContext) -> float | None:
    """Return when the client waits no longer, in seconds of `time.monotonic`; None where it says nothing of it.

    gRPC itself does not begin a call that is over while it waits for a thread.
    """
    remaining = context.time_remaining()
    return None if remaining is None or remaining > _LONG_SECONDS else time.monotonic() + remaining


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
            return methods.predict(servable, request, self._metrics, self._admission)

    @_answers("Classify")
    def Classify(self, request: classification_pb2.ClassificationRequest) -> classification_pb2.ClassificationResponse:
        """Return labels and scores for the request's tf.Examples."""
        with self._servables.use(*_spec(request)) as servable:
            return methods.classify(servable, request, self._metrics, self._admission.limits)

    @_answers("Regress")
    def Regress(self, request: regression_pb2.RegressionRequest) -> regression_pb2.RegressionResponse:
        """Return a number for each of the request's tf.Examples."""
        with self._servables.use(*_spec(request)) as servable:
            return methods.regress(servable, request, self._metrics, self._admission.limits)

    @_answers()
    def MultiInference(self, request: inference_pb2.MultiInferenceRequest) -> inference_pb2.MultiInferenceResponse:
        """Run several classifiers and regressors of one model on the same tf.Examples."""
        limits = self._admission.limits
        return methods.multi_inference(self._servables.use, request, self._metrics, limits)

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


def _spec(request: Any) -> tuple[str, int | None, str | None]:
    """Return the model's name, version and label of a request."""
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    return methods.version_asked(request.model_spec)
