"""Spans for OpenTelemetry, where its API is installed (opentelemetry-api); otherwise nothing.

The API sends nothing by itself: an SDK does, configured by its own environment variables, for example through
`opentelemetry-instrument keras-convnets serve`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_convnets.export.serving.request_record import RequestRecord

_NAME = "keras_convnets.serving"


class Tracer:
    """Makes a span of each request, as part of the client's trace where its headers name one.

    Args:
        provider: OpenTelemetry's TracerProvider; None for the one that is set for the process.
    """

    def __init__(self, provider: Any = None):
        try:
            import opentelemetry.propagate as propagate
            import opentelemetry.trace as trace
        except ImportError:
            self._trace = None
            return
        self._trace, self._propagate = trace, propagate
        self._tracer = trace.get_tracer(_NAME, tracer_provider=provider)

    def span(self, record: RequestRecord, headers: Mapping[str, str]) -> Any:
        """Begin the span of a request; None where there is nothing to trace with.

        Args:
            record: the request.
            headers: the HTTP headers or gRPC's metadata, with names in lower case.
        """
        if self._trace is None:
            return None
        span = self._tracer.start_span(
            _span_name(record),
            context=self._propagate.extract(headers),
            kind=self._trace.SpanKind.SERVER,
            start_time=int(record.received * 1e9),
        )
        return span if span.is_recording() else None

    def end(self, span: Any, record: RequestRecord) -> None:
        """End a request's span with what became of the request."""
        if span is None or self._trace is None:
            return
        span.update_name(_span_name(record))
        for name, value in _attributes(record).items():
            if value not in (None, ""):
                span.set_attribute(name, value)
        if record.error:
            span.set_status(self._trace.StatusCode.ERROR, record.error)
        span.end(end_time=time.time_ns())


def _span_name(record: RequestRecord) -> str:
    # Names of spans are few, so the model is an attribute.
    method = record.call.partition(" ")[0]
    return f"{method} {record.api}".strip() if record.interface == "REST" else method.lstrip("/")


def _attributes(record: RequestRecord) -> dict[str, Any]:
    method, _, path = record.call.partition(" ")
    if record.interface == "REST":
        common = {
            "http.request.method": method,
            "url.path": path.partition("?")[0],
            "http.response.status_code": record.http_status,
        }
    else:
        common = {"rpc.system": "grpc", "rpc.method": method.lstrip("/"), "rpc.grpc.status_code": int(record.code)}
    return {
        **common,
        "client.address": record.peer,
        "request.id": record.id,
        "model.name": record.model,
        "model.version": record.version,
        "model.runtime_seconds": record.runtime_seconds,
        "model.batch_size": record.batch_size,
    }
