"""A local endpoint that answers as TensorFlow Serving does, over REST and gRPC.

What works against it works unchanged against `tensorflow_model_server`: the same ports, URLs, bodies, status codes
and messages. From a request's way through the files:

- `server`: `ModelServer` owns the models and both front ends; `serve_forever` adds the signals.
- `rest` and `grpc_service`: the two thin front ends.
- `urls`, `codec`, `json_text` and `tensor_protos`: the URL grammar, JSON and protocol buffers to tensors and back.
- `servables`: base paths, versions and their states, and how a request finds one.
- `limits`, `costs` and `admission`: what a client may ask for, what a request will take, and who may work now.
- `turns` and `batching`: whose turn it is, and which requests run together.
- `engine` and `onnx_engine`: run a SavedModel, or an exported ONNX file. `old_graphs`: SavedModels of before
  TensorFlow 1.0. `warming`: a version's own first requests.
- `configuration` and `command`: what is said in files and in the flags of the command `serve`.
- `dtypes`, `status` and `names`: the names that all of them share, and those of clients made safe for a log.
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
