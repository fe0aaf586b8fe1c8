"""The optional dependencies: which extra installs what, and the error message for a missing one."""

from __future__ import annotations

import importlib.util

from keras_convnets.errors import UserError

# Of each extra of setup.cfg: the modules that are imported, and the distributions that bring them.
EXTRAS = {
    "train": {
        "matplotlib": "matplotlib",
        "sklearn": "scikit-learn",
        "tensorboard": "tensorboard",
        "tensorflow_datasets": "tensorflow-datasets",
        "importlib_resources": "importlib_resources",
    },
    "export": {
        "onnxruntime": "onnxruntime",
        "sklearn": "scikit-learn",
        "tensorflow_serving": "tensorflow-serving-api",
        "tf2onnx": "tf2onnx",
    },
    "serving": {
        "grpc": "grpcio",
        "grpc_health": "grpcio-health-checking",
        "httptools": "httptools",
        "onnxruntime": "onnxruntime",
        "pybase64": "pybase64",
        "tensorflow_serving": "tensorflow-serving-api",
        "uvicorn": "uvicorn",
    },
    "hub": {"huggingface_hub": "huggingface-hub"},
}


class MissingExtra(UserError, ImportError):
    """The feature needs an extra that is not installed; the message says how to install it."""


def require(extra: str, doing: str, *modules: str) -> None:
    """Refuse to begin what an extra is missing for: before the work, not in the midst of it. Nothing is imported.

    Args:
        extra: a key of `EXTRAS`.
        doing: what needs it, such as "training".
        *modules: those of the extra that are needed; by default all.

    Raises:
        MissingExtra: if one of them is not installed.
    """
    for module in modules or EXTRAS[extra]:
        if importlib.util.find_spec(module) is None:
            raise MissingExtra(
                f"{doing} needs {EXTRAS[extra][module]}, which is not installed; "
                f"run: pip install 'keras-convnets[{extra}]'"
            )
