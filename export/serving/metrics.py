"""Request counts and latencies in Prometheus' text format, under TensorFlow Serving's names.

prometheus_client writes no counter without the suffix "_total", and TensorFlow Serving's has none, so the few
lines of text are written here.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import threading
import time
from collections.abc import Iterator

from keras_convnets.export.serving.status import Code

PROMETHEUS_PATH = "/monitoring/prometheus/metrics"

_REQUEST_COUNT = "/tensorflow/serving/request_count"
_REQUEST_LATENCY = "/tensorflow/serving/request_latency"
_RUNTIME_LATENCY = "/tensorflow/serving/runtime_latency"
_LABELS = {
    _REQUEST_COUNT: ("model_name", "status"),
    _REQUEST_LATENCY: ("model_name", "API", "entrypoint"),
    _RUNTIME_LATENCY: ("model_name", "API", "runtime"),
}
# Microseconds, up to about 25 minutes.
_LIMITS = [10 * 1.8**power for power in range(33)]
_BOUNDS = [*(f"{limit:.6g}" for limit in _LIMITS), "+Inf"]
# Model names come from requests: bounded, so that requests for unknown models can't exhaust the memory.
_MAX_COUNTS = 1000
_MAX_NAME = 256


class _Histogram:
    def __init__(self) -> None:
        self.counts = [0] * len(_BOUNDS)
        self.sum = 0

    def add(self, microseconds: int) -> None:
        self.counts[bisect.bisect_right(_LIMITS, microseconds)] += 1
        self.sum += microseconds


class Metrics:
    """What was asked and how long it took; safe to use from any thread.

    Example:
        >>> metrics = Metrics()
        >>> metrics.count_request("resnet20", Code.OK)
        >>> print(metrics.page().splitlines()[1])
        :tensorflow:serving:request_count{model_name="resnet20",status="OK"} 1
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], int] = {}
        self._histograms: dict[str, dict[tuple[str, ...], _Histogram]] = {_REQUEST_LATENCY: {}, _RUNTIME_LATENCY: {}}

    def count_request(self, model: str, code: Code) -> None:
        """Count a request that was answered; `model` is the name that was asked for, known or not."""
        with self._lock:
            key = (model[:_MAX_NAME], code.name)
            if key not in self._counts and len(self._counts) >= _MAX_COUNTS:
                key = ("", code.name)
            self._counts[key] = self._counts.get(key, 0) + 1

    def request_latency(self, model: str, api: str, entrypoint: str, seconds: float) -> None:
        """Record how long a successful request took; `entrypoint` is "REST" or "GRPC"."""
        self._record(_REQUEST_LATENCY, (model[:_MAX_NAME], api, entrypoint), seconds)

    @contextlib.contextmanager
    def runtime(self, model: str, api: str) -> Iterator[None]:
        """Record how long the block took, unless it raises: the model's own run."""
        began = time.monotonic()
        yield
        self._record(_RUNTIME_LATENCY, (model[:_MAX_NAME], api, "TF1"), time.monotonic() - began)

    def value(self, name: str) -> int:
        """Return a counter's value by its full name, as in `ReloadConfigRequest.metric_names`.

        TensorFlow Serving reads a counter only while it has a single combination of labels; otherwise, and for
        unknown names, the value is 0.

        Example:
            >>> Metrics().value("/tensorflow/serving/request_count")
            0
        """
        with self._lock:
            if name != _REQUEST_COUNT or len(self._counts) != 1:
                return 0
            return next(iter(self._counts.values()))

    def page(self) -> str:
        """Return everything in Prometheus' text format."""
        lines = []
        with self._lock:
            lines.append(f"# TYPE {_exported(_REQUEST_COUNT)} counter")
            for key, count in sorted(self._counts.items()):
                lines.append(f"{_exported(_REQUEST_COUNT)}{{{_labels(_REQUEST_COUNT, key)}}} {count}")
            for name, histograms in self._histograms.items():
                lines.append(f"# TYPE {_exported(name)} histogram")
                for key, histogram in sorted(histograms.items()):
                    lines += _histogram_lines(_exported(name), _labels(name, key), histogram)
        return "\n".join(lines) + "\n"

    def _record(self, name: str, key: tuple[str, ...], seconds: float) -> None:
        with self._lock:
            self._histograms[name].setdefault(key, _Histogram()).add(round(seconds * 1e6))


def _exported(name: str) -> str:
    return name.replace("/", ":")


def _labels(name: str, values: tuple[str, ...]) -> str:
    return ",".join(f'{label}="{_escaped(value)}"' for label, value in zip(_LABELS[name], values, strict=True))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _histogram_lines(name: str, labels: str, histogram: _Histogram) -> list[str]:
    totals = itertools.accumulate(histogram.counts)
    lines = [f'{name}_bucket{{{labels},le="{bound}"}} {total}' for bound, total in zip(_BOUNDS, totals, strict=True)]
    return [*lines, f"{name}_sum{{{labels}}} {histogram.sum}", f"{name}_count{{{labels}}} {sum(histogram.counts)}"]
