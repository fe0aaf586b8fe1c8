"""The classic convolutional networks as Keras applications, exactly as published.

Importing this package imports neither Keras nor a backend: builders resolve on first use.

Example:
    >>> import keras_convnets
    >>> model = keras_convnets.ResNet20(classes=10)
    >>> keras_convnets.list_models("VGG*")
    ['VGG11', 'VGG13', 'VGG16', 'VGG19']
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from keras_convnets.networks.registry import ARCHITECTURES as ARCHITECTURES
from keras_convnets.networks.registry import BUILDERS, get_model, list_models
from keras_convnets.version import __version__

if TYPE_CHECKING:
    from keras_convnets.card import ModelCard as ModelCard
    from keras_convnets.classes import decode_predictions as decode_predictions
    from keras_convnets.classes import imagenet_classes as imagenet_classes
    from keras_convnets.images.preprocessing import Preprocessing as Preprocessing
    from keras_convnets.images.preprocessing import preprocess_input as preprocess_input
    from keras_convnets.networks.features import Stage as Stage
    from keras_convnets.networks.features import features as features
    from keras_convnets.networks.features import stages as stages
    from keras_convnets.networks.fully_convolutional import fully_convolutional as fully_convolutional
    from keras_convnets.networks.profile import ModelInfo as ModelInfo
    from keras_convnets.networks.profile import model_info as model_info
    from keras_convnets.networks.spec import ModelSpec as ModelSpec
    from keras_convnets.networks.table import *  # noqa: F403
    from keras_convnets.weights.keras_applications import from_keras_applications as from_keras_applications
    from keras_convnets.weights.pretrained import WeightsRecord as WeightsRecord
    from keras_convnets.weights.pretrained import get_record as get_record
    from keras_convnets.weights.pretrained import list_weights as list_weights
    from keras_convnets.weights.state_dict_writer import save_safetensors as save_safetensors

# Where each public name lives; a module here is imported when one of its names is first used.
_HOMES = {
    "ModelCard": "keras_convnets.card",
    "ModelInfo": "keras_convnets.networks.profile",
    "ModelSpec": "keras_convnets.networks.spec",
    "Preprocessing": "keras_convnets.images.preprocessing",
    "Stage": "keras_convnets.networks.features",
    "WeightsRecord": "keras_convnets.weights.pretrained",
    "decode_predictions": "keras_convnets.classes",
    "features": "keras_convnets.networks.features",
    "from_keras_applications": "keras_convnets.weights.keras_applications",
    "fully_convolutional": "keras_convnets.networks.fully_convolutional",
    "get_record": "keras_convnets.weights.pretrained",
    "imagenet_classes": "keras_convnets.classes",
    "list_weights": "keras_convnets.weights.pretrained",
    "model_info": "keras_convnets.networks.profile",
    "preprocess_input": "keras_convnets.images.preprocessing",
    "save_safetensors": "keras_convnets.weights.state_dict_writer",
    "stages": "keras_convnets.networks.features",
    "without_auxiliary": "keras_convnets.networks.googlenet",
    **{name: family.path for name, family in BUILDERS.items()},
}

__all__ = ["__version__", "get_model", "list_models", *_HOMES]


# keras.saving.load_model finds custom layers and models only where they are registered. They are registered when Keras
# itself is imported, before or after this package, so that importing this package need not import Keras.
def _register_layers(keras: ModuleType) -> None:
    importlib.import_module("keras_convnets.networks.layers")
    importlib.import_module("keras_convnets.networks.functional")


wrapt.register_post_import_hook(_register_layers, "keras")


if not TYPE_CHECKING:
    # Type checkers would take any name for one of the package's.
    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
