"""The one place where what was noted of a request goes to: metrics, the access log, and a trace."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from keras_convnets.export.serving.access_log import AccessLog
from keras_convnets.export.serving.metrics import Metrics
from keras_convnets.export.serving.request_record import REQUEST_ID, RequestRecord, recording, request_id
from keras_convnets.export.serving.tracing import Tracer


class Observer:
    """Follows each request from its arrival to its answer.

    Args:
        metrics: what requests are counted in.
        access_log: what requests are written to; None for nothing.
        tracer: what makes spans of requests; by default OpenTelemetry, where it is installed.
    """

    def __init__(
        self, metrics: Metrics | None = None, access_log: AccessLog | None = None, tracer: Tracer | None = None
    ):
        self.metrics = metrics or Metrics()
        self._access_log = access_log
        self._tracer = tracer or Tracer()

    @contextlib.contextmanager
    def request(
        self, interface: str, call: str, peer: str = "", headers: Mapping[str, str] | None = None
    ) -> Iterator[RequestRecord]:
        """Follow a request while the block answers it; gives the record to be completed.

        Args:
            interface: "REST" or "gRPC".
            call: the HTTP method and path, or gRPC's method.
            peer: the client's address.
            headers: the HTTP headers or gRPC's metadata, with names in lower case.
        """
        headers = headers or {}
        record = RequestRecord(request_id(headers.get(REQUEST_ID)), interface, call, peer)
        span, began = self._tracer.span(record, headers), time.monotonic()
        try:
            with recording(record):
                yield record
        finally:
            record.seconds = time.monotonic() - began
            for rows in record.batches_begun:
                self.metrics.batch_size(record.model, record.version, rows)
            if self._access_log is not None:
                self._access_log.write(record)
            self._tracer.end(span, record)
