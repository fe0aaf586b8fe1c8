"""The gRPC front end: PredictionService and ModelService on tensorflow-serving-api's stubs."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
from collections.abc import Callable
from typing import Any

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_convnets.export.serving import tensor_protos
from keras_convnets.export.serving.engine import DEFAULT_SIGNATURE
from keras_convnets.export.serving.servables import Servables
from keras_convnets.export.serving.status import Code, ServingError, invalid_argument

_log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 2**31 - 1


def _answers(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any, grpc.ServicerContext], Any]:
    """Turn a method that raises ServingError into one that aborts the call with its code and details."""

    @functools.wraps(method)
    def wrapped(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request)
        except ServingError as error:
            code, details = error.code, error.grpc_details
        except Exception as error:
            _log.exception("Answering %s failed", method.__name__)
            code, details = Code.INTERNAL, f"Internal error: {type(error).__name__}: {error}"
        context.abort(grpc.StatusCode[code.name], details)

    return wrapped


def _unimplemented(name: str) -> Callable[[Any, Any, grpc.ServicerContext], Any]:
    def method(self: Any, request: Any) -> Any:
        raise ServingError(Code.UNIMPLEMENTED, f"This server does not answer {name}.")

    return _answers(method)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata.

    Args:
        servables: the models.
    """

    def __init__(self, servables: Servables):
        self._servables = servables

    @_answers
    def Predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        """Run a signature on the request's tensors and return the outputs asked for, or all."""
        spec = _spec(request)
        with self._servables.use(*spec) as servable:
            name = request.model_spec.signature_name or DEFAULT_SIGNATURE
            signature = servable.engine.signatures.get(name)
            if signature is None:
                raise ServingError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
            signature.check_input_names(request.inputs)
            inputs = {
                alias: tensor_protos.to_array(request.inputs[alias], info, position)
                for position, (alias, info) in enumerate(signature.inputs.items())
                if alias in request.inputs
            }
            signature.check_outputs(request.output_filter)
            outputs = servable.engine.run(name, inputs)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = servable.model
        response.model_spec.signature_name = name
        response.model_spec.version.value = servable.version
        for alias in request.output_filter or outputs:
            response.outputs[alias].CopyFrom(tensor_protos.from_array(outputs[alias]))
        return response

    @_answers
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

    Classify = _unimplemented("Classify")
    Regress = _unimplemented("Regress")
    MultiInference = _unimplemented("MultiInference")


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus.

    Args:
        servables: the models.
    """

    def __init__(self, servables: Servables):
        self._servables = servables

    @_answers
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

    HandleReloadConfigRequest = _unimplemented("HandleReloadConfigRequest")


def make_server(servables: Servables, workers: int) -> grpc.Server:
    """Return a gRPC server with both services, without a port.

    Args:
        servables: the models.
        workers: how many requests are worked on at once.
    """
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="grpc"),
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # Otherwise a second server on the same port would silently take half of the requests.
            ("grpc.so_reuseport", 0),
        ],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(servables), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(servables), server)
    return server


def _spec(request: Any) -> tuple[str, int | None, str | None]:
    """Return the model's name, version and label of a request."""
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    spec: model_pb2.ModelSpec = request.model_spec
    choice = spec.WhichOneof("version_choice")
    version = spec.version.value if choice == "version" else None
    return spec.name, version, spec.version_label if choice == "version_label" else None
