"""Transports of the client: REST with the standard library, or gRPC."""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

import numpy as np

from keras_convnets.errors import UnreadableImage, UserError
from keras_convnets.export.credentials import Credentials

_NAME = r"(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?/?"
_REST_PATH = re.compile(rf"(?:/[^/]+)*/v1/models/{_NAME}")
_GRPC_PATH = re.compile(rf"/{_NAME}")
_ALLOWED = (
    "allowed are http://HOST:8501/v1/models/NAME and grpc://HOST:8500/NAME, each optionally with /versions/V or "
    "/labels/L after the name, https:// and grpcs:// for TLS, and a prefix before /v1"
)
# URL schemes, and whether they use TLS.
_SCHEMES = {"http": False, "https": True, "grpc": False, "grpcs": True}
_GRPC_SCHEMES = ("grpc", "grpcs")
_TLS_PORT = 443
# HTTP statuses of a request without valid credentials.
_UNAUTHORIZED = (401, 403)
# Errors of a kept-alive connection that the server has closed.
_STALE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)


class EndpointError(RuntimeError):
    """An endpoint that failed or timed out; the message contains its answer."""


class Transport(Protocol):
    """The interface of a protocol that the client uses."""

    def predict(self, signature: str | None, alias: str, batch: Any, outputs: Sequence[str]) -> Mapping[str, Any]:
        """Run a signature on a batch of byte strings or of uint8 images; return the outputs' values by name."""

    def status(self) -> list[dict[str, Any]]:
        """Return the versions' states."""

    def metadata(self) -> dict[str, Any]:
        """Return the model's metadata."""

    def close(self) -> None:
        """Close the connections."""


class _Rest:
    """The REST protocol, with one kept-alive connection per thread."""

    def __init__(self, url: str, timeout: float, credentials: Credentials):
        parts = urlsplit(url)
        match = _REST_PATH.fullmatch(parts.path)
        if match is None or parts.query or parts.fragment:
            raise _bad_url(url)
        self._url = url
        self._name = unquote(match["name"])
        self._path = parts.path.rstrip("/")
        self._timeout = timeout
        self._headers = dict(credentials.headers)
        self._host = _host(parts)
        self._context = credentials.ssl_context() if _SCHEMES[parts.scheme] else None
        self._port = parts.port or (8501 if self._context is None else _TLS_PORT)
        self._local = threading.local()

    def predict(self, signature: str | None, alias: str, batch: Any, outputs: Sequence[str]) -> Mapping[str, Any]:
        if isinstance(batch, np.ndarray):
            instances = batch.tolist()
        else:
            instances = [{"b64": base64.b64encode(image).decode("ascii")} for image in batch]
        request: dict[str, Any] = {"instances": instances}
        if signature is not None:
            request["signature_name"] = signature
        answer = self._request("POST", f"{self._path}:predict", json.dumps(request, separators=(",", ":")).encode())
        try:
            rows = answer["predictions"]
            if rows and isinstance(rows[0], dict):
                return {name: [row[name] for row in rows] for name in rows[0]}
        except (KeyError, TypeError) as error:
            raise EndpointError(f"{self._url} answered something else than predictions.") from error
        # The REST API omits the name of a single output; the caller then requests exactly one name.
        return {outputs[0]: rows} if len(outputs) == 1 else {}

    def status(self) -> list[dict[str, Any]]:
        entries = self._request("GET", self._path)["model_version_status"]
        return [{"version": int(entry["version"]), "state": entry["state"], **entry["status"]} for entry in entries]

    def metadata(self) -> dict[str, Any]:
        return self._request("GET", f"{self._path}/metadata")

    def close(self) -> None:
        connection = self._local.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=self._context)

    def _request(self, method: str, path: str, body: bytes | None = None) -> Any:
        reused = hasattr(self._local, "connection")
        headers = self._headers | ({"Content-Type": "application/json"} if body else {})
        if not reused:
            self._local.connection = self._connect()
        try:
            self._local.connection.request(method, path, body, headers)
            response = self._local.connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if reused and isinstance(error, _STALE):
                # The endpoint closed an idle connection: retry on a new one.
                return self._request(method, path, body)
            raise self._unreachable(error) from error
        try:
            answer = json.loads(data)
        except ValueError as error:
            if response.status in _UNAUTHORIZED:
                # An error page of a proxy.
                raise _refused(self._url, response.status, response.reason) from error
            raise EndpointError(
                f"{self._url} answered with status {response.status} and no JSON, so it is no model server; give the "
                "REST port of one."
            ) from error
        if response.status != 200:
            message = answer.get("error", "") if isinstance(answer, dict) else str(answer)
            raise _server_error(self._url, self._name, response.status, message)
        return answer

    def _unreachable(self, error: Exception) -> Exception:
        if isinstance(error, TimeoutError):
            return EndpointError(f"{self._url} did not answer within {self._timeout:g} s.")
        if isinstance(error, ssl.SSLCertVerificationError):
            return _untrusted(self._url, error.verify_message)
        if isinstance(error, ConnectionRefusedError):
            reason = "connection refused"
        elif isinstance(error, socket.gaierror):
            reason = "unknown host"
        else:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return _cannot_reach(self._url, reason)


class _Grpc:
    """The gRPC protocol on tensorflow-serving-api's stubs."""

    def __init__(self, url: str, timeout: float, credentials: Credentials):
        parts = urlsplit(url)
        match = _GRPC_PATH.fullmatch(parts.path)
        if match is None or parts.query or parts.fragment:
            raise _bad_url(url)
        try:
            import grpc
            from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
        except ImportError as error:
            raise UserError("serving needs the extra packages: pip install 'keras-convnets[serving]'.") from error
        self._url = url
        self._timeout = timeout
        self._name = unquote(match["name"])
        self._version, self._label = match["version"], match["label"]
        host = _host(parts)
        host = f"[{host}]" if ":" in host else host
        self._metadata = credentials.metadata()
        options = [(f"grpc.max_{direction}_message_length", 2**31 - 1) for direction in ("send", "receive")]
        options.append(("grpc.enable_http_proxy", 0))
        if _SCHEMES[parts.scheme]:
            target = f"{host}:{parts.port or _TLS_PORT}"
            self._channel = grpc.secure_channel(target, credentials.channel_credentials(), options)
        else:
            self._channel = grpc.insecure_channel(f"{host}:{parts.port or 8500}", options)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._model = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def predict(self, signature: str | None, alias: str, batch: Any, outputs: Sequence[str]) -> Mapping[str, Any]:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        self._fill_spec(request.model_spec)
        request.model_spec.signature_name = signature or ""
        tensor = request.inputs[alias]
        tensor.dtype = tf.uint8.as_datatype_enum if isinstance(batch, np.ndarray) else tf.string.as_datatype_enum
        for size in batch.shape if isinstance(batch, np.ndarray) else (len(batch),):
            tensor.tensor_shape.dim.add(size=size)
        if isinstance(batch, np.ndarray):
            tensor.tensor_content = batch.tobytes()
        else:
            tensor.string_val.extend(batch)
        response = self._call(self._prediction.Predict, request)
        return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}

    def status(self) -> list[dict[str, Any]]:
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest()
        self._fill_spec(request.model_spec)
        state = get_model_status_pb2.ModelVersionStatus.State
        entries = self._call(self._model.GetModelStatus, request).model_version_status
        return [
            {
                "version": entry.version,
                "state": state.Name(entry.state),
                "error_code": _code_name(entry.status.error_code),
                "error_message": entry.status.error_message,
            }
            for entry in entries
        ]

    def metadata(self) -> dict[str, Any]:
        from google.protobuf import json_format
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._fill_spec(request.model_spec)
        response = self._call(self._prediction.GetModelMetadata, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        printed = json_format.MessageToDict(
            signatures, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        spec = {
            "name": response.model_spec.name,
            "signature_name": "",
            "version": str(response.model_spec.version.value),
        }
        return {"model_spec": spec, "metadata": {"signature_def": printed}}

    def close(self) -> None:
        self._channel.close()

    def _fill_spec(self, spec: Any) -> None:
        spec.name = self._name
        if self._version is not None:
            spec.version.value = int(self._version)
        elif self._label is not None:
            spec.version_label = unquote(self._label)

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        import grpc

        try:
            return method(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
        if "CERTIFICATE_VERIFY_FAILED" in details:
            raise _untrusted(self._url, "certificate verify failed")
        if code is grpc.StatusCode.UNAVAILABLE:
            raise _cannot_reach(self._url, "connection refused" if "refused" in details else details)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise EndpointError(f"{self._url} did not answer within {self._timeout:g} s.")
        status = {"INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400, "NOT_FOUND": 404}
        status |= {"UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403}
        raise _server_error(self._url, self._name, status.get(code.name, code.name), details)


def open_transport(url: str, timeout: float, credentials: Credentials) -> Transport:
    """Return the transport for an endpoint's URL; nothing is sent yet.

    Args:
        url: the model's URL, of any form that `Client` accepts.
        timeout: of one request, in seconds.
        credentials: headers and certificates.

    Raises:
        UserError: if the URL has another form, or the credentials can't be used with it.
    """
    try:
        parts = urlsplit(url)
        # Accessing the port raises ValueError if it is not a number.
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except (ValueError, AttributeError, TypeError) as error:
        raise _bad_url(url) from error
    if usable and "@" in parts.netloc:
        raise UserError(
            "the URL holds a name or a password, which would be shown; give the header Authorization instead."
        )
    if not usable or parts.scheme not in _SCHEMES:
        raise _bad_url(url)
    if credentials.need_tls and not _SCHEMES[parts.scheme]:
        raise UserError(
            f"certificates were given for {url}, which is not encrypted; give its https:// or grpcs:// address, or "
            "leave them out."
        )
    kind = _Grpc if parts.scheme in _GRPC_SCHEMES else _Rest
    return kind(url, timeout, credentials)


def _host(parts: SplitResult) -> str:
    assert parts.hostname is not None, "`open_transport` refuses a URL without a host"
    return parts.hostname


def _code_name(number: int) -> str:
    from keras_convnets.export.serving.status import Code

    return Code(number).name


def _bad_url(url: object) -> UserError:
    return UserError(f"{url!r} is no endpoint's URL; {_ALLOWED}; give the model's URL without a verb such as :predict.")


def _cannot_reach(url: str, reason: str) -> UserError:
    return UserError(
        f"the endpoint {url} cannot be reached ({reason}); start one there with keras-convnets serve, or give the URL "
        "of one that runs."
    )


def _untrusted(url: str, reason: str) -> UserError:
    return UserError(
        f"the certificate of the endpoint {url} is not trusted ({reason}); give the certificates of the authority that "
        "signed it, or the host's name as the certificate has it."
    )


def _refused(url: str, status: int | str, message: str) -> UserError:
    return UserError(
        f"the endpoint {url} wants other credentials (status {status}: {message}); give the header that it asks for, "
        "such as Authorization."
    )


def _server_error(url: str, name: str, status: int | str, message: str) -> Exception:
    """Return the exception for an error status: `UserError` if the request cannot succeed, else `EndpointError`."""
    message = message.strip().rstrip(".")
    if status == 404:
        return UserError(
            f"the endpoint {url} does not serve that ({message}); {name!r} must be a model, and the version one of its "
            "versions, that the endpoint has loaded, so give the name that it was started with."
        )
    if status in _UNAUTHORIZED:
        return _refused(url, status, message)
    if status == 400:
        return UnreadableImage(f"the endpoint {url} refused the request: {message}.")
    return EndpointError(f"the endpoint {url} failed with status {status}: {message}.")
