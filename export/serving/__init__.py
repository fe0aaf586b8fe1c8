"""A local endpoint that answers as TensorFlow Serving does, over REST and gRPC.

What works against it works unchanged against `tensorflow_model_server`: the same ports, URLs, bodies, status codes
and messages. The modules, in the order in which a request passes through them:

- `server`: `ModelServer` owns the parts below, `serve_forever` handles signals; `sockets` opens the ports.
- `rest` and `rpc`: the two front ends. REST: `app` receives and dispatches, `routes` parses URLs, `verbs` is the table
  of methods, `json_*` are request and response bodies. gRPC: `service` and `methods`.
- `admission`: request limits, estimates of a request's memory cost, and admission within the server's memory.
- `models`: which models and versions are served, their states, and how a request finds one.
- `scheduling`: deadlines, and the schedulers: a concurrency limit, or batching.
- `engines`: run a SavedModel, or an exported ONNX file; `signatures`: their inputs and outputs; `classify_regress`.
- `warmup`: a version's warm-up requests. `status`: status codes and errors.
- `observer` follows each request: `request_record` is what is noted of it, `metrics` the Prometheus page, `access_log`
  the lines of JSON, `tracing` OpenTelemetry's spans.
- `command` and `flag_files`: the flags of the command `serve` and the configuration files that they name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keras_convnets.extras import require

if TYPE_CHECKING:
    from keras_convnets.export.serving.server import ModelServer, serve_forever

__all__ = ["ModelServer", "serve_forever"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        require("serving", "the local server")
        return getattr(importlib.import_module("keras_convnets.export.serving.server"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
