"""The classic convolutional networks as Keras applications, to the papers' letter.

Importing this package imports neither Keras nor a backend: builders resolve on first use.

Example:
    >>> import keras_convnets
    >>> model = keras_convnets.ResNet20(classes=10)
    >>> keras_convnets.list_models("ResNet*")
    ['ResNet20', 'ResNet32', 'ResNet44', 'ResNet56', 'ResNet110', 'ResNet1202']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import wrapt

from keras_convnets.registry import ARCHITECTURES, get_model, list_models
from keras_convnets.version import __version__

if TYPE_CHECKING:
    from keras_convnets.card import ModelCard as ModelCard
    from keras_convnets.info import ModelInfo as ModelInfo
    from keras_convnets.info import model_info as model_info
    from keras_convnets.preprocessing import Preprocessing as Preprocessing
    from keras_convnets.preprocessing import preprocess_input as preprocess_input
    from keras_convnets.resnet_cifar import CIFARPlainNet as CIFARPlainNet
    from keras_convnets.resnet_cifar import CIFARResNet as CIFARResNet
    from keras_convnets.resnet_cifar import PlainNet20 as PlainNet20
    from keras_convnets.resnet_cifar import PlainNet32 as PlainNet32
    from keras_convnets.resnet_cifar import PlainNet44 as PlainNet44
    from keras_convnets.resnet_cifar import PlainNet56 as PlainNet56
    from keras_convnets.resnet_cifar import PlainNet110 as PlainNet110
    from keras_convnets.resnet_cifar import ResNet20 as ResNet20
    from keras_convnets.resnet_cifar import ResNet32 as ResNet32
    from keras_convnets.resnet_cifar import ResNet44 as ResNet44
    from keras_convnets.resnet_cifar import ResNet56 as ResNet56
    from keras_convnets.resnet_cifar import ResNet110 as ResNet110
    from keras_convnets.resnet_cifar import ResNet1202 as ResNet1202

# Where each public name lives; a module here is imported when one of its names is first used.
_HOMES = {
    "CIFARPlainNet": "keras_convnets.resnet_cifar",
    "CIFARResNet": "keras_convnets.resnet_cifar",
    "ModelCard": "keras_convnets.card",
    "ModelInfo": "keras_convnets.info",
    "Preprocessing": "keras_convnets.preprocessing",
    "model_info": "keras_convnets.info",
    "preprocess_input": "keras_convnets.preprocessing",
    **{architecture.name: architecture.module for architecture in ARCHITECTURES.values()},
}

__all__ = ["__version__", "get_model", "list_models", *_HOMES]

# keras.saving.load_model finds custom layers only where they are registered. They are registered when Keras itself
# is imported, before or after this package, so that importing this package need not import Keras.
wrapt.register_post_import_hook(lambda keras: importlib.import_module("keras_convnets.layers"), "keras")


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
