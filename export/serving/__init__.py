"""A local endpoint that answers as TensorFlow Serving does, over REST and gRPC.

What works against it works unchanged against `tensorflow_model_server`: the same ports, URLs, bodies, status codes
and messages. The rooms, in the order in which a request passes through them:

- `server`: `ModelServer` owns all that follows, `serve_forever` adds the signals; `sockets` opens the ports.
- `rest` and `rpc`: the two front ends. REST: `app` receives and dispatches, `routes` is the URL grammar, `verbs` the
  table of what can be asked for, `json_*` bodies and answers. gRPC: `service` and `methods`.
- `admission`: the limits for one client, what a request will cost, and admission within a server's memory.
- `models`: which models and versions are served, their states, and how a request finds one.
- `scheduling`: deadlines, and the schedulers: a concurrency limit, or batches.
- `engines`: run a SavedModel, or an exported ONNX file; `signatures`: what they take and give; `classify_regress`.
- `warmup`: a version's own first requests. `metrics`: what Prometheus reads. `status`: codes and errors.
- `command` and `flag_files`: what the flags of the command `serve` and the files that they name say.
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
