"""Grafana's dashboard: requests, failures, latency, the model's own time, batches."""

from __future__ import annotations

from typing import Any

COUNT, LATENCY = ":tensorflow:serving:request_count", ":tensorflow:serving:request_latency_bucket"
RUNTIME, BATCH = ":tensorflow:serving:runtime_latency_bucket", ":keras_convnets:serving:batch_size"
# What the person who looks has chosen.
CHOSEN = '{model_name=~"$model"'
SOURCE = {"type": "prometheus", "uid": "prometheus"}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana's JSON, for a data source with the uid "prometheus"."""
    return {
        "uid": "keras-convnets-models",
        "title": "Served models",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_model_choice()]},
        "panels": [_panel(number, *panel) for number, panel in enumerate(_panels())],
    }


def _model_choice() -> dict[str, Any]:
    return {
        "name": "model",
        "type": "query",
        "datasource": SOURCE,
        "query": f"label_values({COUNT}, model_name)",
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "allValue": ".*",
    }


def _panels() -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Return the panels: a title, a unit, and expressions in PromQL with their legends."""
    faults = f'{CHOSEN},status!~"OK|INVALID_ARGUMENT|NOT_FOUND"}}'
    return [
        ("Requests per second, by status", "reqps", [(f"sum by (status) (rate({COUNT}{CHOSEN}}}[1m]))", "{{status}}")]),
        (
            "Share of requests that fail by the server's fault",
            "percentunit",
            [(f"sum(rate({COUNT}{faults}[5m])) / sum(rate({COUNT}{CHOSEN}}}[5m]))", "failed")],
        ),
        ("Latency", "s", [(_quantile(share, LATENCY), f"p{100 * share:g}") for share in (0.5, 0.95, 0.99)]),
        ("The model's own time", "s", [(_quantile(share, RUNTIME), f"p{100 * share:g}") for share in (0.5, 0.95)]),
        (
            "Mean rows of a batch (this package's endpoint)",
            "short",
            [(f"rate({BATCH}_sum{CHOSEN}}}[5m]) / rate({BATCH}_count{CHOSEN}}}[5m])", "{{model_name}}")],
        ),
        ("Requests per second, by model", "reqps", [(f"sum by (model_name) (rate({COUNT}[1m]))", "{{model_name}}")]),
    ]


def _quantile(share: float, metric: str) -> str:
    # The histograms are in microseconds.
    return f"histogram_quantile({share}, sum by (le) (rate({metric}{CHOSEN}}}[5m]))) / 1e6"


def _panel(number: int, title: str, unit: str, targets: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "id": number + 1,
        "title": title,
        "type": "timeseries",
        "datasource": SOURCE,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": "ABC"[index], "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for index, (expression, legend) in enumerate(targets)
        ],
    }
