"""Request counts, latencies and batch sizes in Prometheus' text format, under TensorFlow Serving's names.

Each has the label `model_version` besides TensorFlow Serving's; it is empty for requests that no version answered.

prometheus_client writes no counter without the suffix "_total", and TensorFlow Serving's has none, so the few
lines of text are written here.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from keras_convnets.export.serving.request_record import current_record
from keras_convnets.export.serving.status import Code

PROMETHEUS_PATH = "/monitoring/prometheus/metrics"

_REQUEST_COUNT = "/tensorflow/serving/request_count"
_REQUEST_LATENCY = "/tensorflow/serving/request_latency"
_RUNTIME_LATENCY = "/tensorflow/serving/runtime_latency"
# TensorFlow Serving shows no such metric.
_BATCH_SIZE = "/keras_convnets/serving/batch_size"
_LABELS = {
    _REQUEST_COUNT: ("model_name", "status", "model_version"),
    _REQUEST_LATENCY: ("model_name", "API", "entrypoint", "model_version"),
    _RUNTIME_LATENCY: ("model_name", "API", "runtime", "model_version"),
    _BATCH_SIZE: ("model_name", "model_version"),
}
# Microseconds, up to about 25 minutes.
_MICROSECONDS = [10 * 1.8**power for power in range(33)]
_ROWS = [2.0**power for power in range(13)]
# Model names come from requests and versions are published: bounded, so that neither can exhaust the memory.
_MAX_COUNTS = 1000
_MAX_NAME = 256


class _Histogram:
    """Counts values in buckets.

    Args:
        limits: the upper bounds of all buckets but the last, ascending.
        inclusive: whether a bound belongs to its bucket; TensorFlow Serving's do not.
    """

    def __init__(self, limits: Sequence[float], *, inclusive: bool = False) -> None:
        self.bounds = [*(f"{limit:.6g}" for limit in limits), "+Inf"]
        self.counts = [0] * len(self.bounds)
        self.sum = 0
        self._limits = limits
        self._bucket = bisect.bisect_left if inclusive else bisect.bisect_right

    def add(self, value: int) -> None:
        self.counts[self._bucket(self._limits, value)] += 1
        self.sum += value


_HISTOGRAMS: dict[str, Callable[[], _Histogram]] = {
    _REQUEST_LATENCY: functools.partial(_Histogram, _MICROSECONDS),
    _RUNTIME_LATENCY: functools.partial(_Histogram, _MICROSECONDS),
    _BATCH_SIZE: functools.partial(_Histogram, _ROWS, inclusive=True),
}


class Metrics:
    """What was asked and how long it took; safe to use from any thread.

    Example:
        >>> metrics = Metrics()
        >>> metrics.count_request("resnet20", Code.OK)
        >>> print(metrics.page().splitlines()[1])
        :tensorflow:serving:request_count{model_name="resnet20",status="OK",model_version=""} 1
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], int] = {}
        self._histograms: dict[str, dict[tuple[str, ...], _Histogram]] = {name: {} for name in _HISTOGRAMS}

    def count_request(self, model: str, code: Code) -> None:
        """Count the current request, which was answered; `model` is the name that was asked for, known or not."""
        with self._lock:
            key = (model[:_MAX_NAME], code.name, _version(current_record().version))
            if key not in self._counts and len(self._counts) >= _MAX_COUNTS:
                key = ("", code.name, "")
            self._counts[key] = self._counts.get(key, 0) + 1

    def request_latency(self, model: str, api: str, entrypoint: str, seconds: float) -> None:
        """Record how long the current request, which succeeded, took; `entrypoint` is "REST" or "GRPC"."""
        labels = model[:_MAX_NAME], api, entrypoint, _version(current_record().version)
        self._record(_REQUEST_LATENCY, labels, _microseconds(seconds))

    @contextlib.contextmanager
    def runtime(self, model: str, api: str) -> Iterator[None]:
        """Record how long the block took, unless it raises: the model's own run of the current request."""
        began = time.monotonic()
        yield
        record, seconds = current_record(), time.monotonic() - began
        record.runtime_seconds = seconds
        labels = model[:_MAX_NAME], api, "TF1", _version(record.version)
        self._record(_RUNTIME_LATENCY, labels, _microseconds(seconds))

    def batch_size(self, model: str, version: int | None, rows: int) -> None:
        """Record a batch that a version of a model ran, with its rows after padding."""
        self._record(_BATCH_SIZE, (model[:_MAX_NAME], _version(version)), rows)

    def value(self, name: str) -> int:
        """Return a counter's value by its full name, as in `ReloadConfigRequest.metric_names`.

        TensorFlow Serving reads a counter only while it has a single combination of its own labels; otherwise, and
        for unknown names, the value is 0.

        Example:
            >>> Metrics().value("/tensorflow/serving/request_count")
            0
        """
        with self._lock:
            if name != _REQUEST_COUNT or len({key[:2] for key in self._counts}) != 1:
                return 0
            return sum(self._counts.values())

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

    def _record(self, name: str, key: tuple[str, ...], value: int) -> None:
        with self._lock:
            histograms = self._histograms[name]
            if key not in histograms and len(histograms) >= _MAX_COUNTS:
                # Versions come and go while a server runs: the last label of each.
                key = (*key[:-1], "")
            if key not in histograms:
                histograms[key] = _HISTOGRAMS[name]()
            histograms[key].add(value)


def _version(version: int | None) -> str:
    return "" if version is None else str(version)


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


def _exported(name: str) -> str:
    return name.replace("/", ":")


def _labels(name: str, values: tuple[str, ...]) -> str:
    return ",".join(f'{label}="{_escaped(value)}"' for label, value in zip(_LABELS[name], values, strict=True))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _histogram_lines(name: str, labels: str, histogram: _Histogram) -> list[str]:
    pairs = zip(histogram.bounds, itertools.accumulate(histogram.counts), strict=True)
    lines = [f'{name}_bucket{{{labels},le="{bound}"}} {total}' for bound, total in pairs]
    return [*lines, f"{name}_sum{{{labels}}} {histogram.sum}", f"{name}_count{{{labels}}} {sum(histogram.counts)}"]
